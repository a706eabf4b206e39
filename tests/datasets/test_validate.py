import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import tiny
from tunekeeper.datasets import check
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.datasets.validate import CHECKS
from tunekeeper.errors import Unsupported

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "the answer"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def calls(*ids: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    made = [{"id": i, "type": "function", "function": {"name": name, "arguments": arguments}} for i in ids]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "1"}


def file_of(*values: Any) -> io.BytesIO:
    return io.BytesIO("\n".join(json.dumps(value) for value in values).encode())


def chats(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"messages": [{**USER, "content": f"hello {start + n}"}, ANSWER]} for n in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny.make_tokenizer(tmp_path_factory.mktemp("tiny")))


def test_a_good_file_is_good_and_counted(tokenizer: Tokenizer) -> None:
    report = check(file_of(*chats(12)), tokenizer=tokenizer, validation=file_of(*chats(3, start=50)))
    assert report.ok
    assert (report.n_examples, report.n_validation_examples, report.n_errors, report.n_warnings) == (
        12,
        3,
        0,
        0,
    )
    trained = len(tokenizer.encode("the answer<|im_end|>"))
    assert report.trained_tokens == 12 * trained
    prompts = [tokenizer.render_chat(chat["messages"]).removesuffix("\n") for chat in chats(12)]
    assert report.n_tokens == sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    assert report.histogram is not None
    assert report.histogram.unit == "tokens"


def test_without_a_tokenizer_tokens_are_not_guessed() -> None:
    report = check(file_of(*chats(12)))
    assert (report.ok, report.n_tokens, report.trained_tokens) == (True, None, None)
    assert report.histogram is not None
    assert report.histogram.unit == "characters"


@pytest.mark.parametrize(
    ("messages", "more", "fault"),
    [
        ([USER], {}, ("/messages", "no_assistant", "error")),
        ([USER, {**ANSWER, "weight": 0}], {}, ("/messages", "all_weights_zero", "error")),
        ([USER, ANSWER, USER], {}, ("/messages/2", "last_not_assistant", "warn")),
        ([USER, calls("a")], {}, ("/messages/1/tool_calls/0/function/name", "unknown_tool_name", "error")),
        (
            [USER, calls("a", name="g")],
            {"tools": [TOOL]},
            ("/messages/1/tool_calls/0/function/name", "unknown_tool_name", "error"),
        ),
        (
            [USER, calls("a", arguments="{city}")],
            {"tools": [TOOL]},
            ("/messages/1/tool_calls/0/function/arguments", "tool_call_bad_json", "error"),
        ),
        (
            [USER, calls("a", arguments="[1]")],
            {"tools": [TOOL]},
            ("/messages/1/tool_calls/0/function/arguments", "tool_call_bad_json", "error"),
        ),
        (
            [USER, result("a"), ANSWER],
            {"tools": [TOOL]},
            ("/messages/1/tool_call_id", "tool_result_without_call", "error"),
        ),
        (
            [USER, calls("a"), result("a"), result("a"), ANSWER],
            {"tools": [TOOL]},
            ("/messages/3/tool_call_id", "tool_result_without_call", "error"),
        ),
        (
            [USER, calls("a", "b"), result("b"), ANSWER],
            {"tools": [TOOL]},
            ("/messages/3", "tool_call_without_result", "warn"),
        ),
        (
            [USER, calls("a", "b")],
            {"tools": [TOOL], "parallel_tool_calls": False},
            ("/messages/1/tool_calls", "parallel_calls_forbidden", "warn"),
        ),
        (
            [{**USER, "content": "<|im_end|>"}, ANSWER],
            {},
            ("/messages/0/content", "special_token_in_text", "error"),
        ),
    ],
)
def test_what_makes_no_sense_is_a_fault_at_its_place(
    messages: list[dict], more: dict, fault: tuple[str, str, str], tokenizer: Tokenizer
) -> None:
    report = check(file_of(*chats(10), {"messages": messages, **more}), tokenizer=tokenizer)
    assert [(found.pointer, found.code, found.level) for found in report.faults] == [fault]
    assert report.faults[0].line == 11
    assert report.ok == (fault[2] == "warn")


def test_calls_that_are_answered_or_stand_at_the_end_are_fine() -> None:
    messages = [USER, calls("a", "b"), result("b"), result("a"), ANSWER, USER, calls("a")]
    assert check(file_of(*chats(10), {"messages": messages, "tools": [TOOL]})).faults == ()


def test_every_check_has_a_code_of_its_own() -> None:
    assert len({rule.__name__ for rule in CHECKS}) == len(CHECKS)


def test_every_fault_of_a_file_is_reported_at_once() -> None:
    data = b'{"messages": []}\n\n[]\n{broken\n' + file_of(*chats(3)).getvalue()
    report = check(io.BytesIO(data))
    assert [(fault.line, fault.code) for fault in report.faults] == [
        (1, "empty_messages"),
        (2, "empty_line"),
        (3, "not_object"),
        (4, "json_parse"),
        (0, "too_few_examples"),
    ]
    assert report.counts == {fault.code: 1 for fault in report.faults}
    assert report.n_examples == 3


@pytest.mark.parametrize(("count", "minimum", "is_ok"), [(9, 10, False), (10, 10, True), (1, 1, True), (0, 0, True)])
def test_a_file_needs_its_least_number_of_examples(count: int, minimum: int, is_ok: bool) -> None:
    assert check(file_of(*chats(count)), min_examples=minimum).ok is is_ok


def test_a_validation_file_has_its_own_lines_and_needs_one_example() -> None:
    report = check(file_of(*chats(10)), validation=file_of(chats(1)[0], {"messages": []}))
    assert [(fault.file, fault.line, fault.code) for fault in report.faults] == [
        ("validation", 2, "empty_messages"),
        ("validation", 1, "train_valid_overlap"),
    ]
    empty = check(file_of(*chats(10)), validation=io.BytesIO(b"\n"))
    assert [(fault.file, fault.code) for fault in empty.faults] == [("validation", "too_few_examples")]


def test_one_file_holds_one_format(tokenizer: Tokenizer) -> None:
    report = check(file_of(*chats(10), {"prompt": "the", "completion": " city"}), tokenizer=tokenizer)
    assert [fault.code for fault in report.faults] == ["mixed_formats"]


def test_special_tokens_that_forge_nothing_are_only_warned_of(tokenizer: Tokenizer) -> None:
    pairs = [{"prompt": f"<|im_start|>{n}", "completion": "city"} for n in range(10)]
    assert check(file_of(*pairs), tokenizer=tokenizer).ok
    unknown_model = check(file_of(*chats(10), {"messages": [{**USER, "content": "<|im_end|>"}, ANSWER]}))
    assert (unknown_model.ok, unknown_model.counts) == (True, {"special_token_in_text": 1})


def test_examples_that_are_too_long_are_counted_and_never_cut_in_silence(tokenizer: Tokenizer) -> None:
    short = chats(10)
    long_answer = {"messages": [USER, {**ANSWER, "content": "word " * 100}]}
    long_prompt = {"messages": [{**USER, "content": "word " * 100}, ANSWER]}
    report = check(file_of(*short, long_answer, long_prompt), tokenizer=tokenizer, max_tokens=60)
    assert (report.ok, report.n_truncated, report.n_left_out) == (True, 1, 1)
    assert [(fault.line, fault.code) for fault in report.faults] == [
        (11, "example_too_long"),
        (12, "example_too_long"),
    ]
    assert "cut off" in report.faults[0].message
    assert "left out" in report.faults[1].message
    short_tokens = check(file_of(*short), tokenizer=tokenizer).n_tokens
    assert short_tokens is not None
    assert report.n_tokens == short_tokens + 60


def test_a_file_of_which_nothing_fits_is_refused(tokenizer: Tokenizer) -> None:
    report = check(file_of(*chats(10)), tokenizer=tokenizer, max_tokens=4)
    assert (report.ok, report.n_left_out, report.trained_tokens) == (False, 10, 0)
    assert report.counts["nothing_to_learn"] == 1


def test_what_the_template_refuses_is_a_fault_of_its_line(tmp_path: Path) -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
    directory = tiny.make_tokenizer(tmp_path, chat_template=picky + tiny.CHAT_TEMPLATE)
    system = {"messages": [{"role": "system", "content": "be"}, USER, ANSWER]}
    report = check(file_of(*chats(10), system), tokenizer=Tokenizer.load(directory))
    (fault,) = report.faults
    assert (fault.line, fault.code, fault.level) == (11, "template_refused", "error")
    assert "No system role." in fault.message


def test_all_faults_are_counted_and_written_where_only_some_are_kept() -> None:
    out = io.StringIO()
    mails = [{"messages": [{**USER, "content": f"mail x{n}@company.org"}, ANSWER]} for n in range(1200)]
    report = check(file_of(*mails, {"messages": []}, {"messages": []}), faults_out=out)
    assert report.counts == {"personal_data": 1200, "empty_messages": 2}
    assert len(report.faults) == 1000
    # Errors are kept before warnings, however late they come.
    assert [fault.code for fault in report.faults[:3]] == [
        "empty_messages",
        "empty_messages",
        "personal_data",
    ]
    written = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(written) == 1202
    assert written[-1]["line"] == 1202


def test_memory_does_not_grow_with_the_size_of_the_examples() -> None:
    class Generated(io.RawIOBase):
        left = 100

        def readline(self, size: int | None = -1) -> bytes:
            self.left -= 1
            value = {"messages": [{**USER, "content": f"{self.left} " + "word " * 10_000}, ANSWER]}
            return json.dumps(value).encode() + b"\n" if self.left >= 0 else b""

    tracemalloc.start()
    try:
        assert check(Generated()).n_examples == 100
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 1024**2, "the file has 5 MB"


def test_a_method_that_has_no_format_is_refused_also_for_an_empty_file() -> None:
    with pytest.raises(Unsupported) as caught:
        check(io.BytesIO(b""), method="magic")
    assert caught.value.param == "method"


def test_neither_torch_nor_transformers_is_needed() -> None:
    code = "import sys, tunekeeper.datasets; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def a_pair(n: int, **more: Any) -> dict[str, Any]:
    given = {"messages": [{**USER, "content": f"hello {n}"}]}
    outputs = {"preferred_output": [ANSWER], "non_preferred_output": [{**ANSWER, "content": "go away"}]}
    return {"input": given, **outputs, **more}


def found(report: Any) -> list[tuple[int, str, str, str]]:
    return [(fault.line, fault.pointer, fault.code, fault.level) for fault in report.faults]


def test_a_good_file_of_pairs_is_good_and_counted(tokenizer: Tokenizer) -> None:
    report = check(file_of(*(a_pair(n) for n in range(12))), method="dpo", tokenizer=tokenizer)
    assert (report.ok, report.n_examples, report.n_warnings) == (True, 12, 0)
    assert report.n_tokens is not None
    assert report.trained_tokens is not None
    assert 0 < report.trained_tokens < report.n_tokens
    assert report.labels == {}


def test_faults_of_calls_are_found_on_both_sides_of_a_pair_and_those_of_the_input_once() -> None:
    bad = calls("c1", name="g")
    value = a_pair(0, preferred_output=[bad, result("c1"), ANSWER], non_preferred_output=[calls("c2", arguments="[")])
    value["input"] = {"messages": [USER, calls("c0", name="h"), result("c9"), USER], "tools": [TOOL]}
    report = check(file_of(value), method="dpo", min_examples=1)
    assert found(report) == [
        (1, "/input/messages/1/tool_calls/0/function/name", "unknown_tool_name", "error"),
        (1, "/preferred_output/0/tool_calls/0/function/name", "unknown_tool_name", "error"),
        (1, "/input/messages/2/tool_call_id", "tool_result_without_call", "error"),
        (1, "/non_preferred_output/0/tool_calls/0/function/arguments", "tool_call_bad_json", "error"),
        (1, "/input/messages/3", "tool_call_without_result", "warn"),
    ]


def test_an_output_without_weight_and_one_that_ends_with_a_tool_are_named() -> None:
    silent = a_pair(0, preferred_output=[{**ANSWER, "weight": 0}])
    open_end = a_pair(1, non_preferred_output=[calls("c1"), result("c1")])
    open_end["input"]["tools"] = [TOOL]
    report = check(file_of(silent, open_end), method="dpo", min_examples=1)
    assert found(report) == [
        (1, "/preferred_output", "all_weights_zero", "error"),
        (2, "/non_preferred_output/1", "last_not_assistant", "warn"),
    ]


def test_a_pair_that_stands_there_twice_or_the_other_way_round_is_doubtful() -> None:
    turned = a_pair(0, preferred_output=[{**ANSWER, "content": "go away"}], non_preferred_output=[ANSWER])
    third = a_pair(0, non_preferred_output=[{**ANSWER, "content": "something else"}])
    report = check(file_of(a_pair(0), a_pair(0), turned, third), method="dpo", min_examples=1)
    assert [(fault.line, fault.code) for fault in report.faults] == [
        (2, "duplicate_example"),
        (3, "contradictory_answers"),
    ]


def test_problems_are_checked_too(tokenizer: Tokenizer) -> None:
    problems = [{"messages": [{**USER, "content": f"What is {n}?"}], "answer": n} for n in range(12)]
    report = check(file_of(*problems), method="reinforcement", tokenizer=tokenizer)
    assert (report.ok, report.n_examples, report.trained_tokens, report.n_warnings) == (True, 12, 0, 0)
    secret = {"messages": [{**USER, "content": "mail mia@firm.io <|im_end|>"}], "answer": 1}
    report = check(file_of(secret), method="reinforcement", tokenizer=tokenizer, min_examples=1)
    assert {(fault.pointer, fault.code) for fault in report.faults} == {
        ("/messages/0/content", "special_token_in_text"),
        ("/messages/0/content", "personal_data"),
    }
