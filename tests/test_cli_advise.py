"""`tunekeeper advise` from end to end, on a model that fits into a test."""

import json
import random
import subprocess
import sys

import pytest

from scripted_server import scripted
from tiny import make_model
from tunekeeper.cli import main


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def colours(n, seed=0):
    """Questions whose last word decides the answer: two layers learn that in seconds."""
    rng = random.Random(seed)
    made = ((f"{''.join(rng.choices('abcdefgh', k=5))} {rng.choice(('red', 'blue'))}?") for _ in range(n))
    return [chat(question, "warm" if question.endswith("red?") else "cold") for question in made]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("advise")
    make_model(directory / "tiny")
    command = [sys.executable, "-m", "tunekeeper", "models", "add", str(directory / "tiny")]
    subprocess.run([*command, "--home", str(directory / "home")], check=True, stdout=subprocess.DEVNULL)
    return directory


@pytest.fixture
def run(place, capsys, monkeypatch):
    for name in ("TUNEKEEPER_URL", "TUNEKEEPER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run_json(*arguments):
        capsys.readouterr()
        assert main(["advise", *arguments, "--home", str(place / "home"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run_json


def codes(advice):
    return [remark["code"] for remark in advice["remarks"]]


def test_data_that_the_base_cannot_do_and_a_tuned_model_can_says_tune(run, place, monkeypatch):
    monkeypatch.setenv("TUNEKEEPER_PRICE_PER_HOUR", "3.6")
    data, out = write(place / "colours.jsonl", colours(44)), place / "out"
    found = run(data, "--model", "tiny", "--minutes", "5", "--out", str(out), "--requests-per-day", "1000")
    assert found["verdict"] == "tune", found
    assert found["text"].startswith("tune: better by ")
    base, few_shot, tuned = found["rows"]
    assert (base["name"], tuned["name"]) == ("base, zero-shot", "tuned")
    assert few_shot["name"].startswith("few-shot, ")
    assert (base["n"], base["errors"], tuned["errors"]) == (20, 0, 0)
    assert few_shot["prompt_tokens"] > base["prompt_tokens"] == tuned["prompt_tokens"]
    assert tuned["quality"]["value"] > 0.8 > base["quality"]["value"]
    assert tuned["cost_of_1000"] == pytest.approx(tuned["machine_s"])  # 3.6 an hour are 0.001 a second
    assert {"training_cost", "pays_against_prompt", "more_data", "method", "small_baseline"} <= {*codes(found)}
    assert [point["n"] for point in found["learning_curve"]["points"]] == [12, 24]
    assert "the learning curve has no size of 6 lines: a job needs more" in found["cuts"]
    assert found["grader"].startswith("exact: the answers are 2 labels")
    assert json.loads((out / "advice.json").read_text("utf-8")) == found
    assert "tune: better by" in (out / "advice.md").read_text("utf-8")
    assert "<svg" in (out / "advice.html").read_text("utf-8")
    assert "few-shot" in (out / "comparison.html").read_text("utf-8")


def test_what_was_trained_for_the_curve_is_gone_and_the_model_stays(place, capsys):
    assert main(["models", "list", "--home", str(place / "home"), "--json"]) == 0
    names = [model["id"] for model in json.loads(capsys.readouterr().out)["data"]]
    tuned = [name for name in names if name.startswith("ft:") and ":ckpt" not in name]
    assert len(tuned) == 1
    assert main(["files", "list", "--home", str(place / "home"), "--json", "--purpose", "fine-tune"]) == 0
    assert len(json.loads(capsys.readouterr().out)["data"]) == 1


def test_contradictory_examples_are_not_ready_and_no_model_is_asked(run, place, capsys):
    rows = [chat(f"{n}?", answer) for n in range(5) for answer in ("yes", "no", "perhaps")]
    found = run(write(place / "contradictory.jsonl", rows), "--model", "there is none")
    assert found["verdict"] == "not_ready"
    assert "15 of 15 lines (100%)" in found["text"]
    assert found["rows"] == []
    assert {"contradictory_answers", "too_few_examples"} <= {*codes(found)}
    assert main(["advise", str(place / "contradictory.jsonl"), "--model", "none"]) == 0
    assert capsys.readouterr().out.startswith("Not ready: 15 of 15 lines")


def answer(text):
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    message = {"role": "assistant", "content": text}
    return {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


def says(text="wrong", *, seconds=1.0, **job):
    """What a server answers whose models all say the same, and whose jobs end as `job` says."""
    made = {"id": "ftjob-1", "fine_tuned_model": None, "status": "failed", "step": 3, "total_steps": 9, **job}
    checkpoint = {"fine_tuned_model_checkpoint": "ft:able:ckpt-step-3", "step_number": 3}
    path = "/fine_tuning/jobs"
    return {
        ("POST", "/chat/completions"): answer(text),
        ("POST", "/files"): {"id": "file-1", "status": "processed"},
        ("DELETE", "/files/file-1"): {"deleted": True},
        ("POST", f"{path}/estimate"): {"est_wall_seconds": seconds},
        ("POST", path): made,
        ("GET", f"{path}/ftjob-1"): made,
        ("GET", f"{path}/ftjob-1/events"): {"data": [], "has_more": False},
        ("GET", f"{path}/ftjob-1/checkpoints"): {"data": [checkpoint], "has_more": False},
        ("POST", f"{path}/ftjob-1/cancel"): made,
        ("DELETE", "/models/ft:able:ckpt-step-3"): {"deleted": True},
    }


def test_a_base_that_does_it_is_not_trained(run, place):
    data = write(place / "always.jsonl", [chat(f"{n}?", "yes") for n in range(60)])
    with scripted(says(" yes\n")) as server:
        found = run(data, "--model", "able", "--url", server.url)
        asked = [json.loads(body) for body in server.bodies("POST", "/chat/completions")]
        others = {path for _, path, _, _ in server.requests}
    assert found["verdict"] == "do_not_tune", found
    assert found["text"].startswith("do not tune: base, zero-shot already does it, 100%")
    assert others == {"/chat/completions"}
    assert len(asked) == 21  # one to warm up, then the held-out items
    assert {(body["temperature"], body["stop"]) for body in asked[1:]} == {(0, "\n")}


def test_always_trains_all_the_same(run, place):
    data = write(place / "always.jsonl", [chat(f"{n}?", "yes") for n in range(60)])
    with scripted(says("yes", status="succeeded", fine_tuned_model="ft:able")) as server:
        found = run(data, "--model", "able", "--url", server.url, "--always")
    assert found["verdict"] == "do_not_tune", found
    assert [row["quality"]["value"] for row in found["rows"]] == [1, 1, 1]
    assert found["rows"][-1]["model"] == "ft:able"


def test_a_job_that_would_take_all_the_time_is_asked_as_far_as_it_came(run, place):
    data = write(place / "colours-3.jsonl", colours(60, seed=3))
    larger = ("--larger", "large", "--input-price", "1", "--output-price", "10")
    with scripted(says(status="paused")) as server:
        found = run(data, "--model", "able", "--url", server.url, *larger)
        (job, *_) = (json.loads(body) for body in server.bodies("POST", "/fine_tuning/jobs"))
        assert server.bodies("POST", "/fine_tuning/jobs/ftjob-1/cancel")
    assert 600 < job["method"]["supervised"]["hyperparameters"]["max_wall_seconds"] < 900
    assert "training was stopped at its time limit; the model of step 3 of 9 was asked" in found["cuts"]
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["tuned"]["model"] == "ft:able:ckpt-step-3"
    assert by_name["larger"]["cost_of_1000"] == pytest.approx(0.017)  # 7 tokens at 1, one at 10 a million
    assert by_name["larger"]["machine_s"] is None
    assert "no_prices" in codes(found)
    assert len(found["learning_curve"]["points"]) == 1  # those that were stopped say nothing


def test_a_training_that_fails_leaves_what_was_measured(run, place):
    rows = [{"messages": row["messages"][:1], "answer": row["messages"][1]["content"]} for row in colours(60, seed=7)]
    data = write(place / "hopeless.jsonl", rows)
    with scripted(says(error={"message": "Nothing was learned."})) as server:
        found = run(data, "--model", "able", "--url", server.url)
        (job,) = (json.loads(body) for body in server.bodies("POST", "/fine_tuning/jobs"))
    assert job["method"]["reinforcement"]["grader"]["reference"] == "{{ item.answer }}"
    assert found["verdict"] == "cannot_tell"
    assert found["text"].endswith("ftjob-1 failed: Nothing was learned.")
    assert len(found["rows"]) == 2
    method = next(remark for remark in found["remarks"] if remark["code"] == "method")
    assert method["level"] == "warn"


def test_a_time_in_which_no_training_fits_is_told(run, place):
    data = write(place / "colours-5.jsonl", colours(60, seed=5))
    with scripted(says(seconds=1e6)) as server:
        found = run(data, "--model", "able", "--url", server.url)
    assert found["verdict"] == "cannot_tell"
    assert "give more --minutes" in found["text"]
    assert "there is no learning curve" in found["cuts"]


def test_an_answer_that_fails_is_an_error_and_a_busy_server_is_asked_again(run, place):
    data = write(place / "colours-6.jsonl", colours(60, seed=6))
    busy = (429, {"error": {"message": "busy", "code": "rate_limit_exceeded"}})
    broken = (400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    replies = [answer("warm"), busy, answer("warm"), broken, answer("cold")]
    with scripted({**says(seconds=1e6), ("POST", "/chat/completions"): replies}) as server:
        found = run(data, "--model", "able", "--url", server.url)
    base = found["rows"][0]
    assert (base["n"], base["errors"]) == (20, 1)


def test_faults_and_lines_without_messages_are_refused(place, capsys):
    broken = write(place / "broken.jsonl", [chat("x", "y")] * 20 + [{"messages": "z"}])
    assert main(["advise", broken, "--model", "tiny", "--home", str(place / "home")]) == 1
    assert "tunekeeper check" in capsys.readouterr().err
    plain = write(place / "plain.jsonl", [{"prompt": f"{n}", "completion": "x"} for n in range(20)])
    assert main(["advise", plain, "--model", "tiny", "--home", str(place / "home")]) == 1
    assert "Write them as messages" in capsys.readouterr().err


def test_problems_without_an_answer_need_a_grader(run, place):
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}], "topic": [n]} for n in range(60)]
    found = run(write(place / "problems.jsonl", rows), "--model", "tiny")
    assert found["verdict"] == "not_ready"
    assert "no_grader" in codes(found)
