"""The learning curve: slopes worked by hand, and when nothing is foretold."""

import pytest

from tunekeeper.evals.curve import Point, learning_curve


def point(n, right, of=200):
    return Point(n=n, scores=[1.0] * right + [0.0] * (of - right))


def test_a_share_of_wrong_answers_that_halves_goes_on_to_halve():
    # 120, 60, 30 of 200 wrong at 100, 200, 400: the slope is 1, so 15 (7.5 %) at 800 and 7.5 at 1,600.
    found = learning_curve([point(400, 170), point(100, 80), point(200, 140)])
    assert [p.n for p in found.points] == [100, 200, 400]
    assert [f.n for f in found.forecasts] == [800, 1600]
    assert found.forecasts[0].value == pytest.approx(0.925, abs=0.003)
    assert found.forecasts[1].value == pytest.approx(0.9625, abs=0.003)
    for forecast in found.forecasts:
        assert forecast.low < forecast.value < forecast.high
    assert found.text.startswith("twice as many examples (800) would give about 92.")


def test_two_sizes_foretell_nothing():
    found = learning_curve([point(100, 80), point(200, 140)])
    assert (found.forecasts, found.text) == (
        (),
        "cannot tell: 2 sizes of training data measured, 3 are needed",
    )


def test_scores_that_do_not_rise_foretell_nothing():
    found = learning_curve([point(100, 10, of=20), point(200, 12, of=20), point(400, 9, of=20)])
    assert found.forecasts == ()
    assert found.text.startswith("cannot tell: the scores do not clearly rise")


def test_few_items_give_a_wider_interval_than_many():
    wide = learning_curve([point(100, 16, of=40), point(200, 28, of=40), point(400, 34, of=40)]).forecasts[0]
    narrow = learning_curve([point(100, 160, of=400), point(200, 280, of=400), point(400, 340, of=400)]).forecasts[0]
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_where_everything_is_right_more_data_can_show_nothing():
    found = learning_curve([point(100, 180), point(200, 190), point(400, 200)])
    assert found.text == "all 200 items are right with 400 examples; more would show on harder items only"


def test_scores_between_nothing_and_all_are_taken_as_they_are():
    points = [Point(n=n, scores=[score] * 50) for n, score in ((100, 0.2), (200, 0.6), (400, 0.8))]
    found = learning_curve(points, unit="")
    assert found.forecasts[0].value == pytest.approx(0.9, abs=0.02)
    assert "%" not in found.text


def test_scores_of_another_range_foretell_nothing():
    found = learning_curve([Point(n=n, scores=[3.0, 4.0]) for n in (10, 20, 40)])
    assert found.text == "cannot tell: there are scores outside of 0 to 1"
