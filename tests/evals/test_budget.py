"""What fits into the time: sums worked by hand, and the order in which things are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.evals.budget import JOB_S, Costs, fitting, plan

COSTS = Costs(answer_s=0.1, longer={1: 2.0, 3: 4.0, 5: 6.0}, training_s=100.0)
GIVEN = {"n_held_out": 100, "n_training": 300, "fractions": (0.25, 0.5)}


def test_with_enough_time_nothing_is_cut():
    found = plan(COSTS, seconds=10_000, **GIVEN)
    assert (found.n_held_out, found.n_training, found.n_choosing) == (100, 300, 24)
    assert (found.ks, found.fractions, found.cuts) == ((1, 3, 5), (0.25, 0.5), ())
    choosing, few_shot, training, asking = 2 * 24 * 0.1 * 12, 10 * 6, 175 + 3 * JOB_S, 1.2 * 3 * 10
    assert found.seconds == pytest.approx(choosing + few_shot + training + asking)


def test_prompts_to_choose_from_go_before_the_learning_curve_and_that_before_the_training_data():
    found = [plan(COSTS, seconds=seconds, **GIVEN) for seconds in (460, 420, 330, 200, 150)]
    assert [one.n_choosing for one in found] == [24, 12, 8, 8, 8]
    assert found[2].fractions == (0.125, 0.25)
    assert found[3].fractions == ()
    assert found[3].n_training == 300
    assert found[4].n_training < 300
    assert "there is no learning curve" in found[3].cuts
    # 120 s less 12 for the job, 3.2 and 8 for one example in the prompt, 4.8 for the answers: 92 s of 100.
    assert (found[4].n_training, found[4].n_held_out, found[4].ks) == (276, 40, (1,))


def test_examples_in_the_prompt_are_left_out_before_training_is():
    found = plan(COSTS, seconds=45, **GIVEN)
    assert (found.ks, found.n_training) == ((), 57)
    assert "no examples in the prompt are tried" in found.cuts


def test_a_time_in_which_no_training_fits_is_told():
    found = plan(COSTS, seconds=20, **GIVEN)
    assert found.n_training == 40
    assert found.seconds > 20


def test_the_lines_that_still_fit_are_counted_out_with_the_time_that_is_left():
    # 80 s less 12 for the job and 12 for the answers leave 56 of 100.
    assert fitting(COSTS, seconds=100, n_held_out=100, n_training=300) == 168
    assert fitting(COSTS, seconds=10, n_held_out=100, n_training=300) == 0
    assert fitting(COSTS, seconds=1000, n_held_out=100, n_training=300) == 300


def test_a_larger_model_takes_its_time_too():
    larger = Costs(answer_s=0.1, longer=COSTS.longer, training_s=100.0, larger=True)
    assert plan(larger, seconds=10_000, **GIVEN).seconds - plan(COSTS, seconds=10_000, **GIVEN).seconds == 30


@given(
    st.floats(0.001, 5),
    st.floats(1, 5000),
    st.floats(10, 5000),
    st.integers(10, 200),
    st.integers(10, 5000),
)
def test_a_plan_that_fits_keeps_to_the_time(answer_s, training_s, seconds, n_held_out, n_training):
    costs = Costs(answer_s=answer_s, longer={1: 1.5, 3: 2.5, 5: 3.5}, training_s=training_s)
    found = plan(costs, seconds=seconds, n_held_out=n_held_out, n_training=n_training, fractions=(0.25, 0.5))
    assert found.seconds <= 0.8 * seconds + 1e-6 or found.n_training <= 40
    assert 0 < found.n_held_out <= n_held_out
    assert 0 < found.n_training <= n_training
