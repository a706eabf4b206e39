import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tunekeeper.datasets.formats import ChatExample, CompletionExample
from tunekeeper.datasets.quality import (
    Comparison,
    Labels,
    Lengths,
    find_personal_data,
    find_secrets,
    sensitive_faults,
)

# Put together here, so that no scanner takes the test for a leak.
AWS_KEY = "AKIA" + "IOSFODNN7EXAMPLE"
API_KEY = "sk-" + "proj-abcdEFGH1234ijklMNOP5678"
RANDOM = "x9Kd72mQpL04vTzR"


def pair(line: int, question: str, answer: str, **more: Any) -> ChatExample:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer, **more})
    return ChatExample(line, messages)


def found(comparison: Comparison, example: ChatExample | CompletionExample, file: str = "training") -> list[str]:
    return [f"{fault.code} {fault.message}" for fault in comparison.add(example, file)]  # type: ignore[arg-type]


def test_a_repeat_is_found_whatever_its_spaces_and_form() -> None:
    comparison = Comparison()
    assert found(comparison, pair(1, "What is\nit?", "Caf\u00e9")) == []
    parts = [{"type": "text", "text": " What  is it? "}]
    repeat = ChatExample(2, ({"role": "user", "content": parts}, {"role": "assistant", "content": "Cafe\u0301 "}))
    assert found(comparison, repeat) == ["duplicate_example Line 2: the same example is line 1."]
    assert found(comparison, pair(3, "What is it?", "Café", weight=1)) != []


def test_another_answer_to_the_same_prompt_is_a_contradiction() -> None:
    comparison = Comparison()
    found(comparison, pair(1, "Capital?", "Paris"))
    said = "contradictory_answers Line 2: line 1 answers the same prompt otherwise."
    assert found(comparison, pair(2, "Capital?", "Rome")) == [said]
    assert found(comparison, pair(3, "Capital?", "Rome")) == ["duplicate_example Line 3: the same example is line 2."]
    assert found(comparison, pair(4, "Other?", "Rome")) == []


def test_different_calls_are_different_answers_whatever_their_ids() -> None:
    def calling(line: int, name: str, call_id: str) -> ChatExample:
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return ChatExample(line, ({"role": "user", "content": "Do"}, answer))

    comparison = Comparison()
    assert found(comparison, calling(1, "f", "a")) == []
    assert found(comparison, calling(2, "f", "b"))[0].startswith("duplicate_example")
    assert found(comparison, calling(3, "g", "c"))[0].startswith("contradictory_answers")


def test_a_validation_example_that_was_trained_on_is_a_leak() -> None:
    comparison = Comparison()
    found(comparison, CompletionExample(1, "a", "b"))
    leak = found(comparison, CompletionExample(9, "a ", "b"), "validation")
    assert leak == ["train_valid_overlap Line 9: the same example is line 1 of the training file."]
    assert found(comparison, CompletionExample(10, "a", "c"), "validation") == []


def test_a_function_that_changes_between_examples_is_said_with_its_place() -> None:
    def offering(line: int, description: str) -> ChatExample:
        tool = {"type": "function", "function": {"name": "f", "description": description}}
        return ChatExample(line, pair(line, f"q{line}", "a").messages, (tool,))

    comparison = Comparison()
    assert list(comparison.add(offering(1, "one"))) == []
    assert list(comparison.add(offering(2, "one"))) == []
    (fault,) = comparison.add(offering(3, "two"))
    assert (fault.code, fault.pointer, fault.level) == ("inconsistent_tools", "/tools/0", "warn")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"key {AWS_KEY}.", "an AWS access key"),
        (f"use {API_KEY}", "an API key"),
        ("ghp_" + "a1B2" * 9, "a GitHub token"),
        ("xoxb-" + "123456789012-abcdef", "a Slack token"),
        ("AIza" + "Sy0123456789abcdefghijklmnopqrstuvw", "a Google API key"),
        ("hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567", "a Hugging Face token"),
        ("eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh12345678", "a JSON web token"),
        ("-----BEGIN " + "RSA PRIVATE KEY-----\nMII", "a private key"),
        (f"Authorization: Bearer {RANDOM}{RANDOM}", "a bearer token"),
        (f'password = "{RANDOM}"', "a password or key"),
        (f"API_KEY: {RANDOM}", "a password or key"),
        (json.dumps({"client_secret": RANDOM}), "a password or key"),
    ],
)
def test_secrets_are_found_and_masked(text: str, kind: str) -> None:
    (secret,) = find_secrets(text)
    assert secret.kind == kind
    assert len(secret.masked) <= 6
    assert "…" in secret.masked


@pytest.mark.parametrize(
    "text",
    [
        "The bearer of authenticationauthentication is here",
        "password: correcthorsebattery",
        "tokens = tokenizer.encode(text)",
        "a sk-ip and a risk-averse-approach-that-is-long",
        "-----BEGIN PUBLIC KEY-----",
        "AKIA is short",
    ],
)
def test_ordinary_text_holds_no_secret(text: str) -> None:
    assert list(find_secrets(text)) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@mail.company.co.uk, please", "an e-mail address"),
        ("call +49 (30) 1234-5678!", "a telephone number"),
        ("call (212) 555-0123", "a telephone number"),
        ("call 212-555-0123", "a telephone number"),
        ("call 03-1234-5678", "a telephone number"),
        ("card 4242 4242 4242 4242", "a card number"),
        ("card 378282246310005", "a card number"),
        ("to DE89 3704 0044 0532 0130 00", "an account number"),
        ("to GB82WEST12345698765432", "an account number"),
        ("SSN 856-45-6789", "a social security number"),
    ],
)
def test_personal_data_is_found_and_masked(text: str, kind: str) -> None:
    (item,) = find_personal_data(text)
    assert item.kind == kind
    assert len(item.masked) <= 6


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com and me@host.test",
        "card 4242 4242 4242 4243",
        "0000 0000 0000 0000",
        "DE88 3704 0044 0532 0130 00",
        "1234567890123456789012345678901234567890",
        "from 2024-11-22 to 2025-01-01, 10.0.0.1, v1.2.3-4",
        "666-12-3456 000-12-3456 123-45-6789",
        "a @ b, 3 + 4 = 7",
    ],
)
def test_ordinary_text_holds_no_personal_data(text: str) -> None:
    assert list(find_personal_data(text)) == []


@pytest.mark.parametrize(
    "text",
    [piece * (300_000 // len(piece)) for piece in ("a", "1 ", "token=", "a@", "+1-", "eyJa.", "sk-a")],
    ids=lambda text: text[:6],
)
@pytest.mark.parametrize("find", [find_secrets, find_personal_data])
def test_hostile_texts_take_linear_time(find: Callable[[str], Any], text: str) -> None:
    start = time.process_time()
    list(find(text))
    assert time.process_time() - start < 2, "quadratic time would be minutes"


def test_a_sensitive_text_is_said_with_line_place_and_mask_only() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"key": "{AWS_KEY}"}}'}}
    example = ChatExample(
        5,
        (
            {"role": "user", "content": "mail jane@company.org or joe@company.org"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ),
    )
    mail, key = sensitive_faults(example)
    assert (mail.line, mail.pointer, mail.code, mail.level) == (
        5,
        "/messages/0/content",
        "personal_data",
        "warn",
    )
    assert key.pointer == "/messages/1/tool_calls/0/function/arguments"
    assert "jane@company.org" not in mail.message
    assert AWS_KEY not in key.message


def labels(**counts: int) -> Labels:
    counted = Labels()
    for answer, count in counts.items():
        for _ in range(count):
            counted.add(answer)
    return counted


def test_labels_that_are_even_are_told_and_labels_that_are_not_are_warned_of() -> None:
    even, uneven = labels(yes=12, no=10).finding(), labels(yes=95, no=5).finding()
    assert even is not None
    assert uneven is not None
    assert (even.code, even.level) == ("label_balance", "info")
    assert (uneven.code, uneven.level, uneven.count) == ("label_imbalance", "warn", 100)
    assert '"yes" is 95% of 100' in uneven.message


def test_answers_that_are_no_labels_have_no_balance() -> None:
    assert labels(**{f"answer {n}": 1 for n in range(40)}).finding() is None
    assert labels(**{"x" * 65: 20, "y": 20}).finding() is None
    assert labels(**{f"answer {n}": 10 for n in range(51)}).counts == {}
    assert labels(same=30).counts == {}
    assert labels(b=5, a=15).counts == {"a": 15, "b": 5}


def test_lengths_are_summed_up_worked_by_hand() -> None:
    lengths = Lengths()
    assert lengths.histogram("tokens") is None
    for length in [0, 1, 2, 3, 3, 9, 9, 9, 9, 15]:
        lengths.add(length)
    histogram = lengths.histogram("tokens")
    assert histogram is not None
    assert histogram.buckets == ((0, 0, 1), (1, 1, 1), (2, 3, 3), (4, 7, 0), (8, 15, 5))
    assert (histogram.minimum, histogram.median, histogram.p95, histogram.maximum) == (0, 3, 15, 15)
    assert (histogram.mean, lengths.total) == (6.0, 60)
