import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from report_checker import check_report
from repositories import Repo
from tunekeeper.insight.categories import parse_categories
from tunekeeper.insight.changes import ChangeSet
from tunekeeper.insight.daily import Outcome, catch_up, one_category, report_path
from tunekeeper.insight.facts import facts_of
from tunekeeper.insight.render import render
from tunekeeper.insight.source import open_repository
from tunekeeper.insight.state import State, open_state
from tunekeeper.insight.writer import write_report

TODAY = date(2026, 1, 20)


def written(changes: ChangeSet) -> str:
    return render(write_report(changes, facts_of(changes), language="en"))


class Watcher:
    """A watched repository; keeps what was given to be written up."""

    def __init__(self, tmp_path: Path, **paths: object) -> None:
        self.repo = Repo(tmp_path / "repo")
        self.home, self.out = tmp_path / "home", tmp_path / "out"
        self.categories = parse_categories({"categories": paths}, where="t") if paths else one_category("docs")
        self.seen: list[ChangeSet] = []
        self.dies_at: str | None = None

    def compose(self, changes: ChangeSet) -> str:
        if changes.date == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append(changes)
        return written(changes)

    def run(self, *, today: date = TODAY, **more: object) -> Outcome:
        repository = open_repository(str(self.repo.path), self.home)
        with open_state(self.home, repository.address, "main", self.out) as file:
            return catch_up(
                repository,
                file,
                self.compose,
                branch="main",
                categories=self.categories,
                out=self.out,
                today=today,
                **more,
            )

    def state(self) -> State:
        with open_state(self.home, str(self.repo.path.resolve()), "main", self.out) as file:
            return file.load()

    def files_told(self) -> list[tuple[str, list[str]]]:
        return [(changes.date, [change.filename for change in changes.files]) for changes in self.seen]


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(tmp_path)


def test_missed_days_are_filled_in_one_report_a_day(watcher):
    watcher.repo.commit({"old.md": "x\n"}, day="2026-01-01")
    watcher.repo.commit({"a.md": "1\n"}, day="2026-01-02")
    assert [(p.date, p.n_files) for p in watcher.run().published] == [("2026-01-02", 1)]
    for day in ("2026-01-05", "2026-01-09", "2026-01-12"):
        watcher.repo.commit({f"{day}.md": "# T\n"}, day=day)
    watcher.repo.commit({"twice.md": "# T\n"}, day="2026-01-12")
    outcome = watcher.run()
    assert [p.path.relative_to(watcher.out).as_posix() for p in outcome.published] == [
        "2026/01/diff-insight-report-docs-2026-01-05.md",
        "2026/01/diff-insight-report-docs-2026-01-09.md",
        "2026/01/diff-insight-report-docs-2026-01-12.md",
    ]
    assert watcher.files_told()[1:] == [
        ("2026-01-05", ["2026-01-05.md"]),
        ("2026-01-09", ["2026-01-09.md"]),
        ("2026-01-12", ["2026-01-12.md", "twice.md"]),
    ]
    assert watcher.run().published == ()
    for changes, entry in zip(watcher.seen[1:], outcome.published, strict=True):
        check_report(entry.path.read_text("utf-8"), changes)


def test_the_first_run_may_begin_on_a_day(watcher):
    for n in range(1, 5):
        watcher.repo.commit({"a.md": f"{n}\n"}, day=f"2026-01-0{n}")
    assert [p.date for p in watcher.run(since=date(2026, 1, 3)).published] == ["2026-01-03", "2026-01-04"]


def test_a_day_that_goes_on_is_reported_again_as_a_whole(watcher):
    watcher.repo.commit({"a.md": "0\n"}, day="2026-01-01")
    watcher.repo.commit({"a.md": "1\n"}, day="2026-01-02")
    assert not watcher.run().published[0].is_update
    watcher.repo.commit({"b.md": "2\n"}, day="2026-01-02")
    [again] = watcher.run().published
    assert again.is_update
    assert watcher.files_told() == [("2026-01-02", ["a.md"]), ("2026-01-02", ["a.md", "b.md"])]
    watcher.repo.commit({"c.md": "3\n"}, day="2026-01-03")
    watcher.run()
    assert watcher.files_told()[2:] == [("2026-01-03", ["c.md"])]


def test_what_was_undone_on_the_same_day_does_not_stay(tmp_path):
    watcher = Watcher(tmp_path, one="one", two="two")
    watcher.repo.commit({"one/a.md": "0\n", "two/a.md": "0\n"}, day="2026-01-01")
    watcher.repo.commit({"one/a.md": "1\n"}, day="2026-01-02")
    watcher.run()
    watcher.repo.commit({"one/a.md": "0\n", "two/a.md": "1\n"}, day="2026-01-02")
    assert {(p.category, p.n_files) for p in watcher.run().published} == {("one", 0), ("two", 1)}


def test_a_run_that_dies_leaves_the_state_at_the_last_day_that_was_published(watcher):
    watcher.repo.commit({"a.md": "0\n"}, day="2026-01-01")
    watcher.run()
    for n in range(2, 6):
        watcher.repo.commit({"a.md": f"{n}\n"}, day=f"2026-01-0{n}")
    watcher.dies_at = "2026-01-04"
    with pytest.raises(KeyboardInterrupt):
        watcher.run()
    assert watcher.state().day == "2026-01-03"
    assert not report_path(watcher.out, "docs", "2026-01-04").exists()
    watcher.dies_at = None
    assert [p.date for p in watcher.run().published] == ["2026-01-04", "2026-01-05"]


def test_nothing_of_a_day_is_published_before_all_of_it_is_written(tmp_path):
    watcher = Watcher(tmp_path, one="one", two="two")
    watcher.repo.commit({"one/a.md": "0\n"}, day="2026-01-01")
    watcher.run()
    watcher.repo.commit({"one/a.md": "1\n", "two/a.md": "1\n"}, day="2026-01-02")

    class Dies(Watcher):
        def compose(self, changes: ChangeSet) -> str:
            if changes.category == "two":
                raise KeyboardInterrupt
            return super().compose(changes)

    dying = object.__new__(Dies)
    dying.__dict__ = watcher.__dict__
    with pytest.raises(KeyboardInterrupt):
        dying.run()
    assert not report_path(watcher.out, "one", "2026-01-02").exists()
    assert watcher.state().day == "2026-01-01"


def test_paths_of_no_category_are_said_in_the_report_and_listed_in_a_file(tmp_path):
    watcher = Watcher(tmp_path, one="one")
    watcher.repo.commit({"one/a.md": "0\n"}, day="2026-01-01")
    watcher.run()
    watcher.repo.commit({"one/a.md": "1\n", "src/x.py": "1\n", "src/y.py": "1\n"}, day="2026-01-02")
    outcome = watcher.run()
    assert outcome.unmatched == ("src/x.py", "src/y.py")
    assert watcher.seen[-1].lacks == ("2 changed files match no category: src/ (2).",)
    assert (watcher.out / "2026/01/unmatched-2026-01-02.txt").read_text() == "src/x.py\nsrc/y.py\n"


def test_the_drill_the_watched_folder_moves_and_the_next_run_names_the_new_path(tmp_path):
    watcher = Watcher(tmp_path, openai="articles/openai/**", search="articles/search/**")
    pages = {f"articles/openai/how-to/page-{n}.md": f"# Page {n}\n\n" + "Words.\n" * n for n in range(30)}
    watcher.repo.commit({**pages, "articles/search/a.md": "# A\n"}, day="2026-01-01")
    watcher.repo.commit({"articles/openai/how-to/page-3.md": "# Page 3\n\nNew.\n"}, day="2026-01-02")
    assert watcher.run().alarms == ()
    watcher.repo.move("articles/openai", "articles/ai-foundry/openai")
    watcher.repo.commit({"articles/ai-foundry/openai/toc.yml": "- a\n"}, day="2026-01-03")
    outcome = watcher.run()
    [alarm] = outcome.alarms
    assert (alarm.category, alarm.kind, alarm.proposed) == ("openai", "moved", ("articles/ai-foundry/openai/**",))
    assert [p.category for p in outcome.published] == ["openai"]
    assert alarm.message in watcher.seen[-1].lacks
    assert json.loads((watcher.out / "alarms.json").read_text())[0]["proposed"] == ["articles/ai-foundry/openai/**"]
    check_report(outcome.published[0].path.read_text("utf-8"), watcher.seen[-1])
    # It stays until the paths are corrected, and ends then.
    watcher.repo.commit({"articles/search/a.md": "# B\n"}, day="2026-01-04")
    assert [alarm.proposed for alarm in watcher.run().alarms] == [("articles/ai-foundry/openai/**",)]
    watcher.categories = parse_categories(
        {"categories": {"openai": alarm.proposed[0], "search": "articles/search/**"}}, where="t"
    )
    watcher.repo.commit({"articles/ai-foundry/openai/toc.yml": "- b\n"}, day="2026-01-05")
    outcome = watcher.run()
    assert (outcome.alarms, [p.category for p in outcome.published]) == ((), ["openai"])
    assert json.loads((watcher.out / "alarms.json").read_text()) == []


def test_a_category_that_falls_silent_raises_the_alarm(tmp_path):
    watcher = Watcher(
        tmp_path, one={"paths": "one", "silent_after_days": 0, "silent_after_reports": 3}, two={"paths": "two"}
    )
    watcher.repo.commit({"one/a.md": "0\n", "two/a.md": "0\n"}, day="2026-01-01")
    watcher.run()
    for n in range(2, 5):
        watcher.repo.commit({"two/a.md": f"{n}\n"}, day=f"2026-01-0{n}")
        alarms = watcher.run().alarms
        assert [(alarm.category, alarm.kind) for alarm in alarms] == ([("one", "silent")] if n == 4 else [])
    assert "since 2026-01-01" in alarms[0].message
    late = watcher.run(today=date(2026, 6, 1))
    assert {alarm.category for alarm in late.alarms} == {"one", "two"}
    watcher.repo.commit({"one/a.md": "9\n", "two/a.md": "9\n"}, day="2026-06-01")
    assert watcher.run(today=date(2026, 6, 1)).alarms == ()


def test_silence_from_before_the_first_run_is_known_from_the_history(tmp_path):
    watcher = Watcher(tmp_path, one="one", two="two")
    watcher.repo.commit({"one/a.md": "0\n"}, day="2025-01-01")
    watcher.repo.commit({"two/a.md": "0\n"}, day="2026-01-19")
    [alarm] = watcher.run().alarms
    assert (alarm.category, alarm.kind) == ("one", "silent")
    assert "since 2025-01-01" in alarm.message


def test_an_outage_is_said_in_the_first_report_after_it(tmp_path):
    watcher = Watcher(tmp_path)
    watcher.repo.commit({"a.md": "0\n"}, day="2026-01-01")
    watcher.run()
    repository = replace(open_repository(str(watcher.repo.path), watcher.home), lacks=("it is gone",))
    with open_state(watcher.home, repository.address, "main", watcher.out) as file:
        outcome = catch_up(
            repository,
            file,
            watcher.compose,
            branch="main",
            categories=watcher.categories,
            out=watcher.out,
            today=date(2026, 1, 4),
        )
    assert outcome.lacks == ("it is gone",)
    watcher.repo.commit({"a.md": "1\n"}, day="2026-01-05")
    watcher.run(today=date(2026, 1, 6))
    assert "could not be reached from 2026-01-04 on" in watcher.seen[-1].lacks[0]
    assert watcher.state().unread_since == ""


def test_a_report_of_moves_and_renames_and_a_thousand_files_is_whole(tmp_path):
    repo = Repo(tmp_path / "repo")
    body = "# Page {n}\n\n| Model | Date |\n| - | - |\n| `m-{n}` | May {d}, 2026 |\n\n```py\nx = {n}\n```\n"
    repo.commit({f"docs/{n % 9}/p{n}.md": body.format(n=n, d=n % 28 + 1) + "same\n" * 9 for n in range(700)})
    repo.move("docs/1", "moved/one")
    repo.move("docs/2/p2.md", "docs/3/renamed.md")
    changed: dict[str, str | bytes | None] = {
        f"docs/{n % 9}/p{n}.md": body.format(n=n, d=(n + 3) % 28 + 1) + "same\n" * 9
        for n in range(700)
        if n % 9 not in (1,) and n != 2
    }
    changed |= {f"new/{n}.md": f"````\n```\n</details>\n# {n}\n" for n in range(380)}
    changed |= {"docs/0/p0.md": None, "p|pe `tick` <b>.md": "{{ x }} {% raw %}\n", "pic.png": b"\0"}
    repo.commit(changed, day="2026-01-02")
    repository = open_repository(str(repo.path), tmp_path / "home")
    changes = repository.changes(repository.span("HEAD~"))
    assert len(changes.files) > 1000
    assert sum(change.status == "renamed" for change in changes.files) == 79
    check_report(written(changes), changes)
