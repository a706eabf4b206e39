"""How far a job has come, as its directory shows it: states to resume from, and that it is trained.

    jobs/<id>/state/step-00000012/    what the trainer needs to go on after step 12, bit for bit
    jobs/<id>/trained                 the last step, once it is settled; then only publishing is left

A state is written last of all that belongs to its step: where it exists, every event, checkpoint and metric
up to that step is stored. So a crash repeats work, and never loses any.
"""

import os
import shutil
from pathlib import Path

_PREFIX = "step-"


class Progress:
    """The states of one job."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._states = directory / "state"
        self._mark = directory / "trained"

    def states(self) -> list[tuple[int, Path]]:
        """Every whole state, newest first, with the step that it was taken after."""
        if not self._states.is_dir():
            return []
        found = [(path.name.removeprefix(_PREFIX), path) for path in self._states.glob(f"{_PREFIX}*")]
        return sorted(((int(step), path) for step, path in found if step.isdigit()), reverse=True)

    @property
    def step(self) -> int:
        """The newest step that a crash cannot take back."""
        return max((step for step, _ in self.states()), default=0)

    def place(self, step: int) -> Path:
        """Where the state of a step belongs."""
        self._states.mkdir(parents=True, exist_ok=True)
        return self._states / f"{_PREFIX}{step:08d}"

    def prune(self) -> None:
        """Drop all but the newest state, and what a crash left half-written."""
        if not self._states.is_dir():
            return
        newest = self.place(self.step)
        for path in self._states.iterdir():
            if path != newest:
                shutil.rmtree(path, ignore_errors=True)

    @property
    def trained_at(self) -> int | None:
        """The last step, once that is settled."""
        return int(self._mark.read_text("ascii")) if self._mark.exists() else None

    @property
    def is_trained(self) -> bool:
        """Whether only publishing is left: too late to cancel."""
        return self.trained_at is not None and self.trained_at == self.step

    def mark_trained(self, step: int) -> None:
        """Settle that `step` is the last: a run that is resumed before it stops there too."""
        write_durably(self._mark, str(step).encode("ascii"))

    def clear(self) -> None:
        """Drop everything: the job will never be resumed."""
        shutil.rmtree(self._states, ignore_errors=True)
        self._mark.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file so that a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
