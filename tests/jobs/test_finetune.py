import dataclasses
import errno
import json
import multiprocessing
import shutil

import pytest
from safetensors.torch import load_file, save_file

from jobshop import add_data, add_job, events_of, examples, finetune_with_room, model_bytes, outcome_of
from tunekeeper.errors import DiskFull
from tunekeeper.jobs import queue
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.finetune import generation_prompt, run
from tunekeeper.jobs.prepare import Desk
from tunekeeper.jobs.submit import Submission, submit
from tunekeeper.types import Job, Model

pytestmark = pytest.mark.usefixtures("threads")


def run_through(desk: Desk, job: Job) -> Job:
    """Run the phases of a job, as a worker would."""
    run(job.id, desk)
    if desk.store.get_job(job.id).status == "queued":
        run(job.id, desk)
    return desk.store.get_job(job.id)


class Nudge:
    """A store that does something when a step's metrics come in."""

    def __init__(self, store, step, act):
        self._store, self._step, self._act = store, step, act

    def __getattr__(self, name):
        return getattr(self._store, name)

    def update_job(self, job_id, **changes):
        if changes.get("step") == self._step:
            self._act(self._store, job_id)
        return self._store.update_job(job_id, **changes)


def nudged(desk, step, act):
    return dataclasses.replace(desk, store=Nudge(desk.store, step, act))


def ask_for_pause(store, job_id):
    store.update_job(job_id, step=1)
    queue.pause(store, job_id)


def messages(desk, job):
    return [event.message for event in events_of(desk, job)]


def test_a_job_tells_its_story_in_the_words_that_people_search_for(desk):
    job = run_through(desk, add_job(desk, validation=examples(4, first=100)))
    said = messages(desk, job)
    assert job.status == "succeeded"
    assert said[:5] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        f"Validating validation file: {job.validation_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert said[5].startswith("Step 1/6: training loss=")
    assert ", validation loss=" in said[5]
    assert "Checkpoint created at step 3" in said
    assert said[-2:] == [
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert job.fine_tuned_model.startswith("ft:tiny:tunekeeper:test:")


def test_every_number_is_resolved_and_shown(desk):
    job = run_through(desk, add_job(desk, n_epochs="auto", batch_size="auto"))
    assert job.resolved["n_epochs"] == 6
    assert job.resolved["batch_size"] == 1
    assert job.resolved["dtype"] == "fp32"
    assert "auto" not in job.resolved.values()
    assert job.total_steps == job.step == 72
    assert job.trained_tokens == job.estimate["billable_tokens"]


def test_a_paused_job_goes_on_to_the_same_bytes(desk):
    whole = run_through(desk, add_job(desk))
    job = add_job(desk)
    run(job.id, desk)
    run(job.id, nudged(desk, 2, ask_for_pause))
    paused = desk.store.get_job(job.id)
    assert (paused.status, paused.request, paused.step) == ("paused", None, 2)
    assert len(outcome_of(desk, paused).results.splitlines()) == 1 + 2  # a header, and what was done so far
    left = desk.store.list_checkpoints(job.id).data
    assert [checkpoint.step for checkpoint in left] == [2]
    assert set(model_bytes(desk, left[0].model)) == {"adapter_config.json", "adapter_model.safetensors"}
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert job.status == "succeeded"
    assert model_bytes(desk, job.fine_tuned_model) == model_bytes(desk, whole.fine_tuned_model)
    assert outcome_of(desk, job).results == outcome_of(desk, whole).results
    assert [c.step for c in desk.store.list_checkpoints(job.id).data] == [6, 3, 2]


def test_a_pause_in_the_last_step_comes_too_late(desk):
    job = add_job(desk)
    run(job.id, desk)
    run(job.id, nudged(desk, 6, ask_for_pause))
    job = desk.store.get_job(job.id)
    assert (job.status, job.request) == ("succeeded", None)


@pytest.mark.parametrize(("limit", "price"), [("max_wall_seconds", 0.0), ("max_cost", 3.6e9)])
def test_a_limit_pauses_the_job_once(desk, limit, price):
    desk = dataclasses.replace(desk, settings=dataclasses.replace(desk.settings, price_per_hour=price))
    job = add_job(desk, **{limit: 1e-6})
    run_through(desk, job)
    assert desk.store.get_job(job.id).status == "paused"
    assert any(limit in event.message and event.level == "warn" for event in events_of(desk, job))
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    assert desk.store.get_job(job.id).status == "succeeded"


def test_a_job_that_was_cancelled_or_taken_over_is_left_alone(desk):
    job = add_job(desk)
    run(job.id, desk)
    run(job.id, nudged(desk, 2, lambda store, job_id: store.update_job(job_id, status="cancelled")))
    assert desk.store.get_job(job.id).status == "cancelled"
    assert [m.id for m in desk.store.list_models()] == ["tiny"]
    other = add_job(desk)
    run(other.id, desk)
    run(other.id, nudged(desk, 2, lambda store, job_id: store.update_job(job_id, attempts=9)))
    assert desk.store.get_job(other.id).status == "running"
    assert "Checkpoint created at step 3" not in messages(desk, other)


def test_faulty_lines_fail_the_job_with_all_of_them(desk):
    job = run_through(desk, add_job(desk, data=examples() + b'{"messages": []}\nnot json\n'))
    assert job.status == "failed"
    assert (job.error["code"], job.error["param"]) == ("invalid_training_file", "training_file")
    assert {detail["line"] for detail in job.error["details"]} == {13, 14}
    (report,) = desk.store.list_files(purpose="fine-tune-results").data
    assert report.id in job.error["message"]
    with desk.open(report.id) as stream:
        assert {json.loads(line)["line"] for line in stream} >= {13, 14}
    assert events_of(desk, job)[-1].level == "error"


def test_too_few_examples_are_named_as_the_hosted_service_does(desk):
    job = run_through(desk, add_job(desk, data=examples(3)))
    assert job.error["code"] == "invalid_n_examples"
    assert "has 3 example(s), but must have at least 10 examples" in job.error["message"]


def test_a_faulty_validation_file_is_named(desk):
    job = run_through(desk, add_job(desk, validation=b"{}\n"))
    assert (job.error["code"], job.error["param"]) == ("invalid_validation_file", "validation_file")


def test_examples_that_are_cut_or_doubtful_are_warned_of(desk):
    job = run_through(desk, add_job(desk, data=examples() + examples(1), max_seq_len=38))
    warnings = [event.message for event in events_of(desk, job) if event.level == "warn"]
    assert any("repeat an earlier example" in text for text in warnings)
    assert any("longer than the model is trained on" in text for text in warnings)


def test_only_the_newest_checkpoints_are_kept_where_so_set(desk):
    desk = dataclasses.replace(desk, settings=dataclasses.replace(desk.settings, keep_checkpoints=2))
    job = run_through(desk, add_job(desk, n_epochs=4))
    kept = desk.store.list_checkpoints(job.id).data
    assert [checkpoint.step for checkpoint in kept] == [12, 9]
    models = [model for model in desk.store.list_models() if model.job_id == job.id]
    assert {model.step for model in models} == {9, 12, None}
    assert len(list((desk.settings.home / "models").iterdir())) == 3


def test_a_job_on_a_checkpoint_trains_that_adapter_on(desk):
    first = run_through(desk, add_job(desk))
    checkpoint = desk.store.list_checkpoints(first.id).data[0]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 12}}}
    submission = Submission(
        model=checkpoint.model,
        training_file=add_data(desk, examples()),
        method=method,
        seed=7,
    )
    job = run_through(desk, submit(submission, desk.store, desk.settings))
    assert (job.status, job.resolved["lora_rank"], job.resolved["lora_alpha"]) == ("succeeded", 4, 8.0)
    model = desk.store.get_model(job.fine_tuned_model)
    assert (model.base, model.parent) == ("tiny", checkpoint.model)
    assert model.id.startswith("ft:tiny:")
    losses = [event.data["train_loss"] for event in events_of(desk, first) if event.data]
    again = [event.data["train_loss"] for event in events_of(desk, job) if event.data]
    assert again[0] < losses[0]


def test_full_fine_tuning_gives_weights_that_a_job_can_start_from(desk):
    job = run_through(desk, add_job(desk, full_finetune=True))
    model = desk.store.get_model(job.fine_tuned_model)
    assert (model.kind, model.base) == ("full", "tiny")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(model_bytes(desk, model.id))
    child = run_through(desk, add_job(desk, model=model.id))
    assert desk.store.get_model(child.fine_tuned_model).base == model.id
    assert child.fine_tuned_model.startswith("ft:tiny:")


def test_an_adapter_of_completions_begins_with_the_generation_prompt(desk):
    job = run_through(desk, add_job(desk, adapter_scope="completion"))
    config = json.loads(model_bytes(desk, job.fine_tuned_model)["adapter_config.json"])
    expected = desk.tokenizer(job).encode("<|im_start|>assistant\n")
    assert config["alora_invocation_tokens"] == expected == list(generation_prompt(desk.tokenizer(job)))


def test_a_run_whose_loss_is_no_number_fails(desk, tiny_base, tmp_path):
    broken = shutil.copytree(tiny_base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors")
    desk.store.add_model(Model(id="broken", created_at=1, kind="base", path=str(broken), base="broken"))
    job = run_through(desk, add_job(desk, model="broken"))
    assert (job.status, job.error["code"]) == ("failed", "diverged")
    assert "train_loss" not in next(event.data for event in events_of(desk, job) if event.type == "metrics")
    assert job.fine_tuned_model is None


class FullDisk:
    """Blobs on a disk without room."""

    def __init__(self, blobs):
        self._blobs = blobs

    def __getattr__(self, name):
        return getattr(self._blobs, name)

    def put(self, stream):
        raise DiskFull("no room")


def test_a_full_disk_fails_the_job_and_a_resume_finishes_it_to_the_same_bytes(desk):
    whole = run_through(desk, add_job(desk))
    job = add_job(desk)
    run(job.id, desk)
    run(job.id, dataclasses.replace(desk, blobs=FullDisk(desk.blobs)))
    failed = desk.store.get_job(job.id)
    assert (failed.status, failed.error["code"]) == ("failed", "disk_full")
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert (job.status, job.error) == ("succeeded", None)
    assert model_bytes(desk, job.fine_tuned_model) == model_bytes(desk, whole.fine_tuned_model)


def test_a_state_that_does_not_fit_on_the_disk_leaves_the_one_before_it_whole(desk):
    job = add_job(desk, lora_rank=64)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=finetune_with_room, args=(desk.settings.home, job.id, 400_000))
    process.start()
    process.join()
    assert process.exitcode == 0
    failed = desk.store.get_job(job.id)
    assert (failed.status, failed.error["code"]) == ("failed", "disk_full")
    assert "Free some space" in failed.error["message"]
    assert not list(job_directory(desk.settings.home, job.id).glob("state/.*"))
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    assert desk.store.get_job(job.id).status == "succeeded"


def test_an_unexpected_fault_is_a_crash_that_the_worker_sees(desk):
    class Broken(FullDisk):
        def put(self, stream):
            raise OSError(errno.EIO, "the disk is broken")

    job = add_job(desk)
    run(job.id, desk)
    with pytest.raises(OSError, match="broken"):
        run(job.id, dataclasses.replace(desk, blobs=Broken(desk.blobs)))
    assert desk.store.get_job(job.id).status == "running"
