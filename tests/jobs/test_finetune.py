import csv
import dataclasses
import errno
import io
import json
import math
import multiprocessing
import shutil

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from jobshop import add_data, add_job, events_of, examples, finetune_with_room, model_bytes, outcome_of, pairs, problems
from tunekeeper.errors import DiskFull
from tunekeeper.jobs import queue
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.finetune import generation_prompt, machine_of, run
from tunekeeper.jobs.prepare import Desk
from tunekeeper.jobs.submit import Submission, submit
from tunekeeper.models.load import load_adapter, load_decoder
from tunekeeper.models.lora import AdapterRows
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import Job, Model, Tree

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


def test_weights_that_learn_are_fp32_unless_the_job_says_otherwise(desk):
    desk = dataclasses.replace(desk, settings=dataclasses.replace(desk.settings, dtype="bf16"))
    dtypes = [
        machine_of(add_job(desk, **hyperparameters), desk)["dtype"]
        for hyperparameters in ({}, {"full_finetune": True}, {"full_finetune": True, "dtype": "bf16"})
    ]
    assert dtypes == ["bf16", "fp32", "bf16"]


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
    job = add_job(desk, lora_rank=128)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=finetune_with_room, args=(desk.settings.home, job.id, 800_000))
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


def test_a_preference_job_tells_rewards_margins_and_accuracy(desk):
    job = run_through(desk, add_job(desk, method="dpo", validation=pairs(4, first=100), learning_rate_multiplier=20))
    assert (job.status, job.error) == ("succeeded", None)
    assert (job.resolved["beta"], job.resolved["batch_size"]) == (0.1, 4)
    metrics = [event.data for event in events_of(desk, job) if event.type == "metrics"]
    assert [data["step"] for data in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics[-1]["train_reward_margin"] > 0.01
    assert metrics[-1]["train_preference_accuracy"] == 1
    assert {"train_chosen_reward", "train_rejected_reward", "valid_reward_margin"} <= set(metrics[-1])
    rows = list(csv.DictReader(io.StringIO(outcome_of(desk, job).results.decode())))
    assert float(rows[-1]["train_reward_margin"]) == metrics[-1]["train_reward_margin"]
    assert float(rows[-1]["full_valid_preference_accuracy"]) >= 0.5
    (checkpoint, _) = desk.store.list_checkpoints(job.id).data
    assert checkpoint.metrics["full_valid_reward_margin"] == metrics[-1]["full_valid_reward_margin"]


def test_a_preference_job_that_dies_in_its_preparation_or_later_gives_the_same_bytes(desk):
    whole = run_through(desk, add_job(desk, method="dpo"))
    job = add_job(desk, method="dpo")
    run(job.id, desk)
    run(job.id, nudged(desk, 2, ask_for_pause))
    assert desk.store.get_job(job.id).status == "paused"
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert model_bytes(desk, job.fine_tuned_model) == model_bytes(desk, whole.fine_tuned_model)
    assert outcome_of(desk, job).results == outcome_of(desk, whole).results


def test_preferences_on_a_tuned_model_go_on_with_its_adapter(desk):
    first = run_through(desk, add_job(desk))
    second = run_through(desk, add_job(desk, method="dpo", model=first.fine_tuned_model))
    model = desk.store.get_model(second.fine_tuned_model)
    assert (model.base, model.parent, model.kind) == ("tiny", first.fine_tuned_model, "adapter")
    loss = next(event.data["train_loss"] for event in events_of(desk, second) if event.type == "metrics")
    assert loss == pytest.approx(math.log(2), abs=1e-4)  # the reference is the parent, not the base


def test_a_faulty_pair_fails_the_job_with_its_place(desk):
    same = [{"role": "assistant", "content": "x"}]
    line = {"input": {"messages": [{"role": "user", "content": "?"}]}, "preferred_output": same}
    faulty = json.dumps({**line, "non_preferred_output": same}).encode() + b"\n"
    job = run_through(desk, add_job(desk, method="dpo", data=pairs() + faulty))
    assert job.error["code"] == "invalid_training_file"
    (detail,) = job.error["details"]
    assert (detail["line"], detail["pointer"], detail["code"]) == (13, "/non_preferred_output", "dpo_identical_pair")


def test_a_reinforcement_job_learns_what_its_grader_likes(desk):
    job = add_job(
        desk, method="reinforcement", validation=problems(4, first=100), learning_rate_multiplier=30,
        n_epochs=6, eval_interval=6, num_generations=6,
    )  # fmt: skip
    job = run_through(desk, job)
    assert (job.status, job.error) == ("succeeded", None)
    events = events_of(desk, job)
    metrics = [event.data for event in events if event.type == "metrics"]
    assert len(metrics) == 18
    first = next(event.message for event in events if event.message.startswith("Before training"))
    assert metrics[-1]["valid_reward_mean"] > float(first.partition("=")[2]) + 0.1
    assert {"usage", "errors", "scores", "timing", "train_mean_reward", "completion_tokens_mean"} <= set(metrics[0])
    (grader,) = metrics[-1]["scores"]["graders"]
    assert (grader["name"], grader["type"]) == ("letters", "python")
    assert grader["train_reward_mean"] == metrics[-1]["train_reward_mean"]
    assert any(event.message.startswith("Step 6/18 , train mean reward=0.") for event in events)
    rows = list(csv.DictReader(io.StringIO(outcome_of(desk, job).results.decode())))
    assert float(rows[-1]["valid_reward_mean"]) == metrics[-1]["valid_reward_mean"]
    checkpoint = desk.store.list_checkpoints(job.id).data[0]
    assert checkpoint.metrics["valid_reward_mean"] == metrics[-1]["valid_reward_mean"]


def test_the_best_and_worst_answers_of_each_evaluation_are_kept_for_reading(desk):
    job = run_through(desk, add_job(desk, method="reinforcement", validation=problems(4, first=100), eval_interval=3))
    with desk.open(job.extra["samples_file"]) as stream:
        shown = [json.loads(line) for line in stream]
    assert [each["step"] for each in shown] == [3, 6]
    for each in shown:
        best, worst = ([answer["reward"] for answer in each[name]] for name in ("best", "worst"))
        assert min(best) >= max(worst)
        assert each["best"][0].keys() >= {"line", "prompt", "output", "reward"}
        assert each["file"] == "validation"
    assert {each["prompt"] for each in shown[0]["best"]} <= {f"Which city has the number {k}?" for k in range(100, 104)}


def test_a_paused_reinforcement_job_goes_on_to_the_same_bytes(desk):
    asked = {"method": "reinforcement", "validation": problems(2, first=100), "eval_interval": 2}
    whole = run_through(desk, add_job(desk, **asked))
    job = add_job(desk, **asked)
    run(job.id, desk)
    run(job.id, nudged(desk, 3, ask_for_pause))
    assert desk.store.get_job(job.id).status == "paused"
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert model_bytes(desk, job.fine_tuned_model) == model_bytes(desk, whole.fine_tuned_model)
    assert outcome_of(desk, job).results == outcome_of(desk, whole).results


def test_supervised_then_preferences_then_reinforcement_is_one_adapter_with_its_lineage(desk, tiny_base):
    model = "tiny"
    for method in ("supervised", "dpo", "reinforcement"):
        model = run_through(desk, add_job(desk, method=method, model=model)).fine_tuned_model
    last = desk.store.get_model(model)
    chain = []
    while model != "tiny":
        kept = desk.store.get_model(model)
        chain.append(desk.store.get_job(kept.job_id).method["type"])
        assert (kept.base, kept.kind) == ("tiny", "adapter")
        model = kept.parent or kept.base
    assert chain == ["reinforcement", "dpo", "supervised"]
    # One adapter came out, and PEFT computes with it what we do.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, desk.settings.home / last.path).eval()
    decoder = load_decoder(tiny_base, dtype="fp32")
    adapter = load_adapter(desk.settings.home / last.path, decoder)
    packed = pack([Tree((5, 9, 40, 70), ())])
    with torch.no_grad():
        hidden = decoder.hidden(
            packed.tokens_T, packed.positions_T, TreeAttention(packed.spans), adapters=(AdapterRows(adapter, 0, 4),)
        )
        expected = theirs(input_ids=packed.tokens_T[None]).logits[0]
    torch.testing.assert_close(decoder.logits(hidden), expected, rtol=1e-4, atol=1e-4)


def test_a_grader_that_always_fails_fails_the_job_with_its_words(desk):
    broken = {"type": "python", "name": "broken", "source": "def grade(sample, item):\n    return 1 / 0\n"}
    job = run_through(desk, add_job(desk, method="reinforcement", grader=broken, n_epochs=3))
    assert (job.status, job.error["code"]) == ("failed", "grader_failed")
    assert "broken (python_grader_runtime_error)" in job.error["message"]
    assert "ZeroDivisionError" in job.error["message"]
    assert job.step == 3


def test_a_job_whose_answers_all_score_the_same_says_that_there_is_nothing_to_learn(desk):
    flat = {"type": "string_check", "name": "never", "input": "{{sample.output_text}}", "operation": "eq",
            "reference": "{{item.city}}"}  # fmt: skip
    job = run_through(desk, add_job(desk, method="reinforcement", grader=flat, n_epochs=3))
    assert (job.status, job.error["code"]) == ("failed", "no_learning_signal")
    assert "same score" in job.error["message"]


def test_a_variable_that_a_line_lacks_fails_the_job_before_training(desk):
    grader = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "operation": "eq",
              "reference": "{{item.town}}"}  # fmt: skip
    job = run_through(desk, add_job(desk, method="reinforcement", grader=grader))
    assert (job.status, job.error["code"]) == ("failed", "invalid_training_file")
    assert len(job.error["details"]) == 12
    assert job.error["details"][0]["code"] == "missing_grader_variable"


def test_answers_are_held_to_the_response_format(desk):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    grader = {"type": "string_check", "name": "yes", "input": "{{sample.output_json.a}}", "operation": "eq",
              "reference": "true"}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    job = run_through(
        desk, add_job(desk, method="reinforcement", grader=grader, response_format=form, max_completion_tokens=40)
    )
    assert (job.status, job.error) == ("succeeded", None)
    with desk.open(job.extra["samples_file"]) as stream:
        for line in stream:
            for answer in json.loads(line)["best"]:
                assert json.loads(answer["output"]) in ({"a": True}, {"a": False})
