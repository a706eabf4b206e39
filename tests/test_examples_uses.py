"""Each example of a use runs to its tables, as a reader runs it; on random weights, so the figures mean nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobshop import open_desk, settings_of
from scripted_server import scripted
from tunekeeper.api.server import background
from tunekeeper.settings import Upstream

pytest.importorskip("babel")
pytest.importorskip("scipy")

USES = Path(__file__).parents[1] / "examples/uses"
SOURCE = USES.parents[1] / "src"
SMALL = ("--model", "tiny", "--examples", 20, "--items", 3, "--epochs", 1)
SAID = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "teacher",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "find_0"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, tiny_base):
    """A server with the tiny base, whose context is long enough for examples in a prompt, and an upstream's model."""
    base = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_base, base)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        config = json.loads((base / name).read_text("utf-8"))
        (base / name).write_text(json.dumps(config | {key: 16384}), "utf-8")
    home = tmp_path_factory.mktemp("home")
    open_desk(home, base).store.close()
    with scripted({("POST", "/chat/completions"): SAID}) as server:
        upstreams = (Upstream(name="large", base_url=server.url, models=("teacher",)),)
        with background(settings_of(home, upstreams=upstreams)) as url:
            yield url


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Questions in the form of bfcl-eval's: 60, to three functions."""
    functions = [
        {
            "name": f"find.{n}",
            "description": f"Finds things of kind {n}.",
            "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        }
        for n in range(3)
    ]
    rows, truths = [], []
    for n in range(60):
        question = [[{"role": "user", "content": f"What of kind {n % 3} is in city {n}?"}]]
        rows.append({"id": f"q{n}", "question": question, "function": functions})
        truths.append({"id": f"q{n}", "ground_truth": [{f"find.{n % 3}": {"city": [f"city {n}"]}}]})
    path = tmp_path_factory.mktemp("wheel") / "bfcl_eval.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, lines in (("", rows), ("possible_answer/", truths)):
            text = "\n".join(map(json.dumps, lines))
            archive.writestr(f"bfcl_eval/data/{member}BFCL_v4_live_multiple.json", text)
    return path


def run(base_url: str, script: str, *arguments: object) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "none",
    }
    command = [sys.executable, str(USES / script), *map(str, (*SMALL, *arguments))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tables(said: str) -> list[list[str]]:
    """The names of the rows of each table."""
    parts = re.findall(r"(?:^\|.*\n)+", said, re.MULTILINE)
    return [[line.split("|")[1].strip() for line in part.splitlines()[2:]] for part in parts]


@pytest.mark.parametrize(
    ("script", "more", "rows"),
    [
        ("shorter_prompts.py", (), ["tuned"]),
        ("style.py", (), ["tuned"]),
        ("strict_schema.py", (), ["base, few-shot, form enforced", "tuned", "tuned, form enforced"]),
        ("many_tools.py", ("WHEEL",), ["tuned"]),
        ("grounded_answers.py", (), ["tuned"]),
        ("small_to_large.py", ("--larger", "teacher"), ["tuned", "larger, few-shot"]),
        ("stored_traffic.py", ("WHEEL", "--teacher", "teacher"), ["teacher", "student (tuned)"]),
    ],
)
def test_a_use_ends_in_a_table_of_base_few_shot_and_tuned(base_url, wheel, tmp_path, script, more, rows):
    more = [wheel if each == "WHEEL" else each for each in more]
    said = run(base_url, script, *more, "--out", tmp_path / "out.json")
    assert tables(said) == [["base, zero-shot", "base, few-shot", *rows], ["before tuning", "after tuning"]]
    assert re.search(rf"^{re.escape(rows[-1] if script == 'stored_traffic.py' else 'tuned')} against ", said, re.M)
    assert "after tuning against before tuning: " in said
    written = json.loads((tmp_path / "out.json").read_text("utf-8"))
    for one in written["runs"]:
        counts = one["result_counts"]
        assert counts["total"] == 3
        assert counts["passed"] + counts["failed"] == 3, one
