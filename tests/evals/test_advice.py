"""From measures to a verdict: each verdict once, and the figures worked by hand."""

import json

import pytest
from advised import measures, series

from tunekeeper.evals.advice import Prices, advise, already_does, quality, readiness, to_json
from tunekeeper.evals.curve import Point, learning_curve
from tunekeeper.evals.signs import Contradictions, Remark


def remark(advice, code):
    return next((each for each in advice.remarks if each.code == code), None)


def test_better_than_the_best_prompt_says_tune():
    found = advise(
        measures(base=series("base", 10), few_shot=series("few-shot, 3 short", 30), tuned=series("tuned", 60))
    )
    assert found.verdict == "tune"
    assert found.text.startswith("tune: better by ")
    assert found.text.endswith(" than few-shot, 3 short")


def test_tuning_is_held_against_the_better_of_base_and_examples():
    found = advise(measures(base=series("base", 50), few_shot=series("few", 20), tuned=series("tuned", 80)))
    assert found.text.endswith(" than base")
    no_gain = advise(measures(base=series("base", 10), few_shot=series("few", 60), tuned=series("tuned", 58)))
    assert no_gain.verdict == "do_not_tune"
    assert no_gain.text.startswith("do not tune: it brings less than ")


def test_a_base_that_does_it_needs_no_training():
    base = series("base", 97)
    assert already_does(base, graded=False)
    found = advise(measures(base=base))
    assert (found.verdict, found.text) == ("do_not_tune", "do not tune: base already does it, 97% (92% to 99%)")


def test_pairs_say_only_which_output_is_closer_so_no_base_does_them_already():
    found = advise(measures(method="dpo", base=series("base", 97), is_absolute=False))
    assert found.verdict == "cannot_tell"


def test_examples_in_the_prompt_that_do_it_need_no_training():
    found = advise(measures(base=series("base", 40), few_shot=series("few-shot, 5 similar", 96)))
    assert found.verdict == "do_not_tune"
    assert found.text.startswith("do not tune: few-shot, 5 similar already does it")


@pytest.mark.parametrize(
    ("right", "of", "does"), [(97, 100, True), (88, 100, False), (90, 100, False), (19, 20, True), (18, 20, False)]
)
def test_a_base_does_it_when_most_is_right_and_the_interval_comes_near_to_all(right, of, does):
    # 90 of 100: Wilson's interval ends at 94.5 %, below 95. 18 of 20: it begins at 70 %, below 75.
    assert already_does(series("base", right, of), graded=False) == does


def test_contradictory_data_lowers_what_counts_as_all():
    # With one answer to each prompt at most 60 % can be right: 58 of 100 is 97 % of that.
    assert already_does(series("base", 58), graded=False, ceiling=0.6)
    assert not already_does(series("base", 58), graded=False)


def test_a_gain_too_small_to_see_cannot_be_told_and_says_how_many_items_it_takes():
    found = advise(measures(base=series("base", 20, of=40), tuned=series("tuned", 23, of=40)))
    assert found.verdict == "cannot_tell"
    assert found.text.startswith("cannot tell: ")
    assert found.text.endswith("held-out items needed (you have 40)")
    lost = advise(measures(base=series("base", 5, of=12), tuned=series("tuned", 5, of=12)))
    assert lost.text.startswith("cannot tell: tuning gained nothing on these items")


def test_tuning_that_makes_it_worse_is_advised_against():
    found = advise(measures(base=series("base", 60), tuned=series("tuned", 30)))
    assert found.verdict == "do_not_tune"
    assert found.text.startswith("do not tune on this data: it makes the answers worse by ")


def test_a_gain_that_is_certainly_small_is_none():
    found = advise(measures(base=series("base", 1000, of=2000), tuned=series("tuned", 1000, of=2000)))
    assert found.verdict == "do_not_tune"
    assert "it brings less than" in found.text


def test_the_same_quality_with_a_shorter_prompt_is_worth_it():
    few, tuned = series("few", 1400, of=2000, tokens=400), series("tuned", 1400, of=2000, tokens=100)
    found = advise(measures(base=series("base", 200, of=2000), few_shot=few, tuned=tuned))
    assert found.verdict == "tune"
    assert found.text == "tune: not worse by more than 2 points than few, with 75% fewer prompt tokens"


def test_a_stop_is_not_ready_whatever_was_measured():
    stop = Remark("too_few_examples", level="stop", text="There are 9 lines.")
    found = advise(measures(remarks=(stop,), base=series("base", 10), tuned=series("tuned", 90)))
    assert (found.verdict, found.text) == ("not_ready", "not ready: There are 9 lines.")


def test_a_base_that_did_not_answer_is_no_baseline():
    found = advise(measures(base=series("base", 10, errors=50), tuned=series("tuned", 60)))
    assert found.verdict == "cannot_tell"
    assert "50% of the base's answers failed" in found.text
    assert "no answer" in found.text


def test_mean_scores_decide_where_they_say_more():
    scores = [0.3 + 0.001 * n for n in range(100)]
    base = series("base", 0, scores=scores)
    tuned = series("tuned", 0, scores=[score + 0.2 + 0.0001 * (n % 7) for n, score in enumerate(scores)])
    found = advise(measures(base=base, tuned=tuned, graded=True))
    assert found.verdict == "tune"
    assert quality(base, graded=True).value == pytest.approx(0.3495)
    assert found.rows[0].quality.value == pytest.approx(0.3495)


def test_contradictions_and_few_examples_stop_before_anything_is_measured():
    found = readiness(
        n_training=9,
        n_held_out=6,
        found=Contradictions(lines=15, n=15, ceiling=1 / 3, first=(1, 2, 3)),
        free_text=False,
        min_examples=10,
    )
    assert [(each.code, each.level) for each in found] == [
        ("contradictory_answers", "stop"),
        ("too_few_examples", "stop"),
    ]
    assert "15 of 15 lines (100%)" in found[0].text
    assert "more than 33% of them right" in found[0].text


def test_few_contradictions_and_free_texts_only_warn():
    few, many = (Contradictions(lines=n, n=100, ceiling=0.97, first=(4, 9)) for n in (6, 60))
    given = {"n_training": 70, "n_held_out": 30, "min_examples": 10}
    assert [each.level for each in readiness(found=few, free_text=False, **given)] == ["warn"]
    assert [each.level for each in readiness(found=many, free_text=True, **given)] == ["warn"]
    none = Contradictions(lines=0, n=100, ceiling=1.0, first=())
    assert readiness(found=none, free_text=False, **given) == []


def test_a_small_baseline_says_what_it_can_show():
    none = Contradictions(lines=0, n=60, ceiling=1.0, first=())
    (found,) = readiness(n_training=40, n_held_out=20, found=none, free_text=False, min_examples=10)
    assert (found.code, found.figures["visible_points"]) == ("small_baseline", 31)


def economy(*, per_hour=3.6, larger_cost=0.002, requests_per_day=None, machine=None):
    return advise(
        measures(
            base=series("base", 10),
            few_shot=series("few", 20),
            tuned=series("tuned", 80),
            larger=series("larger", 85, cost=larger_cost),
            machine_s=machine or {"base": 0.1, "few": 0.3, "tuned": 0.1},
            training_s=200.0,
            prices=Prices(per_hour=per_hour, requests_per_day=requests_per_day),
        )
    )


def test_training_is_paid_back_by_what_each_request_saves():
    # 0.2 s saved a request: 200 s of training are back after 1,000 requests, in two days at 500 a day.
    found = remark(economy(requests_per_day=500), "pays_against_prompt")
    assert found.figures["requests"] == 1000
    assert found.text.endswith("paid back after 1,000 requests, 2 days at 500 a day.")
    slower = remark(economy(machine={"few": 0.1, "tuned": 0.1}), "pays_against_prompt")
    assert slower.figures["requests"] is None


def test_a_machine_pays_against_a_price_for_each_request_from_a_volume_on():
    # 3.60 an hour are 86.40 a day; at 0.002 a request that is 43,200 a day, of 864,000 that it can answer.
    found = remark(economy(requests_per_day=50_000), "pays_against_larger")
    assert found.figures["requests_a_day"] == 43_200
    assert found.figures["capacity_a_day"] == 864_000
    assert found.figures["saved_a_day"] == pytest.approx(50_000 * 0.002 - 86.4)
    assert "save 13.60 USD a day" in found.text
    less = remark(economy(requests_per_day=10_000), "pays_against_larger")
    assert "cost 66.40 USD a day more" in less.text
    assert remark(economy(), "training_cost").figures["cost"] == pytest.approx(0.2)


def test_a_machine_that_cannot_answer_the_volume_at_which_it_pays_does_not_pay():
    found = remark(economy(machine={"tuned": 4.0}), "pays_against_larger")
    assert found.figures == {"requests_a_day": 43_200, "capacity_a_day": 21_600}
    assert "does not pay" in found.text


def test_without_prices_no_volume_is_named():
    assert remark(economy(per_hour=0.0), "pays_against_larger") is None
    assert remark(economy(per_hour=0.0), "no_prices") is not None


def test_the_method_is_what_the_lines_are_made_for():
    texts = {
        method: remark(advise(measures(method=method, base=series("base", 30))), "method").text
        for method in ("supervised", "dpo", "reinforcement")
    }
    assert "(SFT)" in texts["supervised"]
    assert "(DPO)" in texts["dpo"]
    assert "(RFT)" in texts["reinforcement"]
    hopeless = remark(advise(measures(method="reinforcement", base=series("base", 0))), "method")
    assert hopeless.level == "warn"
    assert "first SFT" in hopeless.text
    checkable = remark(advise(measures(base=series("base", 30), checkable=True)), "method")
    assert "RFT on top" in checkable.text


def test_accuracy_that_one_label_gives_is_no_accuracy():
    found = advise(measures(base=series("base", 20), tuned=series("tuned", 85), majority=0.8))
    assert remark(found, "no_better_than_one_label").figures == {"majority": 0.8}
    above = advise(measures(base=series("base", 20), tuned=series("tuned", 85), majority=0.5))
    assert remark(above, "no_better_than_one_label") is None


def test_a_tuned_model_that_is_mostly_wrong_is_called_so():
    found = advise(measures(base=series("base", 1), tuned=series("tuned", 20)))
    assert found.verdict == "tune"
    assert remark(found, "still_mostly_wrong").level == "warn"


def test_everything_is_json_with_null_for_what_is_not_known():
    curve = learning_curve(
        [Point(n=n, scores=[1.0] * r + [0.0] * (40 - r)) for n, r in ((75, 8), (150, 20), (300, 30))]
    )
    same = series("tuned", 40, of=40, scores=[0.5] * 40)
    found = advise(
        measures(base=series("base", 1, of=40), tuned=same, curve=curve, graded=True), cuts=["less"], grader="exact"
    )
    wire = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert wire["rows"][1]["quality"] == {"value": 0.5, "low": None, "high": None}
    assert [one["n"] for one in wire["learning_curve"]["forecasts"]] == [600, 1200]
    assert (wire["cuts"], wire["grader"], wire["measure"]) == (["less"], "exact", "mean score")
