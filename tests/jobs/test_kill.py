"""Kills, at random moments, of every process that a job needs: what comes out is what a run without them gives.

The moments are drawn from a seed and hung on the job's progress, so that they fall into every phase: start,
validation, steps, the writing of checkpoints and states, and the finish.
"""

import contextlib
import fcntl
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobshop import (
    Outcome,
    add_job,
    examples,
    finetune_until_killed,
    open_desk,
    outcome_of,
    wait_until,
)
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.prepare import Desk
from tunekeeper.jobs.worker import bury
from tunekeeper.types import TERMINAL, Job

EPOCHS = 2
VALIDATION = examples(4, first=100)
SEEDS = range(4)
VICTIMS = ("child", "child", "worker", "worker", "server", "server")

_SERVER = """
import sys, time
from pathlib import Path
from jobshop import settings_of
from tunekeeper.jobs.worker import Supervisor
Supervisor(settings_of(Path(sys.argv[1]))).start()
time.sleep(600)
"""


class Server:
    """The process that keeps the worker, and with it the only one that nobody starts again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with (self._home / "server.log").open("ab") as log:
            command = [sys.executable, "-c", _SERVER, str(self._home)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill it, and start it again without waiting for what it leaves behind to die."""
        self._process.kill()
        self._process.wait()
        self.start()

    def stop(self) -> None:
        """Kill it and wait until its worker is gone."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            wait_until(lambda: not _holder(self._home / "worker.lock"))


def _holder(lock: Path) -> int | None:
    """The process that holds a lock, if one does."""
    with contextlib.suppress(FileNotFoundError, ValueError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Outcome:
    desk = open_desk(tmp_path_factory.mktemp("undisturbed"), tiny_base)
    job = add_job(desk, validation=VALIDATION, n_epochs=EPOCHS)
    server = Server(desk.settings.home)
    try:
        wait_until(lambda: desk.store.get_job(job.id).status in TERMINAL)
        wait_until(lambda: not outcome_of(desk, job).left_over)  # tidied after it has ended
        return outcome_of(desk, job)
    finally:
        server.stop()
        desk.store.close()


def moments(desk: Desk, job: Job, dice: random.Random) -> Iterator[Callable[[], bool]]:
    """When to kill: in the validation, at two starts, in a step, while files are written, in the finish."""
    store, home, total = desk.store, desk.settings.home, 3 * EPOCHS
    directory = job_directory(home, job.id)
    early, late = sorted((dice.randint(1, total - 2), dice.randint(1, total - 2)))

    def is_writing() -> bool:
        files = any(home.glob("models/.*")) or any(directory.glob("state/.*"))
        return files and store.get_job(job.id).step > late

    yield lambda: (directory / "lock").exists()
    yield _starting(desk, job, dice.random())
    yield lambda: store.get_job(job.id).step >= early
    yield _starting(desk, job, dice.random())
    yield is_writing
    yield lambda: (directory / "trained").exists()


def _starting(desk: Desk, job: Job, delay_s: float) -> Callable[[], bool]:
    """True a while after the next training child came up."""
    lock = job_directory(desk.settings.home, job.id) / "lock"
    came_up: list[float] = []

    def is_now() -> bool:
        if not came_up and desk.store.get_job(job.id).status != "validating_files" and _holder(lock):
            came_up.append(time.monotonic())
        return bool(came_up) and time.monotonic() > came_up[0] + delay_s

    return is_now


def killed_again_and_again(seed: int, home: Path, base: Path) -> tuple[int, Outcome]:
    """Run a job, kill six processes of it on the way; returns the kills that hit it and what came out."""
    dice = random.Random(seed)
    desk = open_desk(home, base)
    job = add_job(desk, validation=VALIDATION, n_epochs=EPOCHS)
    server = Server(home)
    kills = 0

    def is_over() -> bool:
        return desk.store.get_job(job.id).status in TERMINAL

    try:
        for victim, is_now in zip(dice.sample(VICTIMS, len(VICTIMS)), moments(desk, job, dice), strict=True):
            wait_until(lambda is_now=is_now: is_now() or is_over(), every_s=0.002)
            time.sleep(dice.random() * 0.01)
            if victim == "server":
                server.kill()
            else:
                lock = home / "worker.lock" if victim == "worker" else job_directory(home, job.id) / "lock"
                wait_until(lambda lock=lock: _holder(lock) or is_over(), every_s=0.002)
                _kill_holder(lock)
            kills += not is_over()
        wait_until(is_over)
        assert desk.store.get_job(job.id).error is None
        server.stop()
        bury(desk.store, desk.settings)  # as the next worker does: the last kill may come before the tidying
        return kills, outcome_of(desk, job)
    finally:
        server.stop()
        desk.store.close()


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, tiny_base: Path, undisturbed: Outcome) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = [pool.submit(killed_again_and_again, seed, tmp_path / str(seed), tiny_base) for seed in SEEDS]
        kills, outcomes = zip(*(run.result() for run in runs), strict=True)
    assert sum(kills) >= 20  # of 24: one that came just after the finish does not count
    for outcome in outcomes:
        assert outcome == undisturbed


def _kill_holder(lock: Path) -> None:
    holder = _holder(lock)
    if holder is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, signal.SIGKILL)


def test_a_job_that_dies_before_each_of_its_writes_gives_the_same_bytes(desk: Desk, undisturbed: Outcome) -> None:
    job = add_job(desk, validation=VALIDATION, n_epochs=EPOCHS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobshop", "tunekeeper.trainer.loop", "tunekeeper.models.load", "torch._dynamo"])
    lives = 0
    while desk.store.get_job(job.id).status not in TERMINAL:
        lives += 1
        process = context.Process(target=finetune_until_killed, args=(desk.settings.home, job.id, lives))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        process.close()
    bury(desk.store, desk.settings)
    assert lives > 20
    assert outcome_of(desk, job) == undisturbed
