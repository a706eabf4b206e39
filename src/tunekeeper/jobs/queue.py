"""What people may ask of a job: cancel, pause, resume, delete. Each is safe against the worker's own moves.

A job that waits changes its state here and now, by compare-and-set. A running job belongs to its worker: the
wish is written down as the job's `request`, and the worker or its child answers it. When training is over and
the model is being published, it is too late for both.
"""

import shutil
from pathlib import Path

from tunekeeper.errors import InvalidState
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.outcome import is_resumable_failure, settle_cancel, tidy
from tunekeeper.storage.store import Store
from tunekeeper.types import TERMINAL, Job, JobStatus

WAITING: frozenset[JobStatus] = frozenset({"validating_files", "queued", "paused"})
"""States that no training child holds."""


def cancel(store: Store, home: Path, job_id: str) -> Job:
    """Stop a job for good; its checkpoints stay. A running job is cancelled by its worker, a moment later."""
    job = store.get_job(job_id)
    _refuse_terminal(job, "cancelled")
    if job.status in WAITING:
        try:
            job = settle_cancel(store, job_id, from_=WAITING)
            tidy(home, job)
            return job
        except InvalidState:
            pass  # the worker was faster: it runs now, or it has failed
    return store.transition(job_id, "running", from_={"running"}, request="cancel")


def pause(store: Store, job_id: str) -> Job:
    """Ask a running job to stop after its present step; it keeps its state and leaves a checkpoint."""
    job = store.get_job(job_id)
    if job.status != "running" or job.step < 1:
        raise InvalidState(
            f"Job {job_id} is {_spoken(job)}; only a running job that has done a step can be paused.",
            param="id",
        )
    if job.request == "cancel":
        raise InvalidState(f"Job {job_id} is being cancelled; it cannot be paused.", param="id")
    job = store.transition(job_id, "running", from_={"running"}, request="pause")
    store.add_event(job_id, "info", "Pausing the job after its present step")
    return job


def resume(store: Store, job_id: str) -> Job:
    """Queue a paused job again, or one that failed for a reason that passes; it goes on from its last state."""
    job = store.get_job(job_id)
    from_: set[JobStatus] = {"failed"} if is_resumable_failure(job) else {"paused"}
    if job.status not in from_:
        raise InvalidState(f"Job {job_id} is {_spoken(job)}; only a paused job can be resumed.", param="id")
    job = store.transition(job_id, "queued", from_=from_, request=None, error=None, finished_at=None)
    store.add_event(job_id, "info", f"Job resumed after step {job.step}, moving it to queued state")
    return job


def delete(store: Store, home: Path, job_id: str) -> None:
    """Remove a job that has ended, with its events and checkpoints; the models that it made stay."""
    job = store.get_job(job_id)
    if job.status not in TERMINAL:
        raise InvalidState(f"Job {job_id} is {_spoken(job)}; cancel it before deleting it.", param="id")
    store.delete_job(job_id)
    shutil.rmtree(job_directory(home, job_id), ignore_errors=True)


def _refuse_terminal(job: Job, wish: str) -> None:
    if job.status in TERMINAL:
        raise InvalidState(f"Job {job.id} has already {_spoken(job)}; it cannot be {wish}.", param="id")


def _spoken(job: Job) -> str:
    if job.status == "running" and job.step < 1:
        return "running its first step"
    return job.status.replace("validating_files", "still validating its files")
