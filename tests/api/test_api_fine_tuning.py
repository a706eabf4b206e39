from dataclasses import replace

import pytest

from fakes import FakeClock, local_client
from jobshop import add_data, add_job, examples, open_desk, settings_of
from tunekeeper.api.app import create_app
from tunekeeper.types import Checkpoint, Model

JOBS = "/v1/fine_tuning/jobs"
KEYS = {
    "id",
    "object",
    "created_at",
    "finished_at",
    "model",
    "fine_tuned_model",
    "organization_id",
    "status",
    "training_file",
    "validation_file",
    "result_files",
    "trained_tokens",
    "error",
    "hyperparameters",
    "seed",
    "method",
    "integrations",
    "metadata",
    "estimated_finish",
    "user_provided_suffix",
}


@pytest.fixture
def desk(tmp_path, tiny_base):
    desk = open_desk(tmp_path / "home", tiny_base)
    yield desk
    desk.store.close()


@pytest.fixture
def client(desk):
    app = create_app(settings_of(desk.settings.home), store=desk.store, clock=FakeClock(), worker=False)
    with local_client(app) as client:
        yield client


@pytest.fixture
def data(desk):
    return add_data(desk, examples())


def created(client, data, **fields):
    reply = client.post(JOBS, json={"model": "tiny", "training_file": data, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_new_job_has_every_key_and_no_null_where_clients_break_on_it(client, data):
    job = created(client, data)
    assert set(job) >= KEYS
    assert (job["object"], job["status"], job["result_files"]) == ("fine_tuning.job", "validating_files", [])
    assert job["organization_id"] == "tunekeeper"
    assert job["hyperparameters"] == {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": {}}}
    assert client.get(f"{JOBS}/{job['id']}").json() == job


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"modle": "x"}, "modle", "unknown_parameter"),
        ({"model": None}, "model", "invalid_type"),
        ({"seed": "7"}, "seed", "invalid_type"),
        ({"seed": 1.5}, "seed", "invalid_type"),
        ({"method": {"type": "ppo"}}, "method.type", "invalid_value"),
        ({"method": {"type": "supervised", "grader": {}}}, "method.grader", "unknown_parameter"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epoch": 3}}}},
            "method.supervised.hyperparameters.n_epoch",
            "invalid_hyperparameters",
        ),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
            "method.dpo.hyperparameters.beta",
            "invalid_hyperparameters",
        ),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "magic"}}}},
            "method.reinforcement.grader.type",
            "invalid_value",
        ),
        (
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {"grader": {"type": "python", "source": "def grade(:"}},
                }
            },
            "method.reinforcement.grader.source",
            "invalid_value",
        ),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].type", "unsupported_parameter"),
        ({"training_file": "file-x"}, "training_file", "invalid_value"),
    ],
)
def test_a_bad_request_names_the_field(client, data, fields, param, code):
    reply = client.post(JOBS, json={"model": "tiny", "training_file": data, **fields})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_what_is_missing_is_named(client):
    error = client.post(JOBS, json={"model": "tiny"}).json()["error"]
    assert (error["param"], error["code"]) == ("training_file", "missing_required_parameter")


def test_an_unknown_model_and_an_unknown_job_are_not_found(client, data):
    reply = client.post(JOBS, json={"model": "gpt-9", "training_file": data})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    for verb, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/checkpoints")):
        assert client.request(verb, f"{JOBS}/ftjob-x{path}").status_code == 404


def test_azures_dated_api_creates_with_201_and_deletes_with_204(client, data):
    body = {"model": "tiny", "training_file": data, "trainingType": "globalstandard"}
    reply = client.post("/openai/fine_tuning/jobs?api-version=2025-04-01-preview", json=body)
    job = reply.json()
    assert reply.status_code == 201
    assert reply.headers["location"].endswith(job["id"])
    assert job["trainingType"] == "globalstandard"
    # The client sends these without a body, but with a content type.
    url = f"/openai/fine_tuning/jobs/{job['id']}"
    headers = {"content-type": "application/json"}
    assert client.post(f"{url}/cancel", headers=headers).json()["status"] == "cancelled"
    assert client.delete(url, headers=headers).status_code == 204
    assert client.get(url).status_code == 404


def test_a_job_that_has_ended_can_be_deleted_and_no_other(client, data):
    job = created(client, data)
    refused = client.delete(f"{JOBS}/{job['id']}")
    assert (refused.status_code, refused.headers["x-should-retry"]) == (400, "false")
    client.post(f"{JOBS}/{job['id']}/cancel")
    assert client.delete(f"{JOBS}/{job['id']}").json() == {
        "id": job["id"],
        "object": "fine_tuning.job",
        "deleted": True,
    }


def test_requests_that_do_not_fit_the_state_say_so(client, data):
    job = created(client, data)
    for wish in ("pause", "resume"):
        reply = client.post(f"{JOBS}/{job['id']}/{wish}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_state")
    assert client.post(f"{JOBS}/{job['id']}/cancel").json()["status"] == "cancelled"
    assert client.post(f"{JOBS}/{job['id']}/cancel").status_code == 400


def test_a_running_job_without_a_worker_stays_until_one_comes(client, desk, data):
    job = created(client, data)
    desk.store.transition(job["id"], "running", from_={"validating_files"}, step=2)
    assert client.post(f"{JOBS}/{job['id']}/pause").json()["status"] == "running"
    assert desk.store.get_job(job["id"]).request == "pause"


def test_jobs_are_listed_newest_first_page_by_page(client, data):
    jobs = [created(client, data)["id"] for _ in range(3)][::-1]
    first = client.get(JOBS, params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (jobs[:2], True)
    rest = client.get(JOBS, params={"limit": 2, "after": first["last_id"]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (jobs[2:], False)


def test_jobs_are_found_by_their_metadata_or_by_having_none(client, data):
    plain = created(client, data)["id"]
    marked = created(client, data, metadata={"team": "a b", "n": "1"})["id"]

    def found(query):
        return [job["id"] for job in client.get(f"{JOBS}?{query}").json()["data"]]

    assert found("metadata[team]=a%20b") == [marked]
    assert found("metadata[team]=a%20b&metadata[n]=2") == []
    assert found("metadata=null") == [plain]
    assert client.get(f"{JOBS}?metadata=x").status_code == 400
    assert client.get(f"{JOBS}?status=x").status_code == 400


def test_resolved_numbers_and_an_end_are_shown_as_soon_as_they_are_known(client, desk, data):
    job = created(client, data)
    desk.store.transition(
        job["id"],
        "running",
        from_={"validating_files"},
        resolved={"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1.0, "lora_rank": 16},
        estimated_finish=1_800_000_100,
        result_file="file-r",
    )
    shown = client.get(f"{JOBS}/{job['id']}").json()
    assert shown["hyperparameters"] == {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1.0}
    assert shown["method"]["supervised"]["hyperparameters"]["lora_rank"] == 16
    assert shown["estimated_finish"] >= 1_800_000_100
    assert shown["result_files"] == ["file-r"]


@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_events_are_listed_newest_first(client, data, verb):
    job = created(client, data)
    first = client.request(verb, f"{JOBS}/{job['id']}/events", params={"limit": 1}).json()
    (event,) = first["data"]
    assert event["object"] == "fine_tuning.job.event"
    assert event["message"] == f"Validating training file: {data}"
    assert (event["level"], event["type"], event["data"]) == ("info", "message", None)
    rest = client.request(verb, f"{JOBS}/{job['id']}/events", params={"after": event["id"]}).json()
    assert ([e["message"] for e in rest["data"]], rest["has_more"]) == (
        [f"Created fine-tuning job: {job['id']}"],
        False,
    )


@pytest.fixture
def checkpoint(desk):
    job = add_job(desk)
    name = "ft:tiny:tunekeeper:test:abcd1234:ckpt-step-3"
    desk.store.add_model(Model(id=name, created_at=1, kind="adapter", path="models/x", base="tiny"))
    return desk.store.add_checkpoint(
        Checkpoint(id="ftckpt_1", job_id=job.id, created_at=5, model=name, step=3, metrics={"step": 3.0})
    )


@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_checkpoints_are_shown_as_models(client, checkpoint, verb):
    shown = client.request(verb, f"{JOBS}/{checkpoint.job_id}/checkpoints").json()
    assert shown["data"] == [
        {
            "id": "ftckpt_1",
            "object": "fine_tuning.job.checkpoint",
            "created_at": 5,
            "fine_tuned_model_checkpoint": checkpoint.model,
            "step_number": 3,
            "metrics": {"step": 3.0},
            "fine_tuning_job_id": checkpoint.job_id,
        }
    ]


def test_a_checkpoint_is_shared_and_taken_back(client, checkpoint):
    url = f"/v1/fine_tuning/checkpoints/{checkpoint.model}/permissions"
    given = client.post(url, json={"project_ids": ["proj_a", "proj_b"]}).json()
    assert {p["project_id"] for p in given["data"]} == {"proj_a", "proj_b"}
    assert {p["object"] for p in given["data"]} == {"checkpoint.permission"}
    page = client.get(url, params={"limit": 1, "order": "ascending"}).json()
    assert (page["data"][0]["project_id"], page["has_more"]) == ("proj_a", True)
    assert page["last_id"] == page["data"][0]["id"]
    only = client.get(url, params={"project_id": "proj_b"}).json()["data"]
    gone = client.delete(f"{url}/{only[0]['id']}").json()
    assert gone == {"id": only[0]["id"], "object": "checkpoint.permission", "deleted": True}
    assert [p["project_id"] for p in client.get(url).json()["data"]] == ["proj_a"]
    assert client.delete(f"{url}/{only[0]['id']}").status_code == 404


def test_a_tuned_model_is_shared_by_its_name_as_its_last_checkpoint(client, desk, checkpoint):
    tuned = replace(desk.store.get_model(checkpoint.model), id="ft:tiny:org:suffix:abc", path="models/other")
    desk.store.add_model(tuned)
    url = f"/v1/fine_tuning/checkpoints/{tuned.id}/permissions"
    given = client.post(url, json={"project_ids": ["proj_a"]}).json()
    assert client.get(url).json()["data"] == given["data"]


def test_what_is_no_checkpoint_cannot_be_shared(client):
    url = "/v1/fine_tuning/checkpoints/tiny/permissions"
    assert client.post(url, json={"project_ids": ["p"]}).status_code == 404
    assert client.post(url, json={"project_ids": []}).status_code == 400


def test_an_estimate_refuses_what_a_job_refuses(client, data):
    reply = client.post(f"{JOBS}/estimate", json={"model": "tiny", "training_file": data, "suffix": "a b"})
    assert reply.json()["error"]["param"] == "suffix"
