from statistics import fmean

import pytest

from jobshop import add_job, events_of, problems
from tunekeeper.jobs import finetune


def run_through(desk, job):
    finetune.run(job.id, desk)  # its files are checked
    finetune.run(job.id, desk)
    return desk.store.get_job(job.id)


def test_a_reinforcement_job_has_an_eval_with_a_run_for_each_evaluation(desk):
    job = run_through(desk, add_job(desk, method="reinforcement", validation=problems(4, first=100), eval_interval=3))
    made = desk.store.get_eval(job.extra["eval_id"])
    assert made.metadata == {"job": job.id}
    assert [grader["name"] for grader in made.testing_criteria] == ["letters"]
    runs = desk.store.list_eval_runs(made.id).data
    assert [(run.name, run.status, run.total) for run in runs] == [
        ("step 0", "completed", 4),
        ("step 3", "completed", 4),
        ("step 6", "completed", 4),
    ]
    assert [run.model for run in runs] == [job.model, job.fine_tuned_model, job.fine_tuned_model]
    rewards = {
        event.data["step"]: event.data["valid_reward_mean"]
        for event in events_of(desk, job)
        if event.type == "metrics" and "valid_reward_mean" in event.data
    }
    for run, step in zip(runs[1:], (3, 6), strict=True):
        items = desk.store.list_eval_items(run.id).data
        assert [item.datasource_item_id for item in items] == [0, 1, 2, 3]
        assert fmean(item.results[0]["score"] for item in items) == pytest.approx(rewards[step])
        assert run.tally.get("passed", 0) + run.tally.get("failed", 0) == 4
        assert items[0].sample["input"][-1]["content"] == "Which city has the number 100?"
    assert {run.sha256 for run in runs} <= desk.store.used_blobs()


def test_a_job_goes_on_without_the_eval_that_somebody_deleted(desk):
    job = add_job(desk, method="reinforcement", validation=problems(2, first=100), eval_interval=6)
    desk.store.delete_eval(job.extra["eval_id"])
    assert run_through(desk, job).status == "succeeded"


def test_other_jobs_have_none(desk):
    assert "eval_id" not in add_job(desk).extra
