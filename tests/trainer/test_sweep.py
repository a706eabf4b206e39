import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.errors import InvalidConfig, Unsupported
from tunekeeper.trainer.config import validate_method
from tunekeeper.trainer.sweep import (
    DIVERGED,
    MAX_CUTS,
    Leg,
    held_out_lines,
    next_leg,
    planned_steps,
    points,
    read_sweep,
    rungs,
    statuses,
    winner,
)


def method(kind="supervised", **hyperparameters):
    return validate_method({"type": kind, kind: {"hyperparameters": hyperparameters}})


def read(sweep, kind="supervised", *, validated=True, **hyperparameters):
    return read_sweep(sweep, method(kind, **hyperparameters), validated=validated)


RATES = {"learning_rate_multiplier": [0.3, 1, 3]}


def test_a_grid_has_every_point_with_the_last_named_changing_first():
    sweep = read({"space": {"lora_rank": [8, 16], "learning_rate_multiplier": [0.3, 1]}})
    assert points(sweep, seed=1) == [
        {"lora_rank": 8, "learning_rate_multiplier": 0.3},
        {"lora_rank": 8, "learning_rate_multiplier": 1},
        {"lora_rank": 16, "learning_rate_multiplier": 0.3},
        {"lora_rank": 16, "learning_rate_multiplier": 1},
    ]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31 - 1), n=st.integers(2, 20))
def test_random_points_are_in_bounds_all_different_and_the_same_again(seed, n):
    space = {
        "learning_rate_multiplier": {"min": 0.1, "max": 10},
        "lora_rank": {"min": 4, "max": 8, "scale": "linear"},
        "n_epochs": [1, 2],
    }
    sweep = read({"search": "random", "n_trials": n, "space": space})
    found = points(sweep, seed)
    assert found == points(sweep, seed)
    assert len({tuple(point.items()) for point in found}) == n
    for point in found:
        assert 0.1 <= point["learning_rate_multiplier"] <= 10
        assert point["lora_rank"] in range(4, 9)
        assert point["n_epochs"] in (1, 2)


def test_a_small_space_is_drawn_to_its_last_point():
    sweep = read({"search": "random", "n_trials": 5, "space": {"lora_rank": {"min": 1, "max": 5}}})
    assert sorted(point["lora_rank"] for point in points(sweep, 3)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("low", "high", "n"), [(1, 1.0004, 4), (0.1, 0.101, 20)])
def test_a_range_with_too_few_values_of_four_digits_is_refused(low, high, n):
    sweep = read({"search": "random", "n_trials": n, "space": {"learning_rate_multiplier": {"min": low, "max": high}}})
    with pytest.raises(InvalidConfig, match="too few different values") as caught:
        points(sweep, seed=1)
    assert caught.value.param == "sweep.n_trials"


def test_a_sweep_says_itself_again():
    for given_ in (
        {"space": RATES},
        {"search": "random", "n_trials": 3, "space": {"n_epochs": {"min": 1, "max": 9}}, "fast": True},
    ):
        sweep = read(given_)
        assert read(sweep.to_wire()) == sweep
    assert read(read({"space": RATES}, validated=False).to_wire(), validated=False).validation_split == 0.1


@pytest.mark.parametrize(
    ("sweep", "param"),
    [
        ({"space": RATES, "budget": 3}, "sweep.budget"),
        ({}, "sweep.space"),
        ({"space": {}}, "sweep.space"),
        ({"space": {"max_seq_len": [1, 2]}}, "sweep.space.max_seq_len"),
        ({"space": {"beta": [0.1, 0.2]}}, "sweep.space.beta"),
        ({"space": {"lora_rank": [8, 1000]}}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": [8, True]}}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": [8, None]}}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": [8, 8]}}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": 8}}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": {"min": 1, "max": 2}}}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": [8]}}, "sweep.space"),
        ({"space": {"lora_rank": [*range(1, 66)]}}, "sweep.space"),
        ({"space": RATES, "n_trials": 3}, "sweep.n_trials"),
        ({"space": RATES, "search": "random"}, "sweep.n_trials"),
        ({"space": RATES, "search": "random", "n_trials": 4}, "sweep.n_trials"),
        ({"space": RATES, "search": "random", "n_trials": 65}, "sweep.n_trials"),
        ({"space": {"lora_rank": {"min": 4, "max": 2}}, "search": "random", "n_trials": 2}, "sweep.space.lora_rank"),
        ({"space": {"lora_rank": {"min": 4}}, "search": "random", "n_trials": 2}, "sweep.space.lora_rank"),
        (
            {"space": {"lora_rank": {"min": 1, "max": 4, "scale": "cubic"}}, "search": "random", "n_trials": 2},
            "sweep.space.lora_rank.scale",
        ),
        ({"space": RATES, "search": "bayes"}, "sweep.search"),
        ({"space": RATES, "stopping": "soon"}, "sweep.stopping"),
        ({"space": RATES, "fast": 1}, "sweep.fast"),
        ({"space": RATES, "validation_split": 0.2}, "sweep.validation_split"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(sweep, param):
    with pytest.raises(InvalidConfig) as caught:
        read(sweep)
    assert caught.value.param == param
    assert param in caught.value.message or param == "sweep.validation_split" or "grid" in caught.value.message


@pytest.mark.parametrize("split", [0, 0.6, "half", True])
def test_a_split_is_a_small_part(split):
    with pytest.raises(InvalidConfig, match="and at most"):
        read({"space": RATES, "validation_split": split}, validated=False)


def test_a_searched_hyperparameter_is_not_named_twice():
    with pytest.raises(InvalidConfig, match="send one"):
        read({"space": RATES}, learning_rate_multiplier=2)
    read({"space": RATES}, learning_rate_multiplier="auto")


def test_reinforcement_and_full_fine_tuning_have_no_sweeps():
    grader = {"type": "string_check", "name": "x", "input": "a", "reference": "a", "operation": "eq"}
    reinforcement = validate_method({"type": "reinforcement", "reinforcement": {"grader": grader}})
    with pytest.raises(Unsupported, match="held-out"):
        read_sweep({"space": RATES}, reinforcement, validated=True)
    with pytest.raises(Unsupported, match="full_finetune"):
        read({"space": RATES}, full_finetune=True)


def test_trials_with_another_beta_are_not_compared_by_their_loss():
    assert read({"space": {"beta": [0.1, 0.2]}}, "dpo").metric == "valid_preference_accuracy"
    assert read({"space": RATES}, "dpo").metric == "valid_loss"


def test_lines_are_held_out_by_the_seed():
    lines = [*range(1, 51)]
    held = held_out_lines(lines, 0.1, seed=4)
    assert len(held) == 5
    assert held < set(lines)
    assert held == held_out_lines(lines[::-1], 0.1, seed=4)
    assert held != held_out_lines(lines, 0.1, seed=5)
    assert len(held_out_lines([1, 2], 0.1, seed=1)) == 1


def test_the_rungs_are_halves_of_each_other():
    assert rungs(4, "halving") == [Fraction(1, 4), Fraction(1, 2), Fraction(1)]
    assert rungs(3, "halving") == rungs(4, "halving")
    assert rungs(2, "halving") == [Fraction(1, 2), Fraction(1)]
    assert len(rungs(64, "halving")) == MAX_CUTS + 1
    assert rungs(64, "none") == [Fraction(1)]


def play(total_steps, losses, stopping):
    """The legs of a sweep whose trial t has the loss losses[t][r] at rung r, and how it ends."""
    scores = [[] for _ in total_steps]
    legs = []
    while (leg := next_leg(total_steps, scores, stopping)) is not None:
        legs.append(leg)
        scores[leg.trial].append((losses[leg.trial][leg.rung],))
    return legs, scores


def test_halving_by_hand():
    # Four runs of 8 steps. After 2 steps trials 1 and 2 are the better half; after 4 trial 2 is.
    losses = [[3.0], [1.0, 1.5], [2.0, 0.9, 0.8], [4.0]]
    legs, scores = play([8, 8, 8, 8], losses, "halving")
    assert legs == [
        Leg(0, 0, 2),
        Leg(1, 0, 2),
        Leg(2, 0, 2),
        Leg(3, 0, 2),
        Leg(1, 1, 4),
        Leg(2, 1, 4),
        Leg(2, 2, 8),
    ]
    assert winner(scores, "halving") == 2
    assert statuses([8] * 4, scores, "halving") == ["stopped", "stopped", "completed", "stopped"]
    # 8 for the winner, 4 for the second, 2 for each of the others: half of 32.
    assert planned_steps([8] * 4, scores, "halving") == 16
    assert planned_steps([8] * 4, [[] for _ in range(4)], "halving") == 16


def test_an_odd_number_is_halved_upwards_and_a_tie_goes_to_the_first():
    legs, scores = play([4, 4, 4], [[1.0, 2.0, 3.0], [1.0, 2.0], [1.0]], "halving")
    assert [(leg.trial, leg.step) for leg in legs] == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 4)]
    assert winner(scores, "halving") == 0


def test_a_tie_at_the_cut_lets_the_first_go_on():
    scores = [[(1.0,)], [(1.0,)]]
    assert next_leg([4, 4], scores, "halving") == Leg(0, 1, 4)
    assert statuses([4, 4], scores, "halving") == ["running", "stopped"]


def test_without_stopping_each_trial_is_trained_to_its_end():
    legs, scores = play([6, 3], [[2.0], [1.0]], "none")
    assert legs == [Leg(0, 0, 6), Leg(1, 0, 3)]
    assert winner(scores, "none") == 1


def test_runs_of_different_length_are_measured_at_the_same_part():
    legs, _ = play([10, 5], [[2.0, 1.0], [3.0]], "halving")
    assert legs == [Leg(0, 0, 5), Leg(1, 0, 3), Leg(0, 1, 10)]


def test_what_diverged_is_stopped_even_among_the_better_half():
    losses = [[1.0, 1.0, 1.0], [math.inf], [math.inf], [math.inf]]
    legs, scores = play([8] * 4, losses, "halving")
    assert [leg.trial for leg in legs] == [0, 1, 2, 3, 0, 0]
    assert statuses([8] * 4, scores, "halving") == ["completed", "diverged", "diverged", "diverged"]


def test_when_all_diverge_nobody_wins():
    scores = [[DIVERGED], [DIVERGED]]
    assert next_leg([4, 4], scores, "halving") is None
    assert winner(scores, "halving") is None


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), n=st.integers(2, 20), stopping=st.sampled_from(["halving", "none"]))
def test_every_sweep_ends_with_the_best_of_those_that_ended(seed, n, stopping):
    source = random.Random(seed)
    n_rungs = len(rungs(n, stopping))
    losses = [[source.choice([math.inf, 1.0, source.random()]) for _ in range(n_rungs)] for _ in range(n)]
    totals = [source.randint(1, 30) for _ in range(n)]
    legs, scores = play(totals, losses, stopping)
    steps = [0] * n
    for leg in legs:
        assert steps[leg.trial] <= leg.step <= totals[leg.trial]
        steps[leg.trial] = leg.step
    assert planned_steps(totals, scores, stopping) == sum(steps)
    best = winner(scores, stopping)
    ended = {t: scores[t][-1] for t in range(n) if len(scores[t]) == n_rungs and scores[t][-1] != DIVERGED}
    assert (best is None) == (not ended)
    assert best is None or ended[best] == min(ended.values())
    assert "running" not in statuses(totals, scores, stopping)
