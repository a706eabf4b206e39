r"""Supervised fine-tuning, then reinforcement with a Python grader and preferences on top of it: does either gain?

The data are the demo's: real questions with functions and checked answers. Everything is the stock client; the
package is imported only to read and to score those questions.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/stacking.py --wheel ~/.tunekeeper/downloads/bfcl_eval-….whl \
        --tokenizer ~/.tunekeeper/bases/smollm2-135m

Three seeds take about an hour and a half on two cores. The supervised step has few examples, as one has where answers
are easier to check than to write. What comes second learns from questions that it has not seen, for those it has are
answered right by heart: RFT is told which answers are right, DPO prefers the accepted answer to what the supervised
model itself got wrong.
"""

import argparse
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openai import OpenAI

from tunekeeper.datasets import Tokenizer
from tunekeeper.demo.measure import Score, measure
from tunekeeper.demo.tasks import Task, prompt_size, read_tasks, select

GRADER = {
    "type": "python",
    "name": "call",
    "source": """
import json

def equal(given, accepted):
    if isinstance(accepted, dict):
        return isinstance(given, dict) and matches(given, accepted)
    if isinstance(accepted, list) and any(isinstance(one, dict) for one in accepted):
        if not isinstance(given, list) or len(given) != len(accepted):
            return False
        return all(equal(given[n], accepted[n]) for n in range(len(accepted)))
    return given == accepted or str(given).lower() == str(accepted).lower()

def right(given, key, values):
    return any(equal(given[key], value) for value in values) if key in given else "" in values

def matches(given, accepted):
    return all(key in accepted for key in given) and all(right(given, key, accepted[key]) for key in accepted)

def grade(sample, item):
    calls = sample["output_tools"]
    if len(calls) != 1:
        return 0.0
    try:
        given = json.loads(calls[0]["function"]["arguments"])
    except ValueError:
        return 0.0
    if calls[0]["function"]["name"] != item["name"] or not isinstance(given, dict):
        return 0.0
    accepted = item["accepted"]
    share = sum(right(given, key, accepted[key]) for key in accepted) / max(len(accepted), len(given), 1)
    return 1.0 if matches(given, accepted) else 0.5 * share
""",
}
"""1 for an exact match; up to a half for a call whose arguments are partly right."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="The questions: bfcl_eval-….whl.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Directory of the base model.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--start", default="", help="A tuned model to stack on, instead of tuning one for each seed.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--then", nargs="+", choices=("rft", "dpo"), default=("rft", "dpo"))
    parser.add_argument("--examples", type=int, default=16, help="Examples of the supervised step.")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--problems", type=int, default=256, help="Questions of the second step.")
    parser.add_argument("-H", dest="changes", action="append", default=[], help="rft.NAME=VALUE or dpo.NAME=VALUE")
    parser.add_argument("--out", type=Path, help="Write every score here, as JSON.")
    arguments = parser.parse_args()
    client = OpenAI(max_retries=0, timeout=600)

    tokenizer = Tokenizer.load(arguments.tokenizer)
    tasks = select(read_tasks(arguments.wheel), tokenizer)
    held_out, validation, rest = tasks[: arguments.held_out], tasks[100:116], tasks[116:]
    if arguments.held_out > 100:
        parser.error("--held-out is at most 100: what follows is for validation and training")
    short = [task for task in rest if prompt_size(task, tokenizer) <= 200]
    fresh = short[arguments.examples :][: arguments.problems]
    recipes = _recipes(arguments.changes)
    scores: dict[str, list[Score]] = {}

    for seed in arguments.seeds:
        start = arguments.start or tune(
            client, arguments.model, "supervised", recipes["sft"],
            [task.example() for task in short[: arguments.examples]], [task.example() for task in validation], seed,
        )  # fmt: skip
        record(scores, "SFT", measure(client, start, held_out, name=start))
        if "rft" in arguments.then:
            tuned = tune(
                client, start, "reinforcement", recipes["rft"],
                [_problem(task) for task in fresh], [_problem(task) for task in validation], seed,
            )  # fmt: skip
            record(scores, "SFT + RFT", measure(client, tuned, held_out, name=tuned))
        if "dpo" in arguments.then:
            asked = measure(client, start, fresh, name=start)
            pairs = [_pair(answer.task, answer.text) for answer in asked.answers if _is_call(answer)]
            print(f"seed {seed}: {len(pairs)} of {len(fresh)} answers are wrong calls to learn from", flush=True)
            tuned = tune(client, start, "dpo", recipes["dpo"], pairs, None, seed)
            record(scores, "SFT + DPO", measure(client, tuned, held_out, name=tuned))
    print(table(scores))
    if arguments.out:
        arguments.out.write_text(json.dumps({name: [_json(score) for score in all_] for name, all_ in scores.items()}))


def _recipes(changes: Iterable[str]) -> Mapping[str, dict[str, Any]]:
    recipes: dict[str, dict[str, Any]] = {
        "sft": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 1.5, "prompt_loss_weight": 0.1},
        "rft": {
            "n_epochs": 1,
            "batch_size": 8,
            "num_generations": 8,
            "max_completion_tokens": 64,
            "temperature": 0.8,
            "learning_rate_multiplier": 4,
            "eval_interval": 32,
        },
        "dpo": {"n_epochs": 1, "batch_size": 4, "beta": 0.1},
    }
    for change in changes:
        place, _, value = change.partition("=")
        method, _, name = place.partition(".")
        recipes[method][name] = json.loads(value)
    return recipes


def tune(
    client: OpenAI, model: str, method: str, recipe: Mapping[str, Any],
    lines: Sequence[Any], validation: Sequence[Any] | None, seed: int,
) -> str:  # fmt: skip
    """Fine-tune; the new model's name."""
    body: dict[str, Any] = {"hyperparameters": recipe}
    if method == "reinforcement":
        body["grader"] = GRADER
    began = time.monotonic()
    files = [upload(client, each) for each in (lines, validation) if each]
    job = client.fine_tuning.jobs.create(
        model=model, training_file=files[0], seed=seed, suffix=method[:3],
        method={"type": method, method: body},  # type: ignore[arg-type,misc]
        **({"validation_file": files[1]} if len(files) > 1 else {}),  # type: ignore[arg-type]
    )  # fmt: skip
    seen: set[str] = set()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(2)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=20).data):
            if event.id not in seen:
                seen.add(event.id)
                print(f"  seed {seed} {method}: {event.message}", flush=True)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        sys.exit(f"The job {job.id} {job.status}: {job.error.message if job.error else ''}")
    print(f"seed {seed} {method}: {len(lines)} lines in {time.monotonic() - began:.0f} s", flush=True)
    return job.fine_tuned_model


def upload(client: OpenAI, lines: Sequence[Any]) -> str:
    """Send lines as a training file; its id."""
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    file = client.files.create(file=("lines.jsonl", io.BytesIO(data)), purpose="fine-tune")
    return client.files.wait_for_processing(file.id, poll_interval=0.2).id


def _problem(task: Task) -> dict[str, Any]:
    return {"messages": task.messages, "tools": task.tools, "name": task.name, "accepted": task.accepted}


def _pair(task: Task, text: str) -> dict[str, Any]:
    """The accepted call against the one that the model made."""
    example = task.example()
    name, _, rest = text.partition("(")
    wrong = {"name": name, "arguments": rest.removesuffix(")")}
    said = {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": wrong}]}
    return {
        "input": {"messages": task.messages, "tools": task.tools},
        "preferred_output": [example["messages"][-1]],
        "non_preferred_output": [said],
    }


def _is_call(answer: Any) -> bool:
    return answer.is_valid and not answer.is_right and "; " not in answer.text


def record(scores: dict[str, list[Score]], name: str, score: Score) -> None:
    """Keep a score, and say it."""
    scores.setdefault(name, []).append(score)
    low, high = score.interval
    print(f"{name}: {score.accuracy:.1%} ({low:.1%} to {high:.1%}) in {score.seconds:.0f} s", flush=True)


def table(scores: Mapping[str, Sequence[Score]]) -> str:
    """Mean accuracy over the seeds, and the gain over the first row: paired by question, 95 % t interval."""
    lines = ["| Model | Right, by seed | Mean | Gain over SFT |", "|---|---|---|---|"]
    first = _shares(next(iter(scores.values())))
    for name, all_ in scores.items():
        shares = _shares(all_)
        by_seed = ", ".join(f"{score.accuracy:.0%}" for score in all_)
        gains = [100 * (after - before) for after, before in zip(shares, first, strict=True)]
        half = 1.984 * statistics.stdev(gains) / math.sqrt(len(gains))  # t of 99 degrees of freedom
        gain = (
            ""
            if shares is first or not any(gains)
            else (
                f"{statistics.mean(gains):+.1f} points ({statistics.mean(gains) - half:+.1f} to "
                f"{statistics.mean(gains) + half:+.1f})"
            )
        )
        lines.append(f"| {name} | {by_seed} | {statistics.mean(shares):.1%} | {gain} |")
    return "\n".join(lines)


def _shares(scores: Sequence[Score]) -> list[float]:
    """Of each question: the share of seeds that answered it right."""
    return [
        statistics.mean(answer.is_right for answer in answers)
        for answers in zip(*(score.answers for score in scores), strict=True)
    ]


def _json(score: Score) -> dict[str, Any]:
    return {
        "model": score.name,
        "seconds": score.seconds,
        "answers": [{"id": answer.task.id, "text": answer.text, "right": answer.is_right} for answer in score.answers],
    }


if __name__ == "__main__":
    main()
