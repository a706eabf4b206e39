import random

import pytest

from tunekeeper.errors import InvalidRequest
from tunekeeper.evals import CriterionResult, Outcome, Series, compare, item_key


def outcome(n: int, passed: bool | None, **fields) -> Outcome:
    return Outcome(key=str(n), passed=passed, **fields)


def series(name: str, passes: list[bool | None], **fields) -> Series:
    return Series(name=name, model=f"m-{name}", outcomes=[outcome(n, p, **fields) for n, p in enumerate(passes)])


def with_flips(won: int, lost: int, n: int) -> list[Series]:
    before = [False] * won + [True] * (n - won)
    after = [True] * won + [False] * lost + [True] * (n - won - lost)
    return [series("base", before), series("tuned", after)]


@pytest.mark.parametrize(
    ("won", "lost", "n", "kind", "text"),
    [
        (30, 10, 200, "better", "better by 4 to 16 points"),
        (10, 30, 200, "worse", "worse by 4 to 16 points"),
        (3, 20, 3000, "worse", "worse by 0.3 to 0.9 points, but not by more than 2 points"),
        (5, 5, 1000, "not_worse", "not worse by more than 2 points"),
        # Normal approximations, (1.96 + 0.84)² variance / gap²: 580 and 258; 2,348; 785.
        (8, 4, 100, "cannot_tell", "cannot tell: 622 items needed, 260 to show that it is not worse (you have 100)"),
        (12, 15, 100, "cannot_tell", "cannot tell: 2,413 items needed (you have 100)"),
        (1, 1, 50, "cannot_tell", "cannot tell: 866 items needed to show that it is not worse (you have 50)"),
    ],
)
def test_the_verdict_is_in_plain_words(won: int, lost: int, n: int, kind: str, text: str) -> None:
    pair = compare(with_flips(won, lost, n), margin=0.02).pairs[0]
    assert (pair.verdict.kind, pair.verdict.text) == (kind, text)
    assert (len([f for f in pair.flips if f.won]), len([f for f in pair.flips if not f.won])) == (won, lost)


def test_without_a_margin_no_difference_is_said_to_be_none_seen() -> None:
    verdict = compare(with_flips(2, 2, 100), margin=None).pairs[0].verdict
    assert verdict.text == "cannot tell: no difference seen in 100 items"
    assert verdict.items_to_differ is None


def test_items_needed_are_said_for_both_questions() -> None:
    verdict = compare(with_flips(8, 4, 100), margin=0.02).pairs[0].verdict
    assert verdict.items_to_differ is not None
    assert verdict.items_to_not_worse is not None
    assert verdict.items_to_differ > verdict.items_to_not_worse > 100


def test_items_of_one_side_and_errors_are_left_out_and_listed_and_no_zeros() -> None:
    base = Series(name="base", model="b", outcomes=[outcome(n, True) for n in range(10)])
    tuned = Series(
        name="tuned",
        model="t",
        outcomes=[outcome(n, None if n == 4 else True, error="timed out" if n == 4 else "") for n in range(2, 12)],
    )
    pair = compare([base, tuned]).pairs[0]
    assert pair.n == 7
    assert pair.measures[0].after.value == 1.0
    assert {(one.key, one.reason) for one in pair.left_out} == {
        ("0", "only in base"),
        ("1", "only in base"),
        ("4", "error in tuned: timed out"),
        ("10", "only in tuned"),
        ("11", "only in tuned"),
    }
    assert pair.notes[0].startswith("5 of 12 items are left out")
    assert compare([base, tuned]).series[1].errors == 1


def test_two_runs_without_a_common_item_cannot_be_told_apart() -> None:
    other = Series(name="tuned", model="t", outcomes=[outcome(77, True)])
    pair = compare([series("base", [True, False]), other]).pairs[0]
    assert (pair.n, pair.verdict.kind, pair.measures[0].difference) == (0, "cannot_tell", None)


def test_an_item_that_changed_is_another_item() -> None:
    assert item_key(3, {"a": 1, "b": "ü"}) == item_key(3, {"b": "ü", "a": 1})
    assert len({item_key(3, {"a": 1}), item_key(3, {"a": 2}), item_key(4, {"a": 1})}) == 3


def graded(name: str, scores: list[float], criterion: str = "judge") -> Series:
    outcomes = [
        Outcome(key=str(n), passed=True, criteria={criterion: CriterionResult(score=score, passed=True)})
        for n, score in enumerate(scores)
    ]
    return Series(name=name, model=name, outcomes=outcomes)


def test_a_graders_scores_are_compared_in_their_own_unit() -> None:
    before = [3.0, 4.0, 2.0, 5.0, 3.0, 4.0, 3.0, 2.0] * 5
    after = [value + (0.5 if n % 2 else 1.0) for n, value in enumerate(before)]
    measure = compare([graded("base", before), graded("tuned", after)]).pairs[0].measures[1]
    assert (measure.name, measure.n, measure.is_share) == ("judge", 40, False)
    assert measure.difference.value == pytest.approx(0.75)
    assert measure.verdict.text == "better by 0.67 to 0.83"  # 0.75 ± 2.0227 × 0.2532 / √40


def test_a_margin_of_shares_is_not_taken_for_scores_of_another_range() -> None:
    runs = [graded("base", [3.0, 4.0, 5.0] * 40), graded("tuned", [4.0, 3.0, 5.0] * 40)]
    assert compare(runs, margin=0.02).pairs[0].measures[1].difference.margin is None
    told = compare(runs, margin=0.02, score_margin=0.5).pairs[0].measures[1].verdict
    assert (told.kind, told.text) == ("not_worse", "not worse by more than 0.5")


def test_a_grader_that_only_says_what_the_pass_rate_says_is_not_shown_twice() -> None:
    def run(name: str, passes: list[bool]) -> Series:
        results = [{"exact": CriterionResult(score=float(p), passed=p)} for p in passes]
        return Series(
            name=name,
            model=name,
            outcomes=[outcome(n, p, criteria=r) for n, (p, r) in enumerate(zip(passes, results, strict=True))],
        )

    pair = compare([run("base", [True, False] * 10), run("tuned", [True] * 20)]).pairs[0]
    assert [measure.name for measure in pair.measures] == ["pass rate"]


def test_a_missing_score_is_left_out_of_its_grader_alone_and_said() -> None:
    base, tuned = graded("base", [1.0, 2.0, 3.0]), graded("tuned", [2.0, 4.0, 3.5])
    tuned = Series(name="tuned", model="t", outcomes=[*tuned.outcomes[:2], outcome(2, True)])
    pair = compare([base, tuned]).pairs[0]
    assert (pair.n, pair.measures[1].n) == (3, 2)
    assert "judge has a score on both sides for 2 of 3 items." in pair.notes


def sliced(name: str, rates: dict[str, float], n: int, seed: int) -> Series:
    generator = random.Random(seed)
    values = list(rates)
    outcomes = [
        outcome(k, generator.random() < rates[values[k % len(values)]], slices={"topic": values[k % len(values)]})
        for k in range(n)
    ]
    return Series(name=name, model=name, outcomes=outcomes)


def test_a_slice_has_its_own_figures() -> None:
    base = sliced("base", {"a": 0.0, "b": 1.0}, 40, seed=1)
    tuned = sliced("tuned", {"a": 1.0, "b": 1.0}, 40, seed=2)
    first, second = compare([base, tuned]).pairs[0].slices
    assert (first.slice, first.n, first.verdict.kind) == (("topic", "a"), 20, "better")
    assert (second.slice, second.difference.value) == (("topic", "b"), 0.0)


def test_many_slices_of_chance_find_hardly_anything() -> None:
    """20 slices with no difference: uncorrected most comparisons would have one that differs."""
    found = 0
    topics = {f"topic {k}": 0.5 for k in range(20)}
    for seed in range(6):
        runs = [sliced("a", topics, 400, seed), sliced("b", topics, 400, seed + 1000)]
        pair = compare(runs, margin=None).pairs[0]
        found += any(one.verdict.kind in ("better", "worse") for one in pair.slices)
    assert found <= 1


def test_the_correction_for_slices_is_said() -> None:
    runs = [sliced("a", {"x": 0.5, "y": 0.5}, 40, 1), sliced("b", {"x": 0.5, "y": 0.5}, 40, 2)]
    assert any("Among 2 slices" in note and "Holm" in note for note in compare(runs).notes)


def test_metadata_that_names_each_item_makes_no_slices() -> None:
    runs = [
        Series(name=name, model=name, outcomes=[outcome(k, True, slices={"id": str(k)}) for k in range(50)])
        for name in "ab"
    ]
    pair = compare(runs).pairs[0]
    assert not pair.slices
    assert "The metadata 'id' has 50 values" in pair.notes[0]


def test_each_series_is_held_against_the_named_baseline_and_corrected() -> None:
    one, two = with_flips(9, 1, 100)  # exact p = 2 × 11 / 2**10 = 0.0215
    runs = [Series(name=name, model="m", outcomes=two.outcomes) for name in ("few-shot", "tuned", "teacher")]
    alone = compare([one, runs[0]], margin=None).pairs[0].verdict
    assert (alone.kind, round(alone.p, 4)) == ("better", 0.0215)
    three = compare([*runs, one], baseline="base", margin=None)
    assert [(pair.before, pair.after) for pair in three.pairs] == [
        ("base", n) for n in ("few-shot", "tuned", "teacher")
    ]
    assert all(pair.verdict.kind == "cannot_tell" for pair in three.pairs)
    assert all(pair.verdict.p == pytest.approx(3 * alone.p) for pair in three.pairs)
    assert "3 series are held against the baseline" in three.notes[0]


def test_tokens_latency_and_cost_are_compared_on_the_items_that_tell() -> None:
    before = [outcome(n, True, prompt_tokens=100 + n, seconds=1.0 + n / 10, cost=0.002) for n in range(10)]
    after = [outcome(n, True, prompt_tokens=40 + n % 3, seconds=1.0 + (9 - n) / 10, cost=0.001) for n in range(9)]
    after.append(outcome(9, True))
    pair = compare([Series(name=n, model=n, outcomes=o) for n, o in (("base", before), ("tuned", after))]).pairs[0]
    usage = {one.name: one for one in pair.usage}
    assert "completion tokens" not in usage
    assert usage["prompt tokens"].difference.n == 9
    assert (usage["prompt tokens"].before.mean, usage["prompt tokens"].after.median) == (104, 41)
    assert usage["prompt tokens"].text.endswith("fewer (-61 %)")
    assert usage["latency, s"].text.startswith("no clear difference")
    assert usage["cost of 1,000"].text == "1 less (-50 %)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare([series("a", [True])]), "at least two"),
        (lambda: compare([series("a", [True]), series("a", [True])]), "named 'a'"),
        (lambda: compare([series("a", [True]), series("b", [True])], baseline="c"), "No series is named 'c'"),
        (lambda: compare([series("a", [True]), series("b", [True])], margin=2.0), "0.02 is 2 points"),
        (lambda: compare([series("a", [True]), series("b", [True])], score_margin=-1), "score_margin"),
        (lambda: compare([series("a", [True]), series("b", [True])], alpha=0.9), "alpha"),
        (lambda: outcome(1, True, score=float("nan")), "score of item 1 is nan"),
        (
            lambda: compare([Series(name="a", model="", outcomes=[outcome(1, True)] * 2), series("b", [True])]),
            "item 1 twice",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        call()
