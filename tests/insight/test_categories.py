from datetime import date
from pathlib import Path

import pytest

from repositories import Repo
from tunekeeper.errors import InvalidConfig, NotFound
from tunekeeper.insight.categories import (
    Categories,
    Category,
    folders,
    load_categories,
    moved_within,
    parse_categories,
    silence,
    split,
    watch_paths,
)
from tunekeeper.insight.changes import ChangeSet, FileChange
from tunekeeper.insight.source import open_repository


def of(**paths: str | list[str]) -> Categories:
    return parse_categories({"categories": paths}, where="test")


def changes(*files: tuple[str, str | None]) -> ChangeSet:
    found = [
        FileChange(
            filename=new,
            status="renamed" if old else "modified",
            previous_filename=old,
            additions=0,
            deletions=0,
            patch=None,
        )
        for new, old in files
    ]
    return ChangeSet(date="2026-01-01", url="u", files=tuple(found))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("docs/**", "docs/a/b.md", True),
        ("docs/**", "docs.md", False),
        ("docs", "docs/a.md", True),
        ("docs/", "docs/a/b.md", True),
        ("docs", "docs2/a.md", False),
        ("docs/*.md", "docs/a.md", True),
        ("docs/*.md", "docs/a/b.md", False),
        ("**/*.md", "a.md", True),
        ("**/*.md", "x/y/a.md", True),
        ("docs/**/limits.md", "docs/limits.md", True),
        ("docs/**/limits.md", "docs/a/b/limits.md", True),
        ("docs/**/limits.md", "docs/nolimits.md", False),
        ("a?.md", "ab.md", True),
        ("a?.md", "a/.md", False),
        ("a.md", "aXmd", False),
        ("docs/日本/**", "docs/日本/a.md", True),
        ("**", "anything/at all", True),
        ("/docs/", "docs/a.md", True),
    ],
)
def test_patterns(pattern, path, matches):
    assert Category(name="c", paths=(pattern,)).matches(path) is matches


def test_the_first_category_takes_a_path_and_exclusions_hold():
    categories = of(images="**/*.png", docs=["docs/**", "!docs/private/**"])
    assert [categories.of(path) for path in ("docs/a.png", "docs/a.md", "docs/private/x.md", "src/a.py")] == [
        *("images", "docs", "", ""),
    ]


def test_paths_of_no_category_are_listed_or_go_where_the_rest_goes():
    parts, unmatched = split(changes(("docs/a.md", None), ("src/b.py", None)), of(docs="docs"))
    assert (list(parts), unmatched) == (["docs"], ("src/b.py",))
    assert parts["docs"].category == "docs"
    rest = parse_categories({"categories": {"docs": "docs"}, "rest": "misc"}, where="t")
    parts, unmatched = split(changes(("docs/a.md", None), ("src/b.py", None)), rest)
    assert (sorted(parts), unmatched) == (["docs", "misc"], ())


def test_a_file_that_moved_out_is_still_told_in_its_category():
    parts, unmatched = split(changes(("new/a.md", "docs/a.md")), of(docs="docs"))
    assert [change.filename for change in parts["docs"].files] == ["new/a.md"]
    assert unmatched == ()


def test_folders_are_counted_most_first():
    assert folders(["a/x", "b/y", "b/z", "c"]) == "b/ (2), a/, ./"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "needs `categories:`"),
        ("categories: {}", "needs `categories:`"),
        ("categories: {a: {}}", "a needs `paths`"),
        ("categories: {a: [1]}", "a needs `paths`"),
        ("categories: {a: ['!x']}", "no path that it takes"),
        ("categories: {'a/b': x}", "no name of a category"),
        ("categories: {a: {paths: x, silent: 3}}", "knows no 'silent'"),
        ("categories: {a: {paths: x, silent_after_days: -1}}", "whole number"),
        ("categories: {a: x}\nother: 1", "knows no 'other'"),
        ("categories: {a: x}\nrest: [1]", "rest"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(text, said, tmp_path):
    path = tmp_path / "categories.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=said):
        load_categories(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(NotFound, match="cannot be read"):
        load_categories(tmp_path / "none.yaml")


PAGES = {f"articles/openai/page-{n}.md": f"# Page {n}\n\nText of page {n}.\n" for n in range(8)}


def watched(path: Path, home: Path, categories: Categories, base: str | None = "HEAD~"):
    repository = open_repository(str(path), home)
    return watch_paths(
        repository, categories, base=repository.commit(base) if base else None, head=repository.commit("HEAD")
    )


def test_a_folder_that_moved_raises_the_alarm_and_names_the_new_path(tmp_path):
    repo = Repo(tmp_path / "repo")
    repo.commit({**PAGES, "other/x.md": "x\n"})
    repo.move("articles/openai", "articles/foundry/openai")
    repo.commit({"articles/foundry/openai/page-1.md": "# Page 1\n\nRewritten on the way.\n"}, day="2026-01-02")
    [alarm] = watched(repo.path, tmp_path, of(openai="articles/openai/**", other="other"))
    assert (alarm.category, alarm.kind) == ("openai", "moved")
    assert alarm.proposed == ("articles/foundry/openai/**",)
    assert "from articles/openai to articles/foundry/openai on 2026-01-02" in alarm.message


def test_the_alarm_finds_the_new_path_long_after_and_through_a_second_move(tmp_path):
    repo = Repo(tmp_path / "repo")
    repo.commit(PAGES)
    repo.move("articles/openai", "articles/foundry/openai")
    repo.commit(day="2026-01-02")
    for n in range(3):
        repo.commit({"other.md": f"{n}\n"}, day=f"2026-02-0{n + 1}")
    assert watched(repo.path, tmp_path, of(openai="articles/openai"), base=None)[0].proposed == (
        "articles/foundry/openai/**",
    )


def test_a_folder_of_which_most_moved_raises_the_alarm(tmp_path):
    repo = Repo(tmp_path / "repo")
    repo.commit(PAGES)
    for n in range(1, 8):
        repo.move(f"articles/openai/page-{n}.md", f"articles/foundry/page-{n}.md")
    repo.commit(day="2026-01-02")
    [alarm] = watched(repo.path, tmp_path, of(openai="articles/openai/**"))
    assert (alarm.kind, alarm.proposed) == ("moved", ("articles/foundry/**",))
    assert "7 of its 8 files" in alarm.message


def test_one_file_that_moves_is_no_alarm(tmp_path):
    repo = Repo(tmp_path / "repo")
    repo.commit(PAGES)
    repo.move("articles/openai/page-1.md", "articles/page-1.md")
    repo.commit(day="2026-01-02")
    assert watched(repo.path, tmp_path, of(openai="articles/openai/**")) == []


def test_a_single_file_that_is_watched_and_moves_is_found(tmp_path):
    repo = Repo(tmp_path / "repo")
    repo.commit({"docs/retirements.md": "# Dates\n\nmany\nlines\nhere\n", "docs/a.md": "a\n"})
    repo.move("docs/retirements.md", "docs/lifecycle/retirements.md")
    repo.commit(day="2026-01-02")
    [alarm] = watched(repo.path, tmp_path, of(dates="docs/retirements.md"))
    assert alarm.proposed[0] == "docs/lifecycle/retirements.md"


def test_a_folder_that_was_deleted_or_never_was_is_said_without_a_guess(tmp_path):
    repo = Repo(tmp_path / "repo")
    repo.commit({"docs/a.md": "unique text\n", "b.md": "b\n"})
    repo.commit({"docs/a.md": None}, day="2026-01-02")
    gone, never = watched(repo.path, tmp_path, of(docs="docs", typo="dcos/**"))
    assert (gone.kind, gone.proposed) == ("missing", ())
    assert "since 2026-01-02" in gone.message
    assert "never did" in never.message


def test_renames_alone_raise_the_alarm_where_no_tree_is_known():
    moved = [(f"new/home/p{n}.md", f"docs/p{n}.md") for n in range(4)]
    [alarm] = moved_within(changes(*moved, ("docs/stays.md", None)), of(docs="docs/**"))
    assert alarm.proposed == ("new/home/**",)
    assert moved_within(changes(moved[0]), of(docs="docs/**")) == []


@pytest.mark.parametrize(
    ("last", "quiet", "is_alarm"),
    [
        ("2026-01-01", 0, True),
        ("2026-02-01", 0, False),
        ("2026-02-28", 5, True),
        ("2026-02-28", 4, False),
        (None, 99, False),
    ],
)
def test_silence_is_measured_in_days_and_in_reports_of_others(last, quiet, is_alarm):
    category = Category(name="c", paths=("a",), silent_after_days=45, silent_after_reports=5)
    alarm = silence(category, last_match=last, quiet_reports=quiet, today=date(2026, 3, 1))
    assert (alarm is not None) is is_alarm
    never = Category(name="c", paths=("a",), silent_after_days=0)
    assert silence(never, last_match="2000-01-01", quiet_reports=999, today=date(2026, 3, 1)) is None
