"""`tunekeeper distill` on the real app, with a tiny student that is trained."""

import json

import pytest

from distilling import answered, stocked
from tunekeeper.api.server import background
from tunekeeper.cli.app import main
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store

ASK = ["distill", "--student", "tiny", "--teacher", "large", "--held-out", "0.3", "--seed", "7"]
SMALL = ["--epochs", "1", "--batch-size", "8"]


@pytest.fixture
def home(tmp_path, tiny_base):
    settings = stocked(tmp_path / "home", tiny_base, 40)
    # One server for all commands; without --url each would start one.
    with background(settings) as url:
        yield ["--home", str(settings.home), "--url", url]


def test_a_command_goes_from_traffic_to_the_page_and_later_the_same_way_again(home, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*home, *ASK, *SMALL, "--scrub", "--suffix", "small", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "41 stored completions" in said.err
    assert "Left out: image 1." in said.err
    assert "Replaced: email 4." in said.err
    table = said.out.splitlines()
    assert table[1].split()[:2] == ["teacher", "large"]
    assert "100.0 %" in table[1]
    assert table[2].startswith("student         ft:tiny:")
    assert table[3].startswith("student before  tiny")
    assert "<html" in (out / "comparison.html").read_text()
    assert (out / "comparison.md").read_text().startswith("# Distillation: ft:tiny:")
    found = json.loads((out / "comparison.json").read_text())
    job, runs = found["job"]["id"], {role: run["id"] for role, run in found["evaluation"]["runs"].items()}

    assert main([*home, "--json", "distill", "--resume", job]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert {role: run["id"] for role, run in resumed["evaluation"]["runs"].items()} == runs
    assert resumed["comparison"] == found["comparison"]

    store = Store(connect(tmp_path / "home"))
    for n in range(100, 110):
        store.add_completion(answered(n))
    store.close()
    assert main([*home, "--json", "distill", "--again", job, "--no-wait"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["recipe"] == found["recipe"]
    assert again["counts"]["completions"] == 51
    assert again["job"]["user_provided_suffix"] == "small"


def test_a_dry_run_only_counts(home, capsys):
    assert main([*home, *ASK, "--dry-run"]) == 0
    assert "41 stored completions" in capsys.readouterr().out
    assert main([*home, "jobs", "list"]) == 0
    assert "ftjob-" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["distill"], 1, "--student"),
        (["distill", "--resume", "ftjob-1", "--scrub"], 1, "--resume goes on"),
        (["distill", "--resume", "ftjob-1"], 3, "ftjob-1"),
        ([*ASK, "--teacher-price", "cheap"], 2, "IN,OUT"),
        ([*ASK, "--metadata", "team=c"], 1, "No stored completion fits"),
    ],
)
def test_bad_use_is_told(home, capsys, arguments, code, says):
    assert main([*home, *arguments]) == code
    assert says in capsys.readouterr().err
