import pytest

from tunekeeper.errors import InvalidRequest, InvalidState
from tunekeeper.jobs.eval_compare import compare_runs, outcome_of
from tunekeeper.jobs.evals import tallied
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Eval, EvalItem, EvalRun, new_id


@pytest.fixture
def store(tmp_path):
    store = Store(connect(tmp_path))
    store.add_eval(Eval(id="eval_1", created_at=0, name="e", data_source_config={}, testing_criteria=[]))
    yield store
    store.close()


def add_run(store, statuses, *, name="run", ended=True):
    run = EvalRun(
        id=new_id("evalrun_"),
        eval_id="eval_1",
        created_at=0,
        name=name,
        data_source={},
        sha256="0" * 64,
        total=len(statuses),
        model=name,
    )
    store.add_eval_run(run)
    store.move_eval_run(run.id, "in_progress", from_=["queued"])
    store.add_eval_items(run.id, [item_of(run, n, status) for n, status in enumerate(statuses)], tallied, seconds=36.0)
    if ended:
        store.move_eval_run(run.id, "completed", from_=["in_progress"])
    return run.id


def item_of(run, number, status):
    return EvalItem(
        id=new_id("outputitem_"),
        run_id=run.id,
        eval_id=run.eval_id,
        created_at=0,
        datasource_item_id=number,
        status=status,
        datasource_item={"n": number, "topic": "ab"[number % 2], "metadata": {"team": "x"}},
        results=[
            {"name": "judge", "score": 0.0, "passed": False, "error": {"code": "other_error", "message": "It broke."}}
            if status == "error"
            else {"name": "judge", "score": float(status == "pass"), "passed": status == "pass"}
        ],
        sample={
            "output": [{"role": "assistant", "content": f"answer {number}"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "cached_tokens": 0},
            "error": None,
        },
        latency_s=0.5,
    )


def test_runs_are_paired_by_item_and_errors_are_left_out(store):
    before = add_run(store, ["fail"] * 30 + ["pass"] * 10, name="small")
    after = add_run(store, ["pass"] * 28 + ["error"] * 2 + ["pass"] * 10, name="tuned")
    comparison = compare_runs(store, [before, after], slices=["topic"], price_per_hour=1.0)
    (pair,) = comparison.pairs
    assert (comparison.baseline, pair.after, pair.n) == ("small", "tuned", 38)
    assert len(pair.flips) == 28
    assert len(pair.left_out) == 2
    assert pair.verdict.kind == "better"
    assert {measure.slice for measure in pair.slices} == {("topic", "a"), ("topic", "b")}
    assert comparison.series[1].errors == 2


def test_the_baseline_is_named_by_run_name_or_model_and_names_that_stand_twice_are_told_apart(store):
    first, second = (add_run(store, ["pass", "fail"], name="same") for _ in range(2))
    comparison = compare_runs(store, [first, second], baseline=second)
    assert comparison.baseline == f"same ({second[-6:]})"
    with pytest.raises(InvalidRequest, match="none of the runs"):
        compare_runs(store, [first, second], baseline="other")


def test_a_run_that_is_under_way_is_not_compared(store):
    with pytest.raises(InvalidState, match="in_progress"):
        compare_runs(store, [add_run(store, ["pass"]), add_run(store, ["pass"], ended=False)])
    run = add_run(store, ["pass"])
    with pytest.raises(InvalidRequest, match="twice"):
        compare_runs(store, [run, run])


def test_an_outcome_has_tokens_time_cost_and_what_failed(store):
    run = store.get_eval_run(add_run(store, ["pass", "error"], name="small"))
    good, bad = store.list_eval_items(run.id).data
    outcome = outcome_of(good, run, ["n"], price_per_hour=10.0)
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.seconds) == (5, 2, 0.5)
    assert outcome.cost == pytest.approx(10.0 * 36.0 / 3600 / 2)
    assert outcome.slices == {"team": "x", "n": "0"}
    assert outcome.text == "answer 0"
    assert outcome.criteria["judge"].passed
    failed = outcome_of(bad, run)
    assert (failed.passed, failed.error, failed.criteria) == (None, "It broke.", {})
