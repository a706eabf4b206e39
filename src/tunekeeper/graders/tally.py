"""Many grades in a few numbers: per grader the mean, least and greatest score; faults counted apart, by kind.

A grade that says nothing of the sample counts among the faults only: its 0 is in no mean.
"""

from collections import Counter
from dataclasses import dataclass, field

from tunekeeper.types import Grade, GradeFault, Json


@dataclass(slots=True)
class Series:
    """The scores of one grader."""

    n: int = 0
    total: float = 0.0
    least: float | None = None
    greatest: float | None = None
    n_faults: int = 0

    def add(self, score: float) -> None:
        """Take one more score in."""
        self.n += 1
        self.total += score
        self.least = score if self.least is None else min(self.least, score)
        self.greatest = score if self.greatest is None else max(self.greatest, score)

    def to_json(self) -> Json:
        """As the command line prints it; mean, min and max are null where there is no score."""
        mean = self.total / self.n if self.n else None
        return {"n": self.n, "mean": mean, "min": self.least, "max": self.greatest, "errors": self.n_faults}


@dataclass(slots=True)
class Tally:
    """What became of many samples under one grader."""

    whole: Series = field(default_factory=Series)
    parts: dict[str, Series] = field(default_factory=dict)
    """Of a multi grader, by key."""
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the grader's name and the fault's kind."""
    examples: dict[tuple[str, str], GradeFault] = field(default_factory=dict)
    """The first fault of each."""
    tokens: Counter[str] = field(default_factory=Counter)
    """By judge model."""
    seconds: float = 0.0
    """Time in graders, all threads together."""

    def add(self, grade: Grade) -> None:
        """Take one more grade in."""
        self.whole.n_faults += bool(grade.faults)
        if grade.is_valid:
            self.whole.add(grade.score)
        for key, score in grade.sub_scores.items():
            self._part(key).add(score)
        for fault in grade.faults:
            place = (fault.grader, fault.kind)
            self.faults[place] += 1
            self.examples.setdefault(place, fault)
        self.tokens.update(grade.token_usage)
        self.seconds += grade.execution_time_s

    def add_parts(self, *keys: str) -> None:
        """Name parts beforehand, so that one that never had a score is shown too."""
        for key in keys:
            self._part(key)

    def to_json(self) -> Json:
        """The numbers, for a program."""
        return {
            "score": self.whole.to_json(),
            "sub_scores": {
                key: {**series.to_json(), "errors": self._n_faults(key)} for key, series in self.parts.items()
            },
            "errors": [
                {"grader": name, "kind": kind, "count": count, "example": self.examples[name, kind].message}
                for (name, kind), count in self.faults.most_common()
            ],
            "token_usage": dict(self.tokens),
            "grading_seconds": self.seconds,
        }

    def _part(self, key: str) -> Series:
        return self.parts.setdefault(key, Series())

    def _n_faults(self, name: str) -> int:
        return sum(count for (grader, _), count in self.faults.items() if grader == name)
