import dataclasses

import pytest

from jobshop import BASE, add_data, examples
from tunekeeper.errors import InvalidData
from tunekeeper.jobs.estimate import estimate, finish_times
from tunekeeper.jobs.submit import Submission, draft
from tunekeeper.types import Job


def job(name, status, **changes):
    values = {"id": name, "created_at": 0, "model": BASE, "training_file": "f", "method": {}, "seed": 0}
    return Job(**{**values, "status": status, **changes})


def test_a_waiting_job_is_done_after_those_before_it():
    queue = [
        job("next", "queued", estimate={"est_wall_seconds": 50}),
        job("held", "paused", estimate={"est_wall_seconds": 9}),
        job("now", "running", estimated_finish=1100),
        job("new", "validating_files"),
        job("last", "queued", estimate={"est_wall_seconds": 5}),
    ]
    assert finish_times(queue, 1000) == {"now": 1100, "next": 1150}


def test_a_running_job_is_never_done_in_the_past():
    assert finish_times([job("now", "running", estimated_finish=900)], 1000) == {"now": 1000}


def test_a_running_job_of_unknown_length_hides_the_queue():
    queue = [job("now", "running"), job("next", "queued", estimate={"est_wall_seconds": 50})]
    assert finish_times(queue, 1000) == {}


def drafted(desk, content):
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}
    submission = Submission(model=BASE, training_file=add_data(desk, content), method=method)
    return draft(submission, desk.store, desk.settings)


def test_an_estimate_counts_the_data_and_measures_the_machine(desk):
    settings = dataclasses.replace(desk.settings, price_per_hour=2.0, currency="EUR")
    figures = estimate(drafted(desk, examples()), settings)
    assert (figures["n_epochs"], figures["steps"]) == (3, 9)
    assert figures["billable_tokens"] == 3 * figures["training_tokens"] > 0
    assert figures["est_wall_seconds"] >= 0
    assert figures["peak_memory_bytes"] > 0
    assert figures["est_cost"]["currency"] == "EUR"
    assert figures["hyperparameters"]["lora_rank"] == 16
    assert desk.store.list_jobs().data == []


def test_an_estimate_of_faulty_data_says_what_the_job_would_say(desk):
    with pytest.raises(InvalidData) as caught:
        estimate(drafted(desk, examples() + b"[]\n"), desk.settings)
    assert caught.value.code == "invalid_training_file"
    assert [detail["line"] for detail in caught.value.details] == [13]
    assert desk.store.list_files(purpose="fine-tune-results").data == []
