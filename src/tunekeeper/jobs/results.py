"""The numbers of a run: a metrics event for each step, and the result CSV that is made from the events.

The CSV is always built from the stored events, never from memory: after a crash it has neither a gap nor a
repeated row. Its columns are those of OpenAI and of Azure together; what was not measured stays blank.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from tunekeeper.trainer.step import Step
from tunekeeper.types import Event, Json

COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "train_accuracy",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "validation_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "train_reward_mean",
    "train_mean_reward",
    "valid_reward_mean",
    "full_validation_mean_reward",
    "train_reasoning_tokens_mean",
    "valid_reasoning_tokens_mean",
    "learning_rate",
    "grad_norm",
    "tokens",
    "train_chosen_reward",
    "train_rejected_reward",
    "train_reward_margin",
    "train_preference_accuracy",
    "valid_chosen_reward",
    "valid_rejected_reward",
    "valid_reward_margin",
    "valid_preference_accuracy",
    "full_valid_chosen_reward",
    "full_valid_rejected_reward",
    "full_valid_reward_margin",
    "full_valid_preference_accuracy",
)
SAMPLES_FILE = "samples.jsonl"
SAME_AS = {
    "train_accuracy": "train_mean_token_accuracy",
    "validation_mean_token_accuracy": "valid_mean_token_accuracy",
    "train_mean_reward": "train_reward_mean",
    "full_validation_mean_reward": "valid_reward_mean",
}
"""Columns that one vendor spells in another way."""

_CHECKPOINT_METRICS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)


def metrics_data(step: Step) -> Json:
    """The `data` of a step's metrics event; what was not measured, or is no finite number, is left out."""
    names = ("total_steps", *(name for name in COLUMNS if name not in SAME_AS))
    values = {name: getattr(step, name, None) for name in names} | step.details
    return {name: kept for name, value in values.items() if (kept := _finite(value)) is not None}


def _finite(value: Any) -> Any:
    """The value without numbers that are not finite, for which JSON has no word."""
    if isinstance(value, dict):
        return {name: kept for name, inner in value.items() if (kept := _finite(inner)) is not None}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics_message(step: Step) -> str:
    """The sentence that people search their logs for."""
    if "train_mean_reward" in step.details:
        return f"Step {step.step}/{step.total_steps} , {_rewards(step.details)}"
    text = f"Step {step.step}/{step.total_steps}: training loss={step.train_loss:.2f}"
    loss = step.full_valid_loss if step.full_valid_loss is not None else step.valid_loss
    return text if loss is None else f"{text}, validation loss={loss:.2f}"


def _rewards(details: Json) -> str:
    """OpenAI's words, in which people look for them."""
    named = (
        ("train mean reward", details["train_mean_reward"]),
        ("full validation mean reward", details.get("full_valid_mean_reward")),
        ("full validation mean parse error", details.get("full_valid_mean_parse_error")),
    )
    return ", ".join(f"{name}={value:.2f}" for name, value in named if value is not None) or "no answer was graded"


def checkpoint_metrics(step: Step) -> dict[str, float]:
    """The metrics that a checkpoint shows."""
    data = metrics_data(step)
    own = [name for name, value in step.details.items() if isinstance(value, int | float)]
    return {name: data[name] for name in (*_CHECKPOINT_METRICS, *own) if name in data}


def history(events: Iterable[Event]) -> list[Step]:
    """The steps of a job as its events tell them, oldest first, those before a resume included."""
    rows = {event.data["step"]: event.data for event in events if event.type == "metrics" and event.data}
    names = {f.name for f in fields(Step)}
    # A number that is not finite was left out of its event, for JSON has no word for it.
    unknown = dict.fromkeys(("train_loss", "train_mean_token_accuracy", "grad_norm"), math.nan)
    return [
        Step(**{"seconds": 0.0, **unknown, **{k: v for k, v in data.items() if k in names}})
        for _, data in sorted(rows.items())
    ]


def samples_jsonl(events: Iterable[Event]) -> bytes:
    """The best and worst answers of each evaluation, one evaluation a line, oldest first; empty: there are none."""
    shown = {data["step"]: data for event in events if {"step", "best", "worst"} <= set(data := event.data or {})}
    return b"".join(json.dumps(data, ensure_ascii=False).encode() + b"\n" for _, data in sorted(shown.items()))


def results_csv(events: Iterable[Event], *, first: Sequence[str] = ()) -> bytes:
    """The result file of a job whose events are given, in any order: one row a step; `first` are further columns."""
    rows = {event.data["step"]: event.data for event in events if event.type == "metrics" and event.data}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (*first, *COLUMNS)
    writer.writerow(columns)
    for _, data in sorted(rows.items()):
        writer.writerow([data.get(SAME_AS.get(column, column), "") for column in columns])
    return text.getvalue().encode()
