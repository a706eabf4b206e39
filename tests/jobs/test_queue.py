import io

import pytest

from jobshop import add_job, events_of
from tunekeeper.errors import DiskFull, InvalidState, NotFound, TunekeeperError
from tunekeeper.jobs import queue
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.outcome import fail, keep_file


def moved(desk, status, **changes):
    job = add_job(desk)
    return desk.store.transition(job.id, status, from_={"validating_files"}, **changes)


@pytest.mark.parametrize(("status", "step"), [("queued", 3), ("paused", 3), ("succeeded", 3), ("running", 0)])
def test_only_a_job_that_has_done_a_step_can_be_paused(desk, status, step):
    job = moved(desk, status, step=step)
    with pytest.raises(InvalidState, match="can be paused"):
        queue.pause(desk.store, job.id)


def test_a_pause_is_noted_and_answered_later(desk):
    job = queue.pause(desk.store, moved(desk, "running", step=1).id)
    assert (job.status, job.request) == ("running", "pause")
    assert events_of(desk, job)[-1].message == "Pausing the job after its present step"


def test_a_cancel_goes_before_a_pause(desk):
    job = moved(desk, "running", step=1)
    queue.pause(desk.store, job.id)
    assert queue.cancel(desk.store, desk.settings.home, job.id).request == "cancel"
    with pytest.raises(InvalidState, match="being cancelled"):
        queue.pause(desk.store, job.id)


def test_a_paused_job_is_queued_again(desk):
    job = queue.resume(desk.store, moved(desk, "paused", step=4).id)
    assert (job.status, job.request) == ("queued", None)
    assert "after step 4" in events_of(desk, job)[-1].message


@pytest.mark.parametrize("status", ["queued", "running", "succeeded", "cancelled", "failed"])
def test_other_jobs_cannot_be_resumed(desk, status):
    job = moved(desk, status)
    with pytest.raises(InvalidState, match="paused job can be resumed"):
        queue.resume(desk.store, job.id)


def test_of_the_failures_only_a_full_disk_can_be_resumed(desk):
    job = moved(desk, "running", resolved={"n_epochs": 1})
    failed = fail(desk.store, job, DiskFull("full"))
    assert (failed.status, failed.error["code"]) == ("failed", "disk_full")
    resumed = queue.resume(desk.store, job.id)
    assert (resumed.status, resumed.error, resumed.finished_at) == ("queued", None, None)
    fail(desk.store, resumed, TunekeeperError("another reason"))
    with pytest.raises(InvalidState):
        queue.resume(desk.store, job.id)


@pytest.mark.parametrize("status", ["queued", "running", "paused"])
def test_a_job_that_has_not_ended_is_not_deleted(desk, status):
    job = moved(desk, status)
    with pytest.raises(InvalidState, match="cancel it"):
        queue.delete(desk.store, desk.settings.home, job.id)


def test_a_deleted_job_leaves_nothing_on_the_disk(desk):
    job = moved(desk, "succeeded")
    directory = job_directory(desk.settings.home, job.id)
    directory.mkdir(parents=True)
    queue.delete(desk.store, desk.settings.home, job.id)
    assert not directory.exists()
    with pytest.raises(NotFound):
        desk.store.get_job(job.id)


def test_a_cancelled_pause_drops_its_state(desk):
    job = moved(desk, "paused", step=2)
    state = job_directory(desk.settings.home, job.id) / "state" / "step-00000002"
    state.mkdir(parents=True)
    assert queue.cancel(desk.store, desk.settings.home, job.id).status == "cancelled"
    assert not state.exists()


def test_a_file_that_is_kept_again_replaces_its_content_and_frees_the_old(desk):
    job = add_job(desk)
    first = keep_file(desk.store, desk.blobs, job, "a.csv", io.BytesIO(b"1"))
    again = keep_file(desk.store, desk.blobs, job, "a.csv", io.BytesIO(b"1"))
    second = keep_file(desk.store, desk.blobs, job, "a.csv", io.BytesIO(b"22"))
    assert first == again
    assert (second.id, second.bytes) == (first.id, 2)
    with pytest.raises(NotFound):
        desk.blobs.open(first.sha256)
    assert keep_file(desk.store, desk.blobs, job, "b.csv", io.BytesIO(b"22")).id != first.id


def test_an_ended_job_does_not_fail_any_more(desk):
    job = moved(desk, "cancelled")
    with pytest.raises(InvalidState):
        fail(desk.store, job, TunekeeperError("too late"))
    assert "too late" not in [event.message for event in events_of(desk, job)]
