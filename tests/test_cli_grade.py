"""`tunekeeper grade`: the table, the lines, and what is refused before anything is graded."""

import json

import pytest

from scripted_server import scripted
from tunekeeper.cli import main

MULTI = {
    "type": "multi",
    "name": "all",
    "graders": {
        "exact": {
            "type": "string_check",
            "operation": "eq",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.answer }}",
        },
        "field": {
            "type": "string_check",
            "operation": "eq",
            "input": "{{ sample.output_json.x }}",
            "reference": "1",
        },
    },
    "calculate_output": "(exact + field) / 2",
}
JUDGE = {"type": "score_model", "name": "j", "model": "big", "input": [{"role": "user", "content": "{{ item.q }}"}]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("TUNEKEEPER_URL", "TUNEKEEPER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNEKEEPER_HOME", str(tmp_path / "home"))
    return tmp_path


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)


def test_a_file_is_graded_line_by_line(home, capsys):
    rows = [
        {"item": {"answer": '{"x": 1}'}, "sample": '{"x": 1}'},
        {"item": {"answer": "a"}, "sample": {"output_text": '{"x": 2}'}},
        {"item": {"answer": "a"}, "sample": "a"},
    ]
    grader, data, out = write(home / "g.json", MULTI), write(home / "d.jsonl", *rows), home / "out.jsonl"
    assert main(["grade", grader, data, "--out", str(out)]) == 0
    heading, whole, exact, field, fault = capsys.readouterr().out.splitlines()
    assert heading.split() == ["GRADER", "SCORED", "MEAN", "MIN", "MAX", "ERRORS"]
    assert whole.split() == ["all", "3", "0.333333", "0", "1", "1"]
    assert exact.split() == ["exact", "3", "0.666667", "0", "1", "0"]
    assert field.split() == ["field", "3", "0.333333", "0", "1", "1"]
    assert fault.startswith("1 x sample_parse_error of field: ")
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(line["line"], line["score"]) for line in lines] == [(1, 1.0), (2, 0.0), (3, 0.0)]
    assert lines[2]["sub_scores"] == {"exact": 1.0, "field": 0.0}
    assert lines[2]["faults"][0]["kind"] == "sample_parse_error"


def test_samples_may_lie_in_a_file_of_their_own(home, capsys):
    data = write(home / "d.jsonl", {"answer": "a"}, {"answer": "b"})
    samples = write(home / "s.jsonl", {"output_text": "a"}, {"choices": [{"message": {"content": "c"}}]})
    grader = write(home / "g.json", MULTI["graders"]["exact"])
    assert main(["grade", grader, data, "--samples", samples, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["lines"], found["score"]["mean"]) == (2, 0.5)
    assert main(["grade", grader, data, "--samples", write(home / "t.jsonl", {"output_text": "a"})]) == 1
    assert "1 samples" in capsys.readouterr().err


def test_faults_of_the_data_are_all_named_before_anything_is_graded(home, capsys):
    data = write(
        home / "d.jsonl", {"item": {"answer": "a"}}, {"item": {"b": 1}, "sample": "a"}, {"item": {}, "sample": 1}
    )
    assert main(["grade", write(home / "g.json", MULTI), data]) == 1
    said = capsys.readouterr().err
    assert "line 1: there is no sample" in said
    assert "line 2: the grader 'exact' reads {{ item.answer }}" in said
    assert "line 3: a sample must be" in said


def test_a_grader_that_is_wrong_is_refused_with_its_place(home, capsys):
    data = write(home / "d.jsonl", {"item": {}, "sample": "a"})
    assert main(["grade", write(home / "g.json", {**MULTI, "calculate_output": "none"}), data]) == 1
    assert "grader.calculate_output" in capsys.readouterr().err
    (home / "broken.json").write_text("{", "utf-8")
    assert main(["grade", str(home / "broken.json"), data]) == 1
    assert "is not JSON" in capsys.readouterr().err


def test_the_servers_models_judge(home, capsys):
    data = write(home / "d.jsonl", {"item": {"q": "1"}, "sample": "a"}, {"item": {"q": "2"}, "sample": "a"})
    choice = {"message": {"role": "assistant", "content": '{"result": 0.25}'}, "finish_reason": "stop"}
    answers = {
        ("GET", "/models/big"): {"id": "big"},
        ("POST", "/chat/completions"): {"model": "big", "choices": [choice], "usage": {"total_tokens": 3}},
    }
    with scripted(answers) as server:
        assert main(["grade", write(home / "g.json", JUDGE), data, "--url", server.url]) == 0
        bodies = [json.loads(body) for body in server.bodies("POST", "/chat/completions")]
    assert sorted(body["messages"][1]["content"] for body in bodies) == ["1", "2"]
    assert "6 tokens of big" in capsys.readouterr().out
    with scripted({}) as server:
        assert main(["grade", write(home / "g.json", JUDGE), data, "--url", server.url]) == 3


def test_a_file_of_which_nothing_can_be_graded_is_a_failure(home, capsys):
    choice = {"message": {"role": "assistant", "content": "seven"}, "finish_reason": "stop"}
    answers = {("GET", "/models/big"): {"id": "big"}, ("POST", "/chat/completions"): {"choices": [choice]}}
    data = write(home / "d.jsonl", {"item": {"q": "1"}, "sample": "a"})
    with scripted(answers) as server:
        assert main(["grade", write(home / "g.json", JUDGE), data, "--url", server.url]) == 1
    shown = capsys.readouterr()
    assert "model_grader_parse_error of j" in shown.out
    assert "No line" in shown.err
