"""What the examples of uses share: tune, measure every row on the same held-out items, print the tables.

Everything goes through the stock client: a file, a fine-tuning job, an eval with a run for each row. What OpenAI does
not have is asked for with `client.get`: GET /evals/compare pairs the runs item by item.

An item holds the prompt of each row, and whatever the graders read:

    {"prompts": {"base": [message, …], "few": […], "tuned": […]}, "answer": "2024-03-05"}
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI

from tunekeeper.evals.statistics import wilson

Json = dict[str, Any]

RECIPE: Json = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.5, "adapter_scope": "completion"}
"""The demo's; the same for every use, so that none is chosen by its held-out items."""
GENERAL = Path(__file__).with_name("general.jsonl")
MARGIN = 0.05
"""Worse by less than that is called no worse."""

KNOWS = """
def grade(sample, item):
    text = ''.join(c.lower() if c.isalnum() else ' ' for c in sample['output_text'])
    words = ' ' + ' '.join(text.split()) + ' '
    return 1.0 if any(' ' + answer + ' ' in words for answer in item['answers']) else 0.0
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a model, and the prompt that it gets of each item."""

    name: str
    model: str
    prompt: str
    params: Mapping[str, Any] = field(default_factory=dict)
    """More of sampling_params: tools, response_format."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The runs of some rows over the same items."""

    rows: Sequence[Row]
    runs: Sequence[Any]

    def table(self) -> str:
        """The rows in Markdown."""
        graders = [result.testing_criteria for result in self.runs[0].per_testing_criteria_results]
        shown = graders if len(graders) > 1 else []
        heads = ["", "right", "95 % interval", *shown, "prompt tokens", "s a request"]
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        for row, run in zip(self.rows, self.runs, strict=True):
            counts, used = run.result_counts, sum(each.prompt_tokens for each in run.per_model_usage)
            graded = counts.passed + counts.failed
            low, high = wilson(counts.passed, graded) if graded else (0.0, 1.0)
            by_grader = {each.testing_criteria: each for each in run.per_testing_criteria_results}
            cells = [
                row.name + (f" ({counts.errored} errors)" if counts.errored else ""),
                f"{counts.passed / max(graded, 1):.0%}",
                f"{low:.0%} to {high:.0%}",
                *(f"{by_grader[name].passed / max(graded, 1):.0%}" for name in shown),
                f"{used / max(graded, 1):.0f}",
                f"{run.seconds / max(counts.total, 1):.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def parser(doc: str, *, examples: int, items: int) -> argparse.ArgumentParser:
    """The options that every use has."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--model", default="smollm2-135m", help="The base.")
    made.add_argument("--examples", type=int, default=examples, help="Lines to train on.")
    made.add_argument("--items", type=int, default=items, help="Held-out items, and at most as many general ones.")
    made.add_argument("--epochs", type=int, default=RECIPE["n_epochs"])
    made.add_argument("--scope", choices=("completion", "all"), default=RECIPE["adapter_scope"])
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--tuned", metavar="MODEL", help="Measure what an earlier run has tuned, instead of tuning.")
    made.add_argument("--out", type=Path, help="Write runs and comparisons here, as JSON.")
    return made


def connect() -> OpenAI:
    """The client, by OPENAI_BASE_URL and OPENAI_API_KEY."""
    return OpenAI(max_retries=0, timeout=600)


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def system(text: str) -> Json:
    return {"role": "system", "content": text}


def assistant(text: str) -> Json:
    return {"role": "assistant", "content": text}


def turns(pairs: Iterable[tuple[str, str]]) -> list[Json]:
    """Questions with their answers, as one shows them before a question."""
    return [message for question, answer in pairs for message in (user(question), assistant(answer))]


def tune(client: OpenAI, arguments: argparse.Namespace, lines: Sequence[Json], suffix: str, **changes: Any) -> str:
    """Upload, tune, wait; the tuned model's name."""
    began = time.monotonic()
    file = _upload(client, lines, "fine-tune")
    hyperparameters: Any = {
        **RECIPE,
        "n_epochs": arguments.epochs,
        "adapter_scope": arguments.scope,
        **changes,
    }
    job = client.fine_tuning.jobs.create(
        model=arguments.model,
        training_file=file,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        suffix=suffix,
        seed=arguments.seed,
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        sys.exit(f"The job {job.id} {job.status}: {job.error.message if job.error else 'no reason is given'}")
    print(
        f"{job.fine_tuned_model}: {len(lines)} examples, {job.trained_tokens or 0:,} trained tokens, "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return job.fine_tuned_model


def measure(
    client: OpenAI, name: str, items: Sequence[Json], rows: Sequence[Row], graders: Sequence[Json], max_tokens: int
) -> Measured:
    """One eval, a run for each row, all over the same items; an item passes when every grader passes it."""
    file = _upload(client, items, "evals")
    config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    criteria: Any = list(graders)
    made = client.evals.create(name=name, data_source_config=config, testing_criteria=criteria)
    runs = []
    for row in rows:
        source: Any = {
            "type": "completions",
            "model": row.model,
            "source": {"type": "file_id", "id": file},
            "input_messages": {"type": "item_reference", "item_reference": f"item.prompts.{row.prompt}"},
            "sampling_params": {"temperature": 0, "max_completion_tokens": max_tokens, **row.params},
        }
        run: Any = client.evals.runs.create(made.id, name=row.name, data_source=source)
        while run.status in ("queued", "in_progress"):
            time.sleep(0.3)
            run = client.evals.runs.retrieve(run.id, eval_id=made.id)
        if run.status != "completed":
            sys.exit(f"The run {run.id} {run.status}: {run.error.message if run.error else 'no reason is given'}")
        print(f"  {name}, {row.name}: {run.result_counts.passed} of {run.result_counts.total}", flush=True)
        runs.append(run)
    return Measured(rows=rows, runs=runs)


def compare(client: OpenAI, measured: Measured, after: str, before: str, *, margin: float = MARGIN) -> tuple[str, Json]:
    """How one row differs from another, item by item: in a sentence, and everything."""
    ids = {row.name: run.id for row, run in zip(measured.rows, measured.runs, strict=True)}
    params = {"runs": f"{ids[before]},{ids[after]}", "baseline": ids[before], "margin": margin}
    answer: Any = client.get("/evals/compare", cast_to=object, options={"params": params})
    first = answer["pairs"][0]["measures"][0]
    said = f"{after} against {before}: {first['verdict']['text']}"
    if difference := first["difference"]:
        value, low, high = (
            math.nan if each is None else 100 * each for each in map(difference.get, ("value", "low", "high"))
        )
        said += f" (difference {value:+.0f} points, {low:+.0f} to {high:+.0f}, of {difference['n']} items)"
    return said, answer


def finish(
    client: OpenAI,
    arguments: argparse.Namespace,
    measured: Measured,
    tuned: str,
    *,
    after: str = "tuned",
    before: Sequence[str] = ("base, few-shot",),
    margin: float = MARGIN,
) -> None:
    """Print the table, the verdicts, and what tuning cost elsewhere."""
    compared = [compare(client, measured, after, each, margin=margin) for each in before]
    lines = GENERAL.read_text("utf-8").splitlines()[: arguments.items]
    general = [{"prompts": {"plain": [user(item["question"])]}, **item} for item in map(json.loads, lines)]
    rows = [
        Row(name="before tuning", model=arguments.model, prompt="plain"),
        Row(name="after tuning", model=tuned, prompt="plain"),
    ]
    kept = measure(
        client, "general", general, rows, [{"type": "python", "name": "knows", "source": KNOWS}], max_tokens=24
    )
    forgot, forgetting = compare(client, kept, "after tuning", "before tuning", margin=margin)
    print(f"\n{measured.table()}\n")
    for said, _ in compared:
        print(said)
    print(f"\nGeneral questions, before and after:\n\n{kept.table()}\n\n{forgot}")
    if arguments.out:
        runs = [run.to_dict() for each in (measured, kept) for run in each.runs]
        everything = {"runs": runs, "comparisons": [*(answer for _, answer in compared), forgetting]}
        arguments.out.write_text(json.dumps(everything, indent=1, default=str), "utf-8")


def _upload(client: OpenAI, lines: Sequence[Json], purpose: Any) -> str:
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    file = client.files.create(file=("lines.jsonl", io.BytesIO(data)), purpose=purpose)
    file = client.files.wait_for_processing(file.id, poll_interval=0.2)
    if file.status == "error":
        sys.exit(f"The file has faults: {file.status_details}")
    return file.id
