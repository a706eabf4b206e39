"""Real questions of users to assistants with many functions, from bfcl-eval; the data of two examples.

The Berkeley Function Calling Leaderboard (Apache-2.0) comes as a wheel: `pip download --no-deps bfcl-eval==2026.3.23`.
Of its file of questions with several functions we take those that ask for one of its most frequent functions, so that
one assistant with one set of functions stands behind all of them.
"""

import json
import random
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekeeper.demo.tasks import allowed_name, plain_schema, rows_of

Json = dict[str, Any]

LONGEST_QUESTION, LONGEST_FUNCTION = 250, 1400
"""Characters."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with the call that answers it."""

    text: str
    name: str
    accepted: Json
    """Argument -> accepted values; "" among them: it may be left out."""

    @property
    def arguments(self) -> Json:
        """The first accepted value of each argument that must be given."""
        given = {name: values for name, values in self.accepted.items() if values and values[0] != ""}
        return {name: next(value for value in values if value != "") for name, values in given.items()}


def read(wheel: Path, n_functions: int, seed: int) -> tuple[list[Json], list[Question]]:
    """The functions as OpenAI's tools, and the questions that one of them answers, shuffled."""
    with zipfile.ZipFile(wheel) as archive:
        rows = rows_of(archive, "BFCL_v4_live_multiple.json")
        truths = {
            row["id"]: row["ground_truth"][0] for row in rows_of(archive, "possible_answer/BFCL_v4_live_multiple.json")
        }
    questions: dict[str, Question] = {}
    for row in rows:
        ((name, accepted),) = truths[row["id"]].items()
        turns = row["question"][0]
        if len(row["question"]) == len(turns) == 1 and len(turns[0]["content"]) <= LONGEST_QUESTION:
            question = Question(text=turns[0]["content"], name=allowed_name(name), accepted=accepted)
            if not any(isinstance(value, dict) for values in accepted.values() for value in values):
                questions.setdefault(question.text, question)
    functions = _functions(rows)
    counts = Counter(question.name for question in questions.values() if question.name in functions)
    chosen = {name: functions[name] for name, _ in counts.most_common(n_functions)}
    fitting = [
        question
        for question in questions.values()
        if question.name in chosen and set(question.accepted) <= set(chosen[question.name]["parameters"]["properties"])
    ]
    random.Random(seed).shuffle(fitting)
    return [{"type": "function", "function": function} for function in chosen.values()], fitting


def _functions(rows: Sequence[Json]) -> dict[str, Json]:
    """By name; of those that come in several wordings, the most frequent."""
    wordings: dict[str, Counter[str]] = {}
    for row in rows:
        for function in row["function"]:
            plain = {
                "name": allowed_name(function["name"]),
                "description": function["description"],
                "parameters": plain_schema(function["parameters"]),
            }
            wordings.setdefault(plain["name"], Counter())[json.dumps(plain)] += 1
    frequent = {name: counts.most_common(1)[0][0] for name, counts in wordings.items()}
    return {name: json.loads(text) for name, text in frequent.items() if len(text) <= LONGEST_FUNCTION}
