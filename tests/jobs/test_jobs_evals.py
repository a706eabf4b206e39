import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError

import httpx
import pytest

from scripted_server import scripted
from tunekeeper.errors import InvalidRequest, ModelNotFound, Overloaded, Unavailable
from tunekeeper.jobs import eval_data
from tunekeeper.jobs.evals import ATTEMPTS, MOST_FAILURES, EvalRunner, tallied
from tunekeeper.settings import Settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Eval, EvalItem, EvalRun, new_id

EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
JUDGE = {
    "type": "label_model",
    "name": "judge",
    "model": "judge",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
KEYED = {**EXACT, "name": "keyed", "input": "{{ sample.output_json.answer }}"}
SOURCE = {
    "type": "completions",
    "model": "small",
    "source": {"type": "file_id", "id": "file-1"},
    "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]},
}


def answer_to(body, text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    return {"model": body["model"], "choices": [choice], "usage": usage}


class Models:
    """Models of a test: `say` gives a text, or an error, for a request's last message; may be made to wait."""

    def __init__(self, say):
        self.say = say
        self.asked = Counter()
        self.at_once = self.most_at_once = 0
        self.gate = None
        self.lock = threading.Lock()

    def open(self):
        return Asker(self)


class Asker:
    def __init__(self, models):
        self.models, self.stopped = models, threading.Event()

    def check(self, body):
        pass

    def embed(self, texts):
        raise NotImplementedError

    def load(self, model):
        pass

    def stop(self):
        self.stopped.set()

    def complete(self, body):
        models, text = self.models, body["messages"][-1]["content"]
        with models.lock:
            models.asked[body["model"], text] += 1
            models.at_once += 1
            models.most_at_once = max(models.most_at_once, models.at_once)
        try:
            said = models.say(body["model"], text)
            while models.gate is not None and not models.gate(body["model"], text):
                if self.stopped.wait(0.005):
                    raise CancelledError
        finally:
            with models.lock:
                models.at_once -= 1
        if isinstance(said, Exception):
            raise said
        return answer_to(body, said)


class Bench:
    """A home with one eval, and a runner on it."""

    def __init__(self, home, models, criteria=(EXACT,), **settings):
        self.store, self.blobs = Store(connect(home)), DirectoryBlobs(home / "blobs")
        self.settings = Settings(home=home, **settings)
        self.models = models
        self.eval = self.store.add_eval(
            Eval(
                id=new_id("eval_"),
                created_at=0,
                name="sums",
                data_source_config=eval_data.data_source_config({"type": "custom", "item_schema": {}}),
                testing_criteria=list(criteria),
            )
        )
        self.runner = EvalRunner(self.store, self.blobs, self.settings, pause_s=0.001)

    def add(self, rows, source=SOURCE):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        sha256, _ = self.blobs.put(io.BytesIO(data))
        parsed = eval_data.data_source(source)
        return self.store.add_eval_run(
            EvalRun(
                id=new_id("evalrun_"),
                eval_id=self.eval.id,
                created_at=0,
                name="run",
                data_source=eval_data.without_content(source),
                sha256=sha256,
                total=len(rows),
                model=eval_data.model_of(parsed),
            )
        )

    def ended(self, run):
        wait(lambda: self.store.get_eval_run(run.id).status not in ("queued", "in_progress"))
        return self.store.get_eval_run(run.id)

    def items(self, run):
        return self.store.list_eval_items(run.id, limit=1000).data


def wait(is_so, seconds=20):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows(n):
    return [{"item": {"question": f"q{i}", "answer": "yes"}} for i in range(n)]


@contextlib.contextmanager
def running(bench):
    bench.runner.start(bench.models.open)
    try:
        yield bench
    finally:
        bench.runner.stop()
        bench.store.close()


def test_each_item_is_sampled_graded_and_stored_once_and_the_tally_is_their_sum(tmp_path):
    models = Models(lambda model, text: "yes" if text in ("q0", "q1", "q2") else "no")
    with running(Bench(tmp_path, models, eval_concurrency=4)) as bench:
        run = bench.add(rows(30))
        bench.runner.wake()
        run = bench.ended(run)
        items = bench.items(run)
    assert (run.status, run.error) == ("completed", None)
    assert sorted(item.datasource_item_id for item in items) == [*range(30)]
    assert Counter(item.status for item in items) == {"pass": 3, "fail": 27}
    assert run.tally["passed"] == 3
    assert run.tally["failed"] == 27
    assert run.tally["criteria"] == [{"passed": 3, "failed": 27}]
    assert run.tally["usage"] == {
        "small": {
            "invocation_count": 30,
            "prompt_tokens": 300,
            "completion_tokens": 60,
            "total_tokens": 360,
            "cached_tokens": 120,
        }
    }
    assert set(models.asked.values()) == {1}
    assert run.tally["seconds"] > 0


def test_as_many_items_are_sampled_together_as_the_setting_says(tmp_path):
    models = Models(lambda model, text: "yes")
    models.gate = lambda model, text: models.most_at_once >= 5 or len(models.asked) == 20
    with running(Bench(tmp_path, models, eval_concurrency=5)) as bench:
        run = bench.add(rows(20))
        bench.runner.wake()
        bench.ended(run)
    assert models.most_at_once == 5


def test_judges_work_while_other_items_are_still_sampled(tmp_path):
    models = Models(lambda model, text: '{"steps": [], "result": "good"}' if model == "judge" else f"said {text}")
    # The last item is answered only after a judge has been asked about another.
    models.gate = lambda model, text: text != "q7" or any(model == "judge" for model, _ in models.asked)
    with running(Bench(tmp_path, models, [JUDGE], eval_concurrency=2)) as bench:
        run = bench.add(rows(8))
        bench.runner.wake()
        run = bench.ended(run)
    assert run.tally["passed"] == 8
    assert run.tally["usage"]["judge"]["invocation_count"] == 8
    assert run.tally["usage"]["small"]["invocation_count"] == 8


def test_a_grader_that_fails_makes_an_error_and_a_sample_that_is_no_json_a_fail(tmp_path):
    def say(model, text):
        if model == "judge":
            return "no json" if text == "odd" else '{"steps": [], "result": "bad"}'
        return {"q0": "odd", "q1": '{"answer": "yes"}'}.get(text, "plain")

    with running(Bench(tmp_path, Models(say), [JUDGE, KEYED])) as bench:
        run = bench.add(rows(3))
        bench.runner.wake()
        run = bench.ended(run)
        items = {item.datasource_item_id: item for item in bench.items(run)}
    assert [items[n].status for n in range(3)] == ["error", "fail", "fail"]
    assert items[0].results[0]["error"]["code"] == "model_grader_parse_error"
    assert items[2].results[1]["sample"]["faults"][0]["kind"] == "sample_parse_error"
    assert "error" not in items[2].results[1]
    assert run.status == "completed"
    assert run.tally["errored"] == 1
    assert run.tally["criteria"] == [{"errored": 1, "failed": 2}, {"failed": 2, "passed": 1}]


def test_an_item_that_the_model_refuses_is_an_error_and_not_graded(tmp_path):
    say = lambda model, text: InvalidRequest("It is too long.") if text == "q1" else "yes"  # noqa: E731
    with running(Bench(tmp_path, Models(say))) as bench:
        run = bench.add(rows(3))
        bench.runner.wake()
        run = bench.ended(run)
        (wrong,) = [item for item in bench.items(run) if item.status == "error"]
    assert wrong.sample["error"] == {"code": "invalid_value", "message": "It is too long."}
    assert wrong.results == []
    assert run.tally["errored"] == 1
    assert run.tally["passed"] == 2
    assert run.tally["criteria"] == [{"passed": 2}]


def test_a_model_that_is_busy_or_away_for_a_moment_is_asked_again(tmp_path):
    models = Models(None)
    faults = {"q0": [Overloaded("busy")] * 2, "q1": [ModelNotFound("away")], "q2": [Unavailable("down")]}
    models.say = lambda model, text: faults[text].pop() if faults.get(text) else "yes"
    with running(Bench(tmp_path, models)) as bench:
        run = bench.add(rows(4))
        bench.runner.wake()
        run = bench.ended(run)
    assert run.tally["passed"] == 4
    assert models.asked["small", "q0"] == 3


def test_a_model_that_disappears_fails_the_run_which_keeps_what_it_has(tmp_path):
    models = Models(lambda model, text: "yes" if int(text[1:]) < 6 else ModelNotFound("The model is gone."))
    with running(Bench(tmp_path, models, eval_concurrency=1)) as bench:
        run = bench.add(rows(20))
        bench.runner.wake()
        run = bench.ended(run)
        items = bench.items(run)
    assert run.status == "failed"
    assert run.error == {"code": "model_not_found", "message": "The model is gone."}
    assert {item.datasource_item_id for item in items} <= {*range(6)}
    assert run.tally.get("passed", 0) == len(items)


def test_a_model_that_answers_nothing_any_more_fails_the_run(tmp_path):
    models = Models(lambda model, text: Unavailable("Connection refused."))
    with running(Bench(tmp_path, models, eval_concurrency=1)) as bench:
        run = bench.add(rows(MOST_FAILURES + 5))
        bench.runner.wake()
        run = bench.ended(run)
    assert run.status == "failed"
    assert "Connection refused." in run.error["message"]
    assert set(models.asked.values()) == {ATTEMPTS}
    assert len(models.asked) == MOST_FAILURES


def test_a_cancelled_run_ends_soon_and_keeps_what_it_has(tmp_path):
    models = Models(lambda model, text: "yes")
    models.gate = lambda model, text: int(text[1:]) < 5
    with running(Bench(tmp_path, models, eval_concurrency=2)) as bench:
        run = bench.add(rows(50))
        after = bench.add(rows(3))
        bench.runner.wake()
        wait(lambda: len(bench.items(run)) == 5)
        bench.runner.cancel(run.id)
        assert bench.ended(after).status == "completed"  # whose turn it is now
        run = bench.store.get_eval_run(run.id)
        assert len(bench.items(run)) == 5
    assert run.status == "canceled"
    assert len(models.asked) <= 10


def test_what_a_stopped_runner_left_is_gone_on_with_and_nothing_is_asked_twice_that_was_stored(tmp_path):
    models = Models(lambda model, text: "yes")
    models.gate = lambda model, text: int(text[1:]) < 12
    bench = Bench(tmp_path, models, eval_concurrency=3)
    run = bench.add(rows(30))
    with running(bench):
        wait(lambda: len(bench.items(run)) == 12)
    assert bench.store.get_eval_run(run.id).status == "in_progress"
    models.gate = None
    bench.runner = EvalRunner(bench.store, bench.blobs, bench.settings)
    with running(bench):
        assert bench.ended(run).tally["passed"] == 30
        assert sorted(item.datasource_item_id for item in bench.items(run)) == [*range(30)]
    assert all(models.asked["small", f"q{n}"] == 1 for n in range(12))


def test_a_deleted_run_takes_its_items_with_it_even_while_it_is_under_way(tmp_path):
    models = Models(lambda model, text: "yes")
    models.gate = lambda model, text: int(text[1:]) < 2
    with running(Bench(tmp_path, models, eval_concurrency=2)) as bench:
        run, after = bench.add(rows(10)), bench.add(rows(2))
        bench.runner.wake()
        wait(lambda: len(bench.items(run)) == 2)
        bench.runner.delete(run.id)
        assert bench.ended(after).status == "completed"
        assert bench.items(run) == []
        assert bench.store.used_blobs() == {after.sha256}


def test_given_answers_are_graded_without_a_model(tmp_path):
    given = [
        {"item": {"answer": "yes"}, "sample": {"output_text": "yes"}},
        {"item": {"answer": "yes"}, "sample": answer_to({"model": "elsewhere"}, "no")},
    ]
    models = Models(lambda model, text: pytest.fail("a model was asked"))
    with running(Bench(tmp_path, models)) as bench:
        run = bench.add(given, {"type": "jsonl", "source": {"type": "file_id", "id": "file-1"}})
        bench.runner.wake()
        run = bench.ended(run)
        items = {item.datasource_item_id: item for item in bench.items(run)}
    assert [items[n].status for n in (0, 1)] == ["pass", "fail"]
    assert items[1].sample["model"] == "elsewhere"
    assert items[1].sample["usage"]["total_tokens"] == 12
    assert run.tally["usage"] == {}


def test_an_item_counts_once_however_often_it_is_stored(tmp_path):
    bench = Bench(tmp_path, Models(None))
    run = bench.add(rows(2))
    bench.store.move_eval_run(run.id, "in_progress", from_=["queued"])

    def item(number):
        return EvalItem(
            id=new_id("outputitem_"),
            run_id=run.id,
            eval_id=run.eval_id,
            created_at=0,
            datasource_item_id=number,
            status="pass",
            datasource_item={},
            results=[],
            sample={},
        )

    assert bench.store.add_eval_items(run.id, [item(0)], tallied, seconds=1.0)
    assert bench.store.add_eval_items(run.id, [item(0), item(1)], tallied, seconds=0.5)
    assert bench.store.get_eval_run(run.id).tally["passed"] == 2
    assert bench.store.get_eval_run(run.id).tally["seconds"] == 1.5
    bench.store.move_eval_run(run.id, "canceled", from_=["in_progress"])
    assert not bench.store.add_eval_items(run.id, [item(2)], tallied)
    assert len(bench.items(run)) == 2
    bench.store.close()


class Server:
    """`tunekeeper serve` as a process of its own."""

    def __init__(self, home):
        self.home = home
        self.start()

    def start(self):
        (self.home / "server.json").unlink(missing_ok=True)
        with (self.home / "log").open("ab") as log:
            command = [sys.executable, "-m", "tunekeeper", "serve", "--home", str(self.home)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def url(self):
        wait((self.home / "server.json").exists, seconds=60)
        return json.loads((self.home / "server.json").read_text())["base_url"]

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_a_server_that_is_killed_at_any_moment_loses_no_item_and_stores_none_twice(tmp_path):
    n = 120
    answer = answer_to({"model": "far"}, "yes")
    with scripted({("POST", "/chat/completions"): answer}) as upstream:
        far = f'[[upstreams]]\nname = "far"\nbase_url = "{upstream.url}"\nmodels = ["far"]\n'
        (tmp_path / "tunekeeper.toml").write_text(f"[server]\nport = 0\neval_concurrency = 2\n{far}")
        server, store = Server(tmp_path), Store(connect(tmp_path))
        try:
            with httpx.Client(base_url=server.url(), timeout=60) as client:
                config = {"type": "custom", "item_schema": {"type": "object"}}
                made = client.post("/evals", json={"data_source_config": config, "testing_criteria": [EXACT]}).json()
                source = {**SOURCE, "model": "far", "source": {"type": "file_content", "content": rows(n)}}
                run_id = client.post(f"/evals/{made['id']}/runs", json={"data_source": source}).json()["id"]
            for stored in (1, n // 2):
                wait(lambda: len(store.eval_item_numbers(run_id)) >= stored, seconds=60)  # noqa: B023
                server.kill()
                assert store.get_eval_run(run_id).status == "in_progress"
                server.start()
            wait(lambda: store.get_eval_run(run_id).status == "completed", seconds=60)
        finally:
            server.kill()
        items = store.list_eval_items(run_id, limit=2 * n).data
        run = store.get_eval_run(run_id)
        store.close()
    assert sorted(item.datasource_item_id for item in items) == [*range(n)]
    assert run.tally["passed"] == n
    assert n <= len(upstream.requests) <= n + 2 * 2 * 3  # only what was under way was asked again
