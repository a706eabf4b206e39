"""Stored completions over HTTP; what the official client makes of them is in tests/contract."""

import json
import logging
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from fakes import FakeClock, local_client
from scripted_server import scripted
from tunekeeper.api.app import create_app, expire
from tunekeeper.settings import Recording, Settings, Upstream
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store

HELLO = [{"role": "user", "content": "hello there"}]
NOW = 1_800_000_000
ANSWER = {
    "id": "chatcmpl-up",
    "object": "chat.completion",
    "created": NOW - 7,
    "model": "big-2026-01-01",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    "system_fingerprint": "fp_1",
}
POST = ("POST", "/chat/completions")


def sse(*chunks: object) -> bytes:
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def chunk(delta: dict, reason: str | None = None) -> dict:
    return {
        "id": "chatcmpl-stream",
        "object": "chat.completion.chunk",
        "created": NOW,
        "model": "big-2026-01-01",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }


USAGE = {**chunk({}), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
STREAM = sse(
    chunk({"role": "assistant", "content": "hi"}), chunk({"content": " you"}), chunk({}, "stop"), USAGE, "[DONE]"
)


@contextmanager
def gateway(home, answer, *, store=None, **recording):
    """A client of a server whose one model is an upstream's, and that upstream."""
    with scripted({POST: answer}) as upstream:
        settings = Settings(
            home=home,
            upstreams=(Upstream(name="vendor", base_url=upstream.url, models=("big",)),),
            aliases={"gpt-4o": "big"},
            recording=Recording(**recording),
        )
        app = create_app(settings, store=store, clock=FakeClock(NOW), worker=False)
        with local_client(app) as client:
            yield client, upstream


def ask(client, **body):
    response = client.post("/v1/chat/completions", json={"model": "big", "messages": HELLO} | body)
    assert response.status_code == 200, response.text
    return response


def stored(client, **query) -> list[dict]:
    return client.get("/v1/chat/completions", params=query).json()["data"]


def stats(client) -> dict:
    return client.get("/v1/chat/completions/stats").json()


def test_an_upstreams_answer_is_kept_and_the_upstream_hears_nothing_of_it(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, upstream):
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        response = ask(
            client, model="gpt-4o", store=True, metadata={"team": "a"}, temperature=0.5, seed=3, user="u", tools=tools
        )
        assert response.json() == ANSWER
        sent = json.loads(upstream.bodies(*POST)[0])
        assert sent == {
            "model": "big", "messages": HELLO, "temperature": 0.5, "seed": 3, "user": "u", "tools": tools,
        }  # fmt: skip
        kept = client.get("/v1/chat/completions/chatcmpl-up").json()
        assert kept.pop("latency_s") >= 0
        assert kept.pop("bytes") > 100
        assert kept == ANSWER | {
            "metadata": {"team": "a"},
            "request_id": response.headers["x-request-id"],
            "temperature": 0.5,
            "seed": 3,
            "top_p": None,
            "presence_penalty": None,
            "frequency_penalty": None,
            "tools": tools,
            "tool_choice": None,
            "response_format": None,
            "input_user": "u",
            "source": "vendor",
            "pinned": False,
        }


def test_an_upstream_is_asked_for_what_only_it_knows(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, upstream):
        said = {"role": "assistant", "content": "hi", "reasoning_content": None}
        body = {"messages": [*HELLO, said, *HELLO], "top_k": 3, "chat_template_kwargs": {"enable_thinking": False}}
        ask(client, **body)
        assert json.loads(upstream.bodies(*POST)[0]) == {"model": "big", **body}
        refused = client.post("/v1/chat/completions", json={"model": "big", "messages": HELLO, "stream": "yes"})
        assert refused.json()["error"]["param"] == "stream"


@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_a_time_that_no_clock_shows_is_refused(tmp_path, name):
    with gateway(tmp_path, ANSWER) as (client, _):
        reply = client.post("/v1/chat/completions/export", json={"filter": {name: 10**30}})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, f"filter.{name}")


def test_nothing_is_kept_unasked(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, _):
        ask(client)
        ask(client, store=False)
        ask(client, store=None, metadata=None)
        assert stored(client) == []


@pytest.mark.parametrize("models", [("*",), ("gpt-4o",), ("big",)])
def test_the_operator_can_have_a_models_chats_kept_and_a_client_can_refuse(tmp_path, models):
    with gateway(tmp_path, ANSWER, models=models) as (client, _):
        ask(client, model="gpt-4o", metadata={"team": "a"})
        ask(client, model="gpt-4o", store=False)
        [kept] = stored(client)
        assert kept["metadata"] == {"team": "a"}


def test_chats_with_other_models_are_not_recorded(tmp_path):
    with gateway(tmp_path, ANSWER, models=("small",)) as (client, _):
        ask(client)
        assert stored(client) == []


@pytest.mark.parametrize("store", [{}, {"store": False}, {"store": None}])
def test_metadata_without_anything_to_carry_it_is_refused(tmp_path, store):
    with gateway(tmp_path, ANSWER) as (client, upstream):
        body = {"model": "big", "messages": HELLO, "metadata": {"a": "b"}, **store}
        error = client.post("/v1/chat/completions", json=body).json()["error"]
        assert (error["param"], error["code"]) == ("metadata", "invalid_value")
        assert upstream.requests == []


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {"a" * 65: "x"}, {"": "x"}, {"a": "x" * 513}, {str(n): "x" for n in range(17)}]
)
def test_metadata_has_its_bounds(tmp_path, metadata):
    with gateway(tmp_path, ANSWER) as (client, _):
        body = {"model": "big", "messages": HELLO, "store": True, "metadata": metadata}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("metadata")
        ask(client, store=True)
        update = client.post("/v1/chat/completions/chatcmpl-up", json={"metadata": metadata})
        assert update.status_code == 400


def test_a_stream_is_kept_whole_with_its_usage_and_the_client_sees_what_it_asked_for(tmp_path):
    with gateway(tmp_path, STREAM) as (client, upstream):
        seen = ask(client, store=True, stream=True).text
        assert json.loads(upstream.bodies(*POST)[0])["stream_options"] == {"include_usage": True}
        assert "total_tokens" not in seen
        assert seen.endswith("data: [DONE]\n\n")
        [kept] = stored(client)
        assert kept["id"] == "chatcmpl-stream"
        assert kept["choices"][0]["message"]["content"] == "hi you"
        assert kept["usage"]["total_tokens"] == 5
        assert "total_tokens" in ask(client, store=True, stream=True, stream_options={"include_usage": True}).text


def test_an_upstream_that_knows_no_stream_options_is_asked_without_them(tmp_path):
    unknown = (400, {"error": {"message": "unknown field stream_options", "code": "extra"}})
    with gateway(tmp_path, [unknown, STREAM]) as (client, upstream):
        assert "[DONE]" in ask(client, store=True, stream=True).text
        assert "stream_options" not in json.loads(upstream.bodies(*POST)[1])
        assert stored(client)[0]["choices"][0]["message"]["content"] == "hi you"


BROKEN = [
    sse(chunk({"content": "hi"})),
    sse(chunk({"content": "hi"}), "[DONE]"),
    sse(chunk({"content": "hi"}), {"error": {"message": "no"}}, chunk({}, "stop"), "[DONE]"),
    sse(chunk({"content": "hi"}), "no json", chunk({}, "stop"), "[DONE]"),
]


@pytest.mark.parametrize("answer", BROKEN)
def test_a_stream_that_breaks_off_is_passed_on_and_not_kept(tmp_path, answer):
    with gateway(tmp_path, answer) as (client, _):
        assert "hi" in ask(client, store=True, stream=True).text
        assert stored(client) == []
        assert stats(client)["since_start"] == {"failed": 0, "unfinished": 1}


@pytest.mark.parametrize("answer", [{"id": "x", "choices": []}, {"id": "x"}, {"choices": [{"index": 0}]}])
def test_an_answer_without_a_message_is_not_kept(tmp_path, answer):
    with gateway(tmp_path, answer) as (client, _):
        assert ask(client, store=True).json() == answer
        assert stats(client)["since_start"]["unfinished"] == 1


def test_an_upstreams_odd_id_and_clock_are_not_taken_over(tmp_path):
    with gateway(tmp_path, ANSWER | {"id": "a/b c", "created": 5}) as (client, _):
        ask(client, store=True)
        [kept] = stored(client)
        assert kept["id"].startswith("chatcmpl-")
        assert kept["created"] == NOW


def test_a_full_disk_harms_no_answer_and_is_counted(tmp_path):
    engine = connect(tmp_path)
    engine.dispose()

    @event.listens_for(engine, "connect")
    def no_more_pages(connection, _record):
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size, and grows no further

    with gateway(tmp_path, ANSWER, store=Store(engine, FakeClock(NOW))) as (client, _):
        for _ in range(3):
            assert ask(client, store=True, messages=[{"role": "user", "content": "x" * 9000}]).json() == ANSWER
        found = stats(client)
        assert found["since_start"]["failed"] > 0
        assert found["completions"] + found["since_start"]["failed"] == 3


def test_a_full_store_lets_the_oldest_go_and_says_so(tmp_path, caplog):
    answers = [ANSWER | {"id": f"chatcmpl-{n}"} for n in range(4)]
    with gateway(tmp_path, answers, max_bytes=700) as (client, _), caplog.at_level(logging.WARNING):
        for _ in range(3):
            ask(client, store=True)
        client.post("/v1/chat/completions/chatcmpl-1", json={"pinned": True})
        kept = [each["id"] for each in stored(client)]
        assert kept == ["chatcmpl-1", "chatcmpl-2"]
        found = stats(client)
        assert (found["evicted"], found["pinned"], found["max_bytes"]) == (1, 1, 700)
        assert found["bytes"] <= 700
        expire(client.app.state.services)
        assert "oldest stored completions made room" in caplog.text


def test_with_everything_pinned_an_answer_is_given_and_not_kept(tmp_path, caplog):
    answers = [ANSWER | {"id": f"chatcmpl-{n}"} for n in range(2)]
    with gateway(tmp_path, answers, max_bytes=500) as (client, _):
        ask(client, store=True)
        client.post("/v1/chat/completions/chatcmpl-0", json={"pinned": True})
        ask(client, store=True)
        assert [each["id"] for each in stored(client)] == ["chatcmpl-0"]
        assert stats(client)["refused"] == 1
        assert "are pinned" in caplog.text


def test_what_is_older_than_the_retention_goes(tmp_path):
    with gateway(tmp_path, [ANSWER, ANSWER | {"id": "chatcmpl-2"}], retention_days=2) as (client, _):
        services = client.app.state.services
        ask(client, store=True)
        services.clock.advance(86400)
        ask(client, store=True)
        expire(services)
        assert len(stored(client)) == 2
        services.clock.advance(86400 + 1)
        expire(services)
        assert [each["id"] for each in stored(client)] == ["chatcmpl-2"]
        assert stats(client)["expired"] == 1


def test_metadata_is_merged_and_null_empties_it(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, _):
        ask(client, store=True, metadata={"a": "1", "b": "2"})
        path = "/v1/chat/completions/chatcmpl-up"
        assert client.post(path, json={"metadata": {"b": "3"}}).json()["metadata"] == {"a": "1", "b": "3"}
        assert len(stored(client, **{"metadata[b]": "3"})) == 1
        assert client.post(path, json={"metadata": None}).json()["metadata"] == {}
        assert client.post(path, json={}).json()["error"]["code"] == "missing_required_parameter"
        assert client.post(path, json={"colour": 1}).json()["error"]["code"] == "unknown_parameter"


PARTS = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]


def test_the_messages_of_a_completion_are_what_was_asked(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, _):
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": PARTS, "name": "mia"}]
        ask(client, store=True, messages=messages)
        path = "/v1/chat/completions/chatcmpl-up/messages"
        first, second = client.get(path).json()["data"]
        assert (first["id"], first["role"], first["content"]) == ("chatcmpl-up-0", "system", "be brief")
        assert first["content_parts"] is None
        assert (second["content"], second["content_parts"], second["name"]) == (None, PARTS, "mia")
        page = client.get(path, params={"limit": 1, "order": "desc"}).json()
        assert ([each["id"] for each in page["data"]], page["has_more"]) == (["chatcmpl-up-1"], True)
        rest = client.get(path, params={"after": "chatcmpl-up-1", "order": "desc"}).json()
        assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (["chatcmpl-up-0"], False)
        assert client.get(path, params={"after": "chatcmpl-up-9"}).status_code == 400


def test_what_is_not_there_is_404_and_what_has_no_effect_is_refused(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, _):
        for method in ("GET", "DELETE"):
            assert client.request(method, "/v1/chat/completions/nope").status_code == 404
        assert client.post("/v1/chat/completions/nope", json={"pinned": True}).status_code == 404
        assert client.get("/v1/chat/completions/nope/messages").status_code == 404
        assert client.get("/v1/chat/completions", params={"colour": "red"}).status_code == 400
        assert client.get("/v1/chat/completions", params={"after": "nope"}).status_code == 400
        assert client.get("/v1/chat/completions", params={"limit": 101}).status_code == 400


def choice(index: int = 0, reason: str = "stop", **message: object) -> dict:
    message = {"role": "assistant", "content": "hi", "refusal": None, "annotations": []} | message
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def test_an_export_holds_what_its_format_can_carry_and_counts_the_rest(tmp_path):
    image = [{"role": "user", "content": PARTS}]
    sound = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]
    asked = [
        ("plain", [choice()], {"metadata": {"good": "yes"}}),
        ("called", [choice(content=None, reason="tool_calls", tool_calls=[CALL])], {"tools": TOOLS}),
        ("twice", [choice(), choice(1, content="ho")], {"n": 2}),
        ("cut", [choice(reason="length")], {}),
        ("filtered", [choice(reason="content_filter")], {}),
        ("refused", [choice(content=None, refusal="no")], {}),
        ("empty", [choice(content="")], {}),
        ("image", [choice()], {"messages": image}),
        ("sound", [choice()], {"messages": sound}),
    ]
    answers = [ANSWER | {"id": f"chatcmpl-{name}", "choices": choices} for name, choices, _ in asked]
    with gateway(tmp_path, answers) as (client, _):
        for _, _, body in asked:
            ask(client, store=True, **body)
        done = client.post("/v1/chat/completions/export", json={}).json()
        assert (done["exported"], done["choices_left_out"]) == (3, 1)
        assert done["left_out"] == {
            "cut_off": 1, "content_filter": 1, "refusal": 1, "no_answer": 1, "image": 1, "audio": 1,
        }  # fmt: skip
        assert done["left_out_completions"][0] == {
            "id": "chatcmpl-cut",
            "code": "cut_off",
            "message": "The answer was cut off at its greatest length (finish_reason length).",
        }
        content = client.get(f"/v1/files/{done['id']}/content").text
        assert [json.loads(line) for line in content.splitlines()] == [
            {"messages": [*HELLO, {"role": "assistant", "content": "hi"}]},
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}], "tools": TOOLS},
            {"messages": [*HELLO, {"role": "assistant", "content": "hi"}]},
        ]
        client.app.state.services.checks.wait()
        file = client.get(f"/v1/files/{done['id']}").json()
        assert (file["purpose"], file["status"]) == ("fine-tune", "processed")

        body = {"filter": {"model": "big", "metadata": {"good": "yes"}}, "format": "eval"}
        done = client.post("/v1/chat/completions/export", json=body).json()
        assert (done["exported"], done["file"]["purpose"]) == (1, "evals")
        line = client.get(f"/v1/files/{done['id']}/content").json()
        assert line["item"]["input"] == HELLO
        assert line["item"]["metadata"] == {"good": "yes"}
        assert (line["sample"]["output_text"], line["sample"]["model"]) == ("hi", "big-2026-01-01")


def test_the_same_export_twice_is_the_same_bytes(tmp_path):
    with gateway(tmp_path, ANSWER) as (client, _):
        ask(client, store=True)
        first, second = (client.post("/v1/chat/completions/export", json={}).json()["id"] for _ in range(2))
        store = client.app.state.services.store
        assert first != second
        assert store.get_file(first).sha256 == store.get_file(second).sha256


def test_an_export_of_nothing_is_refused_with_the_reasons(tmp_path):
    with gateway(tmp_path, ANSWER | {"choices": [choice(reason="length")]}) as (client, _):
        none = client.post("/v1/chat/completions/export", json={"filter": {"model": "small"}})
        assert "No stored completion fits" in none.json()["error"]["message"]
        ask(client, store=True)
        error = client.post("/v1/chat/completions/export", json={}).json()["error"]
        assert "1 cut_off" in error["message"]
        assert error["details"][0]["id"] == "chatcmpl-up"
        assert list((tmp_path / "blobs" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "body", [{"format": "csv"}, {"filter": {"colour": "red"}}, {"filter": {"created_after": "today"}}, {"to": "x"}]
)
def test_an_export_that_is_not_understood_is_refused(tmp_path, body):
    with gateway(tmp_path, ANSWER) as (client, _):
        assert client.post("/v1/chat/completions/export", json=body).status_code == 400


def test_the_recorded_latency_is_that_of_the_whole_answer(tmp_path):
    with gateway(tmp_path, STREAM) as (client, _):
        began = time.perf_counter()
        ask(client, store=True, stream=True)
        assert 0 < stored(client)[0]["latency_s"] <= time.perf_counter() - began + 0.001
