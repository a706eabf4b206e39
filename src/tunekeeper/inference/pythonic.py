"""Function calls written as Python calls in a list: [get_weather(city="Paris"), now()]. Pure, as `tools`.

The format of models whose chat template teaches it (ours for SmolLM2, Llama 3.2 and 4); vLLM calls it "pythonic".
Values are Python or JSON literals; they are given out as JSON, argument by argument. An answer that does not
begin with a call of a known function is text, unchanged.
"""

import ast
import json
import re
from collections.abc import Iterable
from typing import Any

from tunekeeper.inference.tools import Arguments, CallBegins, Part, Words

_NAME = re.compile(r"[\w.\-]+")
_KEY = re.compile(r"\s*([^\s=(),\[\]{}\"']+)\s*=")


class PythonicStream:
    """Separates one answer's calls from its text; see `tools.CallStream`, whose twin it is."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._buffer = ""
        self._place = "start"
        """start: nothing is certain; call: before a name; arguments: within the parentheses; words; done."""
        self._n_arguments = 0
        self.n_calls = 0

    @property
    def is_between_calls(self) -> bool:
        """Whether the last call is complete and nothing else has begun."""
        return self.n_calls > 0 and self._place in {"call", "done"}

    def push(self, text: str) -> list[Part]:
        """Add what the model wrote; return what is certain."""
        self._buffer += text
        return self._advance(final=False)

    def finish(self) -> list[Part]:
        """The model is done: return the rest."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> list[Part]:
        parts: list[Part] = []
        left: tuple[int, str] | None = None
        while self._buffer and (len(self._buffer), self._place) != left:
            left = len(self._buffer), self._place
            if self._place == "start":
                self._start(final=final)
            elif self._place == "call":
                parts += self._call()
            elif self._place == "arguments":
                parts += self._argument(final=final)
            elif self._place == "words":
                parts.append(Words(self._buffer))
                self._buffer = ""
            else:
                self._buffer = ""  # after the closing bracket nothing belongs to the answer
        if final and self._place == "arguments":
            parts.append(Arguments(self.n_calls - 1, "}" if self._n_arguments else "{}"))
            self._place = "done"
        return parts

    def _start(self, *, final: bool) -> None:
        text = self._buffer.lstrip()
        name = _NAME.match(text, 1) if text.startswith("[") else None
        if name is not None and name.end() < len(text):
            is_call = text[name.end()] == "(" and name[0] in self._names
            self._place = "call" if is_call else "words"
        elif text and (final or not self._may_begin(text)):
            self._place = "words"

    def _may_begin(self, text: str) -> bool:
        return text.startswith("[") and any(name.startswith(text[1:]) for name in self._names)

    def _call(self) -> list[Part]:
        text = self._buffer.lstrip(" \t\r\n,[")
        if text.startswith("]"):
            self._place = "done"
            return []
        name = _NAME.match(text)
        if name is None or name.end() == len(text):
            return []  # the name may go on; what never becomes a call is dropped at the end
        if text[name.end()] != "(" or name[0] not in self._names:
            self._place = "done"
            return []
        self._buffer = text[name.end() + 1 :]
        self._place, self._n_arguments = "arguments", 0
        self.n_calls += 1
        return [CallBegins(self.n_calls - 1, name[0])]

    def _argument(self, *, final: bool) -> list[Part]:
        text = self._buffer.lstrip(" \t\r\n,")
        if text.startswith(")"):
            self._buffer, self._place = text[1:], "call"
            return [Arguments(self.n_calls - 1, "}" if self._n_arguments else "{}")]
        key = _KEY.match(text)
        if key is None:
            if final:
                self._buffer = ""
            return []
        end = _end_of_value(text, key.end())
        if end is None and not final:
            return []
        value = text[key.end() : end].strip()
        self._buffer = text[end:] if end is not None else ""
        opening = ", " if self._n_arguments else "{"
        self._n_arguments += 1
        written = f"{opening}{json.dumps(key[1])}: {json.dumps(_literal(value), ensure_ascii=False)}"
        return [Arguments(self.n_calls - 1, written)]


def _end_of_value(text: str, start: int) -> int | None:
    """Where a value ends: at the comma or parenthesis outside of its quotes and brackets. None: not yet."""
    depth, quote, escaped = 0, "", False
    for place in range(start, len(text)):
        character = text[place]
        if quote:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif depth and character in ")]}":
            depth -= 1
        elif not depth and character in ",)":
            return place
    return None


def _literal(text: str) -> Any:
    """A value as JSON knows it; what is no literal is taken as the string that it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            json.dumps(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value
    return text
