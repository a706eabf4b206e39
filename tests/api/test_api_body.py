"""Half characters: JSON can hold them, no answer can, so no route takes them."""

import json

import pytest

from fakes import FakeClock, local_client
from tunekeeper.api.app import create_app
from tunekeeper.settings import Settings

HALF = "an emoji cut in two \ud83d"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    app = create_app(Settings(home=tmp_path_factory.mktemp("home")), clock=FakeClock(), worker=False)
    with local_client(app) as client:
        yield client


def post(client, path, body):
    # As JavaScript sends it; Python's clients cannot write such a text.
    return client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": "f", "metadata": {"note": HALF}}, "metadata.note"),
        ("/v1/fine_tuning/jobs", {"model": HALF, "training_file": "f"}, "model"),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": HALF}]}, "messages.0.content"),
        ("/openai/v1/evals", {"metadata": {HALF: "x"}}, "metadata"),
        ("/v1/evals", HALF, None),
    ],
)
def test_half_a_character_is_refused_by_its_place(client, path, body, param):
    response = post(client, path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert "half a character" in error["message"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Application/JSON; charset=utf-8", json.dumps({"metadata": {"note": HALF}}).encode()),
        ("application/json", json.dumps({"metadata": {"note": HALF}}).encode("utf-16")),
        ("application/json", b'{"metadata": {"note": "\xed\xa0\xbd"}}'),
    ],
    ids=["upper case", "utf-16", "raw bytes"],
)
def test_half_a_character_is_found_however_it_is_written(client, kind, body):
    response = client.post("/v1/evals", content=body, headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("metadata.note")


def test_a_path_and_a_query_cannot_hold_half_a_character(client):
    half = "%ED%A0%BD"
    assert client.get(f"/v1/models/{half}").status_code == 404
    listed = client.get(f"/v1/fine_tuning/jobs?metadata[note]={half}")
    assert (listed.status_code, listed.json()["data"]) == (200, [])


def test_a_whole_character_in_two_halves_is_a_character(client):
    body = {"model": "nobody", "messages": [{"role": "user", "content": "\U0001f600"}]}
    assert b"\\ud83d" in json.dumps(body).encode()
    assert post(client, "/v1/chat/completions", body).json()["error"]["code"] == "model_not_found"
