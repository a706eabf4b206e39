"""`tunekeeper eval` on the real app, whose models are scripted servers."""

import json

import pytest

from scripted_server import scripted
from tunekeeper.api.server import background
from tunekeeper.cli.app import main
from tunekeeper.settings import load_settings

GRADER = {
    "type": "string_check",
    "name": "same",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference }}",
}


def saying(text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
    return {("POST", "/chat/completions"): {"model": "m", "choices": [choice], "usage": usage}}


@pytest.fixture
def place(tmp_path):
    """A home with two models: one is always right."""
    with scripted(saying("blue")) as right, scripted(saying("red")) as wrong:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "tunekeeper.toml").write_text(
            "".join(
                f'[[upstreams]]\nname = "{name}"\nbase_url = "{server.url}"\nmodels = ["{name}"]\n'
                for name, server in (("right", right), ("wrong", wrong))
            )
        )
        said = {"role": "assistant", "content": "blue"}
        rows = [{"messages": [{"role": "user", "content": f"Colour {n}?"}, said]} for n in range(30)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "grader.json").write_text(json.dumps(GRADER))
        # One server for all commands; without --url each would start one.
        with background(load_settings(tmp_path / "home", {})) as url:
            yield tmp_path, ["--home", str(tmp_path / "home"), "--url", url]


def test_an_eval_of_two_models_ends_in_a_table_and_a_comparison(place, capsys):
    place, home = place
    command = ["eval", "run", str(place / "data.jsonl"), "--grader", str(place / "grader.json")]
    out = place / "out"
    assert main([*home, *command, "--baseline", "wrong", "--model", "right", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "0 of 30 (0.0 %)" in printed
    assert "30 of 30 (100.0 %)" in printed
    assert "right: better by" in printed
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["baseline"] == "wrong"
    assert "<html" in (out / "comparison.html").read_text()
    assert (out / "comparison.md").read_text().startswith("# ")

    assert main([*home, "--json", "eval", "list"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["data"]
    assert main([*home, "--json", "eval", "show", made["id"]]) == 0
    runs = {run["name"]: run["id"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert main([*home, "eval", "compare", runs["wrong"], runs["right"]]) == 0
    assert "right: better by" in capsys.readouterr().out
    assert main([*home, "eval", "items", runs["wrong"], "--status", "fail", "--limit", "1"]) == 0
    assert "fail  'red'" in capsys.readouterr().out
    assert main([*home, "eval", "cancel", runs["wrong"]]) == 1  # it has ended
    assert main([*home, "eval", "delete", runs["wrong"]]) == 0
    assert main([*home, "eval", "show", runs["wrong"]]) == 3


def test_bad_use_is_told_before_anything_is_asked(place, capsys):
    place, home = place
    command = ["eval", "run", str(place / "data.jsonl"), "--grader", str(place / "grader.json")]
    assert main([*home, *command, "--model", "right", "--system", "Be brief."]) == 1
    assert "--system needs --prompt" in capsys.readouterr().err
    assert main([*home, *command, "--model", "right", "--prompt", "{{ item.colour }}"]) == 1
    assert "item.colour: the item has nothing there" in capsys.readouterr().err
    (place / "data.jsonl").write_text("{}\nnot json\n")
    assert main([*home, *command, "--model", "right"]) == 1
    assert "1 lines cannot be read" in capsys.readouterr().err
