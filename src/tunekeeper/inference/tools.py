"""Function calls in what a model writes. Pure: text in, text and calls out, whole or piece by piece.

Two ways of writing a call are understood, when the function is one of the given ones:

    {"name": "get_weather", "arguments": {"city": "Paris"}}; {"name": …}     where a line begins
    <tool_call>{"name": …, "arguments": {…}}</tool_call>                      anywhere: Hermes, Qwen

For "arguments" there may be "parameters".

    calls = CallStream(["get_weather"])
    calls.push(text)      # -> [Words("Let me look."), CallBegins(0, "get_weather"), Arguments(0, '{"ci')]
    calls.finish()        # -> what was held back because it could have become a call

The arguments are given out as the model writes them. Whatever is no call is text, unchanged.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tunekeeper.inference.text import possible_start

OPEN, CLOSE = "<tool_call>", "</tool_call>"


Style = Literal["tagged", "bare", "pythonic"]
"""How a model writes calls: these two, and that of `pythonic.py`."""


def style_of(rendered: str, name: str) -> Style:
    """The style of a chat template, seen in a chat that it rendered, which ends with a call of `name`."""
    at = rendered.rfind(name)
    if rendered.startswith("(", at + len(name)):
        return "pythonic"
    return "tagged" if OPEN in rendered[max(0, at - 2 * len(OPEN) - len('{"name": "')) : at] else "bare"


@dataclass(frozen=True, slots=True)
class Words:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """The model calls this function; `index` counts the calls of one answer."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next part of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Words | CallBegins | Arguments

_HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_FIRST_KEY = re.compile(r'\{\s*(?:[^\s"]|"((?:[^"\\]|\\.)*)")')
_CALL_KEYS = frozenset({"name", "type", "arguments", "parameters"})
_BARE = re.compile(r"^[ \t]*\{", re.MULTILINE)
_SEPARATORS = " \t\r\n;,"


class CallStream:
    """Separates one answer's calls from its text."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._buffer = ""
        self._at_line_start = True
        self._arguments: _ObjectScan | None = None
        self._remainder: _ObjectScan | None = None
        """What a call's object holds after the arguments: nothing but a brace, usually."""
        self._after_call = False
        self.n_calls = 0

    @property
    def is_between_calls(self) -> bool:
        """Whether the last call is complete and nothing else has begun."""
        return self._after_call

    def push(self, text: str) -> list[Part]:
        """Add what the model wrote; return what is certain."""
        self._buffer += text
        return self._advance(final=False)

    def finish(self) -> list[Part]:
        """The model is done: return the rest."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> list[Part]:
        parts: list[Part] = []
        left = -1
        while self._buffer and len(self._buffer) != left:
            left = len(self._buffer)
            if self._arguments is not None:
                parts.append(Arguments(self.n_calls - 1, self._take(self._arguments.feed(self._buffer))))
                if self._arguments.is_closed:
                    self._arguments, self._remainder = None, _ObjectScan(depth=1)
            elif self._remainder is not None:
                self._take(self._remainder.feed(self._buffer))
                if self._remainder.is_closed:
                    self._remainder, self._after_call = None, True
            elif self._after_call:
                self._skip_separators(final=final)
            else:
                parts += self._outside(final=final)
        return parts

    def _take(self, n: int) -> str:
        taken, self._buffer = self._buffer[:n], self._buffer[n:]
        return taken

    def _skip_separators(self, *, final: bool) -> None:
        self._buffer = self._buffer.lstrip(_SEPARATORS)
        if self._buffer.startswith(CLOSE):
            self._take(len(CLOSE))
        elif self._buffer and (final or not CLOSE.startswith(self._buffer)):
            self._after_call, self._at_line_start = False, True

    def _outside(self, *, final: bool) -> list[Part]:
        """Words, or the beginning of a call."""
        at = self._candidate(final=final)
        before = self._buffer[:at]
        words = before if final and at == len(self._buffer) else before.rstrip()
        if words:
            self._at_line_start = False
            return [Words(self._take(len(words)))]
        if at == len(self._buffer) or (not final and OPEN.startswith(self._buffer[at:])):
            return []  # only blanks, or what may become a tag
        return self._call(at, final=final)

    def _candidate(self, *, final: bool) -> int:
        """Where the first thing is that may be a call; the buffer's length if nothing is."""
        tag = self._buffer.find(OPEN)
        if tag < 0:
            tag = len(self._buffer) - (0 if final else possible_start(self._buffer, OPEN))
        places = [tag]
        for match in _BARE.finditer(self._buffer):
            if match.start() > 0 or self._at_line_start:
                places.append(match.end() - 1)
                break
        return min(places)

    def _call(self, at: int, *, final: bool) -> list[Part]:
        """What stands at the candidate: a call, plain words, or (nothing) not yet known."""
        is_tagged = self._buffer.startswith(OPEN, at)
        start = at + len(OPEN) if is_tagged else at
        start += len(self._buffer[start:]) - len(self._buffer[start:].lstrip())
        head = _HEAD.match(self._buffer, start)
        if head is not None and _loads(head[1]) in self._names:
            self._take(head.end())
            self._arguments = _ObjectScan()
            return [self._begin(_loads(head[1]))]
        whole = self._whole_object(start)
        found = _call_of(whole, self._names)
        if found is not None:
            self._take(start + len(whole))
            self._after_call = True
            return [self._begin(found[0]), Arguments(self.n_calls - 1, found[1])]
        if not final and head is None and not whole and self._may_be_call(start):
            return []
        self._at_line_start = False
        return [Words(self._take(max(start, at + 1)))]

    def _begin(self, name: str) -> CallBegins:
        self.n_calls += 1
        return CallBegins(self.n_calls - 1, name)

    def _whole_object(self, start: int) -> str:
        """The text of the object that begins here; empty if it does not end yet."""
        if not self._buffer.startswith("{", start):
            return ""
        scan = _ObjectScan()
        n = scan.feed(self._buffer[start:])
        return self._buffer[start : start + n] if scan.is_closed else ""

    def _may_be_call(self, start: int) -> bool:
        if start == len(self._buffer):
            return True
        first = _FIRST_KEY.match(self._buffer, start)
        if first is None:
            return self._buffer[start] == "{"
        return first[1] in _CALL_KEYS


class _ObjectScan:
    """Follows JSON text to the brace that closes an object."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = self._escaped = False
        self.is_closed = False

    def feed(self, text: str) -> int:
        """How many characters belong to the object."""
        for n, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_closed = True
                    return n + 1
        return len(text)


def _call_of(text: str, names: frozenset[str]) -> tuple[str, str] | None:
    """Name and arguments' text of a whole call; None if the object is something else."""
    value = _loads(text) if text else None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and isinstance(_loads(arguments), dict):
        return value["name"], arguments
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
