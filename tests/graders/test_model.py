"""Judges: what they are asked, what is made of what they say, and what becomes of those that fail."""

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes import FakeSampler
from tunekeeper.errors import InvalidRequest, ModelNotFound, Overloaded, TunekeeperError, Unavailable, UpstreamFailed
from tunekeeper.graders.build import build
from tunekeeper.graders.model import score_model
from tunekeeper.graders.spec import parse
from tunekeeper.graders.template import Ungradable, sample_of

SCORE = {
    "type": "score_model",
    "name": "judge it",
    "model": "judge",
    "input": [{"role": "user", "content": "Q: {{ item.q }} A: {{ sample.output_text }}"}],
}
LABEL = {**SCORE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
STEPS = [{"description": "looked", "conclusion": "fine"}]


def graded(spec, *says, sample="4", item=None):
    return build(spec, sampler=FakeSampler(*says)).grade(sample_of(sample), item or {"q": "2+2"})


def said(result):
    return json.dumps({"steps": STEPS, "result": result})


def answer(content=None, **message):
    reason = message.pop("finish_reason", "stop")
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}]}


def test_the_score_is_the_judges_result_and_its_steps_are_kept():
    grade = graded({**SCORE, "range": [0, 10]}, said(7))
    assert (grade.score, grade.faults, grade.sampled_model) == (7.0, (), "judge")
    assert grade.token_usage == {"judge": 7}
    assert grade.details == {"steps": STEPS}


def test_the_judge_is_asked_with_variables_filled_in_and_a_schema_that_holds_the_range():
    sampler = FakeSampler(said(1))
    spec = {**SCORE, "range": [-1, 1], "sampling_params": {"temperature": 0.2, "top_p": 1, "seed": 3, "max_tokens": 50}}
    build(spec, sampler=sampler).grade(sample_of("4"), {"q": "2+2"})
    [body] = sampler.bodies
    assert body["messages"][1] == {"role": "user", "content": "Q: 2+2 A: 4"}
    assert "from -1 to 1" in body["messages"][0]["content"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"] == {"type": "number", "minimum": -1, "maximum": 1}
    assert list(schema["properties"]) == ["steps", "result"]  # reasons come before the verdict
    assert (body["temperature"], body["top_p"], body["seed"], body["max_completion_tokens"]) == (0.2, 1, 3, 50)


def test_instructions_of_the_grader_stay_first_and_parts_become_a_chats():
    content = [
        {"type": "input_text", "text": "{{ item.q }}"},
        {"type": "input_image", "image_url": "data:{{ item.q }}"},
    ]
    messages = [{"role": "developer", "content": "Be strict."}, {"role": "user", "content": content}]
    sampler = FakeSampler(said(1))
    build({**SCORE, "input": messages}, sampler=sampler).grade(sample_of("4"), {"q": "2+2"})
    first, second = sampler.bodies[0]["messages"]
    assert first["role"] == "developer"
    assert first["content"].startswith("Be strict.\n\n")
    assert second["content"] == [
        {"type": "text", "text": "2+2"},
        {"type": "image_url", "image_url": {"url": "data:2+2"}},
    ]


@pytest.mark.parametrize(("label", "score"), [("good", 1.0), ("bad", 0.0)])
def test_a_passing_label_is_1_and_any_other_0(label, score):
    grade = graded(LABEL, said(label))
    assert (grade.score, grade.faults, grade.details["label"]) == (score, (), label)


@pytest.mark.parametrize(
    "text",
    [
        said(0.5),
        f"```json\n{said(0.5)}\n```",
        '{"result": 0.5}',
        ' {"result": 5e-1} ',
        f"<think>{{}}</think>\n{said(0.5)}",
    ],
)
def test_json_is_read_in_the_forms_that_judges_write_it_in(text):
    assert graded(SCORE, text).score == 0.5


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        ("I give it a seven.", "model_grader_parse_error", "seven"),
        ("", "model_grader_parse_error", "nothing"),
        (answer(None), "model_grader_parse_error", "nothing"),
        ("0.7", "model_grader_parse_error", "no result"),
        ("{}", "model_grader_parse_error", "None"),
        (said("0.7"), "model_grader_parse_error", "no number"),
        (said(True), "model_grader_parse_error", "no number"),
        ('{"result": NaN}', "model_grader_parse_error", "no number"),
        ('{"result": Infinity}', "model_grader_parse_error", "no number"),
        (said(1.01), "model_grader_parse_error", "outside"),
        (said(-1), "model_grader_parse_error", "outside"),
        ("[" * 100_000, "model_grader_parse_error", "not JSON"),
        ("```" + " " * 100_000 + "x", "model_grader_parse_error", "not JSON"),
        ("```", "model_grader_parse_error", "not JSON"),
        ('{"result": 1' + "0" * 400 + "}", "model_grader_parse_error", "no number"),
        (answer(said(1)[:-5], finish_reason="length"), "model_grader_parse_error", "max_completions_tokens"),
        (answer(None, refusal="I cannot judge people."), "model_grader_refusal_error", "judge people"),
        (answer("", finish_reason="content_filter"), "model_grader_refusal_error", "content filter"),
        ({}, "model_grader_parse_error", "no message"),
        ({"choices": []}, "model_grader_parse_error", "no message"),
        (ModelNotFound("gone"), "model_grader_server_error", "gone"),
        (InvalidRequest("too long", code="context_length_exceeded"), "truncated_observation_error", "too long"),
        (InvalidRequest("no such option"), "model_grader_server_error", "no such option"),
        (TunekeeperError("broken"), "model_grader_server_error", "broken"),
        (RuntimeError("a bug"), "other_error", "a bug"),
    ],
)
def test_a_judge_that_gives_no_score_is_a_fault_of_its_own_kind(says, kind, words):
    grade = graded(SCORE, says)
    [fault] = grade.faults
    assert (grade.score, grade.is_valid, fault.kind, fault.grader) == (0.0, False, kind, "judge it")
    assert words in fault.message


def test_reasons_of_a_strange_form_do_not_cost_the_score():
    steps = [{"description": "\ud800"}, {"description": "x", "conclusion": math.nan}, 5, {"description": [[[]]]}]
    grade = graded(SCORE, json.dumps({"result": 0.5, "steps": steps}))
    assert (grade.score, grade.details) == (0.5, {"steps": [{"description": "?"}]})


def test_tokens_of_an_answer_without_a_score_are_counted_all_the_same():
    assert graded(SCORE, said("x")).token_usage == {"judge": 7}


@pytest.mark.parametrize(
    "failure", [Overloaded("busy"), UpstreamFailed("away"), Unavailable("x"), TimeoutError("slow")]
)
def test_a_judge_that_is_busy_is_asked_again_and_in_the_end_given_up(failure):
    spec = parse(SCORE)
    limit = threading.BoundedSemaphore(1)
    score = score_model(spec, FakeSampler(failure, failure, said(1)), limit, pause_s=0.001)
    assert score(sample_of("4"), {"q": ""}).score == 1.0
    sampler = FakeSampler(failure)
    with pytest.raises(Ungradable, match="3 times") as caught:
        score_model(spec, sampler, limit, pause_s=0.001)(sample_of("4"), {"q": ""})
    assert caught.value.kind == "model_grader_server_error"
    assert len(sampler.bodies) == 3


def test_a_judge_that_is_not_there_is_known_before_anything_is_graded():
    with pytest.raises(ModelNotFound) as caught:
        build({**SCORE, "model": "nobody"}, sampler=FakeSampler(""))
    assert caught.value.param == "grader.model"
    with pytest.raises(Unavailable, match="'judge'"):
        build(SCORE)


def test_no_more_judges_are_asked_at_once_than_may_be():
    class Slow(FakeSampler):
        lock, now, most = threading.Lock(), 0, 0

        def complete(self, body):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.005)
            with self.lock:
                self.now -= 1
            return super().complete(body)

    sampler = Slow(said(1))
    parts = {"a": SCORE, "b": LABEL}
    multi = {"type": "multi", "graders": parts, "calculate_output": "a"}
    grader = build(multi, sampler=sampler, max_judges=3)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: grader.grade(sample_of(str(n)), {"q": ""}), range(24)))
    assert 1 < sampler.most <= 3
