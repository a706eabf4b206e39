"""How a job ends badly, and what it leaves behind.

Whoever moves a job to its last state does so as the last of all: the events that belong to the end are stored
before it or with it, each under its own key, so that an end that was cut off is repeated without a trace.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from tunekeeper.errors import NotFound, TunekeeperError
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.progress import Progress
from tunekeeper.ports import Blobs
from tunekeeper.storage.store import Store
from tunekeeper.types import TERMINAL, File, Job, JobStatus, Json

_PASSING = ("disk_full", "upstream_failed")
"""Codes of failures that are mended outside of the job, which then goes on."""

MAX_DETAILS = 100
"""Faults that a job's error lists; all of them are in its validation report."""


def fail(store: Store, job: Job, error: TunekeeperError) -> Job:
    """Move the job to failed, with what its owner can do; raises InvalidState if it has ended or paused."""
    return store.transition(
        job.id,
        "failed",
        from_={"validating_files", "queued", "running"},
        event={
            "level": "error",
            "message": error.message,
            "data": {"code": error.code, "param": error.param},
            "key": f"failed-{job.attempts}",
        },
        error=_wire(error),
        finished_at=store.now(),
        request=None,
        estimated_finish=None,
    )


def settle_cancel(store: Store, job_id: str, *, from_: Collection[JobStatus]) -> Job:
    """Move a job that nothing runs to cancelled; raises InvalidState if it is in no state of `from_`."""
    return store.transition(
        job_id,
        "cancelled",
        from_=from_,
        event={"level": "info", "message": "Fine-tuning job cancelled", "key": "cancelled"},
        finished_at=store.now(),
        request=None,
        estimated_finish=None,
    )


def is_resumable_failure(job: Job) -> bool:
    """Whether the job failed for a reason that passes, with its state kept whole."""
    passes = (job.error or {}).get("code") in _PASSING
    return job.status == "failed" and passes and job.resolved is not None


def tidy(home: Path, job: Job) -> None:
    """Drop the resume state of a job that has ended for good."""
    if job.status in TERMINAL and not is_resumable_failure(job):
        Progress(job_directory(home, job.id)).clear()


def keep_file(store: Store, blobs: Blobs, job: Job, filename: str, content: BinaryIO) -> File:
    """Store what a job produced as a file of purpose fine-tune-results.

    Its id follows from the job and the name, so that keeping it again replaces the content.
    """
    sha256, size = blobs.put(content)
    name = hashlib.sha256(f"{job.id}/{filename}".encode()).hexdigest()[:24]
    try:
        old = store.get_file(f"file-{name}")
    except NotFound:
        return store.add_file(
            File(
                id=f"file-{name}",
                bytes=size,
                created_at=store.now(),
                filename=filename,
                purpose="fine-tune-results",
                sha256=sha256,
                status="processed",
            )
        )
    if old.sha256 == sha256:
        return old
    new = store.update_file(old.id, sha256=sha256, bytes=size)
    store.delete_blob_if_unused(old.sha256, blobs.delete)
    return new


def _wire(error: TunekeeperError) -> Json:
    wire: Json = {"code": error.code, "message": error.message, "param": error.param}
    if error.details:
        wire["details"] = [dict(detail) for detail in error.details[:MAX_DETAILS]]
    return wire
