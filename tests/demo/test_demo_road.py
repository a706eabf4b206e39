"""The demo trains on as many questions as its ten minutes allow."""

import pytest

from tunekeeper.demo.road import FEWEST, affordable


@pytest.mark.parametrize(
    ("seconds_left", "seconds", "expected"),
    [
        (1000.0, 1.0, (400, 2)),  # all of them, twice
        (799.0, 1.0, (400, 1)),
        (255.5, 1.0, (252, 1)),  # whole batches of four
        (255.5, 0.5, (400, 1)),
        (10.0, 1.0, (FEWEST, 1)),  # a slow machine takes longer rather than learn nothing
        (-5.0, 1.0, (FEWEST, 1)),
    ],
)
def test_as_many_questions_are_trained_on_as_time_allows(
    seconds_left: float, seconds: float, expected: tuple[int, int]
) -> None:
    assert affordable(seconds_left, seconds, 400) == expected
