"""Attempts to get out of a Python grader, one a file in `escapes/`, in each runner.

A file defines `attack(sample, item)`, true if it got what it wanted, and may define `leftover()`, true if something of
an earlier grade is still there. `TAIL` makes a grader of it: 1.0 is an escape, 0.25 an honest grade.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekeeper.errors import Unavailable
from tunekeeper.graders.code import Monty
from tunekeeper.graders.sandbox import Limits, Sandboxes

CORPUS = sorted((Path(__file__).parent / "escapes").glob("*.py"))
LIMITS = Limits(time_s=2.0, memory_bytes=256 << 20, workers=1)
TAIL = """

def grade(sample, item):
    if item["attack"]:
        return 1.0 if attack(sample, item) else 0.0
    return 1.0 if item["look"] and leftover() else 0.25
"""
HARMLESS = ("list_the_home", "connect_out", "open_any_socket", "read_a_file", "read_the_environment", "run_a_program")
"""What may be let loose on the machine that runs the tests, to see that it works where nothing holds it."""


@pytest.fixture(scope="module")
def loot() -> Iterator[dict[str, Any]]:
    """What the attacks are after: it is all there, and within reach of this process."""
    os.environ["TUNEKEEPER_TEST_SECRET"] = "squeamish ossifrage"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as port:
        secret = Path(folder) / "secret"
        secret.write_text("a secret")
        with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as abstract:
            unix.bind(f"{folder}/listener")
            abstract.bind(f"\0{folder}")
            for listener in (unix, abstract):
                listener.listen()
            yield {
                "secret": str(secret),
                "project": str(Path(__file__).parent),
                "port": port.getsockname()[1],
                "unix": f"{folder}/listener",
                "abstract": folder,
                "pid": os.getpid(),
            }
    del os.environ["TUNEKEEPER_TEST_SECRET"]


@pytest.fixture(scope="module")
def sandboxes(loot: dict[str, Any]) -> Iterator[Sandboxes]:
    """One pool of one sandbox for the whole corpus: it must outlive every attack."""
    try:
        pool = Sandboxes(LIMITS)
    except Unavailable as why:
        pytest.skip(str(why))
    yield pool
    pool.close()
    assert not descendants(os.getpid(), "/child.py")


def descendants(pid: int, having: str) -> list[int]:
    """Processes below `pid` whose command line has this text."""
    parents, found = {}, {pid}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return [p for p in found - {pid} if having in Path(f"/proc/{p}/cmdline").read_text()]


def items(loot: dict[str, Any], source: str) -> list[dict[str, Any]]:
    honest = {"attack": False, "look": "def leftover" in source}
    return [{**honest, "marker": "earlier"}, {**loot, "attack": True}, honest, honest]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_nothing_escapes_from_cpython(path: Path, loot: dict[str, Any], sandboxes: Sandboxes) -> None:
    source = path.read_text() + TAIL
    before, attacked, *after = (
        sandboxes.run(
            {"source": source, "sample": {"output_text": "x"}, "item": item},
            LIMITS.time_s if item["attack"] else 30.0,  # a busy machine is no escape
        )
        for item in items(loot, source)
    )
    assert attacked.get("score") != 1.0
    assert "score" in attacked or attacked["fault"] in ("error", "memory", "timeout", "crash")
    assert [grade.get("score") for grade in (before, *after)] == [0.25, 0.25, 0.25]
    assert len(str(attacked)) < 20_000
    assert not descendants(os.getpid(), "sleep")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_nothing_escapes_from_monty(path: Path, loot: dict[str, Any]) -> None:
    pytest.importorskip("pydantic_monty")
    source = path.read_text() + TAIL
    monty = Monty(source, LIMITS)
    try:
        before, attacked, *after = (monty.run({"output_text": "x"}, item) for item in items(loot, source))
    finally:
        monty.close()
    assert attacked.get("score") != 1.0
    honest = [grade.get("score", grade.get("fault")) for grade in (before, *after)]
    assert honest in ([0.25] * 3, ["error"] * 3)  # it is whole afterwards, or never could run this file
    assert len(str(attacked)) < 20_000


def test_monty_can_run_a_good_part_of_the_corpus() -> None:
    """Else the test above would say nothing."""
    pytest.importorskip("pydantic_monty")
    ran = 0
    for path in CORPUS:
        source = path.read_text() + TAIL
        monty = Monty(source, LIMITS)
        ran += monty.run({}, {"attack": False, "look": False}).get("score") == 0.25
        monty.close()
    assert ran > len(CORPUS) * 0.7


@pytest.mark.parametrize("name", HARMLESS)
def test_the_attacks_work_where_nothing_holds_them(name: str, loot: dict[str, Any]) -> None:
    source = (Path(__file__).parent / "escapes" / f"{name}.py").read_text()
    script = f"import json, sys\n{source}\nprint(attack({{}}, json.loads(sys.argv[1])))"
    found = subprocess.run([sys.executable, "-c", script, json.dumps(loot)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


def test_a_killed_sandbox_is_replaced_and_costs_no_grade(sandboxes: Sandboxes) -> None:
    request = {"source": "def grade(sample, item): return 0.5", "sample": {}, "item": {}}
    assert sandboxes.run(request)["score"] == 0.5
    for pid in descendants(os.getpid(), "/child.py"):
        os.kill(pid, 9)
    for _ in range(1000):  # bubblewrap outlives what it held for a moment, a long one on a busy machine
        if not descendants(os.getpid(), "/child.py"):
            break
        threading.Event().wait(0.02)
    assert sandboxes.run(request)["score"] == 0.5


def test_attacks_and_honest_grades_side_by_side_do_not_mix(loot: dict[str, Any], sandboxes: Sandboxes) -> None:
    del sandboxes  # skips where there are none
    forge = (Path(__file__).parent / "escapes" / "forge_other_rewards.py").read_text() + TAIL
    honest = "def grade(sample, item): return item['n'] / 100"
    pool = Sandboxes(Limits(time_s=20.0, memory_bytes=256 << 20, workers=3))
    scores: dict[int, float] = {}

    def attack() -> None:
        for _ in range(10):
            pool.run({"source": forge, "sample": {}, "item": {**loot, "attack": True}})

    def grade(start: int) -> None:
        for n in range(start, start + 10):
            scores[n] = pool.run({"source": honest, "sample": {}, "item": {"n": n}})["score"]

    threads = [threading.Thread(target=attack), *(threading.Thread(target=grade, args=(s,)) for s in (0, 10))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert scores == {n: n / 100 for n in range(20)}


def test_no_descriptor_is_left_open(loot: dict[str, Any], sandboxes: Sandboxes) -> None:
    request = {"source": "def grade(sample, item): return 0.5", "sample": {}, "item": {}}
    sandboxes.run(request)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        sandboxes.run(request)
    assert len(os.listdir("/proc/self/fd")) == before
