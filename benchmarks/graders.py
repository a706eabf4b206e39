"""Grades a second: of Python graders in each runner, and of those that run in our own process.

    python -m benchmarks.graders [--seconds 3] [--rounds 3] [--json]

The same small grader (find the last number of an answer, compare) in pydantic-monty and in CPython under bubblewrap,
in turn, round by round; medians. Each grade has a fresh interpreter state. `start_s`: from nothing to the first score.
The others grade one answer of 40 words from one thread, templates and all.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tunekeeper.errors import Unavailable
from tunekeeper.graders.build import build
from tunekeeper.graders.code import Cpython, Monty
from tunekeeper.graders.sandbox import Limits
from tunekeeper.graders.template import sample_of
from tunekeeper.types import Json

SOURCE = """
import re

def grade(sample, item):
    found = re.findall(r"-?[0-9]+", sample["output_text"])
    return 1.0 if found and found[-1] == item["answer"] else 0.0
"""
SAMPLE: dict[str, Any] = {"output_text": "6 times 7 is not 41. The answer is 42"}
ITEM: dict[str, Any] = {"answer": "42", "messages": [{"role": "user", "content": "6 times 7? " * 40}]}


def python_graders(seconds: float, rounds: int) -> dict[str, dict[str, float | str]]:
    """By runner: grades_per_s from one thread, from as many threads as there are workers, and start_s."""
    found: dict[str, dict[str, float | str]] = {}
    runners: dict[str, Monty | Cpython] = {}
    limits = Limits()
    for name, make in (("monty", Monty), ("cpython", Cpython)):
        started = time.perf_counter()
        try:
            runners[name] = make(SOURCE, limits)
        except Unavailable as why:
            found[name] = {"unavailable": str(why)}
            continue
        assert runners[name].run(SAMPLE, ITEM)["score"] == 1.0
        found[name] = {"start_s": time.perf_counter() - started}
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for name, runner in runners.items():
            for threads in (1, limits.workers):
                speeds.setdefault((name, threads), []).append(grades_per_s(runner, threads, seconds))
    for (name, threads), values in speeds.items():
        found[name][f"grades_per_s_{threads}_threads"] = statistics.median(values)
    for runner in runners.values():
        runner.close()
    return found


EXACT: Json = {
    "type": "string_check",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
METRICS = ("fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_l")


def own_graders(seconds: float, rounds: int) -> dict[str, float]:
    """Grades a second of each type and metric that needs neither a sandbox nor a model."""
    similar = {name: EXACT[name] for name in ("input", "reference")}
    specs: dict[str, Json] = {"string_check": EXACT}
    for metric in METRICS:
        specs[metric] = {"type": "text_similarity", "evaluation_metric": metric, **similar}
    parts = {"exact": EXACT, "close": specs["fuzzy_match"]}
    specs["multi"] = {"type": "multi", "graders": parts, "calculate_output": "0.7 * exact + 0.3 * min(close, 1)"}
    words = [f"word{n}" for n in range(20)]
    sample = sample_of(" ".join(words[n * 7 % 19] for n in range(40)))
    item = {"answer": " ".join(words * 2)}
    speeds: dict[str, list[float]] = {name: [] for name in specs}
    for _ in range(rounds):
        for name, spec in specs.items():
            grader = build(spec)
            grader.grade(sample, item)
            n, started = 0, time.perf_counter()
            while time.perf_counter() < started + seconds:
                grader.grade(sample, item)
                n += 1
            speeds[name].append(n / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def grades_per_s(runner: Monty | Cpython, threads: int, seconds: float) -> float:
    """Grade for so long in so many threads."""
    started = time.perf_counter()

    def work() -> int:
        n = 0
        while time.perf_counter() < started + seconds:
            runner.run(SAMPLE, ITEM)
            n += 1
        return n

    with ThreadPoolExecutor(threads) as pool:
        counts = [future.result() for future in [pool.submit(work) for _ in range(threads)]]
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: Json = {
        "python": python_graders(options.seconds, options.rounds),
        "grades_per_s": own_graders(options.seconds / 3, options.rounds),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found["python"].items():
        for figure, value in figures.items():
            print(f"{name:14}{figure:26}{value if isinstance(value, str) else f'{value:.4g}'}")
    for name, speed in found["grades_per_s"].items():
        print(f"{name:14}{'grades_per_s':26}{speed:.4g}")


if __name__ == "__main__":
    main()
