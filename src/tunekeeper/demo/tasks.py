"""The demo's task: real questions that one function call answers, with every accepted answer, from bfcl-eval.

The Berkeley Function Calling Leaderboard (Apache-2.0) comes as a wheel; we read three of its files. A question
has functions to choose from and, for each argument, the list of accepted values; "" in it means that the
argument may be left out.
"""

import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekeeper.datasets import Tokenizer
from tunekeeper.datasets.render import prompt_tokens
from tunekeeper.models.pull import Wheel
from tunekeeper.types import Json, Message

WHEEL = Wheel(
    requirement="bfcl-eval==2026.3.23",
    filename="bfcl_eval-2026.3.23-py3-none-any.whl",
    sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    bytes=1_925_664,
    member="bfcl_eval/data/*",
    license="Apache-2.0",
    description="Berkeley Function Calling Leaderboard",
)
SETS = ("simple_python", "multiple", "live_simple")
SEED = 20
MAX_TOKENS = 450
N_HELD_OUT, N_VALIDATION = 100, 16

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One question, its functions as OpenAI tools, and its answer."""

    id: str
    messages: list[Message]
    tools: list[Json]
    name: str
    accepted: Mapping[str, Sequence[Any]]
    """Argument -> accepted values."""

    @property
    def answer(self) -> Json:
        """The first accepted value of each argument that must be given."""
        return {key: _first(values) for key, values in self.accepted.items() if values and values[0] != ""}

    def example(self) -> Json:
        """The task as a line of a training file."""
        call = {"name": self.name, "arguments": json.dumps(self.answer, ensure_ascii=False)}
        said = {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}
        return {"messages": [*self.messages, said], "tools": self.tools}

    def is_answered_by(self, name: str, arguments: Any) -> bool:
        """Exact match: the function's name, each value among the accepted ones, nothing missing, nothing invented."""
        if name != self.name or not isinstance(arguments, dict):
            return False
        return _matches(arguments, self.accepted)


def _first(values: Sequence[Any]) -> Any:
    return _plain(next(value for value in values if value != ""))


def _plain(value: Any) -> Any:
    # Within an object each key again has a list of accepted values.
    if isinstance(value, dict):
        return {key: _first(values) for key, values in value.items() if values and values[0] != ""}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _matches(given: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
    if not set(given) <= set(accepted):
        return False
    return all(
        any(_equal(given[key], value) for value in values) if key in given else "" in values
        for key, values in accepted.items()
    )


def _equal(given: Any, accepted: Any) -> bool:
    if isinstance(accepted, dict):
        return isinstance(given, dict) and _matches(given, accepted)
    if isinstance(accepted, list) and any(isinstance(item, dict) for item in accepted):
        same_length = isinstance(given, list) and len(given) == len(accepted)
        return same_length and all(_equal(a, b) for a, b in zip(given, accepted, strict=True))
    return bool(given == accepted) or str(given).lower() == str(accepted).lower()


def read_tasks(wheel: Path) -> list[Task]:
    """Every task of the three sets, in file order."""
    tasks = []
    with zipfile.ZipFile(wheel) as archive:
        for name in SETS:
            truths = rows_of(archive, f"possible_answer/BFCL_v4_{name}.json")
            answers = {row["id"]: row["ground_truth"] for row in truths}
            tasks += [_task(row, answers[row["id"]]) for row in rows_of(archive, f"BFCL_v4_{name}.json")]
    return tasks


def rows_of(archive: zipfile.ZipFile, member: str) -> list[Json]:
    """The lines of a data file of the wheel."""
    lines = archive.read(f"bfcl_eval/data/{member}").decode("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _task(row: Json, truth: list[dict[str, dict[str, Any]]]) -> Task:
    ((name, accepted),) = truth[0].items()
    return Task(
        id=row["id"],
        messages=[message for turn in row["question"] for message in turn],
        tools=[_tool(function) for function in row["function"]],
        name=allowed_name(name),
        accepted=accepted,
    )


def _tool(function: Json) -> Json:
    parts = {"description": function["description"], "parameters": plain_schema(function["parameters"])}
    return {"type": "function", "function": {"name": allowed_name(function["name"]), **parts}}


def allowed_name(name: str) -> str:
    """A function's name as OpenAI takes it."""
    return name.replace(".", "_")  # OpenAI's names have no dots; the leaderboard itself does the same for its models


def plain_schema(schema: Any) -> Any:
    """A schema with JSON's names of types instead of Python's."""
    if isinstance(schema, list):
        return [plain_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    plain = {key: plain_schema(value) for key, value in schema.items()}
    return plain | {"type": _JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else plain


def select(tasks: Sequence[Task], tokenizer: Tokenizer) -> list[Task]:
    """The tasks that fit in MAX_TOKENS, shuffled by SEED; without the two whose accepted answers contradict them."""
    fitting = [
        task for task in tasks if task.is_answered_by(task.name, task.answer) and _tokens(task, tokenizer) <= MAX_TOKENS
    ]
    random.Random(SEED).shuffle(fitting)
    return fitting


def prompt_size(task: Task, tokenizer: Tokenizer) -> int:
    """Tokens of the task's prompt."""
    return len(prompt_tokens(tokenizer, task.messages, tools=task.tools))


def _tokens(task: Task, tokenizer: Tokenizer) -> int:
    return prompt_size(task, tokenizer) + len(
        tokenizer.encode(json.dumps({"name": task.name, "arguments": task.answer}))
    )


def few_shot(tasks: Sequence[Task], n: int = 3) -> list[Task]:
    """The `n` tasks to show in a prompt: what one does without tuning. Short ones, as one would choose."""
    short = sorted(tasks, key=lambda task: len(json.dumps(task.tools)) + len(task.messages[-1]["content"]))
    return short[len(short) // 10 :][:n]
