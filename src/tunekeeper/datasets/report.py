"""What a check of a training file found: for programs as JSON, for people as text that says what to do.

Faults are lines, findings are the file as a whole. Every fault is counted; the first thousand are kept,
errors before warnings, and a file takes all of them when there is one.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TextIO

from tunekeeper.datasets.formats import Fault
from tunekeeper.datasets.quality import ADVICE, Finding, Histogram
from tunekeeper.types import Json

MAX_STORED_FAULTS = 1000
_LINES_NAMED = 10
_FAULTS_IN_TEXT = 5
_BAR_WIDTH = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The result of checking a training file, and a validation file where there is one."""

    ok: bool
    """No error: a job can be made of it."""
    method: str
    n_examples: int
    n_tokens: int | None = None
    """Tokens that one epoch reads; None without a tokenizer."""
    trained_tokens: int | None = None
    """Tokens of them that are learned."""
    n_truncated: int = 0
    """Examples of both files of which something is cut off to fit."""
    n_left_out: int = 0
    """Examples of both files of which nothing that is learned would be left."""
    n_validation_examples: int | None = None
    n_validation_tokens: int | None = None
    faults: tuple[Fault, ...] = ()
    """At most MAX_STORED_FAULTS; `counts` knows all."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often each code occurs."""
    n_errors: int = 0
    n_warnings: int = 0
    findings: tuple[Finding, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    """Answers and their counts where the answers are labels."""
    histogram: Histogram | None = None

    @property
    def summary(self) -> str:
        """One sentence: what the file holds, or what is wrong with it first."""
        if self.ok:
            return f"{_size(self)}; {_plural(self.n_warnings, 'warning')}."
        first = self.faults[0]
        where = "" if first.file == "training" else "Validation file: "
        more = f" ({_plural(self.n_errors - 1, 'more error')})" if self.n_errors > 1 else ""
        return f"{where}{first.message}{more}"

    def to_json(self) -> Json:
        """Everything, as JSON."""
        return {
            "object": "dataset.report",
            "ok": self.ok,
            "method": self.method,
            "n_examples": self.n_examples,
            "n_tokens": self.n_tokens,
            "trained_tokens": self.trained_tokens,
            "n_truncated": self.n_truncated,
            "n_left_out": self.n_left_out,
            "n_validation_examples": self.n_validation_examples,
            "n_validation_tokens": self.n_validation_tokens,
            "n_errors": self.n_errors,
            "n_warnings": self.n_warnings,
            "counts": dict(self.counts),
            "faults": [fault.to_json() for fault in self.faults],
            "findings": [finding.to_json() for finding in self.findings],
            "labels": dict(self.labels),
            "histogram": self.histogram.to_json() if self.histogram else None,
        }

    def to_text(self) -> str:
        """For a terminal: the verdict first, then what to do, then the lengths."""
        blocks = [_verdict(self), *_fault_blocks(self)]
        if self.findings:
            blocks.append("\n".join(["The file as a whole", *(f"  {f.message}" for f in self.findings)]))
        if self.histogram:
            blocks.append(_bars(self.histogram))
        return "\n\n".join(blocks) + "\n"


class FaultLog:
    """Takes every fault, keeps the first of them, counts all."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._kept: dict[str, list[Fault]] = {"error": [], "warn": []}
        self._lines: dict[str, list[int]] = {}
        self._examples: Counter[str] = Counter()
        self._last: dict[str, tuple[str, int]] = {}
        self.counts: Counter[str] = Counter()
        self.levels: Counter[str] = Counter()

    def add(self, fault: Fault) -> None:
        """Count the fault, write it out, and keep it while there is room."""
        self.counts[fault.code] += 1
        self.levels[fault.level] += 1
        if len(self._kept[fault.level]) < MAX_STORED_FAULTS:
            self._kept[fault.level].append(fault)
        if self._last.get(fault.code) != (fault.file, fault.line):
            self._last[fault.code] = (fault.file, fault.line)
            self._examples[fault.code] += 1
            if len(lines := self._lines.setdefault(fault.code, [])) < _LINES_NAMED:
                lines.append(fault.line)
        if self._out is not None:
            self._out.write(json.dumps(fault.to_json(), ensure_ascii=False) + "\n")

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that were kept: errors first."""
        return tuple([*self._kept["error"], *self._kept["warn"]][:MAX_STORED_FAULTS])

    def findings(self) -> list[Finding]:
        """For each code that has advice: how many examples, which first, and what to do."""
        return [
            Finding(
                code,
                "warn",
                f"{_plural(self._examples[code], 'example')} (line{'s' * (self._examples[code] > 1)} "
                f"{_named(self._lines[code], self._examples[code])}): {advice}.",
                self._examples[code],
                tuple(self._lines[code]),
            )
            for code, advice in ADVICE.items()
            if self._examples[code]
        ]


def _named(lines: list[int], total: int) -> str:
    return ", ".join(map(str, lines)) + (" and others" if total > len(lines) else "")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _size(report: Report) -> str:
    tokens = (
        "" if report.n_tokens is None else f", {report.n_tokens:,} tokens, {report.trained_tokens:,} of them learned"
    )
    held_out = "" if report.n_validation_examples is None else f"; {report.n_validation_examples:,} for validation"
    return _plural(report.n_examples, "example") + tokens + held_out


def _verdict(report: Report) -> str:
    verdict = "Good to train on." if report.ok else "Correct the errors before training."
    faults = f"{_plural(report.n_errors, 'error')}, {_plural(report.n_warnings, 'warning')}"
    return f"{_size(report)}.\n{faults}. {verdict}"


def _fault_blocks(report: Report) -> list[str]:
    """The errors, then the warnings, a few of each code."""
    blocks = []
    for title, level in (("Errors", "error"), ("Warnings", "warn")):
        by_code: dict[str, list[Fault]] = {}
        for fault in report.faults:
            if fault.level == level:
                by_code.setdefault(fault.code, []).append(fault)
        lines = [line for code, faults in by_code.items() for line in _fault_lines(code, faults, report.counts[code])]
        if lines:
            blocks.append("\n".join([title, *lines]))
    return blocks


def _fault_lines(code: str, faults: list[Fault], total: int) -> list[str]:
    shown = faults[:_FAULTS_IN_TEXT]
    lines = [f"  {code}: {_located(fault)}" for fault in shown]
    return lines if total <= len(shown) else [*lines, f"  {code}: {total - len(shown):,} more"]


def _located(fault: Fault) -> str:
    file = "" if fault.file == "training" else "(validation file) "
    return f"{file}{fault.message}" + (f" [{fault.pointer}]" if fault.pointer else "")


def _bars(histogram: Histogram) -> str:
    most = max(count for _, _, count in histogram.buckets)
    width = len(str(histogram.buckets[-1][1]))
    return "\n".join(
        [
            f"Length of an example in {histogram.unit}: median {histogram.median:,}, "
            f"95 % up to {histogram.p95:,}, longest {histogram.maximum:,}",
            *(
                f"  {first:>{width}}-{last:<{width}} {'#' * -(-_BAR_WIDTH * count // most)} {count:,}"
                for first, last, count in histogram.buckets
            ),
        ]
    )
