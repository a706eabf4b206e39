"""The afternoon of docs/afternoon.md, command by command as it is printed there, on a tiny model."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tiny import make_model

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = "8000"


def commands() -> str:
    return "".join(BLOCK.findall((ROOT / "docs/afternoon.md").read_text("utf-8")))


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_the_afternoon_is_as_the_page_says(tmp_path):
    home, place, tools = tmp_path / "home", tmp_path / "place", tmp_path / "tools"
    for directory in (home / "bases", place, tools):
        directory.mkdir(parents=True)
    # The base stands where `models pull` would have put it: nothing is fetched.
    base = make_model(home / "bases/smollm2-135m")
    (base / "tunekeeper.json").write_text(json.dumps({"license": "apache-2.0"}), "utf-8")
    shutil.copytree(ROOT / "examples", place / "examples")
    for name, module in (("tunekeeper", "-m tunekeeper"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n', "utf-8")
        (tools / name).chmod(0o755)
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TUNEKEEPER_", "OPENAI_"))},
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "TUNEKEEPER_HOME": str(home),
        "TUNEKEEPER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    script = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{commands()}"
    done = subprocess.run(
        ["bash", "-c", script.replace(f":{PORT}/v1", f":{port}/v1")],
        cwd=place, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    log = place / "serve.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    assert "28 examples" in done.stdout
    assert re.search(r"^ft:smollm2-135m:tunekeeper:tickets:\w{8} says: ", done.stdout, re.MULTILINE)
    assert "<svg" in (place / "proof/comparison.html").read_text("utf-8")
    [line] = (place / "traffic.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["messages"][1]["content"] == "The charger gets very hot."
