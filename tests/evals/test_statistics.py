"""Oracles: scipy where it has the thing, a published example, sums over all counts, simulation with a fixed seed."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunekeeper.errors import InvalidRequest
from tunekeeper.evals.statistics import (
    MOST_ITEMS,
    holm,
    items_for_means,
    items_for_shares,
    items_needed,
    mean,
    paired_means,
    paired_shares,
    power_of_means,
    power_of_shares,
    share,
    tango,
    wilson,
)


def counted(won: int, lost: int, n: int, **options):
    """The difference of two series with so many items won and lost; the rest is right in both."""
    before = [False] * won + [True] * (n - won)
    after = [True] * won + [False] * lost + [True] * (n - won - lost)
    return paired_shares(before, after, **options)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (540, 1000)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_interval_of_a_share_is_scipys(right: int, n: int, alpha: float) -> None:
    theirs = stats.binomtest(right, n).proportion_ci(1 - alpha, method="wilson")
    assert wilson(right, n, alpha=alpha) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert share(right, n).value == right / n


def test_the_interval_of_a_mean_is_the_t_interval() -> None:
    # Four values 2 away from 4: variance 16 / 3; t with 3 degrees of freedom at 97.5 % is 3.18245.
    value, low, high = mean([2.0, 6.0, 2.0, 6.0])
    assert value == 4
    error = math.sqrt(16 / 3) / 2
    assert (low, high) == pytest.approx((4 - 3.182446 * error, 4 + 3.182446 * error), abs=1e-5)


def test_the_spread_of_equal_values_is_not_known() -> None:
    assert mean([0.5]) == mean([0.5, 0.5]) == (0.5, -math.inf, math.inf)


def test_the_paired_interval_is_the_published_one() -> None:
    # Fagerland, Lydersen and Laake 2014: 1 of 21 only before, 7 only after.
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=6e-4)


def brute_force_z(won: int, lost: int, n: int, delta: float) -> float:
    """The score statistic with the likelihood maximised on a grid, not by Tango's formula."""
    lost_share = np.linspace(max(0.0, -delta), (1 - delta) / 2, 200_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (
            np.where(won > 0, won * np.log(lost_share + delta), 0)
            + np.where(lost > 0, lost * np.log(lost_share), 0)
            + np.where(n > won + lost, (n - won - lost) * np.log(1 - 2 * lost_share - delta), 0)
        )
    best = lost_share[np.nanargmax(likelihood)]
    return (won - lost - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))


@pytest.mark.parametrize(("won", "lost", "n"), [(5, 2, 12), (0, 4, 30), (9, 9, 40), (6, 16, 161)])
def test_the_paired_interval_ends_where_the_score_test_turns(won: int, lost: int, n: int) -> None:
    low, high = tango(won, lost, n)
    assert brute_force_z(won, lost, n, low) == pytest.approx(1.959964, abs=2e-3)
    assert brute_force_z(won, lost, n, high) == pytest.approx(-1.959964, abs=2e-3)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_the_paired_interval_holds_the_difference_and_mirrors(counts: tuple[int, int, int]) -> None:
    n, won, lost = counts
    lost = min(lost, n - won)
    low, high = tango(won, lost, n)
    assert -1 <= low <= (won - lost) / n <= high <= 1
    assert low < high
    assert tango(lost, won, n) == pytest.approx((-high, -low), abs=1e-9)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    n, won, lost = 40, 0.2, 0.1
    covered = 0.0
    for w in range(n + 1):
        for k in range(n - w + 1):
            chance = stats.multinomial.pmf([w, k, n - w - k], n, [won, lost, 1 - won - lost])
            if chance > 1e-7:
                low, high = tango(w, k, n)
                covered += chance * (low <= won - lost <= high)
    assert covered == pytest.approx(0.95, abs=0.012)


def test_what_the_exact_test_calls_different_the_interval_does_too() -> None:
    for n, won, lost in itertools.product((25, 60), range(20), range(5)):
        difference = counted(won, lost, n)
        assert difference.p == pytest.approx(stats.binomtest(won, won + lost).pvalue if won + lost else 1.0)
        if difference.p <= 0.05:
            assert difference.low > 0


def test_an_interval_that_says_more_than_the_test_is_noted() -> None:
    difference = counted(5, 0, 100)
    assert difference.p == 0.0625  # 2 / 2**5
    assert difference.low > 0
    assert "it decides" in difference.notes[0]


def test_the_difference_of_means_is_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(4)
    before, after = generator.random(30).tolist(), generator.random(30).tolist()
    ours, theirs = paired_means(before, after, margin=0.1), stats.ttest_rel(after, before)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p) == pytest.approx((interval.low, interval.high, theirs.pvalue))
    one_sided = stats.ttest_rel([value + 0.1 for value in after], before, alternative="greater").pvalue
    assert ours.p_not_worse == pytest.approx(min(1.0, 2 * one_sided))


@pytest.mark.parametrize("difference", [counted(12, 9, 150, margin=0.06), counted(3, 9, 200, margin=0.06)])
def test_not_worse_is_said_where_the_interval_lies_above_the_margin(difference) -> None:
    assert (difference.p_not_worse <= 0.05) == (difference.low >= -0.06)


def test_few_items_and_skewed_scores_are_noted() -> None:
    assert "only 5 items" in paired_means([0.0] * 5, [0.1, 0.2, 0.3, 0.1, 0.9]).notes[0]
    assert "skewed" in paired_means([0.0] * 100, [5.0] + [0.01 * (n % 3) for n in range(99)]).notes[0]
    assert not paired_means([0.0] * 100, [0.01 * (n % 7) for n in range(100)]).notes


@pytest.mark.parametrize("after", [[0.4], [0.4, 0.4], [0.3 + 0.1, 0.4]])
def test_one_difference_alone_tells_nothing(after: list[float]) -> None:
    difference = paired_means([0.1] * len(after), after)
    assert (difference.low, difference.high, difference.p) == (-math.inf, math.inf, 1.0)
    assert "spread is not known" in difference.notes[0]


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False])])
def test_what_is_not_paired_is_refused(before: list[bool], after: list[bool]) -> None:
    with pytest.raises(InvalidRequest, match="same items twice"):
        paired_shares(before, after)


def test_holm_is_worked_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1, never falling: .02 .03 .06 .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# Chance: 1,000 comparisons of a model with itself ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 100, 400])
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_of_1000_runs_against_themselves_at_most_5_percent_differ(n: int, rate: float) -> None:
    generator = np.random.default_rng(n)
    before, after = (generator.random((1000, n)) < rate for _ in range(2))
    seen = Counter(zip((after & ~before).sum(1).tolist(), (before & ~after).sum(1).tolist(), strict=True))
    differences = [(counted(won, lost, n), times) for (won, lost), times in seen.items()]
    assert sum(times for d, times in differences if d.p <= 0.05) <= 50
    assert sum(times for d, times in differences if d.p <= 0.05 and d.value > 0) <= 25


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_of_1000_scores_against_themselves_about_5_percent_differ(draw: str) -> None:
    generator = np.random.default_rng(1)
    before, after = (getattr(generator, draw)(size=(1000, 60)) for _ in range(2))
    differences = [paired_means(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    assert sum(d.p <= 0.05 for d in differences) <= 50 + 2 * math.sqrt(1000 * 0.05 * 0.95)
    assert sum(d.p <= 0.05 and d.value > 0 for d in differences) <= 50


@pytest.mark.parametrize("n", [5, 20, 50, 150, 1000])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5])
def test_chance_is_called_better_in_at_most_half_of_5_percent(n: int, rate: float) -> None:
    """Not simulated: the sum over all that can happen."""
    assert power_of_shares(n, won=rate, lost=rate) <= 0.025


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_a_model_that_is_worse_by_the_margin_is_rarely_called_no_worse(n: int) -> None:
    for lost in (0.05, 0.1, 0.3):
        assert power_of_shares(n, won=lost - 0.05, lost=lost, margin=0.05) <= 0.035


# Power ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "won", "lost"), [(40, 0.3, 0.1), (200, 0.12, 0.05), (500, 0.08, 0.05)])
@pytest.mark.parametrize("margin", [None, 0.03])
def test_the_power_of_shares_is_what_happens(n: int, won: float, lost: float, margin: float | None) -> None:
    if margin:
        won = lost
    draws = np.random.default_rng(7).multinomial(n, [won, lost, 1 - won - lost], size=4_000)
    counts, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    found = 0
    for (w, k), many in zip(counts.tolist(), times.tolist(), strict=True):
        difference = counted(w, k, n, margin=margin)
        p = difference.p_not_worse if margin else difference.p if w > k else 1.0
        found += many * (p <= 0.05)
    assert found / 4_000 == pytest.approx(power_of_shares(n, won=won, lost=lost, margin=margin), abs=0.02)


@pytest.mark.parametrize(("n", "difference", "margin"), [(12, 0.9, None), (60, 0.35, None), (80, 0.0, 0.3)])
def test_the_power_of_means_is_what_happens(n: int, difference: float, margin: float | None) -> None:
    differences = np.random.default_rng(8).normal(difference, 1.0, (10_000, n))
    p = stats.ttest_1samp(differences, -(margin or 0.0), axis=1, alternative="greater").pvalue
    computed = power_of_means(n, difference=difference, sd=1.0, margin=margin)
    assert (p <= 0.025).mean() == pytest.approx(computed, abs=0.02)


@pytest.mark.parametrize(("won", "lost"), [(0.1, 0.05), (0.3, 0.0), (0.4, 0.3), (1.0, 0.0)])
def test_the_items_needed_have_the_power_and_one_fewer_has_not(won: float, lost: float) -> None:
    n = items_for_shares(won=won, lost=lost)
    assert n is not None
    assert power_of_shares(n, won=won, lost=lost) >= 0.8 > power_of_shares(n - 1, won=won, lost=lost)


def test_the_items_needed_are_the_textbooks() -> None:
    # A standardised difference of 0.5 needs 34 pairs: the number that every table of the paired t test has.
    assert items_for_means(difference=0.5, sd=1.0) == 34
    # Six of six won is the least that the exact test calls better: 2 / 2**6 = 0.031.
    assert items_for_shares(won=1.0, lost=0.0) == 6
    # No item differs: the score test of -x alone, z² (1 - x) / x = 3.8415 × 49 = 188.2.
    assert items_for_shares(won=0.0, lost=0.0, margin=0.02) == 189


def test_no_number_of_items_shows_what_is_not_there() -> None:
    assert items_for_shares(won=0.1, lost=0.1) is None
    assert items_for_shares(won=0.1, lost=0.2) is None
    assert items_for_shares(won=0.1, lost=0.13, margin=0.03) is None
    assert items_for_means(difference=0.0, sd=1.0) is None
    assert items_for_shares(won=0.3, lost=0.2999) is None  # more than MOST_ITEMS
    assert power_of_shares(MOST_ITEMS, won=0.3, lost=0.2999) < 0.8


def test_a_seen_loss_needs_as_many_items_as_a_gain_of_its_size() -> None:
    assert (
        items_needed(counted(5, 12, 100)) == items_needed(counted(12, 5, 100)) == items_for_shares(won=0.12, lost=0.05)
    )
    fell = paired_means([0.5, 0.4, 0.6, 0.5], [0.4, 0.4, 0.3, 0.5])
    rose = paired_means([0.4, 0.4, 0.3, 0.5], [0.5, 0.4, 0.6, 0.5])
    assert items_needed(fell) == items_needed(rose) == items_for_means(difference=rose.value, sd=rose.sd)


def test_shares_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="together at most 1"):
        power_of_shares(10, won=0.7, lost=0.5)
    with pytest.raises(InvalidRequest, match="margin"):
        power_of_shares(10, won=0.1, lost=0.1, margin=2)
    with pytest.raises(InvalidRequest, match="sd"):
        power_of_means(10, difference=0.1, sd=0)
