import json
from typing import Any

import httpx
import pytest

from tunekeeper.errors import UpstreamFailed
from tunekeeper.insight.model import ChatModel
from tunekeeper.insight.prose import ANSWER_CUT

SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}}
MESSAGES = [{"role": "user", "content": "hello"}]


class Server:
    """Answers in turn, the last one for ever, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def completion(content: Any, finish: str = "stop") -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content}, "finish_reason": finish}]})


def model(server: Server, **options: Any) -> ChatModel:
    return ChatModel("http://model.example/v1", "tiny", transport=httpx.MockTransport(server), **options)


def test_it_asks_for_structured_output_with_model_and_key() -> None:
    server = Server(completion('{"title": "x"}'))
    assert model(server, api_key="secret").complete(MESSAGES, SCHEMA) == '{"title": "x"}'
    (request,) = server.asked
    body = json.loads(request.content)
    assert str(request.url) == "http://model.example/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert (body["model"], body["messages"], body["temperature"]) == ("tiny", MESSAGES, 0)
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_server_without_structured_output_is_asked_without_from_then_on() -> None:
    server = Server(httpx.Response(400, json={"error": {"param": "response_format"}}), completion("{}"))
    one = model(server)
    assert one.complete(MESSAGES, SCHEMA) == one.complete(MESSAGES, SCHEMA) == "{}"
    assert ["response_format" in json.loads(request.content) for request in server.asked] == [True, False, False]


def test_a_cut_answer_is_an_error_of_its_own() -> None:
    with pytest.raises(UpstreamFailed, match="cut") as caught:
        model(Server(completion('{"title": "x', "length"))).complete(MESSAGES, SCHEMA)
    assert caught.value.code == ANSWER_CUT


def test_an_overloaded_server_is_asked_again() -> None:
    busy = httpx.Response(429, headers={"retry-after": "0"})
    server = Server(busy, busy, completion("{}"))
    assert model(server).complete(MESSAGES, SCHEMA) == "{}"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(401, text="bad key"), "status 401: bad key"),
        (httpx.Response(500, headers={"retry-after": "0"}, text="oh"), "status 500: oh"),
        (httpx.Response(200, text="<html>"), "no chat completion"),
        (httpx.Response(200, json={"choices": []}), "no chat completion"),
        (httpx.ConnectError("refused"), "refused"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_every_failure_names_the_model_the_server_and_the_reason(answer: Any, reason: str) -> None:
    with pytest.raises(UpstreamFailed, match=rf"tiny at http://model.example/v1 .*{reason}") as caught:
        model(Server(answer)).complete(MESSAGES, SCHEMA)
    assert caught.value.code == "upstream_failed"


def test_an_empty_answer_is_an_empty_text() -> None:
    assert model(Server(completion(None))).complete(MESSAGES, SCHEMA) == ""
