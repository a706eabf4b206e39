"""Fine-tuning as the official client sees it, from the upload to the stacked model, with real workers."""

import csv
import io
import time

import openai
import pytest

from jobshop import LETTERS, examples, open_desk, pairs, problems, settings_of
from tunekeeper.api.server import background

DONE = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, tiny_base):
    home = tmp_path_factory.mktemp("home")
    open_desk(home, tiny_base).store.close()
    with background(settings_of(home)) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def azure(base_url):
    root = base_url.removesuffix("/v1")
    with openai.AzureOpenAI(
        azure_endpoint=root, api_key="none", api_version="2025-04-01-preview", max_retries=0
    ) as client:
        yield client


def supervised(**hyperparameters):
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def upload(client, content):
    return client.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def wait(client, job_id, is_there, timeout_s=300):
    deadline = time.monotonic() + timeout_s
    while not is_there(job := client.fine_tuning.jobs.retrieve(job_id)):
        assert time.monotonic() < deadline, job
        assert job.status not in DONE or is_there(job), job
        time.sleep(0.1)
    return job


@pytest.fixture(scope="module")
def done(client):
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, examples()),
        validation_file=upload(client, examples(4, first=100)),
        method=supervised(n_epochs=2, batch_size=4, lora_rank=4),
        suffix="capitals",
        seed=11,
        metadata={"team": "maps"},
    )
    assert job.status == "validating_files"
    return wait(client, job.id, lambda job: job.status == "succeeded")


def test_a_sweep_is_a_job_with_one_more_field(client):
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, examples()),
        validation_file=upload(client, examples(4, first=100)),
        method=supervised(n_epochs=1, batch_size=6, lora_rank=4),
        seed=11,
        extra_body={"sweep": {"space": {"learning_rate_multiplier": [1, 30]}, "fast": True}},
    )
    assert job.sweep["search"] == "grid"
    job = wait(client, job.id, lambda job: job.status == "succeeded")
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    found = client.get(f"/fine_tuning/jobs/{job.id}/sweep", cast_to=dict[str, object])
    assert found["object"] == "fine_tuning.job.sweep"
    assert [trial["status"] for trial in found["trials"]] == ["completed", "stopped"]
    assert found["trials"][0]["trial"] == found["best_trial"]
    rate = found["trials"][0]["hyperparameters"]["learning_rate_multiplier"]
    assert job.hyperparameters.learning_rate_multiplier == rate
    names = [client.files.retrieve(file).filename for file in job.result_files]
    assert names == ["step_metrics.csv", "trials.csv", "trials.svg"]
    assert client.files.content(job.result_files[1]).text.startswith("trial,learning_rate_multiplier,status")
    assert b"<svg" in client.files.content(job.result_files[2]).read()


def test_what_a_sweep_does_not_know_is_refused_by_name(client):
    file = upload(client, examples())
    for sweep, param in (
        ({"space": {"learning_rate_multiplier": [1, 3]}, "budget": 1}, "sweep.budget"),
        ({"space": {"warmup_ratio": [0, 1]}}, "sweep.space.warmup_ratio"),
        ({"space": {"lora_rank": [0, 4]}}, "sweep.space.lora_rank"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(model="tiny", training_file=file, extra_body={"sweep": sweep})
        assert caught.value.param == param
    plain = client.fine_tuning.jobs.create(model="tiny", training_file=file)
    with pytest.raises(openai.NotFoundError, match="is no sweep"):
        client.get(f"/fine_tuning/jobs/{plain.id}/sweep", cast_to=dict[str, object])
    client.fine_tuning.jobs.cancel(plain.id)


def test_a_job_ends_with_a_model_that_the_api_knows(client, done):
    assert done.fine_tuned_model.startswith("ft:tiny:tunekeeper:capitals:")
    assert client.models.retrieve(done.fine_tuned_model).id == done.fine_tuned_model
    assert (done.seed, done.metadata, done.error) == (11, {"team": "maps"}, None)
    assert done.trained_tokens > 0
    assert done.finished_at >= done.created_at
    assert done.method.supervised.hyperparameters.n_epochs == 2
    assert done.hyperparameters.batch_size == 4
    assert isinstance(done.hyperparameters.learning_rate_multiplier, float)


def test_every_event_is_read_once_whatever_the_page(client, done):
    events = list(client.fine_tuning.jobs.list_events(done.id, limit=3))
    assert len({event.id for event in events}) == len(events)
    messages = [event.message for event in reversed(events)]
    assert messages[0] == f"Created fine-tuning job: {done.id}"
    assert messages[-1] == "The job has successfully completed"
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [data["step"] for data in metrics] == [6, 5, 4, 3, 2, 1]
    assert {"train_loss", "train_mean_token_accuracy", "valid_loss", "total_steps"} <= set(metrics[0])


def test_checkpoints_are_models_with_metrics(client, done):
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(done.id))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 3]
    for checkpoint in checkpoints:
        assert checkpoint.fine_tuned_model_checkpoint.startswith(f"{done.fine_tuned_model}:ckpt-step-")
        assert checkpoint.metrics.full_valid_loss > 0
        client.models.retrieve(checkpoint.fine_tuned_model_checkpoint)


def test_the_result_file_is_a_plain_csv(client, done):
    (result,) = done.result_files
    assert client.files.retrieve(result).purpose == "fine-tune-results"
    rows = list(csv.DictReader(io.StringIO(client.files.content(result).text)))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[-1]["full_valid_loss"]) > 0
    assert rows[0]["train_accuracy"] == rows[0]["train_mean_token_accuracy"]


def test_a_job_on_a_checkpoint_through_the_azure_client(azure, done):
    checkpoint = azure.fine_tuning.jobs.checkpoints.list(done.id).data[-1]
    job = azure.fine_tuning.jobs.create(
        model=checkpoint.fine_tuned_model_checkpoint,
        training_file=done.training_file,
        hyperparameters={"n_epochs": 1},
        extra_body={"trainingType": "GlobalStandard"},
    )
    job = wait(azure, job.id, lambda job: job.status == "succeeded")
    assert job.fine_tuned_model.startswith("ft:tiny:tunekeeper::")
    assert job.method.supervised.hyperparameters.lora_rank == 4
    azure.delete(f"/fine_tuning/jobs/{job.id}", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        azure.fine_tuning.jobs.retrieve(job.id)
    assert azure.models.retrieve(job.fine_tuned_model)


def test_a_job_is_paused_resumed_and_cancelled(client, done):
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=done.training_file, method=supervised(n_epochs=50, batch_size=2)
    )
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.pause(job.id)
    wait(client, job.id, lambda job: job.step > 1)
    client.fine_tuning.jobs.pause(job.id)
    paused = wait(client, job.id, lambda job: job.status == "paused")
    (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.step_number == paused.step < paused.total_steps == 300
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    running = wait(client, job.id, lambda job: job.step > paused.step)
    assert running.estimated_finish > 0
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    assert client.models.retrieve(checkpoint.fine_tuned_model_checkpoint)
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)


def test_faulty_data_fails_the_job_with_its_lines(client):
    file = upload(client, examples() + b'{"messages": []}\n')
    client.files.wait_for_processing(file, poll_interval=0.05)
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="tiny", training_file=file)
    assert refused.value.body["details"][0]["line"] == 13
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, examples(4)))
    job = wait(client, job.id, lambda job: job.status == "failed")
    assert (job.error.code, job.error.param) == ("invalid_n_examples", "training_file")


def test_jobs_are_found_by_metadata(client, done):
    found = list(client.fine_tuning.jobs.list(limit=1, metadata={"team": "maps"}))
    assert [job.id for job in found] == [done.id]


def test_an_estimate_has_the_body_of_a_job(client, done):
    body = {"model": "tiny", "training_file": done.training_file, "method": supervised(n_epochs=4)}
    figures = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)
    assert (figures["n_epochs"], figures["queue_position"]) == (4, 0)
    assert figures["billable_tokens"] == 4 * figures["training_tokens"]


def test_a_preference_job_on_the_tuned_model(client, done):
    job = client.fine_tuning.jobs.create(
        model=done.fine_tuned_model,
        training_file=upload(client, pairs()),
        validation_file=upload(client, pairs(4, first=100)),
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "beta": 0.2}}},
    )
    job = wait(client, job.id, lambda job: job.status == "succeeded")
    assert job.method.type == "dpo"
    assert job.method.dpo.hyperparameters.beta == 0.2
    assert job.method.dpo.hyperparameters.batch_size == 4
    metrics = [event.data for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
    assert len(metrics) == 6
    assert {"train_reward_margin", "train_preference_accuracy", "train_chosen_reward"} <= set(metrics[0])
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert float(rows[-1]["train_rejected_reward"]) < float(rows[-1]["train_chosen_reward"])
    (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.metrics.model_extra["full_valid_preference_accuracy"] >= 0
    shown = client.models.retrieve(job.fine_tuned_model).model_extra
    assert shown["parents"] == [done.fine_tuned_model, "tiny"]
    assert [step["recipe"]["method"]["type"] for step in shown["lineage"]] == ["supervised", "dpo"]
    assert [step["model"] for step in shown["lineage"]] == [done.fine_tuned_model, job.fine_tuned_model]
    assert shown["lineage"][1]["recipe"]["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert len(shown["lineage"][1]["recipe"]["files"]["training_file"]["sha256"]) == 64


def test_a_reinforcement_job_with_a_multi_grader_answers_afterwards(client):
    ilike = {"type": "string_check", "name": "city", "operation": "ilike", "input": "{{sample.output_text}}",
             "reference": "{{item.city}}"}  # fmt: skip
    grader = {"type": "multi", "name": "both", "graders": {"city": ilike, "letters": LETTERS},
              "calculate_output": "0.5 * city + 0.5 * letters"}  # fmt: skip
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, problems()),
        validation_file=upload(client, problems(3, first=100)),
        method={
            "type": "reinforcement",
            "reinforcement": {
                "grader": grader,
                "hyperparameters": {
                    "n_epochs": 1,
                    "batch_size": 4,
                    "eval_interval": 1,
                    "compute_multiplier": 0.5,
                    "max_completion_tokens": 8,
                    "reasoning_effort": "low",
                },
            },
        },
    )
    job = wait(client, job.id, lambda job: job.status == "succeeded")
    assert job.method.reinforcement.grader.type == "multi"
    assert job.method.reinforcement.hyperparameters.eval_samples == 1
    assert job.method.reinforcement.hyperparameters.model_extra["num_generations"] == 4
    events = list(client.fine_tuning.jobs.list_events(job.id))
    metrics = [event.data for event in events if event.type == "metrics"]
    assert len(metrics) == 3
    assert [grader["name"] for grader in metrics[0]["scores"]["graders"]] == ["city", "letters"]
    assert 0 <= metrics[0]["full_valid_mean_reward"] <= 1
    assert any("full validation mean reward=" in event.message for event in events)
    results, samples = job.result_files
    assert "valid_reward_mean" in client.files.content(results).text.splitlines()[0]
    assert len(client.files.content(samples).text.splitlines()) == 3
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "?"}], max_tokens=4
    )
    assert answer.choices[0].message.role == "assistant"


def test_a_grader_that_cannot_be_is_refused_by_its_place(client, done):
    method = {"type": "reinforcement", "reinforcement": {"grader": {"type": "magic"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="tiny", training_file=done.training_file, method=method)
    assert refused.value.param == "method.reinforcement.grader.type"


def test_an_estimate_of_reinforcement_counts_what_is_sampled(client):
    body = {
        "model": "tiny",
        "training_file": upload(client, problems()),
        "method": {"type": "reinforcement", "reinforcement": {
            "grader": LETTERS, "hyperparameters": {"n_epochs": 1, "max_completion_tokens": 8}}},
    }  # fmt: skip
    figures = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)
    assert figures["steps"] == 12
    assert figures["training_tokens"] > 12 * 8 * 4
    assert figures["est_wall_seconds"] > 0
