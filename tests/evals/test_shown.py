"""Examples in the prompt: which, and where they stand."""

from advised import record, records

from tunekeeper.evals.shown import short, similar, with_examples
from tunekeeper.evals.signs import Record


def tool(name):
    return {"type": "function", "function": {"name": name, "parameters": {}}}


def test_short_ones_of_different_answers_are_shown_first():
    pool = records(*((f"question {'x' * n}", "yes" if n < 8 else "no") for n in range(20)))
    chosen = short(pool)(record("any", ""), 3)
    assert [each.line for each in chosen] == [3, 9, 4]  # the shortest tenth left out, then the first no


def test_the_most_similar_question_stands_last():
    pool = records(("reset my password", "a"), ("where is my parcel", "b"), ("track a parcel", "c"), ("hello", "d"))
    chosen = similar(pool)(record("please track the parcel", ""), 2)
    assert [each.answer["content"] for each in chosen] == ["b", "c"]


def test_a_question_with_no_known_word_still_gets_its_examples():
    pool = records(("a", "1"), ("b", "2"), ("c", "3"))
    assert len(similar(pool)(record("zzz", ""), 2)) == 2
    assert len(similar(pool)(record("a", ""), 5)) == 3


def test_shown_examples_are_turns_below_the_questions_own_instructions():
    system = {"role": "system", "content": "Be brief."}
    asked = Record(
        line=1,
        messages=(system, {"role": "user", "content": "now"}),
        answer={"role": "assistant", "content": ""},
        value={},
        tools=(tool("f"), tool("g")),
    )
    shown = Record(
        line=2,
        messages=({"role": "system", "content": "Other."}, {"role": "user", "content": "then"}),
        answer={"role": "assistant", "content": "done"},
        value={},
        tools=(tool("g"), tool("h")),
    )
    messages, tools = with_examples(asked, [shown])
    assert [message["content"] for message in messages] == ["Be brief.", "then", "done", "now"]
    assert [each["function"]["name"] for each in tools] == ["g", "h", "f"]
    assert with_examples(asked) == (list(asked.messages), list(asked.tools))


def test_a_problem_shows_the_answer_that_its_line_has():
    messages, _ = with_examples(record("2 + 2?", ""), [record("1 + 1?", "", item={"answer": 2})])
    assert [message["content"] for message in messages] == ["1 + 1?", "2", "2 + 2?"]
