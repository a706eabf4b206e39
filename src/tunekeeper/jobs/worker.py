"""The process that takes jobs from the queue and sees them through; and the server's keeper of that process.

    server ── Supervisor ──> python -m tunekeeper.jobs.worker ──> python -m tunekeeper.jobs.finetune JOB
              starts it again when it dies      one child a lane

Two lanes: one validates new files at once, the other trains, one job at a time, oldest first. A job is held
by a lease that the worker renews while the child runs; a child that dies is started again from its last
state, and given up after three deaths in the same place. There is one worker to a home directory
(`worker.lock`), so the leases that a new worker finds belong to the dead.
"""

import argparse
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sqlalchemy.exc import SQLAlchemyError

from tunekeeper.errors import DiskFull, InvalidState, NotFound, TunekeeperError
from tunekeeper.jobs.executor import (
    EXIT_NO_ROOM,
    Child,
    ChildProcess,
    Executor,
    ProcessExecutor,
    exclusive,
    hold_lifeline,
    job_directory,
    log_tail,
    spawn,
)
from tunekeeper.jobs.outcome import fail, settle_cancel, tidy
from tunekeeper.jobs.progress import Progress
from tunekeeper.settings import Settings, load_settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Job, JobStatus, new_id

MAX_CRASHES = 3
"""Deaths of a child without progress in between, after which its job has failed."""

_TICK_S = 0.25
_TAIL_CHARACTERS = 1500
_MAX_WAIT_S = 30.0
_STOP_S = 10.0
_RENEWALS = 4
"""Renewals in the time of one lease."""
_LANES: tuple[tuple[JobStatus, ...], ...] = (("validating_files",), ("queued", "running"))

_log = logging.getLogger(__name__)


class Lane:
    """Takes one job after another through the given states."""

    def __init__(self, statuses: Sequence[JobStatus], store: Store, executor: Executor, settings: Settings) -> None:
        self._statuses = frozenset(statuses)
        self._store = store
        self._executor = executor
        self._settings = settings
        self._owner = new_id("worker-")
        self._job_id: str | None = None
        self._child: Child | None = None
        self._renew_at = 0.0

    def tick(self) -> None:
        """Look once after the job in hand, or take the next."""
        if self._job_id is None:
            job = self._store.claim_job(self._owner, self._settings.lease_s, statuses=self._statuses)
            if job is None:
                return
            self._job_id, self._renew_at = job.id, self._next_renewal()
        self._look_after(self._job_id)

    def _look_after(self, job_id: str) -> None:
        try:
            job = self._store.get_job(job_id)
        except NotFound:
            self._drop()
            return
        if job.status not in self._statuses:
            self._settle(job)
        elif job.request == "cancel" and not self._progress(job).is_trained:
            self._cancel(job)
        elif self._child is None:
            self._child = self._executor.start(job_id)
        elif (status := self._child.poll()) is not None:
            self._child = None
            self._after_exit(self._store.get_job(job_id), status)
        else:
            self._renew(job_id)

    def _after_exit(self, job: Job, status: int) -> None:
        if job.status in self._statuses and status != 0:
            self._count_crash(job, status)
        self._settle(self._store.get_job(job.id))

    def _renew(self, job_id: str) -> None:
        if time.monotonic() < self._renew_at:
            return
        if self._store.renew_lease(job_id, self._owner, self._settings.lease_s):
            self._renew_at = self._next_renewal()
        else:
            _log.warning("%s: lost its lease", job_id)
            self._drop()

    def _next_renewal(self) -> float:
        return time.monotonic() + self._settings.lease_s / _RENEWALS

    def _cancel(self, job: Job) -> None:
        # The child goes first: once it is dead for certain, nothing but this lane can move the job.
        self._end_child()
        if self._progress(job).is_trained:
            return  # it came to its end while it was dying: what is left is to publish
        with contextlib.suppress(InvalidState):
            settle_cancel(self._store, job.id, from_=self._statuses)
        self._settle(self._store.get_job(job.id))

    def _count_crash(self, job: Job, status: int) -> None:
        step = self._progress(job).step
        last = job.extra.get("crash") or {}
        count = 1 + (last.get("count", 0) if last.get("step") == step else 0)
        _log.warning("%s: its process ended with %s after step %d (%d)", job.id, status, step, count)
        if status == EXIT_NO_ROOM:
            fail(self._store, job, DiskFull("The disk was full, so that not even this could be noted."))
            return
        if count < MAX_CRASHES:
            crash = {"count": count, "step": step}
            self._store.update_job(job.id, extra={**job.extra, "crash": crash})
            return
        tail = log_tail(self._settings.home, job.id)[-_TAIL_CHARACTERS:]
        reason = (
            f"The job's process died {count} times after step {step}: {_reason(status)}. "
            f"Its log ends with: {tail or '(nothing)'}"
        )
        fail(self._store, job, TunekeeperError(reason, code="process_died"))

    def _settle(self, job: Job) -> None:
        """Let go of a job that this lane is done with; moving it on was the last thing that its child did."""
        self._end_child()
        tidy(self._settings.home, job)
        self._store.release_lease(job.id, self._owner)
        self._job_id = None

    def _drop(self) -> None:
        self._end_child()
        self._job_id = None

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = None

    def _progress(self, job: Job) -> Progress:
        return Progress(job_directory(self._settings.home, job.id))


class Supervisor:
    """Keeps a worker process alive for as long as the server lives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._worker: ChildProcess | None = None
        self._thread = threading.Thread(target=self._keep, name="worker-supervisor", daemon=True)

    @property
    def pid(self) -> int | None:
        """The present worker's process id."""
        return self._worker.pid if self._worker else None

    def start(self) -> None:
        """Start the worker, and return without waiting for it."""
        self._worker = self._spawn()
        self._thread.start()

    def stop(self) -> None:
        """End the worker and what it runs; a job in hand goes on from its last state at the next start."""
        with self._changing:  # after this no worker is started
            self._stopping.set()
        if self._worker is not None:
            self._worker.close(_STOP_S)
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        wait_s = 0.0
        while self._worker is not None:
            began = time.monotonic()
            status = self._worker.outlast()
            if self._stopping.is_set():
                return
            # A worker that dies at once is not started again in a tight loop.
            wait_s = 0.0 if time.monotonic() - began > _MAX_WAIT_S else min(_MAX_WAIT_S, 2 * wait_s + 0.1)
            _log.error("The worker ended with %s; it is started again in %.1f s.", status, wait_s)
            self._stopping.wait(wait_s)
            with self._changing:
                if self._stopping.is_set():
                    return
                self._worker = self._spawn()

    def _spawn(self) -> ChildProcess:
        return ChildProcess(spawn("tunekeeper.jobs.worker", settings=self._settings))


def _reason(status: int) -> str:
    if status == -signal.SIGKILL:
        return "it was killed, as when memory runs out; try a smaller batch_size or max_seq_len"
    if status < 0:
        return f"by {signal.Signals(-status).name}"
    return f"exit status {status}"


def run(settings: Settings, executor: Executor | None = None) -> NoReturn:
    """Work until the process is ended."""
    with exclusive(settings.home / "worker.lock"):
        store = Store(connect(settings.home))
        bury(store, settings)
        executor = executor or ProcessExecutor(settings)
        lanes = [Lane(statuses, store, executor, settings) for statuses in _LANES]
        while True:
            for lane in lanes:
                try:
                    lane.tick()
                except (SQLAlchemyError, OSError):
                    _log.exception("The worker could not look after its job; it tries again.")
                    time.sleep(1)
            time.sleep(_TICK_S)


def bury(store: Store, settings: Settings) -> None:
    """Free what a dead worker held, and drop what jobs that had just ended left on the disk."""
    for job in store.unfinished_jobs():
        if job.lease_owner is not None:
            store.release_lease(job.id, job.lease_owner)
    for directory in settings.home.glob("jobs/*/state"):
        with contextlib.suppress(NotFound):
            tidy(settings.home, store.get_job(directory.parent.name))


def main() -> None:
    """`python -m tunekeeper.jobs.worker --home HOME`, with a lifeline as standard input."""
    hold_lifeline()
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(load_settings(arguments.home))


if __name__ == "__main__":
    main()
