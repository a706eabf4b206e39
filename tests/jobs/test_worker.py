import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobshop import add_job, events_of, settings_of, wait_until
from tunekeeper.errors import InvalidState
from tunekeeper.jobs import queue
from tunekeeper.jobs.executor import EXIT_NO_ROOM, EXIT_ORPHANED, exclusive, job_directory, log_tail, spawn
from tunekeeper.jobs.progress import Progress
from tunekeeper.jobs.worker import MAX_CRASHES, Lane, Supervisor, bury
from tunekeeper.settings import load_settings

TRAINING = ("queued", "running")


class FakeChild:
    """A child that ends when a test says so."""

    def __init__(self, job_id):
        self.job_id, self.status, self.was_killed = job_id, None, False

    @property
    def pid(self):
        return 1

    def poll(self):
        return self.status

    def kill(self):
        self.was_killed = True
        self.status = -signal.SIGKILL if self.status is None else self.status
        return self.status


class FakeExecutor:
    def __init__(self):
        self.children = []

    def start(self, job_id):
        self.children.append(FakeChild(job_id))
        return self.children[-1]


@pytest.fixture
def executor():
    return FakeExecutor()


@pytest.fixture
def lane(desk, executor):
    return Lane(TRAINING, desk.store, executor, desk.settings)


def running(desk, **changes):
    job = add_job(desk)
    return desk.store.transition(job.id, "running", from_={"validating_files"}, **changes)


def test_each_lane_takes_only_its_own_jobs_and_the_oldest_first(desk, executor, lane):
    new, first, second = add_job(desk), running(desk), running(desk)
    lane.tick()
    lane.tick()
    assert [child.job_id for child in executor.children] == [first.id]
    validation = Lane(("validating_files",), desk.store, executor, desk.settings)
    validation.tick()
    assert executor.children[-1].job_id == new.id
    desk.store.transition(first.id, "succeeded", from_={"running"})
    executor.children[0].status = 0
    lane.tick()
    lane.tick()
    assert executor.children[-1].job_id == second.id


def test_a_child_that_dies_is_started_again_and_given_up_after_three_deaths(desk, executor, lane):
    job = running(desk)
    job_directory(desk.settings.home, job.id).mkdir(parents=True)
    (job_directory(desk.settings.home, job.id) / "log").write_text("Traceback: it broke")
    for _ in range(MAX_CRASHES):
        lane.tick()
        executor.children[-1].status = 1
        lane.tick()
    job = desk.store.get_job(job.id)
    assert len(executor.children) == MAX_CRASHES
    assert (job.status, job.error["code"], job.lease_owner) == ("failed", "process_died", None)
    assert "it broke" in job.error["message"]


def test_progress_between_two_deaths_begins_the_count_anew(desk, executor, lane):
    job = running(desk)
    for step in range(1, 6):
        lane.tick()
        Progress(job_directory(desk.settings.home, job.id)).place(step).mkdir()
        executor.children[-1].status = -signal.SIGKILL
        lane.tick()
    assert desk.store.get_job(job.id).status == "running"


def test_a_child_that_memory_ran_out_on_says_so(desk, executor, lane):
    job = running(desk)
    for _ in range(MAX_CRASHES):
        lane.tick()
        executor.children[-1].status = -signal.SIGKILL
        lane.tick()
    assert "batch_size" in desk.store.get_job(job.id).error["message"]


def test_a_child_that_could_not_note_its_full_disk_fails_at_once(desk, executor, lane):
    job = running(desk)
    lane.tick()
    executor.children[-1].status = EXIT_NO_ROOM
    lane.tick()
    assert desk.store.get_job(job.id).error["code"] == "disk_full"


def test_a_running_job_is_cancelled_at_once_and_its_state_dropped(desk, executor, lane):
    job = running(desk)
    lane.tick()
    progress = Progress(job_directory(desk.settings.home, job.id))
    progress.place(3).mkdir()
    assert queue.cancel(desk.store, desk.settings.home, job.id).status == "running"
    lane.tick()
    job = desk.store.get_job(job.id)
    assert executor.children[0].was_killed
    assert (job.status, job.request, job.lease_owner) == ("cancelled", None, None)
    assert job.finished_at is not None
    assert progress.states() == []
    assert [event.message for event in events_of(desk, job)][-1] == "Fine-tuning job cancelled"


def test_a_cancel_that_comes_when_training_is_over_is_too_late(desk, executor, lane):
    job = running(desk)
    progress = Progress(job_directory(desk.settings.home, job.id))
    progress.place(6).mkdir()
    progress.mark_trained(6)
    lane.tick()
    queue.cancel(desk.store, desk.settings.home, job.id)
    lane.tick()
    assert not executor.children[0].was_killed
    assert desk.store.get_job(job.id).status == "running"


def test_a_job_cancelled_while_it_waits_needs_no_worker(desk, executor, lane):
    job = add_job(desk)
    assert queue.cancel(desk.store, desk.settings.home, job.id).status == "cancelled"
    lane.tick()
    assert executor.children == []
    with pytest.raises(InvalidState, match="already cancelled"):
        queue.cancel(desk.store, desk.settings.home, job.id)


def test_a_cancel_during_validation_kills_the_validation(desk, executor):
    lane = Lane(("validating_files",), desk.store, executor, desk.settings)
    job = add_job(desk)
    lane.tick()
    queue.cancel(desk.store, desk.settings.home, job.id)
    lane.tick()
    assert executor.children[0].was_killed


def test_a_worker_that_lost_its_lease_or_its_job_lets_go(desk, executor):
    lane = Lane(TRAINING, desk.store, executor, replace(desk.settings, lease_s=0.0))
    job = running(desk)
    lane.tick()
    assert desk.store.claim_job("another", 60.0, statuses=TRAINING).id == job.id
    lane.tick()
    assert executor.children[0].was_killed
    desk.store.release_lease(job.id, "another")
    lane.tick()
    desk.store.transition(job.id, "cancelled", from_={"running"})
    desk.store.delete_job(job.id)
    lane.tick()
    assert executor.children[1].was_killed


def test_a_new_worker_takes_over_at_once_what_the_dead_one_held(desk, executor):
    patient = replace(desk.settings, lease_s=3600.0)
    job = running(desk)
    Lane(TRAINING, desk.store, executor, patient).tick()
    heir = Lane(TRAINING, desk.store, executor, patient)
    heir.tick()
    assert len(executor.children) == 1
    bury(desk.store, patient)
    heir.tick()
    assert [child.job_id for child in executor.children] == [job.id, job.id]


def test_a_child_ends_when_its_parent_is_gone(desk):
    # A job that is not there would end the child too: the lock keeps it from looking.
    directory = job_directory(desk.settings.home, "ftjob-x")
    with exclusive(directory / "lock"):
        child = spawn("tunekeeper.jobs.finetune", "ftjob-x", settings=desk.settings)
        time.sleep(0.2)
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(30) == EXIT_ORPHANED


def test_children_read_the_settings_of_their_parent(tmp_path):
    settings = settings_of(tmp_path, organization="acme", price_per_hour=1.5, keep_checkpoints=3)
    child = spawn("tunekeeper.jobs.executor", settings=settings)
    environment = dict(item.split("=", 1) for item in _environ(child.pid) if item.startswith("TUNEKEEPER_"))
    child.kill()
    child.communicate()
    assert load_settings(tmp_path, environment) == settings


def _environ(pid):
    path = Path(f"/proc/{pid}/environ")
    wait_until(lambda: b"TUNEKEEPER_" in path.read_bytes())
    return path.read_bytes().decode().split("\0")


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    order = []
    held = threading.Event()

    def second():
        held.wait()
        with exclusive(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with exclusive(tmp_path / "lock"):
        held.set()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_end_of_a_log_is_read_and_a_missing_one_is_empty(tmp_path):
    assert log_tail(tmp_path, "ftjob-1") == ""
    job_directory(tmp_path, "ftjob-1").mkdir(parents=True)
    (job_directory(tmp_path, "ftjob-1") / "log").write_text("x" * 9000 + " the end\n")
    assert log_tail(tmp_path, "ftjob-1").endswith("x the end")
    assert len(log_tail(tmp_path, "ftjob-1")) <= 4000


def test_the_supervisor_starts_a_dead_worker_again_and_stops_it_in_the_end(desk):
    supervisor = Supervisor(desk.settings)
    supervisor.start()
    try:
        first = supervisor.pid
        subprocess.run(["kill", "-9", str(first)], check=True)
        wait_until(lambda: supervisor.pid != first)
        assert supervisor.pid is not None
    finally:
        supervisor.stop()
    supervisor.stop()
    lock = desk.settings.home / "worker.lock"
    with exclusive(lock):
        pass  # nobody holds it any more


def test_neither_the_worker_nor_a_jobs_start_imports_torch():
    script = (
        "import sys; import tunekeeper.jobs.worker, tunekeeper.jobs.finetune, tunekeeper.jobs.estimate, "
        "tunekeeper.api.fine_tuning; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
