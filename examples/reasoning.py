"""Problems with verifiers from reasoning-gym that the base fails, learned by reinforcement; draws the learning curve.

    pip install reasoning-gym matplotlib
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/reasoning.py --picture curve.svg

The problems are sums and differences of two digits. The base talks about them, and is mostly wrong. It is rewarded for
ending with the right number, the more the less it says before, and learns both from its own attempts; no right answer
is ever shown to it. The problems of the table at the end are in neither file of the job.
"""

import argparse
import csv
import io
import json
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import reasoning_gym
from openai import OpenAI

from tunekeeper.evals.statistics import wilson

DATASET: dict[str, Any] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
N_HELD_OUT, N_VALIDATION = 60, 20
MAX_TOKENS = 16
GRADER = {
    "type": "python",
    "name": "number",
    "source": """
import re

def grade(sample, item):
    text = sample["output_text"].strip()
    if text == item["answer"]:
        return 1.0
    numbers = re.findall(r"-?\\d+", text)
    if not numbers or numbers[-1] != item["answer"]:
        return 0.0
    return 0.3 + 0.6 * len(numbers[-1]) / len(text)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate-multiplier", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="Write the learning curve here: .svg or .png.")
    arguments = parser.parse_args()
    client = OpenAI(max_retries=0, timeout=600)

    problems = unique_problems(arguments.problems + N_HELD_OUT + N_VALIDATION)
    held_out, validation = problems[:N_HELD_OUT], problems[N_HELD_OUT : N_HELD_OUT + N_VALIDATION]
    before = score(client, arguments.model, held_out)
    print(f"base: {shown(before, held_out)}", flush=True)
    job = client.fine_tuning.jobs.create(
        model=arguments.model,
        training_file=upload(client, problems[N_HELD_OUT + N_VALIDATION :]),
        validation_file=upload(client, validation),
        seed=arguments.seed,
        suffix="sums",
        method={
            "type": "reinforcement",
            "reinforcement": {
                "grader": GRADER,  # type: ignore[typeddict-item]
                "hyperparameters": {
                    "n_epochs": arguments.epochs,
                    "batch_size": 8,
                    "learning_rate_multiplier": arguments.learning_rate_multiplier,
                    "max_completion_tokens": MAX_TOKENS,  # type: ignore[typeddict-unknown-key]
                    "eval_interval": 8,
                },
            },
        },
    )
    job = followed(client, job.id)
    after = score(client, job.fine_tuned_model or "", held_out)
    rows = curve(client, job)
    print("| Model | Right | 95 % interval |\n|---|---|---|")
    for name, right in (("base", before), ("after reinforcement", after)):
        low, high = wilson(right, len(held_out))
        print(f"| {name} | {right / len(held_out):.0%} | {low:.0%} to {high:.0%} |")
    if arguments.picture:
        draw(rows, arguments.picture)
        print(f"The learning curve: {arguments.picture}")


def unique_problems(n: int) -> list[dict[str, Any]]:
    """So many different problems, in an order that is always the same."""
    found: dict[str, dict[str, Any]] = {}
    for entry in reasoning_gym.create_dataset("chain_sum", size=20 * n, seed=20, **DATASET):
        found.setdefault(entry["question"], entry)
    if len(found) < n:
        sys.exit(f"There are only {len(found)} different problems; {n} are wanted.")
    return list(found.values())[:n]


def upload(client: OpenAI, problems: Sequence[dict[str, Any]]) -> str:
    """Send problems as a file; its id."""
    lines = [{"messages": [{"role": "user", "content": p["question"]}], "answer": p["answer"]} for p in problems]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("problems.jsonl", io.BytesIO(data)), purpose="fine-tune")
    return client.files.wait_for_processing(file.id, poll_interval=0.2).id


def score(client: OpenAI, model: str, problems: Sequence[dict[str, Any]]) -> int:
    """How many of its answers, the likeliest ones, end with the right number."""

    def is_right(problem: dict[str, Any]) -> bool:
        completion = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": problem["question"]}],
            temperature=0,
            max_completion_tokens=MAX_TOKENS,
        )
        numbers = re.findall(r"-?\d+", completion.choices[0].message.content or "")
        return bool(numbers) and numbers[-1] == problem["answer"]

    with ThreadPoolExecutor(32) as pool:
        return sum(pool.map(is_right, problems))


def shown(right: int, problems: Sequence[Any]) -> str:
    """A share in words."""
    return f"{right} of {len(problems)} right"


def followed(client: OpenAI, job_id: str) -> Any:
    """The job, when it has ended; prints its events."""
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        for event in reversed(client.fine_tuning.jobs.list_events(job_id, limit=20).data):
            if event.id not in seen:
                seen.add(event.id)
                print(f"  {event.message}", flush=True)
        if job.status == "succeeded":
            return job
        if job.status in ("failed", "cancelled"):
            sys.exit(f"The job {job.status}: {job.error.message if job.error else ''}")
        time.sleep(2)


def curve(client: OpenAI, job: Any) -> list[dict[str, str]]:
    """The rows of the job's result file."""
    return list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Mean reward by step: each step's own answers, and the validation file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), dpi=160)
    axes.spines[["top", "right"]].set_visible(False)
    for column, label, style in (
        ("train_reward_mean", "the step's own answers", {"color": "#b8c4d0", "linewidth": 1.2}),
        ("valid_reward_mean", "validation problems", {"color": "#2463a6", "linewidth": 2, "marker": "o"}),
    ):
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
