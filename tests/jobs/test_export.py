"""Stored completions as lines: what each format holds, and what it refuses to bend into shape."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.datasets.formats import read_examples
from tunekeeper.jobs.export import LEFT_OUT, LeftOut, chat_line, eval_line, export
from tunekeeper.types import Json, StoredCompletion

HELLO = [{"role": "user", "content": "hello"}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
KEYS = ["role", "content", "refusal", "tool_calls", "function_call", "function", "name", "audio", "type", "text", "id"]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def completion(message: Json | None = None, *, reason: str = "stop", **request: object) -> StoredCompletion:
    message = {"role": "assistant", "content": "hi", "refusal": None, "annotations": []} | (message or {})
    return StoredCompletion(
        id="chatcmpl-1",
        created=7,
        model="teacher",
        request={"model": "teacher", "messages": HELLO} | request,
        response={"choices": [{"index": 0, "message": message, "finish_reason": reason}]},
        source="own",
        metadata={"team": "a"},
    )


def test_what_the_clients_library_adds_is_not_learned():
    parsed = {**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {"a": 1}}}
    asked = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [parsed], "parsed": None, "annotations": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    line = chat_line(completion(messages=asked, tools=[{"type": "function", "function": FUNCTION}]))
    assert line["messages"][1] == {"role": "assistant", "tool_calls": [CALL]}
    assert line["messages"][3] == {"role": "assistant", "content": "hi"}
    assert line["tools"] == [{"type": "function", "function": FUNCTION}]


def test_functions_stay_in_their_own_form_to_learn_and_are_calls_to_judge():
    call = {"name": "f", "arguments": "{}"}
    kept = completion({"content": None, "function_call": call}, reason="function_call", functions=[FUNCTION])
    line = chat_line(kept)
    assert line == {
        "messages": [*HELLO, {"role": "assistant", "function_call": call}],
        "functions": [FUNCTION],
    }
    assert eval_line(kept)["sample"]["output_tools"] == [{"type": "function", "function": call}]


def test_the_sample_of_an_answer_has_what_graders_read():
    line = eval_line(completion({"content": '{"a": 1}'}, response_format={"type": "json_object"}))
    assert line["sample"]["output_text"] == '{"a": 1}'
    assert line["sample"]["output_json"] == {"a": 1}
    assert line["item"] == {
        "input": HELLO,
        "completion_id": "chatcmpl-1",
        "model": "teacher",
        "created": 7,
        "metadata": {"team": "a"},
        "response_format": {"type": "json_object"},
    }


def parts(*kinds: str) -> list[Json]:
    return [{"role": "user", "content": [{"type": kind, kind: "x"} for kind in kinds]}]


@pytest.mark.parametrize(
    ("kept", "code"),
    [
        (completion(reason="length"), "cut_off"),
        (completion(reason="content_filter"), "content_filter"),
        (completion({"refusal": "no"}), "refusal"),
        (completion({"audio": {"id": "a"}}), "audio"),
        (completion({"content": None}), "no_answer"),
        (completion({"content": "", "tool_calls": []}), "no_answer"),
        (completion(messages=parts("text", "image_url")), "image"),
        (completion(messages=parts("input_audio")), "audio"),
        (completion(messages=parts("file")), "file"),
        (completion(messages=parts("hologram")), "unsupported_content"),
        (completion(messages=["hello"]), "invalid_example"),
        (completion(tools=[{"type": "custom", "custom": {}}]), "unsupported_tool"),
    ],
)
def test_what_cannot_be_carried_is_left_out_by_name(kept, code):
    with pytest.raises(LeftOut) as left:
        chat_line(kept)
    assert left.value.code == code
    assert left.value.reason.startswith(LEFT_OUT[code])


class Written(io.BytesIO):
    """A file that counts as a blob's writer."""


def test_half_a_surrogate_pair_is_left_out_and_the_rest_written():
    out = Written()
    done = export([completion({"content": "\ud83d"}), completion()], out, "chat")
    assert (done.lines, dict(done.left_out)) == (1, {"invalid_example": 1})
    assert len(out.getvalue().splitlines()) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "a", "length", "text"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON), JSON)
def test_whatever_an_upstream_answered_is_written_or_left_out(message, reason):
    kept = completion(message, reason=reason)
    for format_ in ("chat", "eval"):
        out = Written()
        done = export([kept], out, format_)
        assert done.lines + done.left_out.total() == 1
        assert len(out.getvalue().splitlines()) == done.lines


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20))
def test_every_line_is_an_example_that_training_reads_back(pairs):
    kept = [completion({"content": said}, messages=[{"role": "user", "content": asked}]) for asked, said in pairs]
    out = Written()
    assert export(kept, out, "chat").lines == len(pairs)
    examples = read_examples(io.BytesIO(out.getvalue()))
    assert [(example.messages[0]["content"], example.messages[1]["content"]) for example in examples] == pairs
    assert all(json.loads(line) for line in out.getvalue().decode().rstrip("\n").split("\n"))
