import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekeeper.errors import InvalidRequest, InvalidState, Unavailable
from tunekeeper.graders._child import _DENIED, _filter, number
from tunekeeper.graders.build import build
from tunekeeper.graders.code import Cpython, Monty, PythonGrader, _imported, python_grader
from tunekeeper.graders.sandbox import Limits
from tunekeeper.graders.spec import MAX_SOURCE_BYTES
from tunekeeper.types import Json

LIMITS = Limits(time_s=2.0, memory_bytes=512 << 20, workers=2)
SAMPLE: Json = {"output_text": "the answer is 42", "choices": [{"message": {"role": "assistant", "content": "42"}}]}
ITEM: Json = {"answer": "42", "points": [1, 2.5, None, True, {"ü": "\n"}]}
NEEDS_CPYTHON = "import string\n"
"""monty has no such module."""

Make = Callable[[str], PythonGrader]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[PythonGrader] = []

    def make(source: str) -> PythonGrader:
        try:
            made.append(python_grader(source, limits=LIMITS))
        except Unavailable as why:
            pytest.skip(str(why))
        return made[-1]

    yield make
    for grader in made:
        grader.close()


@pytest.fixture(params=["", NEEDS_CPYTHON], ids=["monty", "cpython"])
def runner(request: pytest.FixtureRequest) -> str:
    """What to put before a source, so that this runner takes it."""
    return str(request.param)


def test_a_grader_scores_in_either_runner(make: Make, runner: str) -> None:
    grader = make(f"{runner}def grade(sample, item):\n    return float(item['answer'] in sample['output_text']) / 4")
    grade = grader.grade(SAMPLE, ITEM)
    assert (grade.score, grade.faults) == (0.25, ())
    assert grade.details == {"runner": grader.runner}
    assert grader.runner == ("cpython" if runner else "monty")
    assert grade.execution_time_s > 0


def test_the_reason_for_cpython_names_line_and_module(make: Make) -> None:
    grader = make(
        "def grade(sample, item):\n    import difflib\n    return difflib.SequenceMatcher(a='ab', b='ab').ratio()"
    )
    assert grader.runner == "cpython"
    assert "difflib" in grader.reason
    assert grader.grade(SAMPLE, ITEM).score == 1.0


@pytest.mark.parametrize(
    "source",
    [
        "def halves():\n    yield 0.5\n\ndef grade(sample, item):\n    return sum(halves())",
        "class Base:\n    pass\nclass Half(Base):\n    value = 0.5\ndef grade(sample, item):\n    return Half.value",
        "import dataclasses as d\n@d.dataclass\nclass P:\n    x: float\ndef grade(sample, item):\n    return P(0.5).x",
        "from string import ascii_letters\ndef grade(sample, item):\n    return len(ascii_letters) / 104",
        "grade = type('G', (), {'__call__': lambda self, sample, item: 0.5})()",
    ],
)
def test_what_monty_lacks_runs_in_cpython(make: Make, source: str) -> None:
    assert make(source).grade(SAMPLE, ITEM).score == 0.5


def test_what_raises_in_monty_alone_is_done_again_in_cpython(make: Make) -> None:
    grader = make("def grade(sample, item):\n    return 0.5 if 'a'.translate({97: 'b'}) == 'b' else 1")
    grade = grader.grade(SAMPLE, ITEM)
    assert (grader.runner, grade.details["runner"], grade.score, grade.faults) == ("monty", "cpython", 0.5, ())


def test_text_that_monty_cannot_hold_reaches_cpython(make: Make) -> None:
    grade = make("def grade(sample, item):\n    return len(item['answer'])").grade(SAMPLE, {"answer": "a\ud800"})
    assert (grade.score, grade.faults, grade.details["runner"]) == (2.0, (), "cpython")


@pytest.mark.parametrize(
    ("returned", "word"),
    [
        ("None", "nothing"),
        ("'1.0'", "str"),
        ("True", "bool"),
        ("[1.0]", "list"),
        ("1j", "complex"),
        ("float('nan')", "nan"),
        ("-float('inf')", "inf"),
        ("10 ** 400", "no float can hold"),
    ],
)
def test_what_is_no_finite_number_is_a_fault_and_no_score(make: Make, runner: str, returned: str, word: str) -> None:
    grade = make(f"{runner}def grade(sample, item):\n    return {returned}").grade(SAMPLE, ITEM)
    (fault,) = grade.faults
    assert (grade.score, fault.kind, fault.type, fault.grader) == (0.0, "python_grader_runtime_error", None, "")
    assert word in fault.message


def test_an_exception_is_a_fault_with_the_line_of_the_source(make: Make, runner: str) -> None:
    source = f"{runner}def inner(x):\n    return 1 / x\n\ndef grade(sample, item):\n    return inner(0)"
    (fault,) = make(source).grade(SAMPLE, ITEM).faults
    line = 2 + runner.count("\n")
    assert fault.message == f"ZeroDivisionError: division by zero (line {line}, in inner: return 1 / x)"


def test_a_grade_past_its_time_is_a_server_error(make: Make, runner: str) -> None:
    grade = make(f"{runner}def grade(sample, item):\n    while sample:\n        pass\n    return 0").grade(SAMPLE, ITEM)
    assert [(fault.kind, fault.type) for fault in grade.faults] == [("python_grader_server_error", "timeout")]
    assert grade.execution_time_s < 2 * LIMITS.time_s


def test_a_grade_past_its_memory_is_a_server_error(make: Make, runner: str) -> None:
    grade = make(f"{runner}def grade(sample, item):\n    return len('x' * (1 << 31)) * 1.0").grade(SAMPLE, ITEM)
    assert [(fault.kind, fault.type) for fault in grade.faults] == [("python_grader_server_error", "memory")]


def test_what_a_grader_prints_is_kept_and_capped(make: Make, runner: str) -> None:
    grade = make(f"{runner}def grade(sample, item):\n    print('seen', 'x' * 9000)\n    return 1").grade(SAMPLE, ITEM)
    assert grade.details["printed"].startswith("seen xxx")
    assert len(grade.details["printed"]) == 4000


def test_half_a_character_in_what_it_prints_or_raises_can_still_be_sent(runner: str) -> None:
    source = f"{runner}def grade(sample, item):\n    print(item['text'])\n    raise ValueError(item['text'])"
    try:
        grader = build({"type": "python", "source": source})
    except Unavailable as why:
        pytest.skip(str(why))
    grade = grader.grade(SAMPLE, {"text": "a\ud800"})
    grader.close()
    assert grade.details["printed"] == "a?\n"
    assert "ValueError: a?" in grade.faults[0].message


def test_imports_are_found_in_no_long_time() -> None:
    assert _imported("import a.b as c, d\nfrom e.f import g\n    from h import i") == ["a", "d", "e", "h"]
    assert _imported("from " + "x" * MAX_SOURCE_BYTES) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\ndef grade(sample, item)\n    return 1", ("line 2", "expected")),
        ("x = 1", ("no function grade",)),
        ("grade = 1", ("no function grade",)),
        ("def grade(sample): return 1", ("(sample, item)", "grade")),
        ("def grade(sample, item, third): return 1", ("(sample, item)", "third")),
        ("x = 1\ny = x / 0\ndef grade(sample, item): return 1", ("ZeroDivisionError", "line 2")),
        ("import tunekeeper\ndef grade(sample, item): return 1", ("ModuleNotFoundError", "line 1", "numpy")),
        ("import torch\ndef grade(sample, item): return 1", ("ModuleNotFoundError", "torch")),
        (NEEDS_CPYTHON + "def grade(sample, item): return '\0'", ("null",)),
        ("x = " + "(" * 5000, ("line 1",)),
    ],
)
def test_source_that_is_no_grader_is_refused(make: Make, source: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make(source)
    assert refused.value.param == "source"
    for word in words:
        assert word.lower() in refused.value.message.lower()


def test_source_over_its_size_is_refused_before_anything_runs() -> None:
    with pytest.raises(InvalidRequest, match="262145 bytes"):
        python_grader("#" * (MAX_SOURCE_BYTES + 1))


def test_the_largest_source_is_taken(make: Make) -> None:
    source = "def grade(sample, item): return 1.0\n#"
    assert make(source + "x" * (MAX_SOURCE_BYTES - len(source))).grade(SAMPLE, ITEM).score == 1.0


def test_nothing_stays_from_one_grade_to_the_next(make: Make, runner: str) -> None:
    source = f"{runner}n = []\ndef grade(sample, item):\n    n.append(1)\n    return len(n)"
    grader = make(source)
    assert [grader.grade(SAMPLE, ITEM).score for _ in range(3)] == [1.0, 1.0, 1.0]


def test_chance_and_the_order_of_sets_are_the_same_each_time(make: Make, runner: str) -> None:
    source = f"{runner}import random\ndef grade(sample, item):\n    return random.random()"
    scores = {make(source).grade(SAMPLE, ITEM).score for _ in range(3)}
    assert len(scores) == 1
    ordered = f"{NEEDS_CPYTHON}def grade(sample, item):\n    return list({{'a', 'b', 'c', 'd', 'e'}}).index('c')"
    assert len({make(ordered).grade(SAMPLE, ITEM).score for _ in range(3)}) == 1


def test_many_threads_get_their_own_scores(make: Make, runner: str) -> None:
    grader = make(f"{runner}def grade(sample, item):\n    return item['n'] / 8")
    scores: dict[int, float] = {}

    def work(start: int) -> None:
        for n in range(start, 40, 4):
            scores[n] = grader.grade(SAMPLE, {"n": n}).score

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {n: n / 8 for n in range(40)}


def test_a_closed_grader_grades_no_more(make: Make, runner: str) -> None:
    grader = make(f"{runner}def grade(sample, item): return 1")
    grader.close()
    grader.close()
    with pytest.raises(InvalidState):
        grader.grade(SAMPLE, ITEM)


def test_a_library_that_the_source_names_is_there(make: Make) -> None:
    pytest.importorskip("numpy")
    source = "import numpy as np\ndef grade(sample, item):\n    return np.array([1, 2, 3], dtype=np.float32).mean()"
    assert make(source).grade(SAMPLE, ITEM).score == 2.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module", params=[Monty, Cpython])
def echo(request: pytest.FixtureRequest) -> Iterator[Monty | Cpython]:
    """Scores 1 where the item arrived with its parts' types and values."""
    source = "def grade(sample, item):\n    return float(repr(item['value']) == sample['text']) + item['score']"
    try:
        runner = request.param(source, Limits(time_s=10.0, workers=1))
    except Unavailable as why:
        pytest.skip(str(why))
    yield runner
    runner.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=json_values, score=st.floats(allow_nan=False, allow_infinity=False, max_value=1e300, min_value=-1e300))
def test_items_and_scores_cross_unchanged(echo: Monty | Cpython, value: object, score: float) -> None:
    result = echo.run({"text": repr(value)}, {"value": value, "score": score})
    assert result.get("score") in (score, 1.0 + score), result
    if isinstance(echo, Cpython):  # monty writes some texts' repr differently
        assert result["score"] == 1.0 + score


@given(value=st.integers() | st.floats() | st.fractions())
def test_a_number_is_itself_or_refused(value: float) -> None:
    try:
        expected = float(value)
    except OverflowError:
        expected = math.inf
    if math.isfinite(expected):
        assert number(value) == expected
    else:
        with pytest.raises(ValueError, match="grade returned"):
            number(value)


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_denies_each_call_of_its_machine(machine: str, column: int) -> None:
    """Runs the program as the kernel does: an accumulator, and jumps over instructions."""
    import struct

    program = list(struct.iter_unpack("HBBI", _filter(machine)))
    audit = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def decide(call: int, argument: int = 0, arch: int = audit) -> int:
        data, accumulator, at = {0: call, 4: arch, 16: argument}, 0, 0
        while True:
            code, yes, no, k = program[at]
            if code == 0x20:
                accumulator, at = data[k], at + 1
            elif code == 0x06:
                return k
            else:
                at += 1 + (yes if (accumulator == k if code == 0x15 else accumulator >= k) else no)

    allow, eperm, enosys, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    denied = {numbers[column] for numbers in _DENIED.values()} - {None}
    prlimit64 = {"x86_64": 302, "aarch64": 261}[machine]
    for call in range(424):
        assert decide(call) == (eperm if call in denied else allow)
    assert (decide(prlimit64, 0), decide(prlimit64, 1)) == (allow, eperm)
    assert {decide(call) for call in (424, 435, 450, 0x40000000 + 57)} == {enosys}
    assert decide(0, arch=0x40000003) == kill


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, ("apt-get install bubblewrap",)),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", ("No permissions", "user namespaces")),
        ("exit 0", ("cannot make a sandbox",)),
    ],
)
def test_without_a_sandbox_a_grader_that_needs_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: tuple[str, ...]
) -> None:
    if script is not None:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable) as refused:
        python_grader(NEEDS_CPYTHON + "def grade(sample, item): return 1")
    for word in ("string", *words):
        assert word in refused.value.message
    pytest.importorskip("pydantic_monty")
    grader = python_grader("def grade(sample, item): return 1 if item else item['no']")
    assert grader.grade(SAMPLE, ITEM).score == 1.0
    (fault,) = grader.grade(SAMPLE, {}).faults
    grader.close()
    assert fault.kind == "python_grader_runtime_error"
    assert "KeyError" in fault.message
