import io
import json

import pytest

from tunekeeper.datasets import check
from tunekeeper.datasets.report import Report


def data(*pairs: tuple[str, str]) -> io.BytesIO:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]})
        for a, b in pairs
    ]
    return io.BytesIO("\n".join(lines).encode())


@pytest.fixture(scope="module")
def faulty() -> Report:
    pairs = [(f"question {n}", "yes" if n % 10 else "no") for n in range(30)]
    broken = io.BytesIO(data(*pairs, *[("question 0", "no")] * 8).getvalue() + b"\n{}\n[]\n")
    return check(broken, validation=data(("question 1", "yes")))


def test_json_holds_everything_and_survives_a_round_trip(faulty: Report) -> None:
    value = faulty.to_json()
    assert json.loads(json.dumps(value)) == value
    assert (value["ok"], value["n_examples"], value["n_errors"]) == (False, 38, 2)
    assert value["faults"][0] == {
        "file": "training",
        "line": 39,
        "pointer": "",
        "code": "missing_messages",
        "level": "error",
        "message": faulty.faults[0].message,
    }
    assert value["counts"]["duplicate_example"] == 8
    assert value["labels"] == {"yes": 27, "no": 11}
    assert value["histogram"]["unit"] == "characters"


def test_findings_sum_up_what_many_lines_have_in_common(faulty: Report) -> None:
    by_code = {finding.code: finding for finding in faulty.findings}
    assert by_code["duplicate_example"].count == 8
    assert by_code["duplicate_example"].lines == tuple(range(31, 39))
    assert by_code["train_valid_overlap"].lines == (1,)
    assert by_code["label_balance"].level == "info"


def test_text_begins_with_the_verdict_and_shows_a_few_faults_of_each_kind(faulty: Report) -> None:
    text = faulty.to_text()
    first, second, *rest = text.splitlines()
    assert first == "38 examples; 1 for validation."
    assert second == "2 errors, 9 warnings. Correct the errors before training."
    assert "  duplicate_example: 3 more" in rest
    assert "  train_valid_overlap: (validation file) Line 1: the same example is line 2 of the training file." in rest
    assert rest.index("Errors") < rest.index("Warnings") < rest.index("The file as a whole")
    assert text.endswith("\n")


def test_a_summary_is_one_sentence(faulty: Report) -> None:
    assert faulty.summary.startswith('Line 39: "messages" is missing.')
    assert faulty.summary.endswith("(1 more error)")
    good = check(data(*[(f"q{n}", f"a{n}") for n in range(10)]))
    assert good.summary == "10 examples; 0 warnings."
    assert "Good to train on." in good.to_text()


def test_a_secret_never_stands_in_a_report() -> None:
    secret = "AKIA" + "IOSFODNN7EXAMPLE"
    report = check(data(*[(f"q{n}", secret) for n in range(6)], *[(f"x{n}", "no") for n in range(6)]))
    assert report.counts["possible_secret"] == 6
    assert secret not in json.dumps([finding.to_json() for finding in report.findings]) + report.to_text()
