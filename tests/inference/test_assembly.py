"""Chunks put together; the oracle is the same answer, asked for whole."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.inference.answers import Counts, Delta
from tunekeeper.inference.assembly import Assembly
from tunekeeper.inference.completion import Completion
from tunekeeper.inference.params import TokenLogprob
from tunekeeper.inference.request import ChatBody
from tunekeeper.inference.tools import Arguments, CallBegins, Words
from tunekeeper.types import Json

KEYS = ["index", "delta", "content", "tool_calls", "function", "id", "name", "finish_reason", "logprobs", "role"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, bool, list[Delta | Counts]]:
    """How many choices, whether log-probabilities are wanted, and what the engine says, choices interleaved."""
    n, logprobs = draw(st.integers(1, 3)), draw(st.booleans())
    queues = []
    for index in range(n):
        parts: list[Words | CallBegins | Arguments] = [Words(draw(TEXT)) for _ in range(draw(st.integers(1, 3)))]
        n_calls = draw(st.integers(0, 3))
        for call in range(n_calls):
            parts.append(CallBegins(call, draw(st.sampled_from(["f", "get_weather"]))))
            parts += [Arguments(call, draw(TEXT)) for _ in range(draw(st.integers(0, 3)))]
        deltas = []
        while parts:
            size = draw(st.integers(1, 3))
            said, parts = tuple(parts[:size]), parts[size:]
            logprob = TokenLogprob(token=1, bytes=b"x", logprob=-0.5, top=())
            deltas.append(Delta(index=index, parts=said, logprobs=(logprob,)))
        reason = "tool_calls" if n_calls else draw(st.sampled_from(["stop", "length"]))
        queues.append([*deltas, Delta(index=index, parts=(), finish_reason=reason)])
    events: list[Delta | Counts] = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        events.append(queue.pop(0))
    return n, logprobs, [*events, Counts(n_prompt=3, n_cached=1, n_generated=9)]


async def _given(events):
    for event in events:
        yield event


def body_of(n: int, *, logprobs: bool) -> ChatBody:
    return ChatBody.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "n": n,
            "logprobs": logprobs,
            "stream_options": {"include_usage": True},
        }
    )


def without_ids(completion: Json) -> Json:
    """Ids are drawn anew for each answer; all else must agree."""
    text = json.loads(json.dumps(completion))
    text.pop("id")
    for choice in text["choices"]:
        for call in choice["message"].get("tool_calls") or []:
            assert call.pop("id").startswith("call_")
    return text


@settings(deadline=None)
@given(answers())
def test_a_stream_put_together_is_the_whole_answer(answer):
    n, logprobs, events = answer
    body = body_of(n, logprobs=logprobs)

    async def both() -> tuple[Json, list[str]]:
        whole = await Completion(body, "m", 1).whole(_given(events))
        rest = _given(events)
        return whole, [chunk async for chunk in Completion(body, "m", 1).chunks(await anext(rest), rest)]

    whole, chunks = asyncio.run(both())
    assembly = Assembly(n)
    for chunk in chunks:
        assembly.add(json.loads(chunk))
    assert assembly.is_whole
    assert without_ids(assembly.completion()) == without_ids(whole)


def chunk(delta: Json, *, reason: str | None = None, index: int = 0, **head: object) -> Json:
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": reason}], **head}


def assembled(*chunks: object, n: int = 1) -> SimpleNamespace:
    assembly = Assembly(n)
    for each in chunks:
        assembly.add(each)
    completion = assembly.completion()
    message = completion["choices"][0]["message"] if completion["choices"] else None
    return SimpleNamespace(whole=assembly.is_whole, completion=completion, message=message)


def test_an_answer_is_whole_when_every_choice_has_its_end():
    first, second = chunk({"content": "a"}, reason="stop"), chunk({"content": "b"}, reason="length", index=1)
    assert not assembled(first, n=2).whole
    both = assembled(second, first, n=2)
    assert both.whole
    assert [choice["message"]["content"] for choice in both.completion["choices"]] == ["a", "b"]


@pytest.mark.parametrize("broken", [{"error": {"message": "no"}}, None, [], {"id": "c"}, {"choices": [1]}])
def test_what_is_no_chunk_makes_no_whole_answer(broken):
    assert not assembled(chunk({"content": "a"}), broken, chunk({}, reason="stop")).whole


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "stop"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(VALUES | st.fixed_dictionaries({"choices": st.lists(VALUES, max_size=2)}), max_size=4))
def test_whatever_a_server_sends_raises_nothing(chunks):
    found = assembled(*chunks)
    assert json.loads(json.dumps(found.completion)) == found.completion


def test_a_name_that_is_said_with_each_fragment_is_taken_once():
    call = {"index": 0, "id": "call_1", "type": "function"}
    message = assembled(
        chunk({"role": "assistant", "tool_calls": [{**call, "function": {"name": "f", "arguments": '{"a'}}]}),
        chunk({"role": "assistant", "tool_calls": [{**call, "function": {"name": "f", "arguments": '": 1}'}}]}),
        chunk({}, reason="tool_calls"),
    ).message
    assert message["role"] == "assistant"
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ]


def test_calls_without_an_index_are_told_apart_by_their_ids():
    def fragment(**given: object) -> Json:
        return chunk({"tool_calls": [given]})

    message = assembled(
        fragment(id="a", type="function", function={"name": "f", "arguments": "{"}),
        fragment(function={"arguments": "}"}),
        fragment(id="b", type="function", function={"name": "g", "arguments": "{}"}),
    ).message
    assert [(call["id"], call["function"]["arguments"]) for call in message["tool_calls"]] == [("a", "{}"), ("b", "{}")]


def test_what_a_server_adds_to_the_api_is_kept():
    found = assembled(
        chunk({"reasoning_content": "because "}, model="m", system_fingerprint="fp"),
        chunk({"reasoning_content": "so"}),
        chunk({"content": "yes", "refusal": None}, reason="stop"),
        {"choices": [], "usage": {"total_tokens": 3}, "model": None},
    )
    assert found.message["reasoning_content"] == "because so"
    assert found.message["content"] == "yes"
    assert (found.completion["model"], found.completion["usage"]) == ("m", {"total_tokens": 3})


def test_a_refusal_is_put_together_like_the_content():
    message = assembled(chunk({"refusal": "I can"}), chunk({"refusal": "not."}), chunk({}, reason="stop")).message
    assert (message["content"], message["refusal"]) == (None, "I cannot.")
