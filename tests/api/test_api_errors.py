"""Errors as a client sees them, on the whole app, with a few routes added that fail on purpose."""

from typing import Literal

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.responses import StreamingResponse

from fakes import FakeClock, local_client
from tunekeeper import errors
from tunekeeper.api.app import create_app
from tunekeeper.api.errors import error_body, status_of
from tunekeeper.settings import Settings


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int


class First(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["first"]
    inner: Inner


class Second(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["second"]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[First | Second]
    name: str = ""


def add_failing_routes(app: FastAPI) -> None:
    @app.post("/v1/shape")
    def shape(body: Body) -> dict[str, str]:
        return {"name": body.name}

    @app.get("/v1/bug")
    def bug() -> None:
        raise RuntimeError("the secret is hunter2")

    @app.get("/v1/state")
    def state() -> None:
        raise errors.InvalidState("It is done.", param="id", details=[{"line": 3}])

    @app.get("/v1/full")
    def full() -> None:
        raise errors.DiskFull("Full.")

    @app.get("/v1/half")
    def half() -> StreamingResponse:
        def pieces():
            yield b"half"
            raise RuntimeError("gone")

        return StreamingResponse(pieces())


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings = Settings(home=tmp_path_factory.mktemp("home"), max_body_bytes=100_000)
    app = create_app(settings, clock=FakeClock(), worker=False)
    add_failing_routes(app)
    with local_client(app) as client:
        yield client


def error_of(response) -> dict:
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    return error


def test_every_error_of_ours_has_a_status_and_a_whole_body():
    def tree(cls):
        return [cls, *(each for sub in cls.__subclasses__() for each in tree(sub))]

    statuses = {}
    for cls in tree(errors.TunekeeperError):
        error = cls("m", param="p")
        statuses[cls.__name__] = status_of(error)
        assert set(error_body(error)["error"]) == {"message", "type", "param", "code"}
    assert statuses["InvalidConfig"] == 400
    assert statuses["ModelNotFound"] == 404
    assert statuses["UpstreamFailed"] == 503
    assert statuses["TunekeeperError"] == 500


def test_a_state_conflict_says_that_it_is_not_worth_a_retry(client):
    response = client.get("/v1/state")
    assert response.status_code == 400
    assert response.headers["x-should-retry"] == "false"
    assert error_of(response)["details"] == [{"line": 3}]


def test_a_full_disk_is_507_and_not_worth_a_retry(client):
    response = client.get("/v1/full")
    assert (response.status_code, response.headers["x-should-retry"]) == (507, "false")
    assert error_of(response)["type"] == "server_error"


def test_a_bug_is_500_without_its_text_and_with_the_request_id(client, caplog):
    response = client.get("/v1/bug")
    assert response.status_code == 500
    assert "hunter2" not in response.text
    assert response.headers["x-request-id"] in error_of(response)["message"]
    assert response.headers["x-request-id"] in caplog.text
    assert "hunter2" in caplog.text


def test_a_stream_that_breaks_is_cut_and_never_looks_whole(client):
    with pytest.raises(RuntimeError, match="gone"):
        client.get("/v1/half")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/nowhere", "/nowhere"])
def test_every_response_carries_a_request_id_and_its_time(client, path):
    headers = client.get(path).headers
    assert headers["x-request-id"].startswith("req_")
    assert int(headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize(
    ("path", "advice"), [("/v1/nowhere", "reference"), ("/openai/nowhere", "reference"), ("/nowhere", "base_url")]
)
def test_an_unknown_route_is_named_and_base_url_is_doubted_only_without_a_prefix(client, path, advice):
    response = client.get(path)
    assert response.status_code == 404
    assert f"GET {path}" in error_of(response)["message"]
    assert advice in error_of(response)["message"]


def test_a_wrong_method_is_405_and_says_which_are_right(client):
    response = client.put("/v1/files")
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"
    assert response.headers["allow"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "items", "missing_required_parameter"),
        ({"items": [], "nmae": "x"}, "nmae", "unknown_parameter"),
        ({"items": 3}, "items", "invalid_type"),
        ({"items": [{"kind": "first", "inner": {"n": "x"}}]}, "items.0.inner.n", "invalid_type"),
        ({"items": [{"kind": "first", "inner": {}}]}, "items.0.inner.n", "missing_required_parameter"),
        ({"items": [{"kind": "first", "inner": {"n": 1, "m": 2}}]}, "items.0.inner.m", "unknown_parameter"),
    ],
)
def test_a_fault_of_shape_names_the_parameter_as_the_client_wrote_it(client, body, param, code):
    response = client.post("/v1/shape", json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]


def test_several_faults_are_all_told(client):
    details = error_of(client.post("/v1/shape", json={"items": 3, "nmae": 1, "name": 2}))["details"]
    assert {detail["param"] for detail in details} == {"items", "nmae", "name"}


def test_json_that_does_not_say_that_it_is_json_is_told_the_content_type_to_send(client):
    response = client.post("/v1/shape", content=b'{"items": []}')
    assert response.status_code == 400
    assert "content-type: application/json" in error_of(response)["message"]


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b'{"items": [' + b"[" * 50_000, b"9" * 5_000])
def test_a_body_that_is_no_json_is_400(client, body):
    response = client.post("/v1/shape", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error_of(response)


def test_a_body_over_the_limit_is_413_whether_declared_or_not(client):
    headers = {"content-type": "application/json"}
    big = b" " * 100_001
    declared = client.post("/v1/shape", content=big, headers=headers)
    streamed = client.post("/v1/shape", content=(big[i : i + 1000] for i in range(0, len(big), 1000)), headers=headers)
    assert (declared.status_code, streamed.status_code) == (413, 413)
    assert error_of(streamed)["code"] == "file_too_large"


@pytest.mark.parametrize("query", ["limt=5", "metadata[a]=b", "limit="])
def test_a_query_parameter_without_effect_is_refused(client, query):
    response = client.get(f"/v1/files?{query}")
    assert response.status_code == 400
    assert error_of(response)["param"] in {"limt", "metadata[a]", "limit"}


@pytest.mark.parametrize("value", ["0", "-1", "10001", "ten"])
def test_a_limit_out_of_bounds_is_refused(client, value):
    response = client.get(f"/v1/files?limit={value}")
    assert (response.status_code, error_of(response)["param"]) == (400, "limit")
