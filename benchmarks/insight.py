"""A large day's report, 300 files and 40,000 changed lines; and what asking a model for many files at once saves.

    python -m benchmarks.insight [--files 300] [--lines 40000] [--limit 16] [--calls 320] [--rounds 3] [--json]

Without a model: wall time, processor time (the figure for a busy machine) and peak memory of `tunekeeper report` as a
process of its own; medians of the rounds.
With a model: a scripted one that takes a second a call, many files at once under the limit, beside what its calls
take one after another.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = ("the", "model", "answers", "requests", "with", "a", "deployment", "that", "you", "create", "in", "portals")


def page(seed: int, n_lines: int) -> list[str]:
    """A page of documentation: front matter, prose, a table, code, lists of links."""
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(14)).capitalize() + "."

    lines = ["---", f"title: Page {seed}", "ms.date: 01/01/2026", "---", "", f"# Page {seed}", ""]
    while len(lines) < n_lines:
        kind = draw.randrange(5)
        lines.append(f"## Section {len(lines)}")
        if kind == 0:
            lines += ["", "| Model | Version | Limit |", "| --- | --- | --- |"]
            lines += [f"| `model-{draw.randrange(10**6)}` | {row} | {draw.randrange(10**4)} |" for row in range(8)]
        elif kind == 1:
            lines += ["", "```python", *(f"value_{draw.randrange(10**4)} = call({row})" for row in range(8)), "```"]
        elif kind == 2:
            lines += ["", *(f"- [{sentence()}](page-{draw.randrange(300)}.md#part)" for _ in range(8))]
        else:
            lines += [line for _ in range(4) for line in ("", sentence())]
        lines.append("")
    return lines


def edited(lines: list[str], n_changed: int, seed: int) -> list[str]:
    """The page with that many lines changed, counted as additions and deletions, in runs of up to six."""
    draw = random.Random(seed)
    lines = list(lines)
    chosen: dict[int, None] = {}
    while len(chosen) < n_changed // 2:
        start = draw.randrange(6, len(lines) - 6)
        chosen |= dict.fromkeys(at for at in range(start, start + 6) if lines[at] and lines[at][0] not in "`|-")
        chosen |= dict.fromkeys(at for at in range(start, start + 2) if lines[at].startswith("| `"))
    for at in list(chosen)[: n_changed // 2]:
        line = lines[at]
        number = draw.randrange(10**4)
        lines[at] = re.sub(r"\d+ \|$", f"{number} |", line) if line.startswith("|") else f"{line} See {number}x."
    return lines


def repository(folder: Path, n_files: int, n_lines: int) -> None:
    """Two commits with `n_files` changed files and `n_lines` changed lines between them."""
    each, rest = divmod(n_lines, n_files)
    pages = [page(n, 400) for n in range(n_files)]

    def commits() -> Iterator[str]:
        for commit in range(2):
            when = 1_767_225_600 + commit * 86_400
            yield f"commit refs/heads/main\ncommitter a <a@example.org> {when} +0000\ndata 1\nc\n"
            for n, lines in enumerate(pages):
                shown = edited(lines, each + (rest if n == 0 else 0), n) if commit else lines
                text = "\n".join(shown) + "\n"
                yield f"M 100644 inline docs/part-{n % 20}/page-{n}.md\ndata {len(text.encode())}\n{text}\n"

    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(folder)], check=True)
    command = ["git", "-C", str(folder), "fast-import", "--quiet"]
    subprocess.run(command, input="".join(commits()).encode(), check=True)


def without_model(folder: Path, out: Path) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and MB of the command at its peak, its git processes included."""
    command = [sys.executable, "-m", "tunekeeper", "report", "main~..main", "--repo", str(folder), "--out", str(out)]
    # With its bytecode, as an installed package has it; the first round writes it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(out.parent / "bytecode")
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--home", str(out / "home")], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit("the report failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class Scripted:
    """A model that says nothing that could be wrong, a second later."""

    name = "scripted"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0
        self._lock = threading.Lock()

    def complete(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any]) -> str:
        """Empty texts for what is asked for."""
        with self._lock:
            self.calls += 1
        time.sleep(self.seconds)
        kinds = {name: part.get("type") for name, part in schema.get("properties", {}).items()}
        sentence = "Lines changed."
        texts = {name: [sentence] if kind == "array" else sentence for name, kind in kinds.items()}
        return json.dumps({**texts, **({"title": "Change"} if "title" in kinds else {})})


def with_model(folder: Path, limit: int, seconds: float) -> tuple[float, int]:
    """Seconds and calls of a report whose prose a model writes."""
    from tunekeeper.insight.facts import facts_of
    from tunekeeper.insight.source import open_repository
    from tunekeeper.insight.writer import write_report

    repository = open_repository(str(folder), folder / "home")
    changes = repository.changes(repository.span("main~..main"))
    facts = facts_of(changes)
    model = Scripted(seconds)
    start = time.perf_counter()
    write_report(changes, facts, language="en", model=model, parallel=limit)
    return time.perf_counter() - start, model.calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--lines", type=int, default=40_000)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--calls", type=int, default=320)
    parser.add_argument("--call-seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository(folder / "repo", asked.files, asked.lines)
        repository(folder / "small", asked.calls, asked.calls * 20)
        side_by_side, n_calls = with_model(folder / "small", asked.limit, asked.call_seconds)
        rounds = [without_model(folder / "repo", folder / f"out-{n}") for n in range(asked.rounds)]
    found = {
        "files": asked.files,
        "changed_lines": asked.lines,
        "seconds": round(statistics.median(seconds for seconds, _, _ in rounds), 2),
        "cpu_seconds": round(statistics.median(cpu for _, cpu, _ in rounds), 2),
        "peak_mb": round(max(peak for _, _, peak in rounds), 1),
        "model_calls": n_calls,
        "model_seconds": round(side_by_side, 2),
        "model_seconds_in_turn": round(n_calls * asked.call_seconds, 2),
        "times_faster": round(n_calls * asked.call_seconds / side_by_side, 1),
    }
    print(json.dumps(found, indent=2) if asked.json else found)


if __name__ == "__main__":
    main()
