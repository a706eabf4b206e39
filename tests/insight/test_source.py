import subprocess
from datetime import date
from pathlib import Path

import pytest

from repositories import Repo
from tunekeeper.errors import InvalidRequest, NotFound, Unauthenticated, UpstreamFailed
from tunekeeper.insight.changes import ChangeSet, FileChange
from tunekeeper.insight.source import Repository, Span, open_repository, without_credentials, without_secrets

PAGE = "# Title\n\nOne line.\nAnother line.\nA third line.\n"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


def opened(repo: Repo, tmp_path: Path) -> Repository:
    return open_repository(str(repo.path), tmp_path / "home")


def by_name(changes: ChangeSet) -> dict[str, FileChange]:
    return {change.filename: change for change in changes.files}


def test_a_range_gives_each_file_with_its_status_counts_and_hunks(repo, tmp_path):
    repo.commit({"a.md": PAGE, "gone.md": PAGE + "gone\n", "pic.png": b"\0\1", "moved.md": PAGE * 3})
    repo.move("moved.md", "sub/moved.md")
    repo.commit(
        {
            "a.md": PAGE.replace("One", "First"),
            "gone.md": None,
            "new.md": "# New\n",
            "pic.png": b"\0\2",
            "sub/moved.md": PAGE * 3 + "More.\n",
            "empty.md": "",
        },
        day="2026-01-05",
    )
    changes = opened(repo, tmp_path).changes(opened(repo, tmp_path).span("HEAD~..HEAD"))
    files = by_name(changes)
    assert changes.date == "2026-01-05"
    assert {name: (f.status, f.additions, f.deletions) for name, f in files.items()} == {
        "a.md": ("modified", 1, 1),
        "gone.md": ("removed", 0, 6),
        "new.md": ("added", 1, 0),
        "pic.png": ("modified", 0, 0),
        "sub/moved.md": ("renamed", 1, 0),
        "empty.md": ("added", 0, 0),
    }
    assert files["a.md"].patch == (
        "@@ -1,5 +1,5 @@\n # Title\n \n-One line.\n+First line.\n Another line.\n A third line."
    )
    assert (files["a.md"].old_text, files["a.md"].new_text) == (PAGE, PAGE.replace("One", "First"))
    assert files["sub/moved.md"].previous_filename == "moved.md"
    assert files["pic.png"].is_binary
    assert files["pic.png"].patch is None
    assert not any(f.is_cut for f in files.values())
    assert changes.lacks == ()


@pytest.mark.parametrize(
    "name", ["日本語 ページ.md", 'quote".md', "tab\there.md", "new\nline.md", "-dash.md", "a b/c d.md"]
)
def test_any_file_name_survives(name, repo, tmp_path):
    repo.commit({name: PAGE, "z.md": PAGE})
    repo.commit({name: PAGE + "diff --git a/x b/x\n", "z.md": PAGE + "@@ -1 +1 @@\n"})
    files = by_name(opened(repo, tmp_path).changes(opened(repo, tmp_path).span("HEAD~")))
    assert files[name].patch.endswith("+diff --git a/x b/x")
    assert files["z.md"].patch.endswith("+@@ -1 +1 @@")


def test_a_file_that_became_a_link_is_one_changed_file(repo, tmp_path):
    repo.commit({"a.md": "text\n", "b.md": PAGE})
    (repo.path / "a.md").unlink()
    (repo.path / "a.md").symlink_to("b.md")
    repo.commit({"b.md": PAGE + "More.\n"})
    files = by_name(opened(repo, tmp_path).changes(opened(repo, tmp_path).span("HEAD~")))
    assert files["a.md"].status == "changed"
    assert "-text" in files["a.md"].patch
    assert files["b.md"].patch.endswith("+More.")


def test_utf16_is_read_as_text(repo, tmp_path):
    repo.commit({"a.md": "# T\nold line\nend\n".encode("utf-16"), "b.md": "plain\n"})
    repo.commit({"a.md": "# T\nnew line\nend\n".encode("utf-16"), "b.md": "now wide\n".encode("utf-16")})
    files = by_name(opened(repo, tmp_path).changes(opened(repo, tmp_path).span("HEAD~")))
    change = files["a.md"]
    assert (change.is_binary, change.additions, change.deletions) == (False, 1, 1)
    assert "-old line\n+new line" in change.patch
    assert change.new_text == "# T\nnew line\nend\n"
    assert "-plain\n+now wide" in files["b.md"].patch


def test_bytes_that_are_no_utf8_are_shown_and_said(repo, tmp_path):
    repo.commit({"a.md": b"caf\xe9\n"})
    repo.commit({"a.md": b"caf\xe9 noir\n"})
    changes = opened(repo, tmp_path).changes(opened(repo, tmp_path).span("HEAD~"))
    assert changes.files[0].patch == "@@ -1 +1 @@\n-caf\ufffd\n+caf\ufffd noir"
    assert "a.md is not UTF-8" in changes.lacks[0]


def test_three_dots_begin_where_the_branches_parted(repo, tmp_path):
    start = repo.commit({"a.md": PAGE})
    repo.git("branch", "side")
    repo.commit({"a.md": PAGE + "On main.\n"})
    repo.git("checkout", "--quiet", "side")
    repo.commit({"b.md": PAGE})
    repository = opened(repo, tmp_path)
    assert repository.span("main...side").base == start
    assert [change.filename for change in repository.changes(repository.span("main...side")).files] == ["b.md"]
    assert len(repository.changes(repository.span("main..side")).files) == 2


@pytest.mark.parametrize("text", ["nope..HEAD", "HEAD..nope", "--all..HEAD", "HEAD:a.md..HEAD"])
def test_a_commit_that_is_not_there_is_said(text, repo, tmp_path):
    repo.commit({"a.md": PAGE})
    with pytest.raises(NotFound, match="has no commit"):
        opened(repo, tmp_path).span(text)


def test_histories_without_a_common_commit_cannot_be_compared_with_three_dots(repo, tmp_path):
    repo.commit({"a.md": PAGE})
    repo.git("checkout", "--quiet", "--orphan", "other")
    repo.commit({"b.md": PAGE})
    with pytest.raises(InvalidRequest, match="two dots"):
        opened(repo, tmp_path).span("main...other")


def test_each_day_with_commits_is_a_span_and_they_join(repo, tmp_path):
    first = repo.commit({"a.md": "1\n"}, day="2026-01-01")
    repo.commit({"a.md": "2\n"}, day="2026-01-02")
    second = repo.commit({"a.md": "3\n"}, day="2026-01-02")
    third = repo.commit({"a.md": "4\n"}, day="2026-01-05")
    repository = opened(repo, tmp_path)
    assert repository.days(branch="main", after=first) == [
        Span(first, second, "2026-01-02"),
        Span(second, third, "2026-01-05"),
    ]
    assert repository.days(branch="main") == [Span(second, third, "2026-01-05")]
    assert repository.days(branch="main", after=third) == []
    assert [span.date for span in repository.days(branch="main", since=date(2026, 1, 1))] == [
        "2026-01-01",
        "2026-01-02",
        "2026-01-05",
    ]
    assert repository.days(branch="main", since=date(2027, 1, 1)) == []


def test_a_commit_with_a_clock_that_was_late_skips_nothing(repo, tmp_path):
    first = repo.commit({"a.md": "1\n"}, day="2026-01-01")
    second = repo.commit({"a.md": "2\n"}, day="2026-01-09")
    third = repo.commit({"a.md": "3\n"}, day="2026-01-03")
    spans = opened(repo, tmp_path).days(branch="main", after=first)
    assert spans == [Span(first, third, "2026-01-09")]
    assert second != third


def test_a_range_of_days_ends_with_its_last_commit(repo, tmp_path):
    first = repo.commit({"a.md": "1\n"}, day="2026-01-01")
    repo.commit({"a.md": "2\n"}, day="2026-01-02")
    third = repo.commit({"a.md": "3\n"}, day="2026-01-04")
    repo.commit({"a.md": "4\n"}, day="2026-01-09")
    repository = opened(repo, tmp_path)
    assert repository.between(date(2026, 1, 2), date(2026, 1, 5), branch="main") == Span(first, third, "2026-01-04")
    whole = repository.between(date(2025, 1, 1), date(2026, 1, 1), branch="main")
    assert [change.status for change in repository.changes(whole).files] == ["added"]
    with pytest.raises(NotFound, match="no commit from"):
        repository.between(date(2026, 1, 5), date(2026, 1, 8), branch="main")


def test_a_rewritten_history_is_reported_from_the_commit_that_was_and_said(repo, tmp_path):
    repo.commit({"a.md": "1\n"}, day="2026-01-01")
    lost = repo.commit({"a.md": "2\n"}, day="2026-01-02")
    repo.git("reset", "--quiet", "--hard", "HEAD~")
    head = repo.commit({"a.md": "3\n"}, day="2026-01-03")
    [span] = opened(repo, tmp_path).days(branch="main", after=lost, after_day="2026-01-02")
    assert (span.base, span.head, span.date) == (lost, head, "2026-01-03")
    assert "rewritten" in span.lacks[0]


def test_a_clone_has_no_blobs_at_first_and_is_fetched_at_each_use(repo, tmp_path):
    repo.git("config", "uploadpack.allowFilter", "true")
    repo.git("config", "uploadpack.allowAnySHA1InWant", "true")
    repo.commit({"a.md": PAGE, "b.md": PAGE * 9})
    repo.commit({"a.md": PAGE + "More.\n"})
    url = f"file://{repo.path}"
    clone = open_repository(url, tmp_path / "home")
    objects = clone.git("cat-file", "--batch-check", "--batch-all-objects", "--unordered").decode()
    assert " blob " not in objects
    assert [change.filename for change in clone.changes(clone.span("HEAD~..HEAD")).files] == ["a.md"]
    repo.commit({"b.md": PAGE})
    again = open_repository(url, tmp_path / "home")
    assert again.path == clone.path
    assert [change.filename for change in again.changes(again.span("main~..main")).files] == ["b.md"]


def test_a_clone_whose_upstream_is_gone_is_used_as_it_is_and_says_so(repo, tmp_path):
    repo.commit({"a.md": PAGE})
    repo.commit({"a.md": PAGE + "More.\n"})
    url = f"file://{repo.path}"
    clone = open_repository(url, tmp_path / "home")
    clone.changes(clone.span("HEAD~"))
    repo.path.rename(tmp_path / "elsewhere")
    gone = open_repository(url, tmp_path / "home")
    changes = gone.changes(gone.span("HEAD~"))
    assert len(changes.files) == 1
    assert "newer than the last visit" in changes.lacks[0]


def test_without_blobs_and_upstream_the_names_are_reported_and_the_lack_said(repo, tmp_path):
    repo.git("config", "uploadpack.allowFilter", "true")
    repo.commit({"a.md": PAGE})
    repo.commit({"a.md": PAGE + "More.\n", "b.md": PAGE})
    clone = open_repository(f"file://{repo.path}", tmp_path / "home")
    repo.path.rename(tmp_path / "elsewhere")
    changes = clone.changes(clone.span("HEAD~"))
    assert [(change.filename, change.status, change.patch) for change in changes.files] == [
        ("a.md", "modified", None),
        ("b.md", "added", None),
    ]
    assert all(change.is_cut for change in changes.files)
    assert any("only the names" in lack for lack in changes.lacks)


def test_what_is_no_repository_is_said(tmp_path):
    with pytest.raises(NotFound, match="not a directory"):
        open_repository(str(tmp_path / "none"), tmp_path)
    with pytest.raises(NotFound, match="git repository"):
        open_repository(str(tmp_path), tmp_path)
    with pytest.raises(UpstreamFailed, match="clone failed"):
        open_repository(f"file://{tmp_path}/none", tmp_path / "home")
    assert list((tmp_path / "home" / "insight" / "repos").iterdir()) == []


def test_a_url_cannot_run_programs(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises((UpstreamFailed, NotFound, Unauthenticated)):
        open_repository(f"ext::touch {marker}", tmp_path / "home")
    with pytest.raises((UpstreamFailed, NotFound, Unauthenticated)):
        open_repository(f"ext://touch%20{marker}", tmp_path / "home")
    assert not marker.exists()


def test_the_source_its_licence_and_the_page_of_the_diff_are_named(repo, tmp_path):
    repo.git("remote", "add", "origin", "https://mia:secret@github.com/owner/docs.git")
    repo.commit({"LICENSE": "Attribution 4.0 International\n", "LICENSE-CODE": "MIT License\n", "a.md": "x\n"})
    repo.commit({"a.md": "y\n"})
    repository = opened(repo, tmp_path)
    span = repository.span("HEAD~")
    changes = repository.changes(span)
    assert changes.source == "owner/docs"
    assert changes.url == f"https://github.com/owner/docs/compare/{span.base[:7]}...{span.head[:7]}"
    assert changes.license == "CC BY 4.0 (LICENSE), MIT (LICENSE-CODE)"


def test_credentials_are_never_shown():
    assert without_credentials("https://u:p@host/x.git") == "https://host/x.git"
    assert (
        without_secrets("fatal: unable to access 'https://u:p@host/x.git'")
        == "fatal: unable to access 'https://host/x.git'"
    )


def test_what_a_hook_of_another_repository_sets_leads_nowhere_else(repo, tmp_path):
    repo.commit({"a.md": PAGE})
    other = Repo(tmp_path / "other")
    other.commit({"b.md": PAGE})
    script = (
        "from pathlib import Path; from tunekeeper.insight.source import open_repository\n"
        f"r = open_repository({str(repo.path)!r}, Path({str(tmp_path)!r})); print(sorted(r.tree('HEAD')))"
    )
    import os
    import sys

    environment = {**os.environ, "GIT_DIR": str(other.path / ".git"), "GIT_WORK_TREE": str(other.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a.md']"
