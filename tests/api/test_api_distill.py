"""/fine_tuning/distill without training: what is chosen, written, kept and refused."""

import json

import pytest

from distilling import HYPERPARAMETERS, answered, stocked
from fakes import local_client
from tunekeeper.api.app import create_app
from tunekeeper.types import Eval, EvalItem, EvalRun

ASK = {
    "student_model": "tiny",
    "filter": {"model": "large"},
    "hyperparameters": HYPERPARAMETERS,
    "held_out_fraction": 0.3,
    "seed": 7,
}


@pytest.fixture
def app(tmp_path, tiny_base):
    return create_app(stocked(tmp_path / "home", tiny_base), worker=False)


@pytest.fixture
def client(app):
    with local_client(app) as client:
        yield client


def made(client, **changes):
    response = client.post("/v1/fine_tuning/distill", json=ASK | changes)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client, status=400, **changes):
    response = client.post("/v1/fine_tuning/distill", json=ASK | changes)
    assert response.status_code == status, response.text
    return response.json()["error"]


def lines_of(client, file_id):
    content = client.get(f"/v1/files/{file_id}/content").content
    return [json.loads(line) for line in content.splitlines()]


def test_the_answer_has_the_job_the_files_and_what_was_counted(client):
    found = made(client)
    assert found["job"]["status"] == "validating_files"
    assert found["job"]["training_file"] == found["files"]["train"]
    assert found["job"]["distill"]["recipe"] == found["recipe"]
    counts = found["counts"]
    assert counts["completions"] == 61
    assert counts["left_out"] == {"image": 1}
    assert counts["left_out_completions"][0]["id"] == "chatcmpl-image"
    assert counts["teachers"] == {"large": 60}
    sizes = {name: len(lines_of(client, file_id)) for name, file_id in found["files"].items()}
    assert sizes == {"train": counts["train"], "held_out": counts["held_out"], "provenance": 60}
    assert found["max_completion_tokens"] == 64
    assert found["grader"]["agreement"]
    messages = [
        event["message"] for event in client.get(f"/v1/fine_tuning/jobs/{found['job']['id']}/events").json()["data"]
    ]
    assert any(message.startswith("Distilled from 61 stored completions") for message in messages)


def test_the_same_recipe_over_more_traffic_keeps_each_line_on_its_side(client, app):
    first = made(client, suffix="small", scrub=True)
    for n in range(100, 130):
        app.state.services.store.add_completion(answered(n))
    second = client.post("/v1/fine_tuning/distill", json={"again": first["job"]["id"]}).json()
    assert second["again"] == first["job"]["id"]
    assert second["recipe"] == first["recipe"]
    assert second["job"]["seed"] == first["job"]["seed"]
    assert second["job"]["user_provided_suffix"] == "small"
    assert second["job"]["method"]["supervised"] == first["job"]["method"]["supervised"]
    assert second["counts"]["completions"] == 91
    for side in ("train", "held_out"):
        before, after = (lines_of(client, found["files"][side]) for found in (first, second))
        assert after[: len(before)] == before
        assert len(after) > len(before)
    third = client.post("/v1/fine_tuning/distill", json={"again": first["job"]["id"], "scrub": False}).json()
    assert third["recipe"] == first["recipe"] | {"scrub": False}


def test_scrubbing_is_counted_and_done(client):
    found = made(client, scrub=True)
    assert found["counts"]["scrubbed"] == {"email": 6}
    for file_id in (found["files"]["train"], found["files"]["held_out"]):
        assert b"eve@corp.io" not in client.get(f"/v1/files/{file_id}/content").content


def test_pinned_traffic_stays(client, app):
    made(client, pin=True, filter={"model": "large", "metadata": {"team": "a"}})
    store = app.state.services.store
    assert store.completion_totals().pinned == 30
    assert store.get_completion("chatcmpl-large-1").pinned
    assert not store.get_completion("chatcmpl-large-2").pinned
    made(client, pin=True, filter={"model": "large", "metadata": {"team": "a"}})
    assert store.completion_totals().pinned == 30


def test_a_dry_run_leaves_nothing_behind(client):
    found = made(client, dry_run=True)
    assert found["job"] is None
    assert found["counts"]["completions"] == 61
    assert client.get("/v1/files").json()["data"] == []
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_only_what_passed_an_eval_run_is_learned(client, app):
    store = app.state.services.store
    criterion = {"type": "string_check", "name": "c", "input": "a", "reference": "a", "operation": "eq"}
    store.add_eval(Eval(id="eval_1", created_at=1, name="e", data_source_config={}, testing_criteria=[criterion]))
    run = EvalRun(
        id="evalrun_1", eval_id="eval_1", created_at=1, name="r", data_source={}, sha256="0" * 64, total=60,
        status="completed",
    )  # fmt: skip
    items = [
        EvalItem(
            id=f"item_{n}", run_id="evalrun_1", eval_id="eval_1", created_at=1, datasource_item_id=n,
            status="pass" if n < 40 else "fail", datasource_item={"completion_id": f"chatcmpl-large-{n}"},
            results=[{"name": "c", "score": 1.0 if n < 30 else 0.5, "passed": n < 40}], sample={},
        )
        for n in range(60)
    ]  # fmt: skip
    store.add_ended_eval_run(run, items)
    assert made(client, eval_run_id="evalrun_1")["counts"]["left_out"] == {"not_passed": 21}
    assert made(client, eval_run_id="evalrun_1", min_score=0.8)["counts"]["left_out"] == {"not_passed": 31}
    assert refused(client, 404, eval_run_id="evalrun_2")["message"].startswith("No such EvalRun")
    assert refused(client, min_score=0.8)["param"] == "min_score"


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"filter": {"model": "nobody"}}, "filter", "No stored completion fits"),
        ({"filter": {"model": "other"}}, "filter", "at least 10 are needed to learn from. 1 stored completions"),
        ({"held_out_fraction": 1e-9}, "filter", "none is held out"),
        ({"held_out_fraction": 1.0}, "held_out_fraction", "0.9"),
        ({"student_model": None}, "student_model", "again"),
        ({"hyperparameters": {"n_epochs": 999}}, "hyperparameters.n_epochs", "n_epochs"),
        ({"grader": {"type": "nonsense"}}, "grader", "nonsense"),
        ({"teacher_price": {"input": 1.0}}, "teacher_price.output", "output"),
    ],
)
def test_bad_use_is_told_and_leaves_no_file(client, changes, param, says):
    error = refused(client, **changes)
    assert says in error["message"]
    assert error["param"].startswith(param)
    assert client.get("/v1/files").json()["data"] == []


def test_an_unknown_student_and_a_job_that_is_no_distillation_are_named(client):
    assert "nobody" in refused(client, 404, student_model="nobody")["message"]
    assert client.get("/v1/fine_tuning/distill/ftjob-none").status_code == 404
    found = made(client)
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": found["files"]["train"]}).json()
    response = client.get(f"/v1/fine_tuning/distill/{job['id']}")
    assert response.status_code == 400
    assert "is no distillation" in response.json()["error"]["message"]


def test_there_is_nothing_to_evaluate_or_show_before_the_job_has_ended(client):
    path = f"/v1/fine_tuning/distill/{made(client)['job']['id']}"
    response = client.post(f"{path}/evaluate", json={})
    assert response.status_code == 400
    assert "validating_files" in response.json()["error"]["message"]
    assert client.get(path).json()["comparison"] is None
    assert client.get(path, params={"format": "html"}).status_code == 400
