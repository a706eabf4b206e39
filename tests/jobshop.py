"""A home directory with a tiny base and a small data set, and jobs in it: where the tests of jobs begin."""

import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekeeper.jobs.finetune import run
from tunekeeper.jobs.prepare import Desk
from tunekeeper.jobs.submit import Submission, submit
from tunekeeper.settings import Settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Event, File, Job, Model, new_id

BASE = "tiny"
CAPITALS = (
    "Paris",
    "Tokyo",
    "Lima",
    "Oslo",
    "Rome",
    "Cairo",
    "Quito",
    "Bern",
    "Riga",
    "Doha",
    "Sofia",
    "Minsk",
)


def examples(n: int = 12, first: int = 0) -> bytes:
    """A training file of `n` questions with answers."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Which city has the number {k}?"},
                {"role": "assistant", "content": f"{CAPITALS[k % len(CAPITALS)]} {k}"},
            ]
        }
        for k in range(first, first + n)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def pairs(n: int = 12, first: int = 0) -> bytes:
    """A preference file of `n` questions, each with a right and a wrong answer."""
    lines = [
        {
            "input": {"messages": [{"role": "user", "content": f"Which city has the number {k}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"{CAPITALS[k % len(CAPITALS)]} {k}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"It is {CAPITALS[(k + 5) % len(CAPITALS)]}."}],
        }
        for k in range(first, first + n)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def problems(n: int = 12, first: int = 0) -> bytes:
    """A file of `n` problems with what a grader may want to know."""
    lines = [
        {
            "messages": [{"role": "user", "content": f"Which city has the number {k}?"}],
            "city": CAPITALS[k % len(CAPITALS)],
        }
        for k in range(first, first + n)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


LETTERS = {
    "type": "python",
    "name": "letters",
    "source": "def grade(sample, item):\n"
    "    text = sample['output_text']\n"
    "    return sum('a' <= c <= 'z' for c in text) / max(1, len(text))\n",
}
"""The more small letters, the better: what a model of random weights can learn."""


def settings_of(home: Path, **changes: object) -> Settings:
    """Settings under which leases are short and runs repeat themselves bit for bit."""
    options = {"lease_s": 2.0, "threads": 1, "dtype": "fp32", **changes}
    return Settings(home=home, **options)  # type: ignore[arg-type]


def open_desk(home: Path, base: Path, **changes: object) -> Desk:
    """A home directory that knows the tiny base."""
    desk = Desk(settings_of(home, **changes), Store(connect(home)), DirectoryBlobs(home / "blobs"))
    desk.store.add_model(Model(id=BASE, created_at=desk.store.now(), kind="base", path=str(base), base=BASE))
    return desk


def add_data(desk: Desk, content: bytes) -> str:
    """Upload a data file; returns its id."""
    sha256, size = desk.blobs.put(io.BytesIO(content))
    file = File(
        id=new_id("file-"),
        bytes=size,
        created_at=desk.store.now(),
        filename="train.jsonl",
        purpose="fine-tune",
        sha256=sha256,
        status="processed",
    )
    return desk.store.add_file(file).id


def add_job(
    desk: Desk,
    *,
    model: str = BASE,
    data: bytes | None = None,
    validation: bytes | None = None,
    method: str = "supervised",
    grader: dict[str, Any] | None = None,
    response_format: dict[str, Any] | None = None,
    tools: list[dict[str, Any]] | None = None,
    **hyperparameters: object,
) -> Job:
    """Submit a job of two epochs of three steps, unless told otherwise."""
    said = {"n_epochs": 2, "batch_size": 4, "save_every": 1, **hyperparameters}
    if method == "reinforcement":
        said = {"num_generations": 4, "max_completion_tokens": 8, **said}
        grader = grader or LETTERS
    if not said.get("full_finetune"):
        said.setdefault("lora_rank", 4)
    more = {"grader": grader, "response_format": response_format, "tools": tools}
    body = {"hyperparameters": said, **{name: value for name, value in more.items() if value is not None}}
    submission = Submission(
        model=model,
        training_file=add_data(
            desk, data or {"supervised": examples, "dpo": pairs, "reinforcement": problems}[method]()
        ),
        validation_file=add_data(desk, validation) if validation else None,
        method={"type": method, method: body},
        seed=7,
        suffix="test",
    )
    return submit(submission, desk.store, desk.settings)


def model_bytes(desk: Desk, model_id: str) -> dict[str, bytes]:
    """The files of a model."""
    directory = desk.settings.home / desk.store.get_model(model_id).path
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def events_of(desk: Desk, job: Job) -> list[Event]:
    """All events, oldest first."""
    return desk.store.list_events(job.id, limit=10_000).data[::-1]


def wait_until(happened: Callable[[], object], *, timeout_s: float = 90.0, every_s: float = 0.02) -> None:
    """Return when it has happened."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every_s)


@dataclass(frozen=True)
class Outcome:
    """All that a job leaves behind, without the ids and times in which two equal runs differ."""

    status: str
    models: dict[str, dict[str, bytes]]
    results: bytes
    events: list[tuple[str, str, Any]]
    checkpoints: list[tuple[str, int, dict[str, float]]]
    files: int
    left_over: list[str]


def outcome_of(desk: Desk, job: Job) -> Outcome:
    """What the job left behind."""
    store, home = desk.store, desk.settings.home
    job = store.get_job(job.id)
    names = {job.id: "JOB", job.training_file: "TRAINING", str(job.validation_file): "VALIDATION"}
    if job.fine_tuned_model:
        names[job.fine_tuned_model] = "MODEL"

    def anonymous(text: str) -> str:
        for name, word in names.items():
            text = text.replace(name, word)
        return text

    results = b""
    if job.result_file:
        with desk.open(job.result_file) as stream:
            results = stream.read()
    return Outcome(
        status=job.status,
        models={anonymous(m.id): model_bytes(desk, m.id) for m in store.list_models() if m.job_id == job.id},
        results=results,
        events=[(event.level, anonymous(event.message), event.data) for event in events_of(desk, job)],
        checkpoints=[(anonymous(c.model), c.step, c.metrics) for c in store.list_checkpoints(job.id, limit=1000).data],
        files=len(store.list_files().data),
        left_over=[str(path.name) for path in sorted(home.glob("models/.*")) + sorted(home.glob("jobs/*/state"))],
    )


WRITES = ("add_event", "add_model", "add_checkpoint", "add_file", "update_file", "update_job", "transition")
FILE_WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class Countdown:
    """Kills this process at the n-th tick."""

    def __init__(self, n: int) -> None:
        self._left = n

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class CountedStore:
    """A store that ticks before each write."""

    def __init__(self, store: Store, countdown: Countdown) -> None:
        self._store = store
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        if name in WRITES:
            self._countdown.tick()
        return getattr(self._store, name)


def finetune_until_killed(home: Path, job_id: str, n: int) -> None:
    """Run the phases of a job, and die before the n-th write to the database or the directory tree."""
    countdown = Countdown(n)
    sys.addaudithook(lambda event, _arguments: countdown.tick() if event in FILE_WRITES else None)
    store = CountedStore(Store(connect(home)), countdown)
    desk = Desk(settings_of(home), store, DirectoryBlobs(home / "blobs"))  # type: ignore[arg-type]
    run(job_id, desk)
    run(job_id, desk)


def finetune_with_room(home: Path, job_id: str, room_bytes: int) -> None:
    """Run the phases of a job where no file may grow beyond `room_bytes`, as on a disk that is full."""
    desk = Desk(settings_of(home), Store(connect(home)), DirectoryBlobs(home / "blobs"))
    run(job_id, desk)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes))
    run(job_id, desk)
