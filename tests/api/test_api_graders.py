"""The graders' routes: what is refused before anything runs, and how a failing grader is answered."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from fakes import FakeClock, local_client
from scripted_server import scripted
from tunekeeper.api.app import create_app
from tunekeeper.settings import Settings, Upstream
from tunekeeper.types import GradeFaultKind

CHECK = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "4",
}
JUDGE = {"type": "score_model", "name": "j", "model": "big", "input": [{"role": "user", "content": "{{ item.q }}"}]}
COSINE = {"type": "text_similarity", "name": "c", "input": "a", "reference": "b", "evaluation_metric": "cosine"}


def completion(content, **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
    return {"model": "big-1", "choices": [choice], "usage": {"total_tokens": 11}}


@pytest.fixture
def upstream():
    embeddings = {"data": [{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [1, 1]}]}
    answers = {("POST", "/chat/completions"): completion('{"result": 0.5}'), ("POST", "/embeddings"): embeddings}
    with scripted(answers) as server:
        yield server


@pytest.fixture
def make(upstream, tmp_path):
    clients = []

    def made(**options):
        up = Upstream(name="up", base_url=upstream.url, models=("big", "vectors"))
        settings = Settings(**{"home": tmp_path / str(len(clients)), "upstreams": (up,)} | options)
        client = local_client(create_app(settings, clock=FakeClock(), worker=False))
        clients.append(client)
        return client.__enter__()

    yield made
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make):
    return make()


def run(client, grader, sample="4", prefix="/v1", **body):
    return client.post(
        f"{prefix}/fine_tuning/alpha/graders/run", json={"grader": grader, "model_sample": sample, **body}
    )


def validate(client, grader, prefix="/v1"):
    return client.post(f"{prefix}/fine_tuning/alpha/graders/validate", json={"grader": grader})


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", "/openai"])
def test_both_routes_are_there_under_every_prefix(client, prefix):
    assert validate(client, CHECK, prefix).json() == {"grader": CHECK}
    assert run(client, CHECK, prefix=prefix).json()["reward"] == 1.0


def test_a_run_has_every_field_that_the_api_names(client):
    body = run(client, CHECK).json()
    assert body["sub_rewards"] == body["model_grader_token_usage_per_model"] == {}
    metadata = body["metadata"]
    assert (metadata["name"], metadata["type"], metadata["scores"]) == ("exact", "string_check", {"exact": 1.0})
    assert metadata["execution_time"] >= 0
    assert dict.fromkeys(get_args(GradeFaultKind), False).items() <= metadata["errors"].items()
    assert {name for name, value in metadata["errors"].items() if value is None} == {
        "model_grader_server_error_details",
        "python_grader_runtime_error_details",
        "python_grader_server_error_type",
    }


def test_a_judge_of_an_upstream_is_asked_and_its_tokens_are_counted(client, upstream):
    body = run(client, JUDGE, item={"q": "2+2"}).json()
    assert body["reward"] == 0.5
    assert body["metadata"]["sampled_model_name"] == "big-1"
    assert body["metadata"]["token_usage"] == 11
    assert body["model_grader_token_usage_per_model"] == {"big-1": 11}
    [sent] = upstream.bodies("POST", "/chat/completions")
    assert json.loads(sent)["messages"][1] == {"role": "user", "content": "2+2"}


def test_a_multi_grader_shows_its_parts(client):
    multi = {"type": "multi", "name": "all", "graders": {"a": CHECK, "b": JUDGE}, "calculate_output": "a + b"}
    body = run(client, multi, item={"q": ""}).json()
    assert (body["reward"], body["sub_rewards"]) == (1.5, {"a": 1.0, "b": 0.5})


@pytest.mark.parametrize(
    ("grader", "sample", "flag"),
    [
        ({**CHECK, "reference": "{{ item.answer }}"}, "4", "invalid_variable_error"),
        ({**CHECK, "input": "{{ sample.output_json.x }}"}, "no JSON", "sample_parse_error"),
        (
            {"type": "multi", "graders": {"a": CHECK}, "calculate_output": "1 / (a - 1)"},
            "4",
            "formula_parse_error",
        ),
    ],
)
def test_a_grader_that_fails_is_answered_200_with_reward_0_and_a_flag(client, grader, sample, flag):
    response = run(client, grader, sample)
    assert response.status_code == 200
    body = response.json()
    assert body["reward"] == 0
    assert [name for name, value in body["metadata"]["errors"].items() if value] == [flag]
    assert body["metadata"]["faults"][0]["kind"] == flag


@pytest.mark.parametrize(
    ("answer", "flag"),
    [
        (completion("seven"), "model_grader_parse_error"),
        (completion(None, refusal="no"), "model_grader_refusal_error"),
        ((400, {"error": {"message": "no such option"}}), "model_grader_server_error"),
    ],
)
def test_a_judge_that_fails_is_a_flag_of_its_own(client, upstream, answer, flag):
    upstream.answers["POST", "/chat/completions"] = answer
    errors = run(client, JUDGE, item={"q": ""}).json()["metadata"]["errors"]
    assert errors[flag] is True
    if flag == "model_grader_server_error":
        assert "no such option" in errors["model_grader_server_error_details"]


@pytest.mark.parametrize(
    ("grader", "param", "code", "status"),
    [
        ({"type": "regex"}, "grader.type", "invalid_value", 400),
        ({**CHECK, "mood": 1}, "grader.mood", "unknown_parameter", 400),
        ({"type": "string_check"}, "grader.input", "missing_required_parameter", 400),
        ({**JUDGE, "model": "nobody"}, "grader.model", "model_not_found", 404),
        ({"type": "python", "source": "def grade(:"}, "grader.source", "invalid_value", 400),
        (COSINE, "grader.evaluation_metric", "invalid_value", 400),
    ],
)
def test_a_grader_that_cannot_grade_is_refused_by_both(client, grader, param, code, status):
    for response in (validate(client, grader), run(client, grader)):
        assert response.status_code == status
        error = response.json()["error"]
        assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "grader"),
        ({"grader": CHECK}, "model_sample"),
        ({"grader": CHECK, "model_sample": 4}, "model_sample"),
        ({"grader": CHECK, "model_sample": "4", "item": []}, "item"),
        ({"grader": CHECK, "model_sample": "4", "items": {}}, "items"),
    ],
)
def test_a_body_that_is_not_a_runs_is_refused(client, body, param):
    response = client.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_cosine_embeds_with_the_model_of_the_settings(make, upstream):
    body = run(make(embedding_model="vectors"), COSINE).json()
    assert body["reward"] == pytest.approx(0.5**0.5)
    [sent] = upstream.bodies("POST", "/embeddings")
    assert json.loads(sent) == {"model": "vectors", "input": ["a", "b"], "encoding_format": "float"}


def test_an_endpoint_is_asked_only_where_the_operator_lets_it(make, upstream):
    upstream.answers["POST", "/grade"] = {"score": 3}
    grader = {"type": "endpoint", "name": "far", "url": f"{upstream.url}/grade"}
    assert run(make(), grader).json()["reward"] == 3
    assert run(make(grader_hosts="127.0.0.1"), grader).json()["reward"] == 3
    refused = run(make(grader_hosts="graders.example.org"), grader)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "grader.url")


@pytest.mark.parametrize(
    ("host", "hosts", "expected"),
    [
        ("127.0.0.1", "", None),
        ("0.0.0.0", "", frozenset()),
        ("0.0.0.0", "*", None),
        ("0.0.0.0", "a.example, B.example", frozenset({"a.example", "b.example"})),
    ],
)
def test_a_server_that_others_reach_lets_graders_ask_nobody_unless_told(tmp_path, host, hosts, expected):
    assert Settings(home=tmp_path, host=host, grader_hosts=hosts).endpoint_hosts == expected


def test_a_server_that_is_told_to_stop_does_not_wait_for_a_grade(tmp_path):
    script = """
import socket, sys
from pathlib import Path
import httpx
from tunekeeper.api.server import background
from tunekeeper.settings import Settings

settings = Settings(home=Path(sys.argv[1]))
with socket.create_server(("127.0.0.1", 0)) as silent, background(settings, worker=False) as url:
    grader = {"type": "endpoint", "url": f"http://127.0.0.1:{silent.getsockname()[1]}/"}
    body = {"grader": grader, "model_sample": ""}
    try:
        httpx.post(url + "/fine_tuning/alpha/graders/run", json=body, timeout=1)
    except httpx.ReadTimeout:
        kept_open, _ = silent.accept()
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
