"""Kills of preference and reinforcement jobs: the adapter that comes out is that of a run without them.

TUNEKEEPER_KILLS sets how many kills each job meets (2 unless set): before a write in its validation, at its start,
and ever later in its steps.
"""

import multiprocessing
import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from jobshop import Outcome, add_job, finetune_until_killed, outcome_of, pairs, problems
from tunekeeper.jobs.finetune import run
from tunekeeper.jobs.prepare import Desk
from tunekeeper.jobs.worker import bury
from tunekeeper.types import TERMINAL, Job

KILLS = int(os.environ.get("TUNEKEEPER_KILLS", "2"))
ASKED: dict[str, dict[str, Any]] = {
    "dpo": {"validation": pairs(4, first=100), "n_epochs": 1, "learning_rate_multiplier": 10},
    "reinforcement": {"validation": problems(2, first=100), "n_epochs": 1, "eval_interval": 2},
}
pytestmark = pytest.mark.usefixtures("threads")


def lasting(outcome: Outcome) -> Outcome:
    """Without what the clock says: how long a step and a grade took."""
    events = [(level, message, _untimed(data)) for level, message, data in outcome.events]
    return replace(outcome, events=events)


def _untimed(data: Any) -> Any:
    return {name: value for name, value in data.items() if name != "timing"} if isinstance(data, dict) else data


def whole_run(desk: Desk, job: Job) -> Outcome:
    run(job.id, desk)
    run(job.id, desk)
    assert desk.store.get_job(job.id).status == "succeeded", desk.store.get_job(job.id).error
    return lasting(outcome_of(desk, job))


@pytest.mark.parametrize("method", ASKED)
def test_a_job_that_is_killed_again_and_again_gives_the_same_bytes(desk: Desk, method: str) -> None:
    undisturbed = whole_run(desk, add_job(desk, method=method, **ASKED[method]))
    job = add_job(desk, method=method, **ASKED[method])
    files = undisturbed.files
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobshop", "tunekeeper.trainer.loop", "tunekeeper.models.load", "torch._dynamo"])
    moments = [9 + 24 * n // KILLS for n in range(KILLS)] + [10_000]
    killed = 0
    for moment in moments:
        process = context.Process(target=finetune_until_killed, args=(desk.settings.home, job.id, moment))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode != 0
        process.close()
    assert desk.store.get_job(job.id).status in TERMINAL
    bury(desk.store, desk.settings)
    assert killed >= 2
    disturbed = lasting(outcome_of(desk, job))
    assert disturbed.models == undisturbed.models
    assert replace(disturbed, files=files) == undisturbed
