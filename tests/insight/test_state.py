import json
from dataclasses import replace

import pytest

from tunekeeper.errors import InvalidState, Unavailable
from tunekeeper.insight.state import State, open_state, write_atomically

STATE = State(
    head="a" * 40, day="2026-01-02", day_base="b" * 40, last_match={"c": "2026-01-02"}, quiet_reports={"d": 3}
)


def test_a_state_is_what_was_saved(tmp_path):
    with open_state(tmp_path, "repo", "main", tmp_path / "out") as file:
        assert file.load() == State()
        file.save(STATE)
        assert file.load() == STATE
    with open_state(tmp_path, "repo", "main", tmp_path / "out") as file:
        assert file.load() == STATE


def test_repositories_branches_and_directories_have_states_of_their_own(tmp_path):
    paths = set()
    for where in (("a", "main", "x"), ("b", "main", "x"), ("a", "dev", "x"), ("a", "main", "y")):
        with open_state(tmp_path, where[0], where[1], tmp_path / where[2]) as file:
            paths.add(file.path)
    assert len(paths) == 4


def test_two_runs_cannot_hold_one_state(tmp_path):
    with (
        open_state(tmp_path, "repo", "main", tmp_path),
        pytest.raises(InvalidState, match="Another run"),
        open_state(tmp_path, "repo", "main", tmp_path),
    ):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"head": 3}), "null"])
def test_a_damaged_state_is_said_and_not_guessed(text, tmp_path):
    with open_state(tmp_path, "repo", "main", tmp_path) as file:
        file.path.write_text(text)
        with pytest.raises(InvalidState, match="damaged"):
            file.load()


def test_a_file_that_cannot_be_written_leaves_the_older_one(tmp_path):
    path = tmp_path / "a.md"
    write_atomically(path, "first\n")
    assert path.read_text() == "first\n"
    with pytest.raises(Unavailable, match="could not be written"):
        write_atomically(path / "below.md", "second\n")
    assert [each.name for each in tmp_path.iterdir()] == ["a.md"]


def test_a_state_may_be_changed_in_part():
    assert replace(STATE, head="c").day == STATE.day
