"""Shares and means of one run, their paired differences between two, and how many items it takes to tell.

Numbers in, numbers out: nothing here knows what an eval is. What scipy has is scipy's; the rest is the score
interval of a paired difference of shares, Holm's correction, and the power of the two decisions:

    better (or worse)        the two-sided p is at most alpha: wrongly better in at most alpha / 2 of the cases
    not worse by more than x the interval lies above -x: wrong in about alpha / 2 of the cases

    >>> difference = paired_shares(before=[True, False, False], after=[True, True, False])
    >>> difference.value, difference.low, difference.high, difference.p

docs/reference/evals-statistics.md says what each is, and by which paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from tunekeeper.errors import InvalidRequest, Unavailable

ALPHA = 0.05
POWER = 0.8
MOST_ITEMS = 100_000
"""More items than that are not searched for."""
FEW_ITEMS = 20
_NEGLIGIBLE = 1e-9
"""Probability that is left out at either end of a sum over counts."""


class Interval(NamedTuple):
    """An estimate within its bounds; without enough items to say, the bounds are infinite."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How a second series differs from a first on the same items; above 0, the second has more."""

    kind: Literal["share", "mean"]
    n: int
    """Items that both have."""
    value: float
    low: float
    high: float
    """Interval at the level 1 - alpha; infinite where there are too few items to say."""
    p: float
    """Two-sided p of no difference: exact McNemar of shares, t test of means."""
    p_not_worse: float | None
    """One-sided p of "worse by the margin or more", doubled, so that it is held against the same alpha."""
    margin: float | None
    alpha: float
    won: int = 0
    lost: int = 0
    """Of shares: items that only the second has right, and only the first."""
    sd: float = 0.0
    """Of means: standard deviation of the differences."""
    notes: tuple[str, ...] = ()
    """What makes the figures less sure than they look."""


def wilson(right: int, n: int, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); it stays within 0 and 1, and is not empty at either end."""
    z = NormalDist().inv_cdf(1 - alpha / 2)
    share, width = right / n, z * z / n
    middle = (share + width / 2) / (1 + width)
    half = z * math.sqrt(share * (1 - share) / n + width / (4 * n)) / (1 + width)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(right: int, n: int, *, alpha: float = ALPHA) -> Interval:
    """A share of at least one item, with its interval."""
    return Interval(right / n, *wilson(right, n, alpha=alpha))


def mean(values: Sequence[float], *, alpha: float = ALPHA) -> Interval:
    """A mean of at least one value, with its t interval."""
    value = math.fsum(values) / len(values)
    if min(values) == max(values):
        return Interval(value, -math.inf, math.inf)  # how they spread is not known
    test = _stats().ttest_1samp(values, 0.0).confidence_interval(1 - alpha)
    return Interval(value, float(test.low), float(test.high))


def paired_shares(
    before: Sequence[bool], after: Sequence[bool], *, margin: float | None = None, alpha: float = ALPHA
) -> Difference:
    """Difference of two shares of the same items: Tango's interval (1998), McNemar's exact test.

    Raises InvalidRequest where there are no items, or not the same number on both sides.
    """
    n = _paired(before, after)
    won = sum(bool(b) and not a for a, b in zip(before, after, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(before, after, strict=True))
    low, high = tango(won, lost, n, alpha=alpha)
    p = float(_stats().binomtest(won, won + lost).pvalue) if won + lost else 1.0
    notes = []
    if n < FEW_ITEMS:
        notes.append(f"only {n} items")
    if p > alpha and (low > 0 or high < 0):
        notes.append("the interval leaves 0 out by a hair, the exact test does not: it decides")
    return Difference(
        kind="share", n=n, value=(won - lost) / n, low=low, high=high, p=p,
        p_not_worse=None if margin is None else min(1.0, 2 * _normal_tail(float(_tango_z(won, lost, n, -margin)))),
        margin=margin, alpha=alpha, won=won, lost=lost, notes=tuple(notes),
    )  # fmt: skip


def paired_means(
    before: Sequence[float], after: Sequence[float], *, margin: float | None = None, alpha: float = ALPHA
) -> Difference:
    """Difference of two means of the same items, by the t interval and test of the items' differences.

    Raises InvalidRequest where there are no items, or not the same number on both sides.
    """
    n = _paired(before, after)
    differences = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    value = math.fsum(differences) / n
    if max(differences) - min(differences) <= 1e-12 * max(map(abs, [*before, *after])):
        alone = "there is one item only" if n == 1 else "the difference is the same on every item"
        return Difference(
            kind="mean", n=n, value=value, low=-math.inf, high=math.inf, p=1.0,
            p_not_worse=None if margin is None else 1.0,
            margin=margin, alpha=alpha, notes=(f"{alone}, so its spread is not known",),
        )  # fmt: skip
    stats = _stats()
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(1 - alpha)
    not_worse = None
    if margin is not None:
        not_worse = min(1.0, 2 * float(stats.ttest_1samp(differences, -margin, alternative="greater").pvalue))
    skewness = float(stats.skew(differences))
    notes = []
    if n < FEW_ITEMS:
        notes.append(f"only {n} items: the interval takes their differences to be about normal")
    elif n < 25 * skewness**2:
        notes.append(
            f"the differences are strongly skewed ({skewness:+.1f}): a few items make them, and the interval is "
            f"rough below {math.ceil(25 * skewness**2):,} items"
        )
    return Difference(
        kind="mean", n=n, value=value, low=float(interval.low), high=float(interval.high), p=float(test.pvalue),
        p_not_worse=not_worse, margin=margin, alpha=alpha, sd=float(_numpy().std(differences, ddof=1)),
        notes=tuple(notes),
    )  # fmt: skip


def tango(won: int, lost: int, n: int, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Score interval of the paired difference (won - lost) / n of two shares (Tango 1998)."""
    z = NormalDist().inv_cdf(1 - alpha / 2)
    return -_tango_bound(lost, won, n, z), _tango_bound(won, lost, n, z)


def _tango_bound(won: int, lost: int, n: int, z: float) -> float:
    if won == n:
        return 1.0
    from scipy.optimize import brentq

    return float(brentq(lambda delta: _tango_z(won, lost, n, delta) + z, (won - lost) / n, 1 - 1e-12, xtol=1e-12))


def _tango_z(won: Any, lost: Any, n: int, delta: float) -> Any:
    """Score statistic of "the difference is delta", of counts or arrays of counts.

    The share of lost items is estimated by maximum likelihood under that hypothesis (Tango 1998, section 3).
    """
    np = _numpy()
    a = 2 * n
    b = (2 * n - won + lost) * delta - won - lost
    c = -lost * delta * (1 - delta)
    lost_share = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * lost_share + delta * (1 - delta))
    return (won - lost - n * delta) / np.sqrt(np.maximum(variance, 1e-300))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979): the chance of one false finding stays at most alpha."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = worst
    return adjusted


def power_of_shares(n: int, *, won: float, lost: float, margin: float | None = None, alpha: float = ALPHA) -> float:
    """Chance that n items show a share to be better, or with a margin not worse by more than that.

    `won` and `lost` are the true shares of items that only the second, and only the first, has right. Exact: the
    sum over all counts, of the rule that `paired_shares` decides by.
    """
    _check_rates(won, lost, margin)
    np, binom = _numpy(), _stats().binom
    if margin is not None:
        wins = _likely(n, won)
        fewest, most = -np.ones_like(wins), n - wins + 1  # lost items with which it holds, and does not hold
        z = NormalDist().inv_cdf(1 - alpha / 2)
        while (most - fewest > 1).any():
            middle = np.floor((fewest + most) / 2)
            holds = _tango_z(wins, middle, n, -margin) > z
            fewest, most = np.where(holds, middle, fewest), np.where(holds, most, middle)
        rest = min(1.0, lost / (1 - won)) if won < 1 else 0.0
        return float((binom.pmf(wins, n, won) * binom.cdf(fewest, n - wins, rest)).sum())
    if not won:
        return 0.0
    differing = _likely(n, won + lost)
    enough = binom.isf(alpha / 2, differing, 0.5) + 1  # the fewest won of them that the exact test calls better
    return float((binom.pmf(differing, n, won + lost) * binom.sf(enough - 1, differing, won / (won + lost))).sum())


def power_of_means(n: int, *, difference: float, sd: float, margin: float | None = None, alpha: float = ALPHA) -> float:
    """Chance that n items show a mean to be better, or with a margin not worse by more than that; noncentral t."""
    if n < 2:
        return 0.0
    if sd <= 0:
        raise InvalidRequest(f"sd is {sd}; it must be above 0.", param="sd")
    stats = _stats()
    noncentrality = (difference + (margin or 0.0)) / sd * math.sqrt(n)
    if noncentrality > 30:  # nct's series end there, and so does the question
        return 1.0
    return float(stats.nct.sf(stats.t.isf(alpha / 2, n - 1), n - 1, noncentrality))


def items_for_shares(
    *, won: float, lost: float, margin: float | None = None, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Items needed for that power; None where no number will do, or it is above MOST_ITEMS."""
    gap, spread = won - lost + (margin or 0.0), math.sqrt(max(won + lost - (won - lost) ** 2, 1e-9))
    return _search(
        lambda n: power_of_shares(n, won=won, lost=lost, margin=margin, alpha=alpha), gap, spread, alpha, power
    )


def items_for_means(
    *, difference: float, sd: float, margin: float | None = None, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Items needed for that power; None where no number will do, or it is above MOST_ITEMS."""
    gap = difference + (margin or 0.0)
    return _search(
        lambda n: power_of_means(n, difference=difference, sd=sd, margin=margin, alpha=alpha), gap, sd, alpha, power
    )


def items_needed(difference: Difference, *, margin: float | None = None, power: float = POWER) -> int | None:
    """Items that would show a difference as large as the seen one, in its direction; with a margin, not worse."""
    sign = 1 if margin is not None or difference.value >= 0 else -1
    if difference.kind == "share":
        won, lost = difference.won / difference.n, difference.lost / difference.n
        won, lost = (won, lost) if sign > 0 else (lost, won)
        return items_for_shares(won=won, lost=lost, margin=margin, alpha=difference.alpha, power=power)
    if not difference.sd:
        return None
    return items_for_means(
        difference=sign * difference.value, sd=difference.sd, margin=margin, alpha=difference.alpha, power=power
    )


def _search(chance: Callable[[int], float], gap: float, spread: float, alpha: float, power: float) -> int | None:
    """The n that has the power while n - 1 has not; begun at the normal approximation."""
    if gap <= 0:
        return None
    normal = NormalDist()
    guess = ((normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * spread / gap) ** 2
    if guess > 2 * MOST_ITEMS:
        return None
    low = high = min(MOST_ITEMS, max(2, round(guess)))
    while chance(high) < power:
        if high == MOST_ITEMS:
            return None
        low, high = high, min(MOST_ITEMS, math.ceil(high * 1.2) + 1)
    while low > 1 and chance(low) >= power:
        low, high = int(low / 1.2), low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= power else (middle, high)
    return high


def _likely(n: int, rate: float) -> Any:
    """The counts among n that are not negligible."""
    np, binom = _numpy(), _stats().binom
    return np.arange(binom.ppf(_NEGLIGIBLE, n, rate), binom.isf(_NEGLIGIBLE, n, rate) + 1)


def _normal_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def _paired(before: Sequence[object], after: Sequence[object]) -> int:
    if len(before) != len(after) or not before:
        raise InvalidRequest(
            f"A paired difference needs the same items twice, at least one; there are {len(before)} and {len(after)}."
        )
    return len(before)


def _check_rates(won: float, lost: float, margin: float | None) -> None:
    if not (won >= 0 and lost >= 0 and won + lost <= 1):
        raise InvalidRequest(f"won {won} and lost {lost} are shares of the same items: from 0, together at most 1.")
    if margin is not None and not 0 < margin < 1:
        raise InvalidRequest(f"margin is {margin}; of a share it must be above 0 and below 1.", param="margin")


def _numpy() -> Any:
    import numpy

    return numpy


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise Unavailable("The comparison of runs needs scipy: pip install 'tunekeeper[eval]'") from error
    return stats
