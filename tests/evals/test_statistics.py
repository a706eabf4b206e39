"""Against scipy's intervals, brute force, numbers worked by hand, and simulated comparisons."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunekeeper.errors import InvalidRequest
from tunekeeper.evals.statistics import (
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
)


def pairs(won: int, lost: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Before and after with so many items of each kind."""
    kinds = [(False, True)] * won + [(True, False)] * lost + [(True, True)] * both + [(False, False)] * neither
    return [before for before, _ in kinds], [after for _, after in kinds]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (53, 100), (100, 100), (1, 1)])
def test_the_interval_of_a_share_is_scipys(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert share(right, n) == pytest.approx((right / n, expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_mean_is_scipys():
    values = [0.2, 0.9, 0.4, 0.4, 0.7]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert mean(values) == pytest.approx((0.52, *expected))


def test_a_mean_of_equal_values_has_no_interval():
    assert mean([0.5, 0.5]) == (0.5, -math.inf, math.inf)


def test_the_interval_of_a_paired_mean_difference_is_scipys():
    before, after = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4], [0.4, 0.6, 0.2, 0.9, 0.8, 0.7]
    difference = paired_means(before, after)
    expected = stats.ttest_rel(after, before)
    interval = expected.confidence_interval(0.95)
    found = (difference.value, difference.low, difference.high, difference.p)
    assert found == pytest.approx((0.2, interval.low, interval.high, expected.pvalue))


def test_the_test_of_paired_shares_is_mcnemars_exact_one():
    difference = paired_shares(*pairs(won=9, lost=2, both=20, neither=19))
    assert difference.p == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert (difference.value, difference.won, difference.lost, difference.n) == (0.14, 9, 2, 50)


def test_in_a_large_sample_the_interval_is_nearly_walds_worked_by_hand():
    # 25/1144 = 0.02185; its standard error is sqrt(239 - 25 * 25 / 1144) / 1144 = 0.01350
    assert tango(132, 107, 1144) == pytest.approx((0.02185 - 0.02646, 0.02185 + 0.02646), abs=2e-4)


def score(won: int, lost: int, n: int, delta: float) -> float:
    """The score statistic, the nuisance share found by search instead of by formula."""
    shares = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (
            (won * np.log(shares + delta) if won else 0.0)
            + (lost * np.log(shares) if lost else 0.0)
            + ((n - won - lost) * np.log(1 - 2 * shares - delta) if n > won + lost else 0.0)
        )
    best = shares[np.nanargmax(likelihood)]
    return (won - lost - n * delta) / math.sqrt(n * (2 * best + delta - delta * delta))


@pytest.mark.parametrize(("won", "lost", "n"), [(5, 2, 20), (9, 2, 50), (1, 6, 40), (3, 0, 30), (30, 12, 100)])
def test_the_score_statistic_at_each_bound_is_the_quantile(won, lost, n):
    low, high = tango(won, lost, n)
    assert score(won, lost, n, low) == pytest.approx(1.959964, abs=2e-3)
    assert score(won, lost, n, high) == pytest.approx(-1.959964, abs=2e-3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_estimate_and_turns_with_the_sides(won, lost, rest):
    n = won + lost + rest
    if n == 0:
        return
    low, high = tango(won, lost, n)
    assert -1 <= low <= (won - lost) / n <= high <= 1
    assert tango(lost, won, n) == pytest.approx((-high, -low), abs=1e-9)


def test_what_is_equal_on_both_sides_is_not_different():
    difference = paired_shares([True, False] * 10, [True, False] * 10)
    assert (difference.value, difference.p) == (0.0, 1.0)
    assert difference.low < 0 < difference.high


@pytest.mark.parametrize("compare", [paired_shares, paired_means])
@pytest.mark.parametrize(("before", "after"), [([], []), ([1], [1, 0])])
def test_sides_that_cannot_be_paired_are_refused(compare, before, after):
    with pytest.raises(InvalidRequest, match="the same items twice"):
        compare(before, after)


def test_differences_without_spread_say_so():
    difference = paired_means([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert (difference.value, difference.p, difference.low) == (1.0, 1.0, -math.inf)
    assert "spread" in difference.notes[0]


def test_strongly_skewed_differences_say_so():
    assert "skewed" in paired_means([0.0] * 60, [0.01 * (n % 3) for n in range(59)] + [90.0]).notes[0]


def test_holms_correction_worked_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


N_SIMULATED = 1000


def test_of_a_thousand_comparisons_of_equals_at_most_a_twentieth_is_called_better():
    random = np.random.default_rng(1)
    for rates in ((0.5, 0.5), (0.9, 0.3), (0.1, 0.1)):  # share right, and how much both sides share their items
        hard = random.random((N_SIMULATED, 80)) < rates[1]
        sides = [np.where(hard, random.random(hard.shape) < rates[0], hard) for _ in range(2)]
        found = [paired_shares(list(a), list(b)) for a, b in zip(*sides, strict=True)]
        assert sum(d.p <= 0.05 and d.value > 0 for d in found) <= 0.05 * N_SIMULATED
        assert sum(d.p <= 0.05 and d.value < 0 for d in found) <= 0.05 * N_SIMULATED


def test_of_a_thousand_comparisons_of_equal_scores_at_most_a_twentieth_is_called_better():
    random = np.random.default_rng(2)
    before, after = (random.beta(2, 3, (N_SIMULATED, 60)) for _ in range(2))
    found = [paired_means(list(a), list(b)) for a, b in zip(before, after, strict=True)]
    assert sum(d.p <= 0.05 and d.value > 0 for d in found) <= 0.05 * N_SIMULATED


def test_of_a_thousand_comparisons_at_the_margin_at_most_a_twentieth_is_called_not_worse():
    random = np.random.default_rng(3)
    kinds = random.choice(3, (N_SIMULATED, 200), p=(0.05, 0.10, 0.85))  # won, lost, the same: worse by 0.05
    found = [
        paired_shares(*pairs((row == 0).sum(), (row == 1).sum(), (row == 2).sum(), 0), margin=0.05) for row in kinds
    ]
    assert sum(d.p_not_worse <= 0.05 for d in found) <= 0.05 * N_SIMULATED


@pytest.mark.parametrize(("n", "won", "lost"), [(100, 0.25, 0.1), (200, 0.1, 0.04), (40, 0.5, 0.1)])
def test_the_power_of_shares_is_what_happens(n, won, lost):
    random = np.random.default_rng(4)
    wins = random.binomial(n, won, 20_000)
    losses = random.binomial(n - wins, lost / (1 - won))
    p = {}
    for pair in set(zip(wins.tolist(), losses.tolist(), strict=True)):
        p[pair] = stats.binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
    happened = np.mean([a > b and p[a, b] <= 0.05 for a, b in zip(wins.tolist(), losses.tolist(), strict=True)])
    assert power_of_shares(n, won=won, lost=lost) == pytest.approx(happened, abs=0.02)


def test_the_power_to_show_not_worse_is_what_happens():
    random = np.random.default_rng(5)
    n, won, lost, margin = 300, 0.06, 0.06, 0.05
    wins = random.binomial(n, won, 4000)
    losses = random.binomial(n - wins, lost / (1 - won))
    lows = {pair: tango(*pair, n)[0] for pair in set(zip(wins.tolist(), losses.tolist(), strict=True))}
    happened = np.mean([lows[pair] > -margin for pair in zip(wins.tolist(), losses.tolist(), strict=True)])
    assert power_of_shares(n, won=won, lost=lost, margin=margin) == pytest.approx(happened, abs=0.02)


def test_the_power_of_means_is_what_happens():
    random = np.random.default_rng(6)
    differences = random.normal(0.1, 0.3, (20_000, 60))
    t = differences.mean(1) / (differences.std(1, ddof=1) / math.sqrt(60))
    happened = np.mean(t > stats.t.isf(0.025, 59))
    assert power_of_means(60, difference=0.1, sd=0.3) == pytest.approx(happened, abs=0.02)


@pytest.mark.parametrize(("won", "lost"), [(0.25, 0.1), (0.12, 0.06), (0.9, 0.0)])
def test_the_items_needed_are_the_fewest_with_that_power(won, lost):
    n = items_for_shares(won=won, lost=lost)
    assert power_of_shares(n, won=won, lost=lost) >= 0.8
    # The exact test's power saws up and down by a little, so "one fewer" is not the question.
    assert power_of_shares(max(1, int(n * 0.9)), won=won, lost=lost) < 0.8


def test_the_items_needed_for_means():
    n = items_for_means(difference=0.1, sd=0.3)
    assert power_of_means(n, difference=0.1, sd=0.3) >= 0.8 > power_of_means(n - 1, difference=0.1, sd=0.3)


def test_no_number_of_items_shows_a_difference_that_is_not_there():
    assert items_for_shares(won=0.1, lost=0.1) is None
    assert items_needed(paired_shares([True], [True])) is None


def test_a_loss_needs_as_many_items_as_a_gain():
    gain, loss = pairs(12, 6, 40, 42), pairs(6, 12, 40, 42)
    assert items_needed(paired_shares(*gain)) == items_needed(paired_shares(*loss)) > 100
