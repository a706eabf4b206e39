"""Calls written as Python calls, whole and in any pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.inference.pythonic import PythonicStream
from tunekeeper.inference.tools import Arguments, CallBegins, Words

NAMES = ["get_weather", "now", "api.search", "get_weather_soon"]


def read(*pieces: str) -> tuple[str, list[tuple[str, str]]]:
    stream = PythonicStream(NAMES)
    parts = [part for piece in pieces for part in stream.push(piece)] + stream.finish()
    words = "".join(part.text for part in parts if isinstance(part, Words))
    calls = [(part.name, "") for part in parts if isinstance(part, CallBegins)]
    for part in parts:
        if isinstance(part, Arguments):
            calls[part.index] = (calls[part.index][0], calls[part.index][1] + part.text)
    return words, calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[get_weather(city="Paris", days=3)]', [("get_weather", {"city": "Paris", "days": 3})]),
        ("[now()]", [("now", {})]),
        ("[now(), get_weather(city='Rome')]", [("now", {}), ("get_weather", {"city": "Rome"})]),
        (
            "[api.search(q=True, r=None, s=true, t=null)]",
            [("api.search", {"q": True, "r": None, "s": True, "t": None})],
        ),
        ('[now(a=[1, {"b": (2, 3)}], c="x), [(")]', [("now", {"a": [1, {"b": [2, 3]}], "c": "x), [("})]),
        ("[now(zone=utc)]", [("now", {"zone": "utc"})]),
        ('[now(a="say \\"hi\\"", class=-1.5)]', [("now", {"a": 'say "hi"', "class": -1.5})]),
        ('  [get_weather_soon(city="Paris"', [("get_weather_soon", {"city": "Paris"})]),
        ("[now(a=1)] and then some", [("now", {"a": 1})]),
    ],
)
def test_calls_are_read_with_their_arguments_as_json(text: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    words, found = read(text)
    assert words == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert read(*text) == (words, found)


@pytest.mark.parametrize("text", ["Hello!", "[1, 2]", "[unknown(a=1)]", "[get_weather] is a tool", "", "[now", "now()"])
def test_what_is_no_call_of_a_known_function_is_text_unchanged(text: str) -> None:
    assert read(text) == (text, [])
    assert read(*text) == (text, [])


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=12),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ),
    st.integers(1, 7),
)
def test_any_arguments_come_back_whatever_the_pieces(arguments: dict[str, object], size: int) -> None:
    text = "[get_weather(" + ", ".join(f"{key}={value!r}" for key, value in arguments.items()) + ")]"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    words, calls = read(*pieces)
    assert (words, calls[0][0], json.loads(calls[0][1])) == ("", "get_weather", arguments)
