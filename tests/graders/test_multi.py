"""Graders put together: formulas over parts, faults that stay visible, threads, and tallies."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeSampler
from tunekeeper.errors import ModelNotFound
from tunekeeper.graders.build import BuiltGrader, build
from tunekeeper.graders.tally import Tally
from tunekeeper.graders.template import sample_of
from tunekeeper.types import Grade, GradeFault

EXACT = {
    "type": "string_check",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
FIELD = {**EXACT, "input": "{{ sample.output_json.answer }}"}
JUDGE = {"type": "score_model", "model": "judge", "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}


def multi(formula, **graders):
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


def test_the_score_is_the_formulas_value_and_each_parts_score_is_kept():
    spec = multi("0.25 * exact + 0.75 * judge", exact=EXACT, judge=JUDGE)
    grade = build(spec, sampler=FakeSampler('{"result": 0.5}')).grade(sample_of("4"), {"answer": "4"})
    assert grade.score == pytest.approx(0.25 + 0.375)
    assert grade.sub_scores == {"exact": 1.0, "judge": 0.5}
    assert (grade.token_usage, grade.sampled_model, grade.faults) == ({"judge": 7}, "judge", ())


def test_a_part_without_a_score_leaves_none_for_the_whole_and_the_others_are_kept():
    spec = multi("exact + judge", exact=EXACT, judge=JUDGE)
    grade = build(spec, sampler=FakeSampler("no")).grade(sample_of("4"), {"answer": "4"})
    assert (grade.score, grade.sub_scores, grade.is_valid) == (0.0, {"exact": 1.0}, False)
    assert [(fault.grader, fault.kind) for fault in grade.faults] == [("judge", "model_grader_parse_error")]


def test_a_sample_that_is_to_blame_earns_its_0():
    grade = build(multi("exact + field", exact=EXACT, field=FIELD)).grade(sample_of("4 it is"), {"answer": "4 it is"})
    assert (grade.score, grade.sub_scores, grade.is_valid) == (0.0, {"exact": 1.0, "field": 0.0}, True)
    assert [(fault.grader, fault.kind) for fault in grade.faults] == [("field", "sample_parse_error")]


@pytest.mark.parametrize("formula", ["1 / exact", "log(exact)", "sqrt(exact - 1)", "10 ^ (400 + exact)"])
def test_a_formula_without_a_value_is_a_fault_of_the_whole(formula):
    grade = build(multi(formula, exact=EXACT)).grade(sample_of("5"), {"answer": "4"})
    [fault] = grade.faults
    assert (grade.score, fault.kind, fault.grader) == (0.0, "formula_parse_error", "all")
    assert "exact = 0" in fault.message
    assert grade.sub_scores == {"exact": 0.0}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_many_threads_give_what_one_gives(cases):
    grader = build(multi("exact + 2 * field", exact=EXACT, field=FIELD))
    samples = [sample_of('{"answer": "4"}' if good else "4") for good, _ in cases]
    items = [{"answer": "4" if same else "5"} for _, same in cases]
    alone = [grader.grade(sample, item) for sample, item in zip(samples, items, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(grader.grade, samples, items))
    assert [(g.score, g.sub_scores, g.faults) for g in alone] == [(g.score, g.sub_scores, g.faults) for g in together]


def test_a_grader_that_breaks_is_a_fault_and_ends_nothing():
    def broken(sample, item):
        raise KeyError("surprise")

    grade = BuiltGrader("own", broken).grade({}, {})
    assert [(fault.kind, fault.grader) for fault in grade.faults] == [("other_error", "own")]
    assert "surprise" in grade.faults[0].message


def test_what_was_started_is_ended_when_a_later_part_cannot_be_built():
    python = {"type": "python", "source": "def grade(sample, item):\n    return 1.0"}
    pytest.importorskip("pydantic_monty")
    with pytest.raises(ModelNotFound) as caught:
        build(multi("code + judge", code=python, judge={**JUDGE, "model": "nobody"}), sampler=FakeSampler(""))
    assert caught.value.param == "grader.graders.judge.model"


def test_a_python_grader_is_a_part_like_any_other():
    pytest.importorskip("pydantic_monty")
    source = "def grade(sample, item):\n    return len(sample['output_text']) / item['most']"
    grader = build(multi("min(1, length)", length={"type": "python", "source": source}))
    try:
        assert grader.grade(sample_of("abcd"), {"most": 8}).score == 0.5
        fault = grader.grade(sample_of("abcd"), {}).faults[0]
        assert (fault.kind, fault.grader) == ("python_grader_runtime_error", "length")
    finally:
        grader.close()


def test_a_tally_counts_faults_apart_and_keeps_them_out_of_the_mean():
    away = GradeFault(kind="model_grader_server_error", message="away", grader="judge")
    no_json = GradeFault(kind="sample_parse_error", message="no JSON", grader="field", by_sample=True)
    tally = Tally()
    tally.add_parts("field", "judge")
    tally.add(Grade(score=1.0, sub_scores={"field": 1.0, "judge": 1.0}, token_usage={"m": 5}))
    tally.add(Grade(score=0.0, faults=(away,), sub_scores={"field": 1.0}, token_usage={"m": 2}))
    tally.add(Grade(score=0.0, faults=(no_json,), sub_scores={"field": 0.0, "judge": 0.5}))
    found = tally.to_json()
    assert found["score"] == {"n": 2, "mean": 0.5, "min": 0.0, "max": 1.0, "errors": 2}
    assert found["sub_scores"]["field"] == {"n": 3, "mean": pytest.approx(2 / 3), "min": 0.0, "max": 1.0, "errors": 1}
    assert found["sub_scores"]["judge"] == {"n": 2, "mean": 0.75, "min": 0.5, "max": 1.0, "errors": 1}
    assert {(each["grader"], each["kind"], each["count"]) for each in found["errors"]} == {
        ("judge", "model_grader_server_error", 1),
        ("field", "sample_parse_error", 1),
    }
    assert found["token_usage"] == {"m": 7}


def test_a_tally_of_nothing_has_no_mean():
    assert Tally().to_json()["score"] == {"n": 0, "mean": None, "min": None, "max": None, "errors": 0}
