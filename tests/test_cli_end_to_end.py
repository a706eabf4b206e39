"""The command line on the real app: no server runs, so each command brings its own."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny import make_model
from tunekeeper.cli import main

_ACCURACY = ("VALID", "MEAN", "TOKEN", "ACCURACY")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli")
    make_model(directory / "tiny")
    lines = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(12)
    ]
    (directory / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # In a process of its own: outside of a test, a command in this one writes into pytest's own capture file.
    command = [sys.executable, "-m", "tunekeeper", "models", "add", str(directory / "tiny")]
    subprocess.run([*command, "--home", str(directory / "home")], check=True, stdout=subprocess.DEVNULL)
    return directory


@pytest.fixture
def run(place, capsys, monkeypatch):
    for name in ("TUNEKEEPER_URL", "TUNEKEEPER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run_json(*arguments: str):
        capsys.readouterr()
        assert main([*arguments, "--home", str(place / "home"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run_json


def test_a_job_that_waits_is_not_worked_on_by_commands_that_only_look(run, place):
    job = run("tune", str(place / "train.jsonl"), "--model", "tiny", "--no-wait")
    assert job["status"] in ("validating_files", "queued")
    assert [each["id"] for each in run("jobs", "list")["data"]] == [job["id"]]
    assert run("jobs", "show", job["id"])["status"] == job["status"]
    assert run("jobs", "cancel", job["id"])["status"] == "cancelled"
    assert [each["message"] for each in run("jobs", "events", job["id"])["data"]][-1].startswith("Created")


def test_a_sweep_prints_its_trials_and_draws_them(run, place, capsys):
    file, picture = place / "train.jsonl", place / "sweep.svg"
    common = ("--model", "tiny", "-H", "batch_size=6", "-H", "n_epochs=1", "--seed", "1")
    found = run("sweep", str(file), *common, "-s", "lora_rank=2,4", "--picture", str(picture))
    assert found["object"] == "fine_tuning.job.sweep"
    assert found["space"] == {"lora_rank": [2, 4]}
    assert found["validation_split"] == 0.1
    assert "<svg" in picture.read_text("utf-8")
    assert run("jobs", "trials", found["job_id"]) == found
    assert main(["jobs", "trials", found["job_id"], "--home", str(place / "home")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["TRIAL", "lora_rank", "STATUS", "STEP", "VALID", "LOSS", *_ACCURACY, "SECONDS"]
    assert lines[1].startswith(f"{found['best_trial']} *")
    assert "held out" in lines[3]


def test_a_random_sweep_has_ranges(run, place):
    space = ("-s", "learning_rate_multiplier=0.1..10", "-s", "n_epochs=1,2", "--trials", "3", "--no-wait")
    job = run("sweep", str(place / "train.jsonl"), "--model", "tiny", *space)
    assert job["sweep"]["space"] == {
        "learning_rate_multiplier": {"min": 0.1, "max": 10, "scale": "log"},
        "n_epochs": [1, 2],
    }
    assert job["sweep"]["n_trials"] == 3
    assert [trial["status"] for trial in run("jobs", "trials", job["id"])["trials"]] == ["waiting"] * 3
    assert run("jobs", "cancel", job["id"])["status"] == "cancelled"


def test_from_a_file_to_an_answer(run, place):
    job = run("tune", str(place / "train.jsonl"), "--model", "tiny", "--epochs", "1", "--batch-size", "12")
    assert job["status"] == "succeeded"
    model = job["fine_tuned_model"]
    assert model in [each["id"] for each in run("models", "list")["data"]]
    answer = run("chat", model, "3?", "--max-tokens", "4", "--temperature", "0")
    assert answer["model"] == model
    assert answer["usage"]["completion_tokens"] <= 4
    assert run("models", "show", model)["fine_tune"] == job["id"]
    assert run("models", "delete", model)["deleted"] is True


def test_serve_answers_other_commands_and_ends_on_ctrl_c(run, place):
    home = place / "home"
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tunekeeper.cli import main\n"
        f"sys.exit(main(['serve', '--port', '{_free_port()}', '--home', {str(home)!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            note = _when_written(home / "server.json")
            assert note["pid"] == process.pid
            assert "tiny" in [each["id"] for each in run("models", "list")["data"]]
            assert main(["serve", "--home", str(home)]) == 1  # the home directory is taken
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert not (home / "server.json").exists()


def test_a_server_that_others_can_reach_needs_a_key(place, capsys):
    assert main(["serve", "--host", "0.0.0.0", "--home", str(place / "home")]) == 1
    assert "tunekeeper keys create" in capsys.readouterr().err


def _when_written(path: Path) -> dict:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return json.loads(path.read_text())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
