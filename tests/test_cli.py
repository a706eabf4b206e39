import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripted_server import scripted
from tiny import make_model
from tiny_gguf import random_weights, write_gguf
from tunekeeper.cli import client as client_module
from tunekeeper.cli import main
from tunekeeper.cli.options import hoisted
from tunekeeper.cli.output import duration, fields, size, table

HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "httpx", "rich", "numpy", "tokenizers", "pydantic")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    for name in ("TUNEKEEPER_URL", "TUNEKEEPER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNEKEEPER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    return tmp_path / "home"


def chat_line(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


def training_file(path: Path, n: int = 12) -> Path:
    path.write_text("".join(chat_line(f"What is {i} and {i}?", f"It is {2 * i}.") for i in range(n)))
    return path


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from tunekeeper.cli import main\n"
        "assert main(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], time.perf_counter() - start)"
    )
    best = 9.9
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        heavy, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
        assert heavy == "[]"
        best = min(best, float(seconds))
    assert best < 0.3


def test_python_dash_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "tunekeeper", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: tunekeeper ")


@pytest.mark.parametrize(
    "command",
    [
        *("serve", "tune", "check", "estimate", "sweep", "grade", "chat", "demo", "report", "watch"),
        *(f"models {verb}" for verb in ("list", "pull", "add", "show", "delete")),
        *(f"files {verb}" for verb in ("upload", "list", "show", "content", "delete")),
        *(f"jobs {verb}" for verb in ("list", "show", "events", "watch", "cancel", "pause", "resume", "delete")),
        *(f"completions {verb}" for verb in ("list", "show", "export", "pin", "unpin", "delete", "stats")),
        *(f"keys {verb}" for verb in ("create", "list", "delete")),
    ],
)
def test_every_command_explains_itself(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert f"Usage: tunekeeper {command}" in capsys.readouterr().out


def test_shared_options_may_stand_anywhere():
    assert hoisted(["jobs", "list", "--json", "--url", "h:1"]) == ["--json", "--url", "h:1", "jobs", "list"]
    assert hoisted(["chat", "m", "--home=/x", "hi"]) == ["--home=/x", "chat", "m", "hi"]
    assert hoisted(["chat", "m", "--", "--json"]) == ["chat", "m", "--", "--json"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["nothing"],
        ["tune", "f.jsonl"],
        ["jobs", "show"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--url"],
        ["tune", "no-such.jsonl", "--model", "m"],
        ["chat", "m", ""],
        ["--url", "http://127.0.0.1:1", "keys", "list"],
        ["--url", "http://127.0.0.1:1", "models", "pull"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_so_on_stderr(wrong, home, capsys):
    assert main(wrong) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Usage" in printed.err or "Error" in printed.err


def test_no_server_at_the_address_exits_with_4(home, capsys):
    assert main(["--url", "127.0.0.1:1", "jobs", "list"]) == 4
    assert "tunekeeper serve" in capsys.readouterr().err


def test_an_address_that_is_none_is_refused(home, capsys):
    assert main(["--url", "ftp://somewhere", "jobs", "list"]) == 1
    assert "http://HOST:PORT/v1" in capsys.readouterr().err


def test_something_else_that_answers_is_no_server_of_ours(home, capsys):
    with scripted({("GET", "/models"): b"<html>"}) as server:
        assert main(["--url", server.url, "models", "list"]) == 4
    assert "no Tunekeeper" in capsys.readouterr().err


def test_what_the_server_does_not_find_exits_with_3(home, capsys):
    with scripted({}) as server:
        assert main(["--url", server.url, "jobs", "show", "ftjob-1"]) == 3
    assert capsys.readouterr().err == "Error: There is no /fine_tuning/jobs/ftjob-1.\n"


def test_an_api_error_keeps_its_message_and_its_details(home, capsys):
    details = [{"line": n, "message": "not JSON"} for n in range(1, 13)]
    error = {"error": {"message": "The file has faults.", "code": "invalid_training_file", "details": details}}
    with scripted({("GET", "/files/file-1"): (400, error)}) as server:
        assert main(["--url", server.url, "files", "show", "file-1"]) == 1
        text = capsys.readouterr().err
        assert main(["--url", server.url, "files", "show", "file-1", "--json"]) == 1
    assert text.startswith("Error: The file has faults.\n  line 1: not JSON\n")
    assert "and 2 more" in text
    shown = json.loads(capsys.readouterr().err)["error"]
    assert shown["code"] == "invalid_training_file"
    assert len(shown["details"]) == 12


def test_the_key_goes_with_every_request(home):
    with scripted({("GET", "/models"): {"data": []}}) as server:
        assert main(["models", "list", "--url", server.url, "--api-key", "sk-tk-1"]) == 0
        assert server.requests[0][3]["Authorization"] == "Bearer sk-tk-1"


def test_an_address_without_a_path_means_v1(home):
    with scripted({("GET", "/models"): {"data": []}}) as server:
        assert main(["models", "list", "--url", server.url.removesuffix("/v1")]) == 0


def test_a_server_that_runs_on_the_home_directory_is_found(home, capsys):
    home.mkdir()
    with scripted({("GET", "/models"): {"data": []}}) as server:
        note = {"base_url": server.url, "pid": os.getpid()}
        (home / "server.json").write_text(json.dumps(note))
        assert main(["models", "list"]) == 0
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "text", ["", "{}", '{"base_url": "http://127.0.0.1:1/v1", "pid": 1}', '{"base_url": 1, "pid": 99999999}']
)
def test_a_note_that_a_dead_server_left_is_not_believed(home, text):
    from tunekeeper.settings import load_settings

    home.mkdir()
    (home / "server.json").write_text(text)
    assert client_module.running_server(load_settings(home)) is None


# Files


def test_a_file_is_sent_and_its_id_printed(home, tmp_path, capsys):
    path = training_file(tmp_path / "train.jsonl")
    with scripted({("POST", "/files"): {"id": "file-1", "status": "uploaded"}}) as server:
        assert main(["--url", server.url, "files", "upload", str(path)]) == 0
        sent = server.bodies("POST", "/files")[0]
    assert path.read_bytes() in sent
    assert b'name="purpose"\r\n\r\nfine-tune' in sent
    assert capsys.readouterr().out == "file-1\n"


def test_a_file_beyond_the_limit_goes_up_in_parts(tmp_path, home):
    path = tmp_path / "big.jsonl"
    size_bytes = client_module.MAX_FILE_BYTES + 1
    with path.open("wb") as file:
        file.truncate(size_bytes)  # sparse: it takes no room on the disk
    answers = {
        ("POST", "/uploads"): {"id": "upload_1"},
        ("POST", "/uploads/upload_1/parts"): (
            400,
            {"error": {"message": "The disk is full.", "code": "disk_full"}},
        ),
        ("POST", "/uploads/upload_1/cancel"): {"status": "cancelled"},
    }
    with scripted(answers) as server:
        assert main(["--url", server.url, "files", "upload", str(path)]) == 1
        assert json.loads(server.bodies("POST", "/uploads")[0])["bytes"] == size_bytes
        assert len(server.bodies("POST", "/uploads/upload_1/parts")[0]) > client_module.PART_BYTES
        assert server.bodies("POST", "/uploads/upload_1/cancel")


def test_content_goes_to_the_screen_or_to_a_file(home, tmp_path, capfdbinary):
    with scripted({("GET", "/files/file-1/content"): b"step,loss\n1,\xff\n"}) as server:
        assert main(["--url", server.url, "files", "content", "file-1"]) == 0
        sys.stdout.flush()
        assert capfdbinary.readouterr().out == b"step,loss\n1,\xff\n"
        assert main(["--url", server.url, "files", "content", "file-1", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == b"step,loss\n1,\xff\n"


# Jobs


def event(n: int, message: str, **data: float) -> dict:
    kind = "metrics" if data else "message"
    shown = {"id": f"ftevent-{n}", "created_at": n, "level": "info", "message": message, "type": kind}
    return {**shown, "data": data or None}


def job(status: str, **more: object) -> dict:
    return {
        "id": "ftjob-1",
        "status": status,
        "model": "tiny",
        "created_at": 100,
        "fine_tuned_model": None,
    } | more


def watched(capsys, *jobs: dict, events: list[dict] | None = None) -> tuple[int, str, str]:
    newest_first = {"data": (events or [])[::-1], "has_more": False}
    answers = {
        ("GET", "/fine_tuning/jobs/ftjob-1"): list(jobs),
        ("GET", "/fine_tuning/jobs/ftjob-1/events"): newest_first,
    }
    with scripted(answers) as server:
        code = main(["--url", server.url, "jobs", "watch", "ftjob-1"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_watching_shows_each_event_once_and_ends_with_the_model(home, capsys):
    done = job("succeeded", fine_tuned_model="ft:tiny:org::abcd1234", finished_at=160, trained_tokens=1234)
    events = [event(1, "Created fine-tuning job"), event(2, "Fine-tuning job started")]
    code, out, err = watched(capsys, job("running"), job("running"), done, events=events)
    assert code == 0
    assert err.count("Created fine-tuning job") == err.count("Fine-tuning job started") == 1
    assert err.index("Created") < err.index("started")
    assert "ft:tiny:org::abcd1234 is ready in 1 min 00 s, 1,234 tokens trained." in out
    assert "tunekeeper chat ft:tiny:org::abcd1234" in out


def test_watching_a_job_that_fails_fails_with_its_reason(home, capsys):
    error = {"code": "invalid_training_file", "message": "Line 3 is no JSON.", "param": "training_file"}
    code, out, err = watched(capsys, job("failed", error=error))
    assert (code, out) == (1, "")
    assert "ftjob-1 failed: Line 3 is no JSON." in err


def test_watching_a_job_that_pauses_says_how_to_go_on(home, capsys):
    code, out, _ = watched(capsys, job("paused"))
    assert code == 0
    assert "tunekeeper jobs resume ftjob-1" in out


def test_watching_a_cancelled_job_is_no_success(home, capsys):
    assert watched(capsys, job("cancelled"))[0] == 1


def test_metrics_are_thinned_out_in_a_log(home, capsys):
    events = [event(n, f"Step {n}/50: training loss=1.00", step=n, total_steps=50) for n in range(50)]
    _, _, err = watched(capsys, job("succeeded", fine_tuned_model="m"), events=events)
    assert err.count("training loss") == 1


def test_events_beyond_a_page_are_all_found(home):
    from tunekeeper.cli.client import Client
    from tunekeeper.cli.watch import events_since

    pages = [
        {"data": [event(5, "e"), event(4, "d")], "has_more": True},
        {"data": [event(3, "c"), event(2, "b")], "has_more": True},
    ]
    with scripted({("GET", "/job/events"): pages}) as server:
        found = events_since(Client(server.url), "/job", "ftevent-2")
    assert [each["message"] for each in found] == ["c", "d", "e"]


def test_lists_are_tables_for_people_and_json_for_programs(home, capsys):
    page = {"object": "list", "data": [job("running")], "has_more": False}
    with scripted({("GET", "/fine_tuning/jobs"): page}) as server:
        assert main(["--url", server.url, "jobs", "list"]) == 0
        text = capsys.readouterr().out
        assert main(["jobs", "list", "--json", "--url", server.url]) == 0
    assert text.splitlines()[0].split() == ["ID", "STATUS", "FROM", "MODEL", "CREATED"]
    assert text.splitlines()[1].split()[:4] == ["ftjob-1", "running", "tiny", "-"]
    assert json.loads(capsys.readouterr().out) == page


def test_ctrl_c_leaves_the_job_alone_and_says_so(home):
    answers = {
        ("GET", "/fine_tuning/jobs/ftjob-1"): job("running"),
        ("GET", "/fine_tuning/jobs/ftjob-1/events"): {"data": [event(1, "Job started")], "has_more": False},
    }
    with scripted(answers) as server:
        code = (
            "import signal, sys\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from tunekeeper.cli import main\n"
            f"sys.exit(main(['jobs', 'watch', 'ftjob-1', '--url', {server.url!r}]))"
        )
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
            assert "Job started" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        assert {method for method, _, _, _ in server.requests} == {"GET"}
    assert process.returncode == 1
    assert "ftjob-1 goes on without you" in err


def test_an_action_says_what_the_job_is_now(home, capsys):
    with scripted({("POST", "/fine_tuning/jobs/ftjob-1/cancel"): job("cancelled")}) as server:
        assert main(["--url", server.url, "jobs", "cancel", "ftjob-1"]) == 0
    assert capsys.readouterr().out == "ftjob-1 is cancelled.\n"


# Tune

ESTIMATE = {
    "training_tokens": 1000,
    "billable_tokens": 3000,
    "n_epochs": 3,
    "steps": 12,
    "est_wall_seconds": 75.0,
    "peak_memory_bytes": 3 * 1024**3,
    "tokens_per_second": 40.0,
    "truncated_examples": 2,
    "est_cost": {"amount": 0.5, "currency": "EUR", "basis": "24 EUR an hour of this machine"},
    "hyperparameters": {"n_epochs": 3, "learning_rate": 0.0002, "early_stopping": None},
}


def tune_answers(**changes: object) -> dict:
    return {
        ("POST", "/files"): {"id": "file-1", "status": "uploaded"},
        ("GET", "/files/file-1"): [{"id": "file-1", "status": each} for each in ("uploaded", "processed")],
        ("POST", "/fine_tuning/jobs/estimate"): ESTIMATE,
        ("POST", "/fine_tuning/jobs"): job("validating_files"),
        ("GET", "/fine_tuning/jobs/ftjob-1"): [job("running"), job("succeeded", fine_tuned_model="ft:tiny")],
        ("GET", "/fine_tuning/jobs/ftjob-1/events"): {"data": [], "has_more": False},
        ("DELETE", "/files/file-1"): {"id": "file-1", "deleted": True},
    } | changes  # fmt: skip


def test_tune_sends_the_file_says_what_it_takes_and_names_the_model(home, tmp_path, capsys):
    path = training_file(tmp_path / "train.jsonl")
    with scripted(tune_answers()) as server:
        command = [
            "tune",
            str(path),
            "--model",
            "tiny",
            "--epochs",
            "3",
            "-H",
            "lora_rank=8",
            "-H",
            "scheduler=cosine",
        ]
        command += [
            "-H",
            'early_stopping={"patience": 2}',
            "--suffix",
            "mine",
            "--seed",
            "7",
            "--url",
            server.url,
        ]
        assert main(command) == 0
        asked = [json.loads(body) for body in server.bodies("POST", "/fine_tuning/jobs")]
        estimated = json.loads(server.bodies("POST", "/fine_tuning/jobs/estimate")[0])
    hyperparameters = {
        "n_epochs": 3,
        "lora_rank": 8,
        "scheduler": "cosine",
        "early_stopping": {"patience": 2},
    }
    assert asked == [
        {
            "model": "tiny",
            "training_file": "file-1",
            "suffix": "mine",
            "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        }
    ]
    assert estimated == asked[0]
    printed = capsys.readouterr()
    assert "tunekeeper chat ft:tiny" in printed.out
    for part in (
        "3,000",
        "12 steps",
        "1 min 15 s",
        "3.0 GiB",
        "2 examples",
        "0.5 EUR",
        "learning_rate: 0.0002",
    ):
        assert part in printed.err


def test_tune_without_waiting_prints_the_job(home, capsys):
    with scripted(tune_answers()) as server:
        assert main(["tune", "file-1", "--model", "tiny", "--no-wait", "--url", server.url]) == 0
        assert server.bodies("POST", "/files") == []
    assert capsys.readouterr().out == "ftjob-1\n"


def test_tune_with_json_prints_the_finished_job_and_nothing_else(home, capsys):
    with scripted(tune_answers()) as server:
        assert main(["tune", "file-1", "--model", "tiny", "--json", "--url", server.url]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fine_tuned_model"] == "ft:tiny"
    assert printed.err == ""


def test_a_file_with_faults_is_not_even_sent(home, tmp_path, capsys):
    path = training_file(tmp_path / "train.jsonl")
    path.write_text(path.read_text() + "{broken\n")
    with scripted(tune_answers()) as server:
        assert main(["tune", str(path), "--model", "tiny", "--url", server.url]) == 1
        assert server.requests == []
    err = capsys.readouterr().err
    assert "line 13" in err.lower()
    assert "Nothing was sent" in err


def test_a_file_that_the_server_finds_faults_in_ends_there(home, tmp_path, capsys):
    path = training_file(tmp_path / "train.jsonl")
    answers = tune_answers()
    answers[("GET", "/files/file-1")] = {"id": "file-1", "status": "error"}
    with scripted(answers) as server:
        assert main(["tune", str(path), "--model", "tiny", "--url", server.url]) == 1
        assert server.bodies("POST", "/fine_tuning/jobs") == []
    assert "tunekeeper files show file-1" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["lora_rank", "=8"])
def test_a_hyperparameter_needs_a_name_and_a_value(home, wrong, capsys):
    assert main(["tune", "file-1", "--model", "tiny", "-H", wrong]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_a_hyperparameter_that_is_given_twice_is_refused(home, capsys):
    assert main(["tune", "file-1", "--model", "tiny", "--epochs", "3", "-H", "n_epochs=4"]) == 1
    assert "n_epochs is given twice" in capsys.readouterr().err


def test_estimate_leaves_no_file_behind(home, tmp_path, capsys):
    path = training_file(tmp_path / "train.jsonl")
    with scripted(tune_answers()) as server:
        assert main(["estimate", str(path), "--model", "tiny", "--url", server.url]) == 0
        assert server.requests[-1][:2] == ("DELETE", "/files/file-1")
        assert server.bodies("POST", "/fine_tuning/jobs") == []
    assert "1 min 15 s" in capsys.readouterr().out


# Check


def test_check_needs_no_server_and_exits_with_0_for_a_good_file(home, tmp_path, capsys):
    assert main(["check", str(training_file(tmp_path / "train.jsonl")), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["n_examples"] == 12
    assert report["n_tokens"] is None


def test_check_exits_with_1_and_writes_every_fault(home, tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    path.write_text(training_file(path).read_text() + "{broken\n[]\n")
    assert main(["check", str(path), "--report", str(tmp_path / "faults.jsonl")]) == 1
    faults = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [fault["line"] for fault in faults if fault["level"] == "error"] == [13, 14]
    assert "13" in capsys.readouterr().out


def test_check_compares_with_the_validation_file(home, tmp_path, capsys):
    training = training_file(tmp_path / "train.jsonl")
    assert main(["check", str(training), "--validation", str(training), "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["n_validation_examples"] == 12


def test_check_counts_tokens_as_the_named_model_does(home, tmp_path, capsys):
    training = training_file(tmp_path / "train.jsonl")
    directory = make_model(tmp_path / "tiny")
    assert main(["check", str(training), "--model", str(directory), "--json"]) == 0
    by_directory = json.loads(capsys.readouterr().out)["n_tokens"]
    assert by_directory > 100
    assert main(["models", "add", str(directory)]) == 0
    capsys.readouterr()
    assert main(["check", str(training), "--model", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_tokens"] == by_directory


def test_check_with_a_model_that_is_not_here_exits_with_3(home, tmp_path, capsys):
    training = training_file(tmp_path / "train.jsonl")
    assert main(["check", str(training), "--model", "nobody"]) == 3
    assert "nobody" in capsys.readouterr().err


# Models, keys


def test_a_directory_is_added_and_what_to_do_next_is_said(home, tmp_path, capsys):
    directory = make_model(tmp_path / "tiny")
    assert main(["models", "add", str(directory), "--name", "mine"]) == 0
    assert "tunekeeper tune train.jsonl --model mine" in capsys.readouterr().out
    assert main(["models", "add", str(directory), "--name", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(directory)


def test_a_gguf_file_is_added_converted(home, tmp_path, capsys):
    source = write_gguf(tmp_path / "tiny.gguf", random_weights())
    assert main(["models", "add", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "bases/tiny"
    assert (home / "bases" / "tiny" / "model.safetensors").exists()


def test_pulling_what_nobody_knows_exits_with_3(home, capsys):
    assert main(["models", "pull", "gpt-9"]) == 3
    assert "smollm2-135m" in capsys.readouterr().err


def test_keys_are_made_shown_without_the_secret_and_deleted(home, capsys):
    assert main(["keys", "create", "laptop", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"].startswith("sk-tk-")
    assert "hash" not in made
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "laptop" in listed
    assert made["key"] not in listed
    assert main(["keys", "delete", made["id"]]) == 0
    capsys.readouterr()
    assert main(["keys", "delete", made["id"]]) == 3
    assert main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == []


# Chat


def sse(*chunks: dict) -> bytes:
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


def delta(text: str) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_an_answer_is_streamed(home, capsys):
    stream = sse({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}, delta("Hel"), delta("lo ü"))
    with scripted({("POST", "/chat/completions"): stream}) as server:
        command = ["chat", "ft:m", "hi", "--system", "Be kind", "--temperature", "0", "--max-tokens", "5"]
        assert main([*command, "--url", server.url]) == 0
        asked = json.loads(server.bodies("POST", "/chat/completions")[0])
    assert capsys.readouterr().out == "Hello ü\n"
    assert asked == {
        "model": "ft:m",
        "temperature": 0.0,
        "max_completion_tokens": 5,
        "messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "hi"}],
        "stream": True,
    }


def test_with_json_the_whole_answer_is_printed(home, capsys):
    whole = {"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}
    with scripted({("POST", "/chat/completions"): whole}) as server:
        assert main(["chat", "m", "hi", "--json", "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == whole


def test_an_error_in_the_middle_of_a_stream_is_an_error(home, capsys):
    stream = sse(delta("Hel"), {"error": {"message": "The engine stopped.", "code": "internal_error"}})
    with scripted({("POST", "/chat/completions"): stream}) as server:
        assert main(["chat", "m", "hi", "--url", server.url]) == 1
    assert "The engine stopped." in capsys.readouterr().err


def test_a_conversation_keeps_what_was_said(home):
    stream = sse(delta("Yes."))
    with scripted({("POST", "/chat/completions"): stream}) as server:
        code = (
            "import sys; sys.stdin.isatty = lambda: True\n"
            "from tunekeeper.cli import main\n"
            f"sys.exit(main(['chat', 'm', '--url', {server.url!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", code], input="one\ntwo\n\n", capture_output=True, text=True)
        bodies = [json.loads(body)["messages"] for body in server.bodies("POST", "/chat/completions")]
    assert done.returncode == 0
    assert [message["content"] for message in bodies[1]] == ["one", "Yes.", "two"]


def test_a_question_through_a_pipe_is_asked_once(home):
    with scripted({("POST", "/chat/completions"): sse(delta("Yes."))}) as server:
        command = [sys.executable, "-m", "tunekeeper", "chat", "m", "--url", server.url]
        done = subprocess.run(command, input="one\ntwo\n", capture_output=True, text=True, check=True)
        bodies = [json.loads(body)["messages"] for body in server.bodies("POST", "/chat/completions")]
    assert done.stdout == "Yes.\n"
    assert bodies == [[{"role": "user", "content": "one\ntwo"}]]


# Text


def test_a_table_is_as_wide_as_its_words():
    assert table(("A", "B"), [("long", None), ("x", 1.5)], empty="-") == "A     B\nlong  -\nx     1.5"
    assert table(("A",), [], empty="Nothing.") == "Nothing."


def test_fields_leave_out_what_is_empty():
    value = {
        "id": "x",
        "none": None,
        "list": [],
        "error": {"code": "c"},
        "dates": {"end": None},
        "n": [1, 2],
        "data": [{"a": 1}],
    }
    assert fields(value) == 'id: x\nerror:\n  code: c\nn: 1, 2\ndata:\n  - {"a": 1}'


def test_sizes_and_durations_are_for_people():
    assert [size(n) for n in (0, 1023, 1024, 3 * 1024**3)] == ["0 B", "1023 B", "1.0 KiB", "3.0 GiB"]
    assert [duration(n) for n in (0.4, 59, 61, 3599.6, 7260)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 01 min",
    ]


def test_the_command_ends_quietly_when_nobody_reads_on(home):
    page = {"object": "list", "data": [job("running") for _ in range(3000)], "has_more": False}
    with scripted({("GET", "/fine_tuning/jobs"): page}) as server:
        command = f"{sys.executable} -m tunekeeper jobs list --url {server.url} | head -1"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("ID")


def test_watching_polls_without_haste(home, capsys):
    started = time.monotonic()
    watched(capsys, job("running"), job("running"), job("succeeded", fine_tuned_model="m"))
    assert time.monotonic() - started >= 1.0


def test_tune_sends_a_grader_and_a_response_format_from_files(home, tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    lines = ({"messages": [{"role": "user", "content": f"What is {i}?"}], "answer": i} for i in range(12))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "{{sample.output_text}}",
              "reference": "{{item.answer}}"}  # fmt: skip
    (tmp_path / "grader.json").write_text(json.dumps(grader))
    (tmp_path / "form.json").write_text('{"type": "json_object"}')
    files = ["--grader", str(tmp_path / "grader.json"), "--response-format", str(tmp_path / "form.json")]
    command = ["tune", str(path), "--method", "reinforcement", *files, "--model", "m", "--no-wait"]
    with scripted(tune_answers()) as server:
        main([*command, "-H", "eval_samples=2", "--json", "--url", server.url])
        (asked,) = (json.loads(body) for body in server.bodies("POST", "/fine_tuning/jobs"))
    hyperparameters = {"eval_samples": 2}
    body = {"grader": grader, "response_format": {"type": "json_object"}, "hyperparameters": hyperparameters}
    assert asked["method"] == {"type": "reinforcement", "reinforcement": body}
    (tmp_path / "grader.json").write_text(json.dumps({**grader, "reference": "{{item.city}}"}))
    assert main(command) == 1
    assert "item.city" in capsys.readouterr().err


def test_check_sees_what_a_file_is_for(home, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    output = [{"role": "assistant", "content": "Yes"}]
    given = {"messages": [{"role": "user", "content": "?"}]}
    line = {"input": given, "preferred_output": output, "non_preferred_output": output}
    path.write_text(json.dumps(line) + "\n")
    assert main(["check", str(path)]) == 1
    assert "dpo_identical_pair" in capsys.readouterr().out
