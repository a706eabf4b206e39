"""The grader that fits the answers: chosen by their form, and right in what it accepts."""

import json

import pytest
from advised import record, records

from tunekeeper.evals.default_grader import default_grader, item_of
from tunekeeper.evals.signs import Record
from tunekeeper.graders.build import build
from tunekeeper.graders.rows import as_sample


def calling(*calls, line=1):
    made = [
        {"id": str(n), "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(calls)
    ]
    answer = {"role": "assistant", "tool_calls": made} if made else {"role": "assistant", "content": "No."}
    return Record(line=line, messages=({"role": "user", "content": "q"},), answer=answer, value={})


def passes(chosen, asked, message):
    built = build(chosen.spec)
    try:
        sample = as_sample({"choices": [{"message": {"role": "assistant", **message}}]})
        grade = built.grade(sample, item_of(asked))
        assert grade.is_valid, grade.faults
        return grade.score >= chosen.threshold
    finally:
        built.close()


def said(asked):
    return {"tool_calls": asked.answer["tool_calls"]}


def test_calls_are_right_in_any_order_and_wrong_with_another_value():
    asked = calling(("f", {"a": 1, "b": ["x", {"c": True}]}), ("g", {}))
    chosen = default_grader([asked])
    assert chosen.kind == "calls"
    assert passes(chosen, asked, said(asked))
    assert passes(chosen, asked, said(calling(("g", {}), ("f", {"b": ["x", {"c": True}], "a": 1}))))
    wrong = [
        calling(("g", {})),
        calling(("g", {}), ("g", {})),
        calling(("f", {"a": 1, "b": ["x", {"c": 1}]}), ("g", {})),
        calling(("f", {"a": 1, "b": ["x", {"c": True}], "d": 0}), ("g", {})),
        calling(("f", {"a": 2, "b": ["x", {"c": True}]}), ("g", {})),
    ]
    assert not any(passes(chosen, asked, said(one)) for one in wrong)
    broken = {"id": "1", "type": "function", "function": {"name": "g", "arguments": "{"}}
    assert not passes(chosen, asked, {"tool_calls": [broken, broken]})


def test_where_no_call_is_right_an_answer_without_one_passes():
    asked = calling()
    chosen = default_grader([asked, calling(("f", {}))])
    assert "in the other 1 no call is right" in chosen.why
    assert passes(chosen, asked, {"content": "Sorry."})
    assert not passes(chosen, asked, said(calling(("f", {}))))


def test_json_is_compared_as_it_is_read():
    asked = record("q", '{"a": [1, 2], "b": null}')
    chosen = default_grader([asked, record("r", "[]")])
    assert chosen.kind == "json"
    assert passes(chosen, asked, {"content": '{ "b": null, "a": [1,2] }'})
    assert not passes(chosen, asked, {"content": '{"a": [2, 1], "b": null}'})
    assert not passes(chosen, asked, {"content": "none"})


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["yes", "no"] * 5, "label"),
        ([str(n) for n in range(10)], "short text"),
        (["a" * 65, "b"], "long text"),
    ],
)
def test_texts_are_labels_short_or_long(answers, kind):
    chosen = default_grader(records(*((str(n), answer) for n, answer in enumerate(answers))))
    assert chosen.kind == kind
    assert chosen.graded == (kind == "long text")


def test_a_pair_is_right_where_the_answer_is_closer_to_the_preferred_output():
    asked = record("q", "Good day to you", item={"rejected": "yo whats up"})
    chosen = default_grader([asked])
    assert chosen.kind == "pair"
    assert passes(chosen, asked, {"content": "Good day"})
    assert not passes(chosen, asked, {"content": "yo what"})


def test_a_problem_brings_its_answer_in_a_key():
    chosen = default_grader([record("2 + 2", "", item={"answer": 4}), record("2 + 3", "", item={"answer": 5})])
    assert chosen.kind == "short text"
    assert chosen.spec["reference"] == "{{ item.answer }}"  # the job that learns from it has no other item
    assert passes(chosen, record("2 + 2", "", item={"answer": 4}), {"content": "4"})
    asked = record("q", "", item={"solution": '{"a": 1}'})
    assert passes(default_grader([asked]), asked, {"content": '{"a":1}'})


def test_without_any_answer_there_is_no_grader():
    assert default_grader([record("q", "")]) is None
    assert default_grader([record("q", ""), record("r", "x")]) is None
    assert default_grader([]) is None
