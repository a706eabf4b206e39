import json
import subprocess
import sys
from pathlib import Path

import pytest

from report_checker import check_report
from repositories import Repo
from scripted_server import scripted
from tunekeeper.cli import main
from tunekeeper.insight.compare import parse_compare
from tunekeeper.insight.source import open_repository

PATCH = "@@ -1 +1,2 @@\n-a\n+b\n+c"
ANSWER = {
    "date": "2025-06-12",
    "category": "openai",
    "html_url": "https://github.com/o/d/compare/a...b",
    "files": [{"filename": "docs/a.md", "status": "modified", "additions": 2, "deletions": 1, "patch": PATCH}],
}


@pytest.fixture
def repo(tmp_path, monkeypatch) -> Repo:
    for name in ("TUNEKEEPER_URL", "TUNEKEEPER_API_KEY", "GITHUB_TOKEN", "GITHUB_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNEKEEPER_HOME", str(tmp_path / "home"))
    repo = Repo(tmp_path / "documents")
    repo.commit({"docs/a.md": "# A\n\nOne.\n", "src/x.py": "x = 1\n"}, day="2026-01-01")
    repo.commit({"docs/a.md": "# A\n\nTwo.\n", "src/x.py": "x = 2\n"}, day="2026-01-02")
    return repo


def test_a_range_is_printed(repo, capsys, tmp_path):
    assert main(["report", "HEAD~..HEAD", "--repo", str(repo.path)]) == 0
    repository = open_repository(str(repo.path), tmp_path)
    printed = capsys.readouterr()
    check_report(printed.out, repository.changes(repository.span("HEAD~..HEAD")))
    assert "title: Diff Insight Report - documents" in printed.out


@pytest.mark.parametrize("language", ["ja", "en"])
def test_a_compare_answer_becomes_a_file_by_month(repo, language, tmp_path, capsys):
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(ANSWER))
    out = tmp_path / "out"
    assert main(["report", "--compare", str(path), "--language", language, "--out", str(out)]) == 0
    written = out / "2025" / "06" / "diff-insight-report-openai-2025-06-12.md"
    assert capsys.readouterr().out == f"{written}: 1 files\n"
    check_report(written.read_text("utf-8"), parse_compare([ANSWER], where="x"))


def test_a_range_of_days_and_the_licence(repo, capsys):
    days = ["--since", "2026-01-01", "--until", "2026-01-01"]
    assert main(["report", "--repo", str(repo.path), *days, "--license", "CC BY 4.0"]) == 0
    printed = capsys.readouterr().out
    assert "date: '2026-01-01'" in printed
    assert "CC BY 4.0" in printed


def test_categories_split_the_report_and_the_rest_is_listed(repo, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("categories:\n  docs: docs/**\n")
    shared = ["--repo", str(repo.path), "--categories", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    assert main(["report", "HEAD~..HEAD", *shared, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(entry["category"], entry["files"]) for entry in answer["reports"]] == [("docs", 1)]
    assert answer["unmatched"] == ["src/x.py"]
    assert main(["report", "HEAD~..HEAD", *shared]) == 0
    assert "In no category: src/" in capsys.readouterr().err
    assert main(["report", "HEAD~..HEAD", *shared, "--category", "other"]) == 1
    assert "there are docs" in capsys.readouterr().err


def test_watch_reports_what_is_new_and_raises_the_alarm_of_a_moved_folder(repo, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("categories:\n  docs: docs/**\nrest: misc\n")
    command = [
        "watch",
        "--repo",
        str(repo.path),
        "--categories",
        str(tmp_path / "c.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert [Path(line.split(":")[0]).name for line in capsys.readouterr().out.splitlines()] == [
        "diff-insight-report-docs-2026-01-02.md",
        "diff-insight-report-misc-2026-01-02.md",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out == "Nothing new.\n"
    repo.move("docs", "articles/docs")
    repo.commit(day="2026-01-03")
    assert main(command) == 0
    assert "Alarm: The category docs: All files of docs/** moved from docs to articles/docs" in capsys.readouterr().err
    assert main(["report", *command[1:]]) == 0
    assert "Use articles/docs/** in its paths." in capsys.readouterr().err


def test_a_repository_that_cannot_be_reached_is_reported_all_the_same(repo, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", "a..b", "--repo", f"file://{tmp_path}/none", "--out", str(out)]) == 1
    assert "clone failed" in capsys.readouterr().err
    [path] = out.rglob("*.md")
    assert "could not be read, so none is shown" in path.read_text("utf-8")


def test_a_refused_token_is_reported_all_the_same(repo, tmp_path, capsys, monkeypatch):
    answers = {("GET", "/repos/o/d/compare/a...b"): (401, {"message": "Bad credentials"})}
    with scripted(answers) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        monkeypatch.setenv("GITHUB_TOKEN", "wrong")
        out = tmp_path / "out"
        assert main(["report", "--compare", "https://github.com/o/d/compare/a...b", "--out", str(out)]) == 1
        assert server.requests[0][3]["Authorization"] == "Bearer wrong"
    [path] = out.rglob("*.md")
    assert "refused the token" in path.read_text("utf-8")
    assert "refused the token" in capsys.readouterr().err


def test_a_comparison_is_fetched(repo, capsys, monkeypatch):
    with scripted({("GET", "/repos/o/d/compare/a...b"): ANSWER}) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        assert main(["report", "--compare", "https://github.com/o/d/compare/a...b"]) == 0
    check_report(capsys.readouterr().out, parse_compare([ANSWER], where="x"))


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        (["report", "a..b", "--since", "2026-01-01"], 2, "give one of"),
        (["report", "--compare", "x.json", "--repo", "elsewhere"], 2, "its own repository"),
        (["report"], 2, "give --out"),
        (["report", "--since", "soon"], 2, "a day like"),
        (["report", "--compare", "no-such.json"], 3, "cannot be read"),
        (["report", "nope..HEAD"], 3, "has no commit"),
        (["report", "HEAD~..HEAD", "--language", "xx"], 1, "xx"),
        (["report", "HEAD~..HEAD", "--categories", "no-such.yaml"], 2, "does not exist"),
        (["watch", "--out", "out", "--every", "often"], 2, "a time like"),
        (["watch"], 2, "--out"),
        (["watch", "--out", "out", "--repo", "no-such"], 3, "not a directory"),
    ],
)
def test_wrong_use_is_said(wrong, code, said, repo, capsys, monkeypatch):
    monkeypatch.chdir(repo.path)
    assert main(wrong) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_report_needs_no_heavy_package(repo):
    code = (
        "import sys\nfrom tunekeeper.cli import main\n"
        f"assert main(['report', 'HEAD~..HEAD', '--repo', {str(repo.path)!r}]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'fastapi', 'sqlalchemy', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


DATES = (
    "# Models\n\n| Model | Version | Retirement date |\n| - | - | - |\n"
    "| `gpt-x` | 1 | {day} |\n| `other` | 1 | {day} |\n"
)


@pytest.fixture
def watched(repo, tmp_path, capsys) -> list[str]:
    """A repository whose models' dates moved since the last run, and the command that watches it."""
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "tunekeeper.toml").write_text('[aliases]\n"gpt-x-1" = "own"\n')
    command = ["watch", "--repo", str(repo.path), "--out", str(tmp_path / "out")]
    repo.commit({"models.md": DATES.format(day="2026-09-01")}, day="2026-01-03")
    assert main(command) == 0
    repo.commit({"models.md": DATES.format(day="2026-06-11")}, day="2026-01-04")
    capsys.readouterr()
    return command


def test_watch_tells_of_each_report_what_hits_the_own_models_first(watched, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + "c2VjcmV0")
    issue = tmp_path / "issue.md"
    with scripted({("POST", "/hook"): {}}) as server:
        told = ["--webhook", f"{server.url}/hook", "--webhook-secret-env", "HOOK_SECRET", "--issue-file", str(issue)]
        assert main([*watched, *told, "--site-url", "https://docs.example/"]) == 0
        [(_, _, body, headers)] = server.requests
        assert main([*watched, *told]) == 0  # nothing new, and so nobody is told again
        assert len(server.requests) == 1
    news = json.loads(body)["data"]
    assert news["date"] == "2026-01-04"
    assert news["url"] == "https://docs.example/2026/01/diff-insight-report-documents-2026-01-04.html"
    [hit] = news["hits"]
    assert "brought forward from September 1, 2026 to June 11, 2026" in hit
    assert hit.endswith("Yours: gpt-x-1.")
    assert next(value for name, value in headers.items() if name.lower() == "webhook-signature").startswith("v1,")
    text = issue.read_text("utf-8")
    assert text.index("What hits you") < text.index("Breaking change")


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it
def test_who_cannot_be_told_is_said_and_the_report_and_state_stay(watched, tmp_path, capsys):
    with scripted({("POST", "/hook"): (500, {})}) as server:
        assert main([*watched, "--webhook", f"{server.url}/hook", "--notify", "nonsense://x"]) == 0
    said = capsys.readouterr()
    assert "was not told: it answered 500" in said.err
    assert "nonsense" in said.err
    assert "2026-01-04" in said.out
    assert main(watched) == 0
    assert capsys.readouterr().out == "Nothing new.\n"


def test_a_secret_that_is_not_set_is_refused_before_anything_is_read(watched, capsys):
    assert main([*watched, "--webhook", "http://127.0.0.1:9/x", "--webhook-secret-env", "NO_SUCH_SECRET"]) == 2
    assert "NO_SUCH_SECRET, which is not set" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["watch", "report"])
@pytest.mark.parametrize(("language", "said"), [("en", "could not be read"), ("ja", "変更を読み取れなかった")])
def test_an_upstream_that_was_never_reached_is_reported(repo, tmp_path, capsys, command, language, said):
    out = tmp_path / "out"
    line = [command, "--repo", f"file://{tmp_path}/gone", "--out", str(out), "--language", language]
    assert main(line) == 1
    [path] = out.rglob("*.md")
    assert said in path.read_text("utf-8")
    assert "Lacking: The changes could not be read" in capsys.readouterr().err


def test_watch_reports_an_upstream_that_is_gone_and_catches_up_later(repo, tmp_path, capsys):
    out, away = tmp_path / "out", tmp_path / "away"
    command = ["watch", "--repo", f"file://{repo.path}", "--out", str(out)]
    assert main(command) == 0
    repo.commit({"docs/a.md": "# A\n\nThree.\n"}, day="2026-01-03")
    repo.path.rename(away)
    before = {*out.rglob("*.md")}
    assert main(command) == 1
    [path] = {*out.rglob("*.md")} - before
    assert "What is newer than the last visit is missing" in path.read_text("utf-8")
    assert main(command) == 1
    assert {*out.rglob("*.md")} - before == {path}
    away.rename(repo.path)
    assert main(command) == 0
    later = (out / "2026" / "01" / "diff-insight-report-documents-2026-01-03.md").read_text("utf-8")
    assert "Three." in later
    assert "could not be reached from" in later


def test_watch_keeps_the_dates_of_a_page_whose_retirements_changed(repo, capsys, tmp_path):
    command = ["watch", "--repo", str(repo.path), "--out", str(tmp_path / "out")]
    head = "# Retirements\n\n## Current models\n\n| Model | Version | Retirement date |\n|---|---|---|\n"
    table = head + "| `n-4` | 1 | {} |\n"
    repo.commit({"docs/ends.md": table.format("June 1, 2026")}, day="2026-01-03")
    assert main(command) == 0
    repo.commit({"docs/ends.md": table.format("July 1, 2026")}, day="2026-01-04")
    assert main(command) == 0
    capsys.readouterr()
    assert main(["retirements", "explain", "n-4"]) == 0
    said = capsys.readouterr().out
    assert "docs/ends.md" in said
    assert "June 1, 2026" in said
    assert "July 1, 2026" in said
    assert main(["retirements", "list", "--json"]) == 0
    assert "2026-07-01" in capsys.readouterr().out
