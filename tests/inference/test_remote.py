import asyncio
import json

import httpx
import pytest

from tunekeeper.errors import InvalidRequest, ModelNotFound, Overloaded, UpstreamFailed
from tunekeeper.inference.remote import Remote
from tunekeeper.settings import Upstream


def remote(handler, **options) -> Remote:
    upstream = Upstream(**{"name": "vllm", "base_url": "http://127.0.0.1:1/v1", **options})
    return Remote(upstream, transport=httpx.MockTransport(handler))


def answering(status: int, body: object, seen: list | None = None):
    def handler(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return httpx.Response(status, content=body if isinstance(body, bytes) else json.dumps(body).encode())

    return handler


def test_its_models_are_asked_for_once_in_a_while():
    seen: list[httpx.Request] = []
    one = remote(answering(200, {"data": [{"id": "qwen", "object": "model"}]}, seen))

    async def twice():
        return await one.models(), await one.models()

    first, second = asyncio.run(twice())
    assert first == second == [{"id": "qwen", "object": "model", "owned_by": "vllm"}]
    assert [str(request.url) for request in seen] == ["http://127.0.0.1:1/v1/models"]


def test_models_that_the_settings_name_are_not_asked_for():
    one = remote(answering(500, {}), models=("a", "b"))
    assert [entry["id"] for entry in asyncio.run(one.models())] == ["a", "b"]


def test_a_request_goes_there_as_it_is_with_the_key_of_the_environment(monkeypatch):
    monkeypatch.setenv("VLLM_KEY", "secret")
    seen: list[httpx.Request] = []
    one = remote(answering(200, {"id": "x"}, seen), api_key_env="VLLM_KEY")
    assert asyncio.run(one.chat({"model": "a", "custom": 1})) == {"id": "x"}
    assert json.loads(seen[0].content) == {"model": "a", "custom": 1}
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_a_missing_key_is_named():
    with pytest.raises(UpstreamFailed, match="NO_SUCH_VARIABLE"):
        asyncio.run(remote(answering(200, {}), api_key_env="NO_SUCH_VARIABLE").chat({}))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (404, ModelNotFound),
        (429, Overloaded),
        (401, UpstreamFailed),
        (500, UpstreamFailed),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_its_errors_become_ours_and_keep_what_they_say(status, kind, streamed):
    error = {"error": {"message": "too warm", "param": "temperature", "code": "bad"}}
    one = remote(answering(status, error))

    async def ask():
        if streamed:
            return [data async for data in one.chat_stream({})]
        return await one.chat({})

    with pytest.raises(kind, match="vllm says: too warm") as caught:
        asyncio.run(ask())
    if status == 400:
        assert (caught.value.param, caught.value.code) == ("temperature", "bad")


@pytest.mark.parametrize("body", [b"<html>", b""])
def test_an_answer_that_is_no_json_is_its_fault(body):
    with pytest.raises(UpstreamFailed, match="did not answer as it should"):
        asyncio.run(remote(answering(200, body)).chat({}))


def test_a_server_that_is_not_there_is_its_fault():
    one = Remote(Upstream(name="gone", base_url="http://127.0.0.1:1/v1", timeout_s=2))
    with pytest.raises(UpstreamFailed, match="gone"):
        asyncio.run(one.models())


def test_a_stream_is_passed_on_event_by_event():
    body = b': ping\n\ndata: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n'

    async def read():
        return [data async for data in remote(answering(200, body)).chat_stream({})]

    assert asyncio.run(read()) == ['{"a": 1}', '{"b": 2}']


def test_adapters_that_a_job_samples_from_are_not_among_its_models():
    listed = {"data": [{"id": "qwen", "object": "model"}, {"id": "rollouts-3f0a", "object": "model"}]}
    assert [entry["id"] for entry in asyncio.run(remote(answering(200, listed)).models())] == ["qwen"]
