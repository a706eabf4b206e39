import json

import pytest

from tunekeeper.cli import main
from tunekeeper.errors import InvalidConfig
from tunekeeper.settings import Lifecycle, ModelLife, load_settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store

PAGE = """# Retirements

| Model | Version | Retirement date | Replacement model |
|---|---|---|---|
| `gpt-4o` | 2024-05-13 | No earlier than May 1, 2099 | `gpt-5` |
| `o1` | 2024-12-17 | 2098-01-01 | |
| `tts` | 1 | TBD | |
"""
PATCH = (
    "@@ -3,3 +3,3 @@\n | Model | Version | Retirement date |\n |---|---|---|\n"
    "-| `a` | 1 | May 1, 2026 |\n+| `a` | 1 | May 2, 2026 |"
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("TUNEKEEPER_URL", "TUNEKEEPER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNEKEEPER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def filled(home, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE, "utf-8")
    assert main(["retirements", "import", str(page), "--source", "the page"]) == 0
    capsys.readouterr()
    return home


def test_an_import_says_what_it_read_and_what_it_could_not(home, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE, "utf-8")
    assert main(["retirements", "import", str(page)]) == 0
    said = capsys.readouterr()
    assert said.out == "3 models, 7 new statements.\n"
    assert said.err == f"Not understood, kept as text: tts 1, retirement_date: 'TBD' ({page}, line 7)\n"
    assert main(["retirements", "import", str(page)]) == 0
    assert "3 models, 0 new statements" in capsys.readouterr().out


def test_the_list_is_sorted_by_date_and_is_the_default(filled, capsys):
    assert main(["retirements"]) == 0
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()] == ["MODEL", "o1-2024-12-17", "gpt-4o-2024-05-13"]
    assert "not before 2099-05-01" in first
    assert main(["retirements", "list"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("options", "models"),
    [
        (["--model", "4O"], ["gpt-4o"]),
        (["--before", "2098-01-01"], []),
        (["--before", "January 2, 2098"], ["o1"]),
        (["--within", "30"], []),
        (["--within", "40000"], ["o1", "gpt-4o"]),
        (["--publisher", "nobody"], []),
        (["--mine"], ["gpt-4o"]),
    ],
)
def test_the_list_is_filtered(filled, capsys, options, models):
    (filled / "tunekeeper.toml").write_text('[aliases]\n"gpt-4o" = "smollm2-135m"\n')
    assert main(["retirements", "list", *options, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert [entry["model"] for entry in data] == models
    assert all(entry["hits"] == (["gpt-4o"] if entry["model"] == "gpt-4o" else []) for entry in data)


def test_a_model_is_explained_with_source_and_line(filled, capsys):
    assert main(["retirements", "explain", "gpt-4o"]) == 0
    text = capsys.readouterr().out
    assert "replacement: gpt-5" in text
    assert "retirement_date: No earlier than May 1, 2099  [the page, line 5]" in text
    assert main(["retirements", "explain", "tts"]) == 0
    assert "not understood: retirement_date: 'TBD'" in capsys.readouterr().out
    assert main(["retirements", "explain", "unknown"]) == 3


def test_events_of_patches_are_a_line_for_a_line(home, tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    lines = [{"id": "one", "filename": "p.md", "patch": PATCH}, {"id": 2, "filename": "q.md", "patch": ""}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert main(["retirements", "events", str(file)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["events"][0]["kind"], first["events"][0]["delta_days"]) == ("one", "date_extended", 1)
    assert second == {"id": 2, "events": []}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Line 2 of"),
        ("[]", "must be an object with id"),
        ('{"id": 1, "filename": "a", "patch": null}', "patch must be a text"),
    ],
)
def test_a_bad_line_is_named(home, tmp_path, capsys, line, says):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"id": 1, "filename": "p.md", "patch": PATCH}) + "\n" + line + "\n", "utf-8")
    assert main(["retirements", "events", str(file)]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert "ine 2" in error


def test_the_catalog_is_shared_by_all_who_open_the_home(filled):
    store = Store(connect(filled))
    assert [entry.model for entry in store.catalog().entries] == ["gpt-4o", "o1", "tts"]
    assert store.add_claims([claim for entry in store.catalog().entries for claim in entry.history]) == 0
    store.close()


def test_the_policy_is_read_from_the_file(home):
    (home / "tunekeeper.toml").write_text(
        '[lifecycle]\nenforce = ["a"]\nlegacy_days = 9\nnotice_days = [5]\n'
        '[lifecycle.models."b"]\nshutdown_date = 2027-01-02\ntraining_retirement_date = "2026-01-02"\n'
        'replacement = "c"\n'
    )
    policy = load_settings(home, {}).lifecycle
    life = policy.models["b"]
    assert (policy.enforce, policy.legacy_days, policy.deprecated_days, policy.notice_days) == (("a",), 9, 180, (5,))
    assert (str(life.shutdown_date), str(life.training_retirement_date), life.replacement) == (
        "2027-01-02",
        "2026-01-02",
        "c",
    )
    assert load_settings(home / "empty", {}).lifecycle == Lifecycle()
    assert life != ModelLife()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[lifecycle]\nenforced = []", "unknown setting 'enforced'"),
        ('[lifecycle]\nenforce = "a"', "must be a list of str"),
        ("[lifecycle]\nlegacy_days = -1", "whole number of at least 0"),
        ("[lifecycle]\nmodels = 1", "must be tables"),
        ('[lifecycle.models."a"]\nshutdown_date = "soon"', "no date YYYY-MM-DD"),
        ('[lifecycle.models."a"]\nshutdown = 2027-01-01', "unknown setting 'shutdown'"),
        ('[lifecycle.models."a"]\nshutdown_date = 2027', "must be a date YYYY-MM-DD"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(home, text, says):
    (home / "tunekeeper.toml").write_text(text)
    with pytest.raises(InvalidConfig, match=says):
        load_settings(home, {})
