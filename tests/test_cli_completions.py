"""`tunekeeper completions` against a real server, which records a scripted upstream."""

import json
from dataclasses import replace
from datetime import datetime

import pytest

from tunekeeper.api.server import background
from tunekeeper.cli import main
from tunekeeper.settings import Recording, Settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import StoredCompletion

NOON = int(datetime(2026, 11, 22, 12).timestamp())
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is 2 + 2?"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}


def completion(name: str, **changes: object) -> StoredCompletion:
    message = {"role": "assistant", "content": "It is 4.", "refusal": None}
    made = StoredCompletion(
        id=f"chatcmpl-{name}",
        created=NOON,
        model="teacher",
        request={"model": "teacher", "messages": MESSAGES},
        response={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]},
        source="own",
        metadata={"team": "a"},
    )
    return replace(made, **changes)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A home with three completions: today's, one of another team from yesterday, and one that was cut off."""
    home = tmp_path / "home"
    store = Store(connect(home))
    store.add_completion(completion("old", created=NOON - 86400, metadata={"team": "b"}))
    store.add_completion(completion("new"))
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    store.add_completion(
        completion("cut", response={"choices": [{"index": 0, "message": message, "finish_reason": "length"}]})
    )
    store.close()
    monkeypatch.delenv("TUNEKEEPER_API_KEY", raising=False)
    settings = Settings(home=home, recording=Recording(models=("teacher",), retention_days=36500))
    with background(settings, worker=False) as url:
        monkeypatch.setenv("TUNEKEEPER_URL", url)
        yield url


def test_the_list_shows_the_newest_first_and_those_that_fit(server, capsys):
    assert main(["completions", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["chatcmpl-cut", "chatcmpl-new", "chatcmpl-old"]
    assert main(["completions", "list", "--metadata", "team=b", "--model", "teacher", "--json"]) == 0
    assert [kept["id"] for kept in json.loads(capsys.readouterr().out)["data"]] == ["chatcmpl-old"]
    assert main(["completions", "list", "--metadata", "team=c"]) == 0
    assert capsys.readouterr().out == "No stored completions.\n"


def test_a_pair_needs_a_key_and_a_value(server, capsys):
    assert main(["completions", "list", "--metadata", "team"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_show_prints_the_conversation_with_its_calls(server, capsys):
    assert main(["completions", "show", "chatcmpl-cut"]) == 0
    out = capsys.readouterr().out
    assert '[system] be brief\n[user] what is 2 + 2?\n[assistant] \n  calls add({"a": 2})' in out
    assert main(["completions", "show", "chatcmpl-none"]) == 3


def test_an_export_prints_the_file_and_says_what_was_left_out(server, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["completions", "export", "--since", "2026-11-22", "--until", "2026-11-22", "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("file-")
    assert said.err == "1 exported.\nLeft out: 1 cut_off (--json lists them).\n"
    [line] = out.read_text().splitlines()
    assert json.loads(line) == {"messages": [*MESSAGES, {"role": "assistant", "content": "It is 4."}]}


def test_an_export_takes_the_times_of_this_place(server, capsys):
    assert main(["completions", "export", "--until", "2026-11-21", "--format", "eval", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["exported"], done["format"]) == (1, "eval")
    assert main(["completions", "export", "--since", "2026-11-22T12:00:01"]) == 1
    assert "No stored completion fits" in capsys.readouterr().err
    assert main(["completions", "export", "--since", "yesterday"]) == 2


def test_what_is_pinned_shows_and_can_be_let_go_and_deleted(server, capsys):
    assert main(["completions", "pin", "chatcmpl-new"]) == 0
    assert main(["completions", "stats"]) == 0
    out = capsys.readouterr().out
    assert "Pinned chatcmpl-new." in out
    assert "kept: 3 (" in out
    assert "pinned: 1 (" in out
    assert "recorded without being asked: teacher" in out
    assert main(["completions", "unpin", "chatcmpl-new"]) == 0
    assert main(["completions", "delete", "chatcmpl-new"]) == 0
    assert capsys.readouterr().out == "Unpinned chatcmpl-new.\nDeleted chatcmpl-new.\n"
    assert main(["completions", "stats", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["completions"], found["pinned"], found["pinned_bytes"]) == (2, 0, 0)
