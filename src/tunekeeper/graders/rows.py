"""A line of data to what a grader is given: the item, and the sample where one is there.

    {"item": {"question": …, "answer": …}, "sample": {"output_text": …}}  a line of an eval
    {"messages": […], "answer": …}                                        a line of a training file is an item

A sample is a text, a `sample` as graders see it, or a chat completion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tunekeeper.datasets.formats import Fault, read_lines
from tunekeeper.graders.template import sample_of
from tunekeeper.types import Json

_ROW_KEYS = {"item", "sample"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line."""

    line: int
    item: Json
    sample: Json | None = None


def read_rows(stream: BinaryIO) -> Iterator[Row | Fault]:
    """Each line as a row or as a fault, in order."""
    for line in read_lines(stream):
        yield line if isinstance(line, Fault) else _row(line.number, line.value)


def read_samples(stream: BinaryIO) -> Iterator[Json | Fault]:
    """Each line of a file of samples: {"sample": …}, {"output_text": …} or a chat completion."""
    for line in read_lines(stream):
        if isinstance(line, Fault):
            yield line
        else:
            yield as_sample(line.value.get("sample", line.value)) or _no_sample(line.number)


def as_sample(value: Any) -> Json | None:
    """The sample that a value means; None: it is none."""
    if isinstance(value, str):
        return sample_of(value)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("output_text"), str):
        calls = value.get("output_tools")
        return {**sample_of(value["output_text"], tool_calls=calls if isinstance(calls, list) else None), **value}
    try:
        choice = value["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason") or "stop"
        text, calls = message.get("content") or "", message.get("tool_calls") or None
    except (LookupError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    return {
        **sample_of(text, tool_calls=calls, finish_reason=reason, model=value.get("model")),
        "choices": value["choices"],
    }


def _row(number: int, value: Json) -> Row | Fault:
    if not (isinstance(value.get("item"), dict) and set(value) <= _ROW_KEYS):
        return Row(number, value)
    if value.get("sample") is None:
        return Row(number, value["item"])
    sample = as_sample(value["sample"])
    return _no_sample(number) if sample is None else Row(number, value["item"], sample)


def _no_sample(number: int) -> Fault:
    message = "a sample must be a text, an object with output_text, or a chat completion."
    return Fault(number, "/sample", "bad_sample", "error", message)
