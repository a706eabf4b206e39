"""Two or more runs over the same items become one comparison: each series against a baseline, item by item.

Items are paired by their key. What only one side has, or what failed on a side, is left out and listed, never a zero.

    >>> comparison = compare([base, tuned], margin=0.02)
    >>> comparison.pairs[0].measures[0].verdict.text
    'better by 6 to 14 points'

The first measure is the pass rate; where graders give more than pass and fail, their scores follow. Verdicts are
corrected (Holm) for as many times as the same question is asked: over the series, the graders, the slices.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Literal

from tunekeeper.errors import InvalidRequest
from tunekeeper.evals.statistics import (
    ALPHA,
    MOST_ITEMS,
    Difference,
    Interval,
    holm,
    items_needed,
    mean,
    paired_means,
    paired_shares,
    share,
)
from tunekeeper.types import Json

PASS_RATE = "pass rate"
SCORE = "score"
FEWEST_OF_A_SLICE = 5
MOST_VALUES_OF_A_SLICE = 30
MUCH_LEFT_OUT = 0.05
MARGIN = 0.02
"""A pass rate lower by less than that is no worse, unless the caller says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CriterionResult:
    """What one grader said of one answer."""

    score: float
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one item in one run."""

    key: str
    """The same for the same item in every run: see `item_key`."""
    passed: bool | None
    """None: there was an error, and nothing else of this outcome counts."""
    score: float | None = None
    """A score of the whole answer, where there is one; more is better."""
    criteria: Mapping[str, CriterionResult] = field(default_factory=dict)
    """By the graders' names; one that failed is left out."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """The item's metadata."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    """From the request to the whole answer."""
    cost: float | None = None
    """In the comparison's currency."""
    text: str = ""
    """The answer."""
    item: Json = field(default_factory=dict)
    error: str = ""

    def __post_init__(self) -> None:
        for name in ("score", "prompt_tokens", "completion_tokens", "seconds", "cost"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InvalidRequest(f"{name} of item {self.key} is {value}; it must be a number, or left out.")
        for name, result in self.criteria.items():
            if not math.isfinite(result.score):
                raise InvalidRequest(
                    f"The score of {name} for item {self.key} is {result.score}; leave it out instead."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One run: a model, or a model with a prompt, over the items."""

    name: str
    """For people, and unique in a comparison: base, few-shot 8, tuned."""
    model: str
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens, seconds or cost of the items of one series that tell it."""

    n: int
    mean: float
    median: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One series by itself, on all items that it answered."""

    name: str
    model: str
    n: int
    errors: int
    passed: Interval | None
    score: Interval | None
    usage: Mapping[str, Usage]
    """By the names in USAGE."""


VerdictKind = Literal["better", "worse", "not_worse", "cannot_tell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the figures say, at the level alpha, corrected for how often the question was asked."""

    kind: VerdictKind
    text: str
    is_not_worse: bool = False
    """Not worse by more than the margin, whatever the kind: what a promotion asks."""
    p: float = 1.0
    """Two-sided, corrected."""
    items_to_differ: int | None = None
    """Items that would show the seen difference with 80 % power; None: more than can be searched, or none seen."""
    items_to_not_worse: int | None = None
    """Items that would show "not worse by more than the margin", were the truth as seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One figure of both series on the items that both have."""

    name: str
    before: Interval | None = None
    after: Interval | None = None
    difference: Difference | None = None
    """None where no item has it on both sides."""
    verdict: Verdict = Verdict(kind="cannot_tell", text="cannot tell: no item has it on both sides")
    slice: tuple[str, str] | None = None
    """Key and value of the metadata that the items share."""

    @property
    def n(self) -> int:
        """Items compared."""
        return self.difference.n if self.difference else 0

    @property
    def is_share(self) -> bool:
        """Shares are said in points of a hundred, scores as they are."""
        return self.difference is None or self.difference.kind == "share"


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageChange:
    """Tokens, seconds or cost of the same items in both series; less is better."""

    name: str
    before: Usage
    after: Usage
    difference: Difference
    """After less before, an item."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """An item that one side has right and the other has wrong."""

    before: Outcome
    after: Outcome

    @property
    def won(self) -> bool:
        """Right now, and wrong before."""
        return bool(self.after.passed)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """An item that could not be compared, and why."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One series against the baseline."""

    before: str
    after: str
    n: int
    """Items that both answered."""
    measures: tuple[Measure, ...]
    """The pass rate first."""
    slices: tuple[Measure, ...]
    """The pass rate by metadata."""
    usage: tuple[UsageChange, ...]
    flips: tuple[Flip, ...]
    """Lost items first."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the pass rate."""
        return self.measures[0].verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that can be said of the series; `report` writes it down."""

    baseline: str
    series: tuple[Summary, ...]
    pairs: tuple[Pair, ...]
    """One for each series but the baseline, in their order."""
    alpha: float
    margin: float | None
    currency: str
    notes: tuple[str, ...]


USAGE: Mapping[str, Callable[[Outcome], float | None]] = {
    "prompt tokens": lambda outcome: outcome.prompt_tokens,
    "completion tokens": lambda outcome: outcome.completion_tokens,
    "latency, s": lambda outcome: outcome.seconds,
    "cost of 1,000": lambda outcome: None if outcome.cost is None else 1000 * outcome.cost,
}
"""What an answer takes."""


def item_key(datasource_item_id: int, item: Json) -> str:
    """The key of an item: where it stands in its source, and a hash of what it is."""
    text = json.dumps(item, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return f"{datasource_item_id}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def compare(
    series: Sequence[Series],
    *,
    baseline: str | None = None,
    margin: float | None = MARGIN,
    score_margin: float | None = None,
    alpha: float = ALPHA,
    currency: str = "USD",
) -> Comparison:
    """Compare each series with the baseline (without a name, the first).

    `margin` is how much lower a pass rate may be and still be no worse, as a share; scores that lie within 0 and 1
    take it too, and others `score_margin`. None asks no such question.
    Raises InvalidRequest for fewer than two series, names or items that stand twice, and an unknown baseline.
    """
    _check(series, baseline, margin, score_margin, alpha)
    base = next(one for one in series if one.name == baseline) if baseline else series[0]
    desks = [
        _Desk(base, other, margin=margin, score_margin=score_margin, alpha=alpha)
        for other in series
        if other is not base
    ]
    pass_rates = _judged([[desk.pass_rate] for desk in desks])
    criteria = _judged([desk.criteria for desk in desks])
    slices = _judged([desk.slices for desk in desks])
    return Comparison(
        baseline=base.name,
        series=tuple(_summary(one, alpha) for one in series),
        pairs=tuple(
            Pair(
                before=base.name,
                after=desk.other.name,
                n=len(desk.paired),
                measures=(*rate, *scores),
                slices=tuple(parts),
                usage=tuple(desk.usage()),
                flips=tuple(desk.flips()),
                left_out=tuple(desk.left_out),
                notes=tuple(desk.notes),
            )
            for desk, rate, scores, parts in zip(desks, pass_rates, criteria, slices, strict=True)
        ),
        alpha=alpha,
        margin=margin,
        currency=currency,
        notes=tuple(_corrections(len(desks), sum(map(len, criteria)), sum(map(len, slices)))),
    )


def _check(
    series: Sequence[Series], baseline: str | None, margin: float | None, score_margin: float | None, alpha: float
) -> None:
    names = [one.name for one in series]
    if len(series) < 2:
        raise InvalidRequest(f"A comparison needs at least two series; there are {len(series)}.", param="series")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InvalidRequest(f"Two series are named {twice[0]!r}. Give each a name of its own.", param="series")
    if baseline is not None and baseline not in names:
        raise InvalidRequest(f"No series is named {baseline!r}; there are {', '.join(names)}.", param="baseline")
    if not 0 < alpha < 0.5:
        raise InvalidRequest(f"alpha is {alpha}; it must be above 0 and below 0.5.", param="alpha")
    if margin is not None and not 0 < margin < 1:
        raise InvalidRequest(
            f"margin is {margin}; it is a share, above 0 and below 1: 0.02 is 2 points.", param="margin"
        )
    if score_margin is not None and not (score_margin > 0 and math.isfinite(score_margin)):
        raise InvalidRequest(f"score_margin is {score_margin}; it must be above 0.", param="score_margin")
    for one in series:
        keys = Counter(outcome.key for outcome in one.outcomes)
        if again := [key for key, count in keys.items() if count > 1]:
            raise InvalidRequest(
                f"Series {one.name!r} has item {again[0]} twice; each item counts once.", param="series"
            )


class _Desk:
    """The items that two series share, and what is measured on them; verdicts are not spoken yet."""

    def __init__(
        self, base: Series, other: Series, *, margin: float | None, score_margin: float | None, alpha: float
    ) -> None:
        self.other, self.margin, self.score_margin, self.alpha = other, margin, score_margin, alpha
        self.notes: list[str] = []
        self.paired: list[tuple[Outcome, Outcome]] = []
        self.left_out: list[LeftOut] = []
        self._pair(base, other)
        self.pass_rate = self._shares(PASS_RATE, [(bool(a.passed), bool(b.passed)) for a, b in self.paired])
        self.criteria = list(self._criteria())
        self.slices = self._slices()

    def _pair(self, base: Series, other: Series) -> None:
        others = {outcome.key: outcome for outcome in other.outcomes}
        for before in base.outcomes:
            after = others.pop(before.key, None)
            if after is None:
                self.left_out.append(LeftOut(key=before.key, reason=f"only in {base.name}"))
            elif before.passed is not None and after.passed is not None:
                self.paired.append((before, after))
            else:
                failed = [(one.name, o) for one, o in ((base, before), (other, after)) if o.passed is None]
                reason = "; ".join(f"error in {name}" + (f": {o.error}" if o.error else "") for name, o in failed)
                self.left_out.append(LeftOut(key=before.key, reason=reason))
        self.left_out += [LeftOut(key=key, reason=f"only in {other.name}") for key in others]
        total = len(self.paired) + len(self.left_out)
        if len(self.left_out) > MUCH_LEFT_OUT * total:
            self.notes.append(
                f"{len(self.left_out):,} of {total:,} items are left out, for only one side has them or they failed; "
                "what is said holds for the others."
            )

    def _shares(self, name: str, pairs: Sequence[tuple[bool, bool]], of: tuple[str, str] | None = None) -> Measure:
        if not pairs:
            return Measure(name=name, slice=of)
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        return Measure(
            name=name,
            before=share(sum(before), len(before), alpha=self.alpha),
            after=share(sum(after), len(after), alpha=self.alpha),
            difference=paired_shares(before, after, margin=self.margin, alpha=self.alpha),
            slice=of,
        )

    def _scores(self, name: str, pairs: Sequence[tuple[float, float]]) -> Measure:
        flat = [score for pair in pairs for score in pair]
        if all(score in (0, 1) for score in flat):
            return self._shares(name, [(bool(a), bool(b)) for a, b in pairs])
        margin = self.margin if all(0 <= score <= 1 for score in flat) else self.score_margin
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        return Measure(
            name=name,
            before=mean(before, alpha=self.alpha),
            after=mean(after, alpha=self.alpha),
            difference=paired_means(before, after, margin=margin, alpha=self.alpha),
        )

    def _criteria(self) -> list[Measure]:
        names = dict.fromkeys(name for pair in self.paired for outcome in pair for name in outcome.criteria)
        readers: dict[str, Callable[[Outcome], float | None]] = {SCORE: lambda outcome: outcome.score}
        for name in names:
            readers[f"{name}: score" if name in (SCORE, PASS_RATE) else name] = _score_of(name)
        found = []
        for name, read in readers.items():
            scored = self._both(read)
            if not scored and name == SCORE:
                continue
            if scored == [(float(bool(a.passed)), float(bool(b.passed))) for a, b in self.paired]:
                continue  # it is the pass rate again
            if len(scored) < len(self.paired):
                self.notes.append(
                    f"{name} has a score on both sides for {len(scored):,} of {len(self.paired):,} items."
                )
            found.append(self._scores(name, scored))
        return found

    def _both(self, read: Callable[[Outcome], float | None]) -> list[tuple[float, float]]:
        return [(x, y) for a, b in self.paired if (x := read(a)) is not None and (y := read(b)) is not None]

    def _slices(self) -> list[Measure]:
        parts: dict[str, dict[str, list[tuple[bool, bool]]]] = {}
        for before, after in self.paired:
            for key, value in before.slices.items():
                parts.setdefault(key, {}).setdefault(value, []).append((bool(before.passed), bool(after.passed)))
        found, small = [], 0
        for key, values in parts.items():
            if len(values) > MOST_VALUES_OF_A_SLICE:
                self.notes.append(f"The metadata {key!r} has {len(values):,} values: no slices are made of it.")
            elif len(values) > 1:
                big = {value: pairs for value, pairs in values.items() if len(pairs) >= FEWEST_OF_A_SLICE}
                small += len(values) - len(big)
                found += [self._shares(PASS_RATE, big[value], (key, value)) for value in sorted(big)]
        if small:
            self.notes.append(f"{small:,} slices with fewer than {FEWEST_OF_A_SLICE} items are not shown.")
        return found

    def flips(self) -> list[Flip]:
        """The items that are right on one side only, lost ones first."""
        found = [Flip(before=a, after=b) for a, b in self.paired if a.passed != b.passed]
        return sorted(found, key=lambda flip: flip.won)

    def usage(self) -> list[UsageChange]:
        """What an answer takes, where both sides tell."""
        found = []
        for name, read in USAGE.items():
            if pairs := self._both(read):
                before, after = ([pair[side] for pair in pairs] for side in (0, 1))
                difference = paired_means(before, after, alpha=self.alpha)
                first, second = _usage(before), _usage(after)
                text = _usage_text(name, difference, first.mean)
                found.append(UsageChange(name=name, before=first, after=second, difference=difference, text=text))
        return found


def _score_of(name: str) -> Callable[[Outcome], float | None]:
    return lambda outcome: outcome.criteria[name].score if name in outcome.criteria else None


def _summary(one: Series, alpha: float) -> Summary:
    answered = [outcome for outcome in one.outcomes if outcome.passed is not None]
    scores = [outcome.score for outcome in answered if outcome.score is not None]
    usage = {}
    for name, read in USAGE.items():
        if values := [value for outcome in answered if (value := read(outcome)) is not None]:
            usage[name] = _usage(values)
    return Summary(
        name=one.name,
        model=one.model,
        n=len(one.outcomes),
        errors=len(one.outcomes) - len(answered),
        passed=share(sum(bool(o.passed) for o in answered), len(answered), alpha=alpha) if answered else None,
        score=mean(scores, alpha=alpha) if scores else None,
        usage=usage,
    )


def _usage(values: Sequence[float]) -> Usage:
    return Usage(n=len(values), mean=fmean(values), median=median(values))


def _usage_text(name: str, difference: Difference, before: float) -> str:
    if not difference.value:
        return "the same"
    change = f" ({100 * difference.value / before:+.0f} %)" if before else ""
    if difference.low <= 0 <= difference.high and math.isfinite(difference.low):
        return f"no clear difference{change}"
    less = "fewer" if name.endswith("tokens") else "less"
    span = figure(abs(difference.value)) if math.isinf(difference.low) else _span(difference.low, difference.high)
    return f"{span} {'more' if difference.value > 0 else less}{change}"


def _judged(groups: Sequence[Sequence[Measure]]) -> list[list[Measure]]:
    """The measures with their verdicts; all of them together are one family of questions."""
    family = [measure.difference for group in groups for measure in group if measure.difference]
    ps = iter(holm([difference.p for difference in family]))
    not_worse = iter(holm([1.0 if d.p_not_worse is None else d.p_not_worse for d in family]))
    return [
        [
            replace(m, verdict=_verdict(m.difference, next(ps), next(not_worse), len(family))) if m.difference else m
            for m in group
        ]
        for group in groups
    ]


def _verdict(difference: Difference, p: float, p_not_worse: float, family: int) -> Verdict:
    is_not_worse = difference.margin is not None and p_not_worse <= difference.alpha
    span = _points(difference, difference.low, difference.high)
    limit = _points(difference, difference.margin or 0.0)
    if p <= difference.alpha:
        if difference.value > 0:
            return Verdict(kind="better", text=f"better by {span}", is_not_worse=True, p=p)
        but = f", but not by more than {limit}" if is_not_worse else ""
        return Verdict(kind="worse", text=f"worse by {span}{but}", is_not_worse=is_not_worse, p=p)
    if is_not_worse:
        return Verdict(kind="not_worse", text=f"not worse by more than {limit}", is_not_worse=True, p=p)
    if math.isinf(difference.low):
        return Verdict(kind="cannot_tell", text=f"cannot tell: {difference.notes[0]}", p=p)
    strict = replace(difference, alpha=difference.alpha / family)
    to_differ = items_needed(strict)
    to_not_worse = items_needed(strict, margin=difference.margin) if difference.margin is not None else None
    # What was not found in n items is not found in n items by a truth that is as seen.
    to_differ, to_not_worse = (n if n is None else max(n, difference.n + 1) for n in (to_differ, to_not_worse))
    text = f"cannot tell: {_needed(difference, to_differ, to_not_worse)}"
    return Verdict(kind="cannot_tell", text=text, p=p, items_to_differ=to_differ, items_to_not_worse=to_not_worse)


def _needed(difference: Difference, to_differ: int | None, to_not_worse: int | None) -> str:
    have = f"(you have {difference.n:,})"
    no_worse = f"{to_not_worse:,}" if to_not_worse else ""
    if to_differ is not None:
        fewer = to_not_worse is not None and to_not_worse < to_differ
        return f"{to_differ:,} items needed{f', {no_worse} to show that it is not worse' if fewer else ''} {have}"
    if no_worse:
        return f"{no_worse} items needed to show that it is not worse {have}"
    if difference.value:
        return f"more than {MOST_ITEMS:,} items needed {have}"
    return f"no difference seen in {difference.n:,} items"


def _points(difference: Difference, *values: float) -> str:
    """One figure, or two as a span, without a sign: points of a hundred for shares, else the score's own unit."""
    if difference.kind == "mean":
        return _span(*values) if len(values) > 1 else figure(values[0])
    shown = _span(*(100 * value for value in values)) if len(values) > 1 else figure(100 * values[0])
    return f"{shown} point" if shown == "1" else f"{shown} points"


def _span(low: float, high: float) -> str:
    """Both bounds without their signs, the smaller first, in as many digits as their distance deserves."""
    near, far = sorted((abs(low), abs(high)))
    digits = max(0, -math.floor(math.log10((far - near) / 2))) if far > near else 0
    while near and digits < 12 and not round(near, digits):
        digits += 1
    return f"{near:,.{digits}f} to {far:,.{digits}f}"


def figure(value: float) -> str:
    """A number in three digits, and whole from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _corrections(challengers: int, criteria: int, slices: int) -> list[str]:
    notes = []
    if challengers > 1:
        notes.append(
            f"{challengers} series are held against the baseline: their verdicts are corrected for that (Holm), "
            "their intervals are not."
        )
    if criteria > 1:
        notes.append(f"The verdicts on {criteria} graders' scores are corrected for their number (Holm).")
    if slices > 1:
        notes.append(
            f"Among {slices} slices one or another differs by chance: their verdicts are corrected for their number "
            "(Holm), their intervals are not. A slice that stands out is a question for new items, not an answer."
        )
    return notes
