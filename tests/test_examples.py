"""The examples do what they say, as a reader runs them: in a process of their own, against a server with workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from jobshop import open_desk, settings_of
from tunekeeper.api.server import background

EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCE = EXAMPLES.parent / "src"
ALIASES = {"gpt-4o-mini-2024-07-18": "tiny"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The first of the tickets: enough for a job, few enough for a test."""
    lines = (EXAMPLES / "tickets.jsonl").read_text("utf-8").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("data") / "tickets.jsonl"
    path.write_text("".join(lines[:12]), "utf-8")
    return path


def run(script: str, *arguments: object, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_unmodified_openai_script_tunes_and_asks(tmp_path, tiny_base, data):
    open_desk(tmp_path, tiny_base).store.close()
    with background(settings_of(tmp_path, aliases=ALIASES)) as base_url:
        said = run("fine_tune.py", data, "--epochs", 1, OPENAI_BASE_URL=base_url, OPENAI_API_KEY="none")
    lines = said.splitlines()
    assert lines[0].startswith("ftjob-")
    assert "The job has successfully completed" in lines
    assert lines[-1].startswith("ft:tiny:tunekeeper:tickets:")


def test_the_twin_of_the_engine_learns_and_leaves_an_adapter(tmp_path, tiny_base, data):
    said = run("sft_by_hand.py", tiny_base, data, tmp_path / "adapter", "--epochs", 2, "--batch-size", 2)
    losses = [float(line.split()[3].rstrip(",")) for line in said.splitlines() if line.startswith("epoch")]
    assert losses[1] < losses[0]
    assert (tmp_path / "adapter/adapter_config.json").is_file()
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", "pt") as file:
        learned = file.get_tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
    assert learned.abs().max() > 0
