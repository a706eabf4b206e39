"""What a data set shows by itself: worked by hand."""

import pytest
from advised import record, records
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.evals.signs import (
    Record,
    contradictions,
    has_passages,
    is_within,
    labels,
    majority,
    missing_knowledge,
    shift,
    single_passages,
    split,
)


def test_a_call_is_read_with_its_arguments_as_a_value():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": "x"}'}}
    asked = Record(line=1, messages=(), answer={"role": "assistant", "tool_calls": [call]}, value={})
    assert asked.calls == [{"name": "f", "arguments": {"b": 1, "a": "x"}}]
    assert asked.text == '[{"arguments": {"a": "x", "b": 1}, "name": "f"}]'


def test_contradictions_bound_what_a_model_can_have_right():
    # a: two of three agree; b: alone; c: one of two. The best model has 2 + 1 + 1 of 6 right.
    found = contradictions(records(("a", "x"), ("a", " x "), ("b", "z"), ("a", "y"), ("c", "1"), ("c", "2")))
    assert (found.lines, found.n, found.first) == (5, 6, (1, 2, 4))
    assert found.ceiling == pytest.approx(4 / 6)


def test_equal_prompts_with_equal_answers_contradict_nothing():
    found = contradictions(records(("a", "x"), ("a", "x"), ("a  ", "x")))
    assert (found.lines, found.ceiling, found.first) == (0, 1.0, ())
    assert contradictions([]).ceiling == 1.0


@given(st.lists(st.integers(0, 30), min_size=0, max_size=80), st.integers(0, 9))
def test_a_split_loses_nothing_and_keeps_equal_prompts_on_one_side(questions, seed):
    rows = records(*((str(q), "x") for q in questions))
    training, held_out = split(rows, 0.2, seed=seed)
    assert sorted(r.line for r in [*training, *held_out]) == [r.line for r in rows]
    assert not {r.question for r in training} & {r.question for r in held_out}
    assert len(held_out) <= max(round(0.2 * len(rows)), min(20, len(rows) // 2))


def test_more_of_small_data_is_held_out():
    sizes = [len(split(records(*((str(q), "x") for q in range(n))), 0.2, seed=1)[1]) for n in (15, 60, 200)]
    assert sizes == [7, 20, 40]


def test_labels_are_few_and_each_is_frequent():
    assert labels(records(*[("q", "yes")] * 7, *[("q", "no")] * 3)) == {"yes": 7, "no": 3}
    assert labels(records(*((str(n), str(n)) for n in range(10)))) == {}
    assert labels(records(*[("q", "yes")] * 10)) == {}


def test_the_majority_is_the_trainings_on_the_held_out_items():
    training = records(*[("q", "yes")] * 7, *[("q", "no")] * 3)
    assert majority(training, records(("a", "no"), ("b", "no"), ("c", "yes"), ("d", "no"))) == 0.25
    assert majority(records(*((str(n), str(n)) for n in range(10))), records(("a", "no"))) is None


def test_held_out_questions_in_other_words_are_told():
    training = records(*((f"where is my parcel number {n % 4}", "x") for n in range(40)))
    alike = records(*((f"where is parcel number {n % 4}", "x") for n in range(12)))
    strange = records(*((f"wo bleibt das paket {n % 4}", "x") for n in range(12)))
    assert shift(training, alike) == []
    (found,) = shift(training, strange)
    assert found.code == "held_out_unlike_training"
    assert found.figures["unseen_words"] == 0.8  # four of five words; the numbers are known
    assert found.figures["unseen_words_within_training"] == 0


def test_labels_that_shift_or_were_never_trained_are_told():
    training = records(*((f"question {n % 5}", "yes" if n % 2 else "no") for n in range(100)))
    same = records(*((f"question {n % 5}", "yes" if n % 2 else "no") for n in range(40)))
    shifted = records(*((f"question {n % 5}", "yes" if n % 10 else "no") for n in range(40)))
    new = records(*((f"question {n % 5}", "maybe" if n % 4 == 0 else "no") for n in range(40)))
    assert shift(training, same) == []
    (found,) = shift(training, shifted)
    assert found.code == "labels_shifted"
    assert found.figures["distance"] == pytest.approx(0.4)
    (found,) = shift(training, new)
    assert (found.code, found.figures["share"]) == ("labels_never_trained", 0.25)


def test_passages_are_seen_by_their_headings():
    cited = records(*((f"Context: the sky is blue {n}.\n\nWhat colour?", "blue") for n in range(5)))
    listed = records(*((f"[1] the sky is blue\n[2] grass is green {n}\nWhat colour?", "blue") for n in range(5)))
    plain = records(*((f"What colour is the sky in this context {n}?", "blue") for n in range(5)))
    assert has_passages(cited)
    assert has_passages(listed)
    assert not has_passages(plain)
    assert single_passages(cited) == 1
    assert single_passages(listed) == 0


def test_an_answer_within_its_passages_has_their_numbers_and_most_of_their_words():
    asked = record("Context: The bridge was built in 1894 by Horace Jones.\nWho built the bridge, when?", "")
    assert is_within(asked, "Horace Jones built the bridge in 1894.")
    assert not is_within(asked, "Horace Jones built the bridge in 1895.")
    assert not is_within(asked, "Engineers from Scotland constructed something else entirely.")
    assert is_within(asked, "")


def test_facts_that_stand_in_no_prompt_hint_at_missing_knowledge():
    training = records(*((f"Who leads team {n}?", f"Person{n} leads") for n in range(20)))
    held_out = records(*((f"Who leads team {n}?", f"Person{n} leads") for n in range(20, 30)))
    wrong = [False] * 10
    found = missing_knowledge(training, held_out, wrong, loss_fell=True)
    assert found is not None
    assert found.level == "hint"
    assert found.figures["not_in_prompt_wrong"] == 0.5  # the name; "leads" is in the other answers
    assert missing_knowledge(training, held_out, wrong, loss_fell=False) is None
    assert missing_knowledge(training, held_out, [True] * 10, loss_fell=True) is None
    copied = records(*((f"Repeat: Person{n} leads", f"Person{n} leads") for n in range(20, 30)))
    assert missing_knowledge(training, copied, wrong, loss_fell=True) is None
