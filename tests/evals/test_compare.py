"""Which items are compared, what is said of them, and what is not."""

import math

import pytest

from tunekeeper.errors import InvalidRequest
from tunekeeper.evals import CriterionResult, Outcome, Series, compare


def outcome(n: int, passed: bool | None, **more) -> Outcome:
    return Outcome(key=f"item {n}", passed=passed, **more)


def series(name: str, passed: list[bool | None], **more) -> Series:
    return Series(name=name, model=name, outcomes=[outcome(n, each, **more) for n, each in enumerate(passed)])


def kinds(won: int, lost: int, both: int, neither: int) -> tuple[Series, Series]:
    before = [False] * won + [True] * lost + [True] * both + [False] * neither
    after = [True] * won + [False] * lost + [True] * both + [False] * neither
    return series("base", before), series("tuned", after)


def verdict(*all_: Series, **more):
    return compare(all_, **more).pairs[0].verdict


def test_a_clear_gain_is_said_in_points():
    found = verdict(*kinds(won=50, lost=2, both=30, neither=18))
    assert found.kind == "better"
    assert found.text == "better by 37 to 58 points"


def test_a_loss_is_a_loss_and_its_limit_is_said():
    found = verdict(*kinds(won=4, lost=30, both=900, neither=66), margin=0.05)
    assert found.kind == "worse"
    assert found.is_not_worse
    assert found.text.endswith("points, but not by more than 5 points")


def test_much_the_same_on_many_items_is_not_worse():
    found = verdict(*kinds(won=10, lost=10, both=900, neither=80), margin=0.02)
    assert (found.kind, found.text) == ("not_worse", "not worse by more than 2 points")


def test_too_few_items_say_how_many_it_takes():
    found = verdict(*kinds(won=6, lost=2, both=10, neither=12), margin=None)
    assert found.kind == "cannot_tell"
    assert found.items_to_differ > 30
    assert found.text == f"cannot tell: {found.items_to_differ:,} items needed (you have 30)"


def test_what_failed_or_is_on_one_side_only_is_left_out_and_listed():
    before = series("base", [True, None, True, True, False])
    after = Series(name="tuned", model="t", outcomes=[*series("", [True, True, None, True]).outcomes, outcome(9, True)])
    [pair] = compare([before, after]).pairs
    assert pair.n == 2
    reasons = {each.key: each.reason for each in pair.left_out}
    assert reasons == {
        "item 1": "error in base",
        "item 2": "error in tuned",
        "item 4": "only in base",
        "item 9": "only in tuned",
    }
    assert pair.measures[0].before.value == 1.0
    assert "4 of 6 items are left out" in pair.notes[0]


def test_flips_are_shown_lost_ones_first():
    [pair] = compare(kinds(won=1, lost=2, both=1, neither=1)).pairs
    assert [flip.won for flip in pair.flips] == [False, False, True]


def test_scores_of_graders_follow_the_pass_rate():
    def side(name: str, scores: list[float]) -> Series:
        outcomes = [
            outcome(n, passed=score >= 0.5, criteria={"near": CriterionResult(score=score, passed=score >= 0.5)})
            for n, score in enumerate(scores)
        ]
        return Series(name=name, model=name, outcomes=outcomes)

    low = [0.1 + 0.02 * (n % 10) for n in range(40)]
    [pair] = compare(
        [side("base", low), side("tuned", [score + 0.1 + 0.01 * (n % 3) for n, score in enumerate(low)])]
    ).pairs
    assert [measure.name for measure in pair.measures] == ["pass rate", "near"]
    near = pair.measures[1]
    assert near.verdict.kind == "better"
    assert near.difference.value == pytest.approx(0.10975, abs=1e-3)


def test_slices_by_metadata_are_corrected_for_their_number():
    def side(name: str, passed) -> Series:
        outcomes = [outcome(n, passed(n), slices={"kind": "ab"[n % 2]}) for n in range(60)]
        return Series(name=name, model=name, outcomes=outcomes)

    comparison = compare([side("base", lambda n: n % 3 == 0), side("tuned", lambda n: n % 2 == 0 or n % 3 == 0)])
    [pair] = comparison.pairs
    gained, same = pair.slices
    assert [each.slice for each in pair.slices] == [("kind", "a"), ("kind", "b")]
    assert (gained.verdict.kind, same.verdict.kind) == ("better", "cannot_tell")
    assert gained.verdict.p == pytest.approx(2 * gained.difference.p)
    assert any("slices" in note for note in comparison.notes)


def test_several_series_against_one_baseline_are_corrected_for_their_number():
    base, tuned = kinds(won=9, lost=1, both=20, neither=20)
    other = Series(name="few-shot", model="base", outcomes=base.outcomes)
    comparison = compare([base, tuned, other])
    pair = comparison.pairs[0]
    assert [each.after for each in comparison.pairs] == ["tuned", "few-shot"]
    assert pair.verdict.p == pytest.approx(2 * pair.measures[0].difference.p)
    assert "2 series" in comparison.notes[0]


def test_the_baseline_may_be_any_series():
    base, tuned = kinds(won=9, lost=1, both=20, neither=20)
    comparison = compare([base, tuned], baseline="tuned")
    assert comparison.baseline == "tuned"
    assert comparison.pairs[0].measures[0].difference.value == pytest.approx(-0.16)


def test_what_an_answer_takes_is_compared_item_by_item():
    def side(name: str, factor: int) -> Series:
        return Series(
            name=name, model=name,
            outcomes=[outcome(n, True, prompt_tokens=factor * (100 + n), seconds=0.5) for n in range(30)],
        )  # fmt: skip

    [pair] = compare([side("few-shot", 3), side("tuned", 1)]).pairs
    tokens, seconds = pair.usage
    assert (tokens.name, seconds.name) == ("prompt tokens", "latency, s")
    assert tokens.difference.value == pytest.approx(-229)
    assert "fewer (-67 %)" in tokens.text
    assert seconds.text == "the same"


@pytest.mark.parametrize(
    ("all_", "more", "param"),
    [
        ([series("base", [True])], {}, "series"),
        ([series("base", [True]), series("base", [True])], {}, "series"),
        ([series("base", [True]), series("tuned", [True])], {"baseline": "none"}, "baseline"),
        ([series("base", [True]), series("tuned", [True])], {"margin": 2.0}, "margin"),
        ([series("base", [True]), series("tuned", [True])], {"alpha": 0.0}, "alpha"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(all_, more, param):
    with pytest.raises(InvalidRequest) as refused:
        compare(all_, **more)
    assert refused.value.param == param


def test_an_item_that_stands_twice_is_refused():
    twice = Series(name="tuned", model="t", outcomes=[outcome(0, True), outcome(0, False)])
    with pytest.raises(InvalidRequest, match="item 0 twice"):
        compare([series("base", [True]), twice])


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InvalidRequest, match="score of item"):
        outcome(0, True, score=math.nan)


def test_nothing_in_common_is_said():
    before, after = series("base", [True]), Series(name="tuned", model="t", outcomes=[outcome(7, True)])
    found = verdict(before, after)
    assert (found.kind, found.text) == ("cannot_tell", "cannot tell: no item has it on both sides")
