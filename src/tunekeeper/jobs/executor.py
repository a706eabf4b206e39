"""Runs a job in a child process: a crash, a leak or the OOM killer takes that process and nothing else.

Processes hang on each other by a pipe, the lifeline: the parent holds its writing end, and the child ends
itself at once when the kernel closes it, however the parent died. So no orphan trains on. `exclusive` is the
second belt: two processes never work on one job's directory, even while the older one is still dying.
"""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Protocol

from tunekeeper.settings import Settings

EXIT_ORPHANED = 70
EXIT_NO_ROOM = 74
"""The child could not even note its failure, for the disk is full."""

_LOG_TAIL_BYTES = 4000


class Child(Protocol):
    """A running job."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def poll(self) -> int | None:
        """Its exit status (negative: the signal that killed it), or None while it runs."""
        ...

    def kill(self) -> int:
        """End it at once and wait until it is gone; returns the exit status."""
        ...


class Executor(Protocol):
    """Where jobs run."""

    def start(self, job_id: str) -> Child:
        """Run the job's present phase, and return without waiting."""
        ...


class ProcessExecutor:
    """Runs `python -m tunekeeper.jobs.finetune` on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def start(self, job_id: str) -> Child:
        """Start the child; what it prints goes to the job's log."""
        directory = job_directory(self._settings.home, job_id)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "log").open("ab") as log:
            process = spawn(
                "tunekeeper.jobs.finetune",
                job_id,
                settings=self._settings,
                output=log.fileno(),
                errors=log.fileno(),
            )
        return ChildProcess(process)


class ChildProcess:
    """A child on this machine that lives no longer than this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self._process.poll() is None:
            return None
        return self.wait()

    def kill(self) -> int:
        """End it at once and wait until it is gone."""
        self._process.kill()
        return self.wait()

    def close(self, timeout_s: float) -> int:
        """Close the lifeline, and kill it if it has not gone after `timeout_s`."""
        try:
            return self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def outlast(self) -> int:
        """Wait until it ends of itself, its lifeline held."""
        self._process.wait()
        return self.wait()

    def wait(self, timeout_s: float | None = None) -> int:
        """Close the lifeline and wait until it is gone; raises subprocess.TimeoutExpired."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.wait(timeout_s)


def spawn(
    module: str, *arguments: str, settings: Settings, output: int | None = None, errors: int | None = None
) -> subprocess.Popen[bytes]:
    """Start one of our modules, with a lifeline as its standard input and the settings as its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments, "--home", str(settings.home)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=errors,
        env={**os.environ, **_environment(settings)},
        # A Ctrl-C at the server reaches the server alone, which then ends its processes in order.
        start_new_session=True,
    )


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as load_settings reads them; aliases and upstreams concern no job."""
    values = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    return {f"TUNEKEEPER_{k.upper()}": str(v) for k, v in values.items() if isinstance(v, int | float | str)}


def hold_lifeline() -> None:
    """End this process at once when the process that started it is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process holds `path`, and hold it; the kernel lets go of it when we die.

    The file says which process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()).encode("ascii"))
        file.flush()
        yield


def job_directory(home: Path, job_id: str) -> Path:
    """Where a job keeps its log, its lock and the state that it resumes from."""
    return home / "jobs" / job_id


def log_tail(home: Path, job_id: str) -> str:
    """The end of what the job's processes printed."""
    path = job_directory(home, job_id) / "log"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()
