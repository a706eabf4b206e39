"""The chunks of a streamed answer put together: the same `chat.completion` that would have come whole.

assembly = Assembly(n=1)
for chunk in chunks: assembly.add(chunk)
if assembly.is_whole: keep(assembly.completion())
"""

import operator
from typing import Any

from tunekeeper.types import Json

# Said once for a choice or a call, though some servers say it again with each fragment.
_SAID_ONCE = frozenset({"id", "type", "name", "role"})


class Assembly:
    """Takes the chunks of one answer, ours or any other server's."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._head: Json = {}
        self._choices: dict[int, Json] = {}
        self._failed = False

    @property
    def is_whole(self) -> bool:
        """Whether each of the `n` choices has come to its end."""
        ends = [choice for choice in self._choices.values() if choice["finish_reason"] is not None]
        return not self._failed and len(ends) >= self._n

    def add(self, chunk: Any) -> None:
        """Take the next chunk in; what is no chunk, such as an error, makes the answer a failed one. Never raises."""
        try:
            if chunk.get("error"):
                raise ValueError("an error in place of a chunk")
            for choice in chunk["choices"]:
                self._add_choice(choice)
            self._head.update({key: value for key, value in chunk.items() if key != "choices" and value is not None})
        except (AttributeError, KeyError, TypeError, ValueError):  # another server's JSON may be anything
            self._failed = True

    def completion(self) -> Json:
        """The answer as it is by now."""
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices}

    def _add_choice(self, given: Json) -> None:
        index = operator.index(given.get("index", 0))
        choice = self._choices.setdefault(
            index, {"index": index, "message": {}, "logprobs": None, "finish_reason": None}
        )
        for key, value in (given.get("delta") or {}).items():
            if key == "tool_calls":
                _add_calls(choice["message"].setdefault("tool_calls", []), value or [])
            else:
                _grow(choice["message"], key, value)
        for key, value in given.items():
            if key == "logprobs":
                _grow(choice, key, value)
            elif key not in ("index", "delta") and value is not None:
                choice[key] = value


def _add_calls(calls: list[Json], fragments: list[Json]) -> None:
    """Each fragment to its call; one without an index begins a call by its id, or goes on with the last."""
    for fragment in fragments:
        index = fragment.get("index")
        known = next((call for call in calls if index is not None and call["index"] == index), None)
        if known is None and index is None and calls and fragment.get("id") in (None, calls[-1].get("id")):
            known = calls[-1]
        if known is None:
            known = {"index": len(calls) if index is None else operator.index(index)}
            calls.append(known)
        for key, value in fragment.items():
            if key != "index":
                _grow(known, key, value)


def _grow(into: Json, key: str, value: Any) -> None:
    """Add a fragment to what is there: text to text, list to list, object into object."""
    old: Any = into.get(key)
    if value is None:
        into.setdefault(key, None)
    elif old is None or (key in _SAID_ONCE and not old):
        into[key] = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
    elif key in _SAID_ONCE:
        return
    elif isinstance(old, dict) and isinstance(value, dict):
        for inner, fragment in value.items():
            _grow(old, inner, fragment)
    elif isinstance(old, str) and isinstance(value, str):
        into[key] = old + value
    elif isinstance(old, list) and isinstance(value, list):
        into[key] = [*old, *value]
    else:
        into[key] = value


def _finished(choice: Json) -> Json:
    """The choice with its message as a whole answer has it."""
    message: Json = {"role": "assistant", "content": None, "refusal": None, "annotations": [], **choice["message"]}
    calls = message.get("tool_calls")
    if calls:
        ordered = sorted(calls, key=operator.itemgetter("index"))
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in ordered]
    if message["content"] == "" and (calls or message.get("function_call")):
        message["content"] = None
    return {**choice, "message": message}
