"""Graders' JSON: what the API's own types hold is taken, and what is wrong is refused with its place."""

import pytest

from tunekeeper.errors import InvalidRequest
from tunekeeper.graders.spec import item_faults, parse, to_json

CHECK = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
SIMILAR = {**CHECK, "type": "text_similarity", "name": "close", "evaluation_metric": "bleu"}
del SIMILAR["operation"]
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "m",
    "input": [
        {"role": "system", "content": "Be strict."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "{{ item.question }}"}, "{{ sample.output_text }}"],
        },
        {"role": "user", "content": {"type": "input_image", "image_url": "{{ item.image }}", "detail": "low"}},
    ],
    "range": [0, 10],
    "sampling_params": {"temperature": 0, "max_completions_tokens": 99},
}
LABEL = {
    "type": "label_model",
    "name": "tone",
    "model": "m",
    "input": [{"role": "user", "content": "{{ sample.output_text }}", "type": "message"}],
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
}
PYTHON = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n    return 1.0",
    "image_tag": "2025-05-08",
}
ENDPOINT = {
    "type": "endpoint",
    "name": "far",
    "url": "https://example.org/grade",
    "headers": {"a": "b"},
    "rate_limit": 5,
}


def multi(graders, formula="exact"):
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


@pytest.mark.parametrize("spec", [CHECK, SIMILAR, SCORE, LABEL, PYTHON, ENDPOINT], ids=lambda spec: spec["type"])
def test_what_comes_in_is_shown_again(spec):
    shown = to_json(parse(spec))
    assert {name: shown[name] for name in spec if name != "input"} == {n: spec[n] for n in spec if n != "input"}
    assert parse(shown) == parse(spec)


@pytest.mark.parametrize(
    "graders",
    [{"exact": CHECK}, [CHECK], CHECK, {"exact": {**CHECK, "name": ""}}],
    ids=["map", "list", "one", "named by key"],
)
def test_graders_of_a_multi_grader_are_a_map_however_they_come(graders):
    assert to_json(parse(multi(graders)))["graders"] == {"exact": CHECK}


@pytest.mark.parametrize("name", ["max_completions_tokens", "max_completion_tokens", "max_tokens"])
def test_each_spelling_of_the_token_limit_is_known(name):
    spec = parse({**SCORE, "sampling_params": {name: 5}})
    assert to_json(spec)["sampling_params"] == {"max_completions_tokens": 5}


def test_a_grader_without_a_name_is_called_by_its_type():
    assert parse({name: PYTHON[name] for name in ("type", "source")}).name == "python"


@pytest.mark.parametrize(
    ("spec", "param", "says"),
    [
        (None, "grader", "JSON object"),
        ({}, "grader.type", "no type"),
        ({"type": "regex"}, "grader.type", "string_check"),
        ({**CHECK, "operation": "matches"}, "grader.operation", "ilike"),
        ({**CHECK, "colour": 1}, "grader.colour", "Unknown parameter"),
        ({**CHECK, "reference": 42}, "grader.reference", "string"),
        ({**CHECK, "input": "{{ output_text }}"}, "grader.input", "no variable"),
        ({**CHECK, "input": "{{ sample.text }}"}, "grader.input", "output_text"),
        ({**SIMILAR, "evaluation_metric": "bert"}, "grader.evaluation_metric", "rouge_l"),
        ({**SIMILAR, "pass_threshold": float("nan")}, "grader.pass_threshold", "finite"),
        ({**SCORE, "range": [1, 0]}, "grader.range", "lower bound first"),
        ({**SCORE, "range": [0]}, "grader.range", "at least 2"),
        ({**SCORE, "range": [0, float("inf")]}, "grader.range.1", "finite"),
        ({**SCORE, "input": []}, "grader.input", "at least 1"),
        ({**SCORE, "input": [{"role": "tool", "content": "x"}]}, "grader.input.0.role", "developer"),
        ({**SCORE, "input": [{"role": "user", "content": [{"type": "text"}]}]}, "grader.input.0.content", "part 0"),
        ({**SCORE, "input": [{"role": "user", "content": ""}]}, "grader.input.0.content", "empty"),
        (
            {**SCORE, "input": [{"role": "user", "content": {"type": "text", "text": "x", "more": []}}]},
            "grader.input.0.content",
            "must be a text",
        ),
        (
            {**SCORE, "input": [{"role": "user", "content": {"type": "input_audio", "input_audio": {"data": {}}}}]},
            "grader.input.0.content",
            "must be a text",
        ),
        ({**SCORE, "sampling_params": {"temperature": 9}}, "grader.sampling_params.temperature", "less than"),
        ({**LABEL, "passing_labels": ["nice"]}, "grader", "'nice'"),
        ({**LABEL, "labels": ["kind", "kind"]}, "grader", "twice"),
        ({**PYTHON, "source": "#" * 300_000}, "grader", "262,144 bytes"),
        ({**ENDPOINT, "url": "file:///etc/passwd"}, "grader.url", "http"),
        ({**ENDPOINT, "url": "https://"}, "grader.url", "address"),
        ({**ENDPOINT, "url": "http://a:99999/"}, "grader.url", "no http"),
        ({**ENDPOINT, "url": "http://a/\n"}, "grader.url", "address"),
        ({**ENDPOINT, "headers": {"schlüssel": "x"}}, "grader.headers", "ASCII"),
        ({**ENDPOINT, "headers": {"key": "x\nHost: b"}}, "grader.headers", "one line"),
        ({**ENDPOINT, "rate_limit": 0}, "grader.rate_limit", "greater"),
        (multi({}), "grader.graders", "1 to 64"),
        (multi("x"), "grader.graders", "map"),
        (multi({"a b": CHECK}), "grader.graders.a b", "begin with a letter"),
        (multi({"min": CHECK}), "grader.graders.min", "function"),
        (multi([CHECK, CHECK]), "grader.graders", "two graders"),
        (multi([{**CHECK, "name": None}]), "grader.graders", "needs a name"),
        (multi({"in": multi({"exact": CHECK})}), "grader.graders.in", "hold another"),
        (multi({"exact": {**CHECK, "operation": 5}}), "grader.graders.exact.operation", "ilike"),
        (multi({"exact": CHECK}, "exact + close"), "grader.calculate_output", "'close'"),
        (multi({"exact": CHECK}, "exact +"), "grader.calculate_output", "ends where"),
        (multi({"exact": CHECK}, "exec(exact)"), "grader.calculate_output", "no function 'exec'"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(spec, param, says):
    with pytest.raises(InvalidRequest) as caught:
        parse(spec)
    assert caught.value.param == param
    assert says in caught.value.message


def test_multi_graders_in_one_another_are_refused_however_deep():
    spec = CHECK
    for _ in range(400):
        spec = multi({"in": spec})
    with pytest.raises(InvalidRequest, match=r"grader\.graders\.in is a multi grader"):
        parse(spec)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InvalidRequest) as caught:
        parse({"type": "string_check", "input": "{{ x }}", "colour": 1})
    assert [detail["param"] for detail in caught.value.details] == [
        "grader.input", "grader.reference", "grader.operation", "grader.colour",
    ]  # fmt: skip


def test_a_line_that_lacks_a_variable_is_named_with_the_grader_before_anything_runs():
    spec = parse(multi({"exact": CHECK, "judge": SCORE}))
    assert item_faults(spec, 1, {"answer": None, "question": "?", "image": "data:,"}) == []
    faults = item_faults(spec, 7, {"answer": "x", "image": ""})
    assert [(fault.line, fault.pointer, fault.code) for fault in faults] == [
        (7, "/question", "missing_grader_variable")
    ]
    assert "'judge'" in faults[0].message


@pytest.mark.parametrize(("answer", "is_warned"), [("東京", True), ("?", True), ("東京 2020", False), ("Paris", False)])
def test_a_reference_that_rouge_cannot_read_is_warned_of(answer, is_warned):
    faults = item_faults(parse({**SIMILAR, "evaluation_metric": "rouge_l"}), 3, {"answer": answer})
    assert [(fault.code, fault.level) for fault in faults] == [("reference_without_words", "warn")] * is_warned
    assert item_faults(parse(SIMILAR), 3, {"answer": answer}) == []
