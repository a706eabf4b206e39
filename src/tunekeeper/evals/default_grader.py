"""The grader that fits the answers of a data set, where none is given; and what its items hold.

Calls are compared as calls, JSON as JSON, short answers letter by letter, long ones by how alike they are, and a
pair by which of its two outputs the answer is closer to. An item has what the grader compares with:

    {"reference": "…", "calls": [{"name", "arguments"}], "rejected": "…", "messages": […], … the line's other keys}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunekeeper.evals.signs import REFERENCES, Record, labels
from tunekeeper.types import Json

SHORT = 64
"""Characters up to which an answer is compared letter by letter, however many different ones there are."""
ALIKE = 0.8
"""Similarity from which on a long answer passes."""
Kind = Literal["calls", "json", "label", "short text", "long text", "pair", "given"]

_EQUAL = """
def equal(given, right):
    if isinstance(right, dict):
        return isinstance(given, dict) and len(given) == len(right) and all(
            key in given and equal(given[key], right[key]) for key in right)
    if isinstance(right, list):
        return isinstance(given, list) and len(given) == len(right) and all(
            equal(given[n], right[n]) for n in range(len(right)))
    if isinstance(given, bool) or isinstance(right, bool):
        return given is right
    return given == right
"""
_CALLS = f"""
import json
{_EQUAL}
def grade(sample, item):
    given = []
    for call in sample["output_tools"]:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            return 0.0
        given.append({{"name": call["function"]["name"], "arguments": arguments}})
    if len(given) != len(item["calls"]):
        return 0.0
    for right in item["calls"]:
        found = [n for n in range(len(given)) if equal(given[n], right)]
        if not found:
            return 0.0
        given.pop(found[0])
    return 1.0
"""
_JSON = f"""
import json
{_EQUAL}
def grade(sample, item):
    try:
        given = json.loads(sample["output_text"])
    except ValueError:
        return 0.0
    return 1.0 if equal(given, json.loads(item["reference"])) else 0.0
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A grader, and why it."""

    kind: Kind
    spec: Json
    threshold: float
    """The score from which on an answer passes."""
    graded: bool
    """Whether the mean score says more than the share that passes."""
    why: str


def default_grader(records: Sequence[Record]) -> Chosen | None:
    """The grader for these records; None where nothing says what is right."""
    if records and all("rejected" in record.item for record in records):
        return _pairs()
    if any(record.calls for record in records):
        n = sum(bool(record.calls) for record in records)
        rest = "" if n == len(records) else f"; in the other {len(records) - n:,} no call is right"
        return Chosen(
            kind="calls",
            spec={"type": "python", "name": "same calls", "source": _CALLS},
            threshold=1.0,
            graded=False,
            why=f"the answers of {n:,} of {len(records):,} lines are function calls: the same functions with equal "
            f"arguments, in any order{rest}",
        )
    texts = [record.reference for record in records]
    key = _key(records)
    if not texts or not all(texts):
        return None
    if all(isinstance(_json(text), dict | list) for text in texts):
        return Chosen(
            kind="json",
            spec={"type": "python", "name": "same JSON", "source": _JSON.replace("reference", key)},
            threshold=1.0,
            graded=False,
            why="every answer is JSON: equal when read, whatever the spaces and the order of keys",
        )
    found = labels(records)
    if found or max(map(len, texts)) <= SHORT:
        what = f"the answers are {len(found)} labels" if found else f"no answer is longer than {SHORT} characters"
        return Chosen(
            kind="label" if found else "short text",
            spec={
                "type": "string_check",
                "name": "exact",
                "operation": "eq",
                "input": "{{ sample.output_text }}",
                "reference": f"{{{{ item.{key} }}}}",
            },
            threshold=1.0,
            graded=False,
            why=f"{what}: letter by letter, but for spaces at both ends",
        )
    return Chosen(
        kind="long text",
        spec=_alike("alike", f"{{{{ item.{key} }}}}"),
        threshold=ALIKE,
        graded=True,
        why="the answers are long texts: how alike the letters are (fuzzy_match), whose mean decides. It measures "
        "closeness to your answers, not whether an answer is good: a grader of your own (--grader) says more",
    )


def item_of(record: Record) -> Json:
    """What a grader is given beside the answer."""
    own = {"reference": record.reference, "calls": record.calls, "messages": list(record.messages)}
    return {**own, **record.item}


def _key(records: Sequence[Record]) -> str:
    """Where an item has its right answer: a problem's own key, which the job's grader knows too."""
    own = (key for key in REFERENCES if not any(record.text for record in records))
    return next((key for key in own if all(key in record.item for record in records)), "reference")


def _pairs() -> Chosen:
    return Chosen(
        kind="pair",
        spec={
            "type": "multi",
            "name": "closer to the preferred",
            "graders": {
                "preferred": _alike("preferred", "{{ item.reference }}"),
                "rejected": _alike("rejected", "{{ item.rejected }}"),
            },
            "calculate_output": "preferred - rejected",
        },
        threshold=1e-9,
        graded=False,
        why="the lines are pairs: an answer passes that is more like the preferred output than like the other one",
    )


def _alike(name: str, reference: str) -> Json:
    return {
        "type": "text_similarity",
        "name": name,
        "evaluation_metric": "fuzzy_match",
        "input": "{{ sample.output_text }}",
        "reference": reference,
    }


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
