import pytest

from tunekeeper.jobs.progress import Progress, write_durably


def test_a_new_job_has_no_progress(tmp_path):
    progress = Progress(tmp_path / "job")
    assert (progress.step, progress.states(), progress.trained_at, progress.is_trained) == (
        0,
        [],
        None,
        False,
    )
    progress.prune()
    progress.clear()


def test_half_written_states_do_not_count_and_are_pruned(tmp_path):
    progress = Progress(tmp_path)
    for step in (2, 10):
        progress.place(step).mkdir()
    (tmp_path / "state" / ".step-00000011.new").mkdir()
    assert [step for step, _ in progress.states()] == [10, 2]
    progress.prune()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000010"]


def test_training_is_over_when_the_state_of_its_last_step_is_there(tmp_path):
    progress = Progress(tmp_path)
    progress.place(5).mkdir()
    progress.mark_trained(6)
    assert (progress.trained_at, progress.is_trained) == (6, False)
    progress.place(6).mkdir()
    assert progress.is_trained
    progress.clear()
    assert (progress.step, progress.trained_at) == (0, None)


def test_a_small_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "mark"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["mark"]
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "nowhere" / "mark", b"x")
