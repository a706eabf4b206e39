"""Lines of data: items and samples in each form that they come in."""

import io
import json

import pytest

from tunekeeper.datasets.formats import Fault
from tunekeeper.graders.rows import Row, as_sample, read_rows, read_samples
from tunekeeper.graders.template import sample_of

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def stream(*lines):
    return io.BytesIO("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode())


def test_a_line_is_an_item_and_its_sample_or_all_of_it_an_item():
    rows = list(
        read_rows(
            stream(
                {"item": {"q": 1}, "sample": {"output_text": "a"}},
                {"item": {"q": 2}, "sample": "b"},
                {"item": {"q": 3}},
                {"q": 4, "messages": []},
                {"item": "a word", "q": 5},
                {"item": {"q": 6}, "other": 1},
            )
        )
    )
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.item for row in rows[:3]] == [{"q": 1}, {"q": 2}, {"q": 3}]
    assert [row.sample and row.sample["output_text"] for row in rows] == ["a", "b", None, None, None, None]
    assert rows[3].item == {"q": 4, "messages": []}
    assert rows[4].item == {"item": "a word", "q": 5}
    assert rows[5].item == {"item": {"q": 6}, "other": 1}


def test_bad_lines_are_faults_with_their_numbers():
    found = list(read_rows(stream("{", {"item": {}, "sample": 5}, {"item": {}, "sample": {}}, {"item": {}})))
    assert [(each.line, isinstance(each, Fault)) for each in found] == [(1, True), (2, True), (3, True), (4, False)]
    assert isinstance(found[3], Row)


@pytest.mark.parametrize(
    "value",
    [
        '{"a": 1}',
        {"output_text": '{"a": 1}'},
        {"output_text": '{"a": 1}', "output_tools": []},
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": '{"a": 1}'}, "finish_reason": "stop"}]},
    ],
)
def test_each_form_of_a_sample_is_the_same_sample(value):
    assert as_sample(value) == sample_of('{"a": 1}')


def test_a_chat_completion_brings_its_calls_and_its_model():
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    sample = as_sample({"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert (sample["output_text"], sample["output_tools"], sample["model"]) == ("", [CALL], "m")
    assert "output_json" not in sample


@pytest.mark.parametrize("value", [None, 5, [], {}, {"choices": []}, {"choices": [{"message": {"content": 5}}]}])
def test_what_is_no_sample_is_none(value):
    assert as_sample(value) is None


def test_a_file_of_samples_is_read_in_each_form():
    found = list(read_samples(stream({"sample": "a"}, {"output_text": "b"}, {"other": 1})))
    assert [each if isinstance(each, Fault) else each["output_text"] for each in found][:2] == ["a", "b"]
    assert found[2].line == 3
