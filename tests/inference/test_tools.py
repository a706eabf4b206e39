import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.inference.tools import Arguments, CallBegins, CallStream, Words

NAMES = ("get_weather", "search")


def parse(text: str, size: int | None = None, names: tuple[str, ...] = NAMES):
    """Words, and (name, arguments) of each call."""
    stream = CallStream(names)
    parts = []
    for at in range(0, len(text), size or max(1, len(text))):
        parts += stream.push(text[at : at + (size or len(text))])
    parts += stream.finish()
    words, calls = "", []
    for part in parts:
        if isinstance(part, Words):
            words += part.text
        elif isinstance(part, CallBegins):
            assert part.index == len(calls)
            calls.append((part.name, ""))
        else:
            assert part.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    return words, calls


PARIS = '{"city": "Paris"}'
CASES = {
    "bare": ('{"name": "get_weather", "arguments": {"city": "Paris"}}', ("", [("get_weather", PARIS)])),
    "parameters": ('{"name": "get_weather", "parameters": {"city": "Paris"}}', ("", [("get_weather", PARIS)])),
    "typed": (
        '{"type": "function", "name": "search", "arguments": {}}',
        ("", [("search", "{}")]),
    ),
    "several, by semicolon": (
        '{"name": "get_weather", "arguments": {"city": "Paris"}}; {"name": "search", "arguments": {}}',
        ("", [("get_weather", PARIS), ("search", "{}")]),
    ),
    "several, by newline": (
        '{"name": "search", "arguments": {}}\n{"name": "search", "arguments": {}}',
        ("", [("search", "{}"), ("search", "{}")]),
    ),
    "tagged after words": (
        'Let me look.\n<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>',
        ("Let me look.", [("search", "{}")]),
    ),
    "tagged, keys the other way": (
        '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>',
        ("", [("get_weather", PARIS)]),
    ),
    "arguments as text": (
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        ("", [("get_weather", PARIS)]),
    ),
    "braces and quotes in a string": (
        '{"name": "search", "arguments": {"q": "a }{ \\" ]"}}',
        ("", [("search", '{"q": "a }{ \\" ]"}')]),
    ),
    "more keys after the arguments": (
        '{"name": "search", "arguments": {}, "id": 7}, {"name": "search", "arguments": {}}',
        ("", [("search", "{}"), ("search", "{}")]),
    ),
    "cut off": ('{"name": "search", "arguments": {"q": "a', ("", [("search", '{"q": "a')])),
    "cut off before the arguments": ('{"name": "search"', ('{"name": "search"', [])),
    "unknown function": ('{"name": "rm", "arguments": {}}', ('{"name": "rm", "arguments": {}}', [])),
    "other JSON": ('{"answer": 42}', ('{"answer": 42}', [])),
    "in the middle of a line": (
        'say {"name": "search", "arguments": {}}',
        ('say {"name": "search", "arguments": {}}', []),
    ),
    "a tag without a call": ("<tool_call>hm</tool_call>", ("<tool_call>hm</tool_call>", [])),
    "a tag cut off": ("and <tool", ("and <tool", [])),
    "words": ("Hello,\n world. ", ("Hello,\n world. ", [])),
    "nothing": ("", ("", [])),
}


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES)
def test_calls_and_words_are_told_apart_however_the_text_is_cut(case, size):
    text, expected = CASES[case]
    assert parse(text, size) == expected


def test_words_do_not_wait_for_the_end():
    stream = CallStream(NAMES)
    assert stream.push("Hello there") == [Words("Hello there")]


def test_a_name_and_arguments_come_before_the_call_is_complete():
    stream = CallStream(NAMES)
    assert stream.push('{"name": "search", "argu') == []
    assert stream.push('ments": {"q": "x') == [CallBegins(0, "search"), Arguments(0, '{"q": "x')]
    assert stream.push('yz"') == [Arguments(0, 'yz"')]


def test_an_object_that_cannot_be_a_call_is_not_held_back():
    assert CallStream(NAMES).push('{"answer": ') == [Words("{"), Words('"answer":')]


arguments = st.dictionaries(
    st.text(max_size=5), st.recursive(st.none() | st.integers() | st.text(max_size=8), st.lists, max_leaves=4)
)


@given(st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3), st.booleans(), st.integers(1, 9))
def test_what_was_written_as_calls_is_read_as_these_calls(calls, tagged, size):
    texts = [json.dumps({"name": name, "arguments": args}, ensure_ascii=False) for name, args in calls]
    text = "\n".join(f"<tool_call>\n{t}\n</tool_call>" for t in texts) if tagged else "; ".join(texts)
    words, found = parse(text, size)
    assert words == ""
    assert [(name, json.loads(text)) for name, text in found] == calls


@given(st.text('{}"<>/:,; \nabtol_call', max_size=60), st.integers(1, 9))
def test_no_words_are_lost_without_functions(text, size):
    assert parse(text, size, names=()) == (text, [])
