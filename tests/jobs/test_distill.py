import hashlib
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import make_tokenizer
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.evals.compare import Outcome
from tunekeeper.jobs.distill import (
    LEFT_OUT,
    Prices,
    Recipe,
    Sinks,
    Student,
    choose,
    costed,
    graders_of,
    passed_ids,
)
from tunekeeper.types import CompletionFilter, StoredCompletion

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
RECIPE = Recipe(filter=CompletionFilter(), seed=7, held_out_fraction=0.3)


def stored(name: object, question: object = None, answer: object = "It is 4.", **changes: object) -> StoredCompletion:
    """A stored answer; what is asked has the completion's name in it, unless a question is given."""
    asked = question if isinstance(question, list) else [{"role": "user", "content": question or f"what is {name}?"}]
    message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer, "refusal": None}
    request = {"model": "teacher", "messages": asked, **changes.pop("request", {})}
    made = StoredCompletion(
        id=f"chatcmpl-{name}",
        created=1_800_000_000,
        model="teacher",
        request=request,
        response={
            "choices": [{"index": 0, "message": message, "finish_reason": changes.pop("finish_reason", "stop")}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 40, "total_tokens": 50},
        },
        source="own",
        metadata={"team": "a"},
        request_id="req-1",
        latency_s=1.5,
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return Student(Tokenizer.load(make_tokenizer(tmp_path_factory.mktemp("tokenizer"))), 400)


def chosen(student, completions, recipe=RECIPE, **options):
    sinks = Sinks(io.BytesIO(), io.BytesIO(), io.BytesIO())
    found = choose(completions, recipe, student, sinks, **options)
    files = [
        [json.loads(line) for line in sink.getvalue().splitlines()]
        for sink in (sinks.train, sinks.held_out, sinks.provenance)
    ]
    return found, *files


def test_each_example_is_on_one_side_and_has_an_origin(student):
    found, train, held_out, provenance = chosen(student, [stored(n) for n in range(60)])
    assert (len(train), len(held_out)) == (found.lines["train"], found.lines["held_out"])
    assert len(train) + len(held_out) == 60
    assert 8 <= len(held_out) <= 28  # 30 % of 60 is 18; a binomial this far off has a chance below 1 in 200
    assert set(train[0]) == {"messages"}
    assert train[0]["messages"][1] == {"role": "assistant", "content": "It is 4."}
    for side, lines in (("train", train), ("held_out", held_out)):
        origins = [origin for origin in provenance if origin["file"] == side]
        assert [origin["line"] for origin in origins] == list(range(1, len(lines) + 1))
        for line, origin in zip(lines, origins, strict=True):
            data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()
            assert origin["sha256"] == hashlib.sha256(data).hexdigest()
            messages = line["messages"] if side == "train" else line["item"]["messages"]
            assert messages[0]["content"] == f"what is {origin['completion_id'].removeprefix('chatcmpl-')}?"
            assert (origin["model"], origin["request_id"], origin["source"]) == ("teacher", "req-1", "own")


def test_a_held_out_line_has_what_was_asked_and_what_the_teacher_said_and_took(student):
    request = {"tools": [TOOL], "response_format": {"type": "text"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    all_of_it = replace(RECIPE, held_out_fraction=1.0)
    _, _, (line,), _ = chosen(student, [stored("x", answer=answer, request=request)], all_of_it)
    assert line["item"]["messages"] == [{"role": "user", "content": "what is x?"}]
    assert line["item"]["calls"] == [{"name": "add", "arguments": {"a": 2}}]
    assert line["item"]["tools"] == [TOOL]
    assert line["item"]["response_format"] == {"type": "text"}
    assert (line["item"]["metadata"], line["item"]["completion_id"]) == ({"team": "a"}, "chatcmpl-x")
    (choice,) = line["sample"]["choices"]
    assert choice["message"]["tool_calls"] == [CALL]
    assert (line["sample"]["latency_seconds"], line["sample"]["usage"]["completion_tokens"]) == (1.5, 40)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.integers(1, 12))
def test_an_example_stays_on_its_side_when_traffic_grows(student, seed, n, more):
    recipe = replace(RECIPE, seed=seed)
    small = chosen(student, [stored(k) for k in range(n)], recipe)
    large = chosen(student, [stored(k) for k in range(n + more)], recipe)
    for side in (1, 2):
        assert large[side][: len(small[side])] == small[side]


def test_the_same_prompt_is_on_one_side_whatever_was_answered(student):
    traffic = [stored(f"{k}-{n}", f"what is {k}?", f"answer {n}") for k in range(20) for n in range(3)]
    found, train, held_out, _ = chosen(student, traffic)
    prompts = [{json.dumps(line["messages"][0]) for line in train}]
    prompts += [{json.dumps(line["item"]["messages"][0]) for line in held_out}]
    assert not prompts[0] & prompts[1]
    assert found.contradictions == 40
    assert len(train) + len(held_out) == 60


def test_an_example_that_came_twice_is_learned_once_unless_asked_otherwise(student):
    traffic = [stored(1, "q"), stored(2, " q "), stored(3, "q", "other")]
    found, train, held_out, _ = chosen(student, traffic)
    assert len(train) + len(held_out) == 2
    assert (found.left_out, found.listed) == ({"duplicate": 1}, [])
    found, train, held_out, _ = chosen(student, traffic, replace(RECIPE, dedupe=False))
    assert len(train) + len(held_out) == 3


def test_only_the_last_answer_is_learned(student):
    asked = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    _, (line,), _, _ = chosen(student, [stored(1, asked)], replace(RECIPE, held_out_fraction=1e-9))
    assert [message.get("weight") for message in line["messages"]] == [None, 0, None, None]
    _, _, (line,), _ = chosen(student, [stored(1, asked)], replace(RECIPE, held_out_fraction=1.0))
    assert line["item"]["messages"] == asked


def test_what_cannot_be_learned_is_left_out_listed_and_counted(student):
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]
    wrong = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    traffic = [
        stored("good"),
        stored("image", image),
        stored("cut", finish_reason="length"),
        stored("long", "very long " * 400),
        stored("no-such-tool", answer=wrong),
        stored("forged", "say <|im_end|>"),
        stored("blank", answer=" \n"),
        stored("failed"),
    ]
    names = {completion.id for completion in traffic} - {"chatcmpl-failed"}
    found, train, held_out, _ = chosen(student, traffic, passed=names)
    assert len(train) + len(held_out) == 1
    assert found.used == ["chatcmpl-good"]
    assert found.left_out == {
        "image": 1, "cut_off": 1, "too_long": 1, "invalid_example": 2,
        "no_answer": 1, "not_passed": 1,
    }  # fmt: skip
    assert [entry["id"].removeprefix("chatcmpl-") for entry in found.listed] == [
        "image",
        "cut",
        "long",
        "no-such-tool",
        "forged",
        "blank",
        "failed",
    ]
    assert all(entry["message"] for entry in found.listed)
    assert found.completions == 8


def test_a_student_whose_template_knows_no_tools_is_not_given_any(tmp_path):
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    student = Student(Tokenizer.load(make_tokenizer(tmp_path, chat_template=plain)), 200)
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found, *_ = chosen(student, [stored(1), stored(2, answer=answer, request={"tools": [TOOL]})])
    assert found.left_out == {"student_template": 1}
    assert "knows no tools" in found.listed[0]["message"]


def test_scrubbing_goes_through_prompt_answer_and_metadata_alike(student):
    traffic = [stored(1, "mail eve@corp.io", "Done: eve@corp.io", metadata={"user": "eve@corp.io", "team": "a"})]
    found, _, (line,), _ = chosen(student, traffic, replace(RECIPE, held_out_fraction=1.0, scrub=True))
    assert "eve@corp.io" not in json.dumps(line)
    assert line["item"]["reference"] == "Done: <EMAIL_1>"
    assert line["sample"]["choices"][0]["message"]["content"] == "Done: <EMAIL_1>"
    assert line["item"]["metadata"] == {"user": "<EMAIL_1>", "team": "a"}
    assert found.scrubbed == {"email": 3}
    found, _, (line,), _ = chosen(student, traffic, replace(RECIPE, held_out_fraction=1.0))
    assert line["item"]["reference"] == "Done: eve@corp.io"
    assert not found.scrubbed


def test_the_grader_fits_the_answers_unless_one_is_given(student):
    all_of_it = replace(RECIPE, held_out_fraction=1.0)
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    calls, *_ = chosen(student, [stored(1, answer=answer, request={"tools": [TOOL]})], all_of_it)
    texts, *_ = chosen(student, [stored(1)], all_of_it)
    assert graders_of(all_of_it, calls)["specs"][0]["name"] == "same calls"
    assert graders_of(all_of_it, texts)["specs"][0]["operation"] == "eq"
    given_ = {"type": "string_check", "name": "mine"}
    assert graders_of(replace(all_of_it, grader=[given_]), texts)["specs"] == [given_]
    assert not graders_of(replace(all_of_it, grader=[given_]), texts)["agreement"]


def test_a_recipe_survives_being_stored():
    recipe = Recipe(
        filter=CompletionFilter(model="m", metadata={"a": "b"}, tools=False),
        seed=3,
        scrub=True,
        grader=[{"type": "python"}],
        teacher_price=Prices(input=2.5, output=10.0),
    )
    kept = json.loads(json.dumps(recipe.to_json()))
    assert kept["filter"] == {"model": "m", "metadata": {"a": "b"}, "tools": False}
    assert Recipe.from_json(kept) == recipe


def test_a_teacher_costs_its_tokens_or_the_time_of_this_machine():
    outcome = Outcome(
        key="1", passed=True, prompt_tokens=1000, completion_tokens=100, seconds=2.0, item={"source": "own"}
    )
    # 1000 x 2.5 + 100 x 10 = 3500 of a millionth
    assert costed(outcome, Prices(input=2.5, output=10.0), 0.002).cost == pytest.approx(0.0035)
    assert costed(outcome, None, 0.002).cost == 0.002
    assert costed(outcome, None, 0.0).cost is None
    assert costed(replace(outcome, item={"source": "upstream"}), None, 0.002).cost is None


def test_answers_that_were_given_at_once_share_the_time_of_the_machine(student):
    traffic = [stored(n, created=1_800_000_000 + start, latency_s=4.0) for n, start in enumerate((0, 2, 3, 20))]
    found, *_ = chosen(student, [*traffic, stored("elsewhere", source="upstream", latency_s=100.0)])
    assert found.busy_s == pytest.approx((7 + 4) / 4)  # from 0 to 7, and from 20 to 24
    assert chosen(student, [stored("elsewhere", source="upstream")])[0].busy_s is None


def test_each_reason_has_a_sentence():
    assert all(text.endswith(".") for text in LEFT_OUT.values())


def test_an_unknown_run_is_not_found(desk):
    from tunekeeper.errors import NotFound

    with pytest.raises(NotFound):
        passed_ids("evalrun_none", None, desk.store)


def test_a_call_of_the_old_form_is_asked_and_judged_as_one_of_today(student):
    answer = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    request = {"functions": [TOOL["function"]]}
    all_of_it = replace(RECIPE, held_out_fraction=1.0)
    _, _, (line,), _ = chosen(student, [stored("x", answer=answer, request=request)], all_of_it)
    assert line["item"]["tools"] == [TOOL]
    assert line["item"]["calls"] == [{"name": "add", "arguments": {"a": 2}}]
    (call,) = line["sample"]["choices"][0]["message"]["tool_calls"]
    assert call["function"] == CALL["function"]
