import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.datasets import formats
from tunekeeper.datasets.formats import (
    ChatExample,
    CompletionExample,
    Fault,
    Line,
    Parsed,
    PreferenceExample,
    ProblemExample,
    detect_method,
    parse,
    read_examples,
    read_lines,
)
from tunekeeper.errors import InvalidData, Unsupported

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def lines(data: bytes) -> list[Line | Fault]:
    return list(read_lines(io.BytesIO(data)))


def codes(data: bytes) -> list[tuple[int, str]]:
    return [(item.line, item.code) for item in lines(data) if isinstance(item, Fault)]


def chat(*messages: Any, **more: Any) -> Parsed:
    return parse(Line(1, {"messages": list(messages), **more}))


def faults(parsed: Parsed) -> list[tuple[str, str, str]]:
    return [(fault.pointer, fault.code, fault.level) for fault in parsed.faults]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


@settings(max_examples=80, deadline=None)
@given(
    objects=st.lists(json_objects, min_size=1, max_size=5),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    ending=st.sampled_from([b"", b"\n", b"\r\n", b"\n \n\n"]),
    ensure_ascii=st.booleans(),
)
def test_objects_come_back_as_they_were_written(
    objects: list[dict], newline: bytes, mark: bytes, ending: bytes, ensure_ascii: bool
) -> None:
    written = [json.dumps(value, ensure_ascii=ensure_ascii).encode() for value in objects]
    read = lines(mark + newline.join(written) + ending)
    assert read == [Line(n, value) for n, value in enumerate(objects, start=1)]


near_json = st.lists(
    st.sampled_from([b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r", b"\\", b"\\ud800", b"1e999", b"NaN"])
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200) | near_json)
def test_no_bytes_break_the_reader_and_each_line_gives_one_item(data: bytes) -> None:
    read = lines(data)
    numbers = [item.number if isinstance(item, Line) else item.line for item in read]
    body = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while body and not body[-1].strip():
        body.pop()
    assert numbers == list(range(1, len(body) + 1))


@settings(max_examples=100, deadline=None)
@given(
    value=json_objects,
    key=st.sampled_from(["messages", "tools", "prompt", "functions", "x"]),
    extra=json_values,
)
def test_no_object_breaks_the_parser(value: dict, key: str, extra: Any) -> None:
    parsed = parse(Line(1, value | {key: extra}))
    assert (parsed.example is None) == any(fault.level == "error" for fault in parsed.faults)


message_like = st.fixed_dictionaries(
    {"role": st.sampled_from([*formats.ROLES, "function", "", 3])},
    optional={
        "content": json_values | st.just([{"type": "text", "text": "x"}]),
        "weight": json_values,
        "tool_calls": json_values | st.lists(json_values | st.just(CALL), max_size=2),
        "function_call": json_values | st.just(CALL["function"]),
        "tool_call_id": json_values,
        "name": json_values,
    },
)


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(message_like | json_values, max_size=4), tools=json_values | st.lists(json_values))
def test_no_message_breaks_the_parser(messages: list, tools: Any) -> None:
    parsed = parse(Line(7, {"messages": messages, "tools": tools}))
    assert all(fault.line == 7 and fault.message.startswith("Line 7: ") for fault in parsed.faults)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "json_parse"),
        (b'{"a": 1} {"b": 2}', "json_parse"),
        (b'{"a": NaN}', "json_parse"),
        (b'{"a": -Infinity}', "json_parse"),
        (b'{"a": 1e999}', "json_parse"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json_parse"),
        (b'{"a": 1, "a": 2}', "json_parse"),
        (b'{"a": "tab\there"}', "json_parse"),
        (b"[1]", "not_object"),
        (b"null", "not_object"),
        (b'{"a": "\xff"}', "non_utf8"),
        (b'{"a": "\\ud800"}', "non_utf8"),
        (b"\xff\xfe{\x00}\x00", "non_utf8"),
        (b'{"a": "\x00"}', "nul_byte"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "too_deep"),
        (b"[" * 200_000, "too_deep"),
        (b'{"a":' * 200_000, "too_deep"),
    ],
)
def test_a_broken_line_is_a_fault_and_the_next_line_is_read(line: bytes, code: str) -> None:
    read = lines(line + b'\n{"b": 1}\n')
    assert [item.code for item in read[:-1] if isinstance(item, Fault)] == [code]
    assert read[-1] == Line(2, {"b": 1})


def test_many_brackets_side_by_side_are_not_deep() -> None:
    value = {"a": [[] for _ in range(500)]}
    assert lines(json.dumps(value).encode()) == [Line(1, value)]


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert lines(b'{"a": "\\ud83c\\udf89"}') == [Line(1, {"a": "🎉"})]


def test_blank_lines_are_faults_in_the_middle_and_fine_at_the_end() -> None:
    assert codes(b'\n{"a": 1}\n\r\n  \n{"a": 2}\n\n\n') == [
        (1, "empty_line"),
        (3, "empty_line"),
        (4, "empty_line"),
    ]


class LongLine(io.RawIOBase):
    """A first line of `size` bytes, made as it is read, then the lines of `rest`."""

    def __init__(self, size: int, rest: list[bytes]) -> None:
        self.left, self.rest, self.largest = size, rest, 0

    def readline(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size > 0
        if not self.left:
            return self.rest.pop(0) if self.rest else b""
        piece = min(size, self.left)
        self.left -= piece
        self.largest = max(self.largest, piece)
        return b"x" * piece


def test_a_line_over_the_limit_is_skipped_without_being_held() -> None:
    stream = LongLine(100 * 1024**2, [b"\n", b'{"a": 1}'])
    first, second = read_lines(stream)
    assert isinstance(first, Fault)
    assert (first.line, first.code) == (1, "line_too_long")
    assert second == Line(2, {"a": 1})
    assert stream.largest <= formats.MAX_LINE_BYTES + 1


def test_a_line_at_the_limit_is_read() -> None:
    room = formats.MAX_LINE_BYTES - len('{"a": ""}')
    read = lines(b'{"a": "' + b"x" * room + b'"}\n{"a": "' + b"x" * (room + 1) + b'"}\n{}')
    assert isinstance(read[0], Line)
    assert isinstance(read[1], Fault)
    assert read[2] == Line(3, {})


def test_a_chat_is_an_example() -> None:
    weighted = {**ANSWER, "weight": 0}
    parsed = chat(USER, weighted, USER, ANSWER, tools=[TOOL], parallel_tool_calls=False)
    assert parsed == Parsed(ChatExample(1, (USER, weighted, USER, ANSWER), (TOOL,), False), ())
    assert isinstance(parsed.example, ChatExample)
    assert [parsed.example.is_trained(n) for n in range(4)] == [False, False, False, True]


def test_a_prompt_with_completion_is_an_example() -> None:
    assert parse(Line(3, {"prompt": "a", "completion": "b"})) == Parsed(CompletionExample(3, "a", "b"), ())
    assert faults(parse(Line(3, {"prompt": "a"}))) == [("/completion", "missing_content", "error")]
    assert faults(parse(Line(3, {"prompt": "", "completion": ""}))) == [("/completion", "empty_answer", "warn")]


def test_the_old_function_form_becomes_the_tools_form() -> None:
    function = {"name": "f", "parameters": {}}
    old = chat(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
        ANSWER,
        functions=[function],
    )
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert old.faults == ()
    assert old.example == ChatExample(
        1,
        (
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "name": "f", "content": "1", "tool_call_id": "call_1"},
            ANSWER,
        ),
        ({"type": "function", "function": function},),
    )


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Hi", ("/messages/1", "bad_role", "error")),
        ({"role": "bot", "content": "x"}, ("/messages/1/role", "bad_role", "error")),
        ({"content": "x"}, ("/messages/1/role", "bad_role", "error")),
        ({"role": "assistant"}, ("/messages/1/content", "missing_content", "error")),
        ({"role": "user", "content": None}, ("/messages/1/content", "missing_content", "error")),
        ({"role": "user", "content": 3}, ("/messages/1/content", "missing_content", "error")),
        ({"role": "user", "content": []}, ("/messages/1/content", "missing_content", "error")),
        (
            {"role": "user", "content": [{"type": "text"}]},
            ("/messages/1/content/0/text", "missing_content", "error"),
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            ("/messages/1/content/0", "unsupported_content", "error"),
        ),
        ({**ANSWER, "weight": 2}, ("/messages/1/weight", "bad_weight", "error")),
        ({**ANSWER, "weight": True}, ("/messages/1/weight", "bad_weight", "error")),
        ({**ANSWER, "weight": [0]}, ("/messages/1/weight", "bad_weight", "error")),
        ({**USER, "weight": 1}, ("/messages/1/weight", "bad_weight", "error")),
        ({**ANSWER, "tool_calls": []}, ("/messages/1/tool_calls", "bad_tool_call", "error")),
        ({**USER, "tool_calls": [CALL]}, ("/messages/1/tool_calls", "bad_tool_call", "error")),
        ({**ANSWER, "tool_calls": ["x"]}, ("/messages/1/tool_calls/0", "bad_tool_call", "error")),
        (
            {**ANSWER, "tool_calls": [{**CALL, "id": ""}]},
            ("/messages/1/tool_calls/0/id", "bad_tool_call", "error"),
        ),
        (
            {**ANSWER, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]},
            ("/messages/1/tool_calls/0/function/arguments", "tool_call_bad_json", "error"),
        ),
        (
            {**ANSWER, "function_call": {"arguments": "{}"}},
            ("/messages/1/function_call/name", "bad_tool_call", "error"),
        ),
        ({"role": "tool", "content": "1"}, ("/messages/1/tool_call_id", "missing_tool_call_id", "error")),
        ({**USER, "name": 3}, ("/messages/1/name", "bad_value", "error")),
        ({**USER, "a/b~": 3}, ("/messages/1/a~1b~0", "unknown_key", "warn")),
        ({"role": "assistant", "content": ""}, ("/messages/1/content", "empty_answer", "warn")),
    ],
)
def test_a_message_that_does_not_fit_is_a_fault_at_its_place(message: Any, fault: tuple[str, str, str]) -> None:
    assert faults(chat(USER, message)) == [fault]


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"tools": {}}, ("/tools", "bad_tool", "error")),
        ({"tools": ["f"]}, ("/tools/0", "bad_tool", "error")),
        ({"tools": [{"type": "function", "function": {}}]}, ("/tools/0/function/name", "bad_tool", "error")),
        ({"tools": [TOOL, TOOL]}, ("/tools/1/function/name", "bad_tool", "error")),
        ({"functions": [{"name": "f", "parameters": 1}]}, ("/functions/0/parameters", "bad_tool", "error")),
        ({"functions": [{"name": "f"}], "tools": [TOOL]}, ("/functions", "bad_tool", "error")),
        ({"parallel_tool_calls": 1}, ("/parallel_tool_calls", "bad_value", "error")),
        ({"split": "train"}, ("/split", "unknown_key", "warn")),
    ],
)
def test_what_stands_beside_the_messages_is_checked(more: dict, fault: tuple[str, str, str]) -> None:
    assert faults(chat(USER, ANSWER, **more)) == [fault]


@pytest.mark.parametrize(
    ("value", "code", "hint"),
    [
        ({}, "missing_messages", '"messages" is missing'),
        ({"input": {}, "preferred_output": []}, "missing_messages", "dpo"),
        ({"messages": {}}, "missing_messages", "an object"),
        ({"messages": []}, "empty_messages", "empty"),
    ],
)
def test_a_line_without_messages_says_what_it_needs(value: dict, code: str, hint: str) -> None:
    (fault,) = parse(Line(1, value)).faults
    assert fault.code == code
    assert hint in fault.message


def test_a_method_without_a_format_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="'magic'"):
        parse(Line(1, {}), method="magic")


def test_examples_of_a_checked_file_are_read_and_a_bad_line_stops_with_its_details() -> None:
    good = json.dumps({"messages": [USER, ANSWER]}).encode()
    assert [example.line for example in read_examples(io.BytesIO(good + b"\n" + good))] == [1, 2]
    with pytest.raises(InvalidData, match="Line 2") as caught:
        list(read_examples(io.BytesIO(good + b"\n[]\n")))
    assert caught.value.details[0]["code"] == "not_object"


def pair(preferred: Any, rejected: Any, *messages: Any, **more: Any) -> Parsed:
    given = {"messages": list(messages or [USER]), **more}
    value = {"input": given, "preferred_output": preferred, "non_preferred_output": rejected}
    return parse(Line(1, value), method="dpo")


OTHER = {"role": "assistant", "content": "Go away"}


def test_a_pair_holds_its_input_and_both_outputs() -> None:
    parsed = pair([ANSWER], [OTHER], tools=[TOOL], parallel_tool_calls=False)
    assert parsed.faults == ()
    assert isinstance(parsed.example, PreferenceExample)
    assert parsed.example.messages == (USER,)
    assert (parsed.example.preferred, parsed.example.rejected) == ((ANSWER,), (OTHER,))
    assert (parsed.example.tools, parsed.example.parallel_tool_calls) == ((TOOL,), False)


def test_an_output_may_be_several_messages_with_calls() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "3"}
    parsed = pair([called, result, ANSWER], [OTHER], tools=[TOOL])
    assert isinstance(parsed.example, PreferenceExample)
    assert len(parsed.example.preferred) == 3


def test_only_the_outputs_of_a_pair_are_learned() -> None:
    example = pair([ANSWER], [OTHER], USER, ANSWER, USER).example
    assert isinstance(example, PreferenceExample)
    for chat in example.chats():
        assert [n for n in range(4) if chat.is_trained(n)] == [3]


@pytest.mark.parametrize(
    ("preferred", "rejected", "fault"),
    [
        ([ANSWER], [ANSWER], ("/non_preferred_output", "dpo_identical_pair", "error")),
        ([], [OTHER], ("/preferred_output", "dpo_bad_output", "error")),
        (ANSWER, [OTHER], ("/preferred_output", "dpo_bad_output", "error")),
        ([ANSWER], None, ("/non_preferred_output", "dpo_bad_output", "error")),
        ([ANSWER], "Go away", ("/non_preferred_output", "dpo_bad_output", "error")),
        ([USER, ANSWER], [OTHER], ("/preferred_output/0/role", "dpo_bad_output", "error")),
        ([ANSWER], [{"role": "assistant"}], ("/non_preferred_output/0/content", "missing_content", "error")),
        ([ANSWER], [{"role": "tool", "tool_call_id": "c", "content": "x"}], ("/non_preferred_output", "no_assistant",
                                                                           "error")),
    ],
)  # fmt: skip
def test_a_faulty_output_is_named_with_its_place(preferred: Any, rejected: Any, fault: tuple[str, str, str]) -> None:
    parsed = pair(preferred, rejected)
    assert fault in faults(parsed)
    assert parsed.example is None


def test_a_pair_without_input_is_told_what_it_looks_like() -> None:
    parsed = parse(Line(1, {"messages": [USER, ANSWER]}), method="dpo")
    assert "use the method supervised" in parsed.faults[-1].message
    assert ("/input/messages", "empty_messages", "error") in faults(
        parse(Line(1, {"input": {"messages": []}, "preferred_output": [ANSWER]}), method="dpo")
    )


def test_an_input_that_ends_with_an_answer_is_doubtful() -> None:
    assert faults(pair([ANSWER], [OTHER], USER, ANSWER)) == [("/input/messages/1/role", "dpo_input_answered", "warn")]


def problem(*messages: Any, **more: Any) -> Parsed:
    return parse(Line(1, {"messages": list(messages), **more}), method="reinforcement")


def test_the_other_keys_of_a_problem_are_its_item() -> None:
    parsed = problem(USER, answer=4, notes={"a": [1]}, tools=[TOOL])
    assert parsed.faults == ()
    assert isinstance(parsed.example, ProblemExample)
    assert parsed.example.item == {"answer": 4, "notes": {"a": [1]}}
    assert parsed.example.tools == (TOOL,)


def test_a_problem_ends_with_the_users_message() -> None:
    assert faults(problem(USER, ANSWER)) == [("/messages/1/role", "rft_last_not_user", "error")]
    assert faults(problem()) == [("/messages", "empty_messages", "error")]
    assert problem({"role": "developer", "content": "Be brief."}, USER).faults == ()


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ({"messages": [USER, ANSWER]}, "supervised"),
        ({"prompt": "a", "completion": "b"}, "supervised"),
        ({"messages": [USER], "answer": 4}, "reinforcement"),
        ({"messages": [USER, ANSWER, USER], "answer": 4}, "reinforcement"),
        ({"messages": [USER, ANSWER, USER]}, "supervised"),
        ({"input": {"messages": [USER]}}, "dpo"),
        ({"messages": 3}, "supervised"),
    ],
)
def test_the_first_line_says_what_a_file_is_for(line: Any, method: str) -> None:
    stream = io.BytesIO(json.dumps(line).encode() + b"\n")
    assert detect_method(stream) == method
    assert stream.tell() == 0


@settings(max_examples=60, deadline=None)
@given(value=json_objects, method=st.sampled_from(["dpo", "reinforcement"]), keys=st.lists(st.sampled_from(
    ["input", "messages", "preferred_output", "non_preferred_output", "tools", "parallel_tool_calls"])))  # fmt: skip
def test_no_object_at_all_makes_a_format_fail(value: dict[str, Any], method: str, keys: list[str]) -> None:
    renamed = dict(zip(keys, value.values(), strict=False)) | value
    for inner in (renamed, {"input": renamed, "preferred_output": list(value.values()), "messages": [renamed]}):
        parsed = parse(Line(1, inner), method=method)
        assert parsed.example is not None or any(fault.level == "error" for fault in parsed.faults)
