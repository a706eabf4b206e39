"""What a job would take, before it is created; and when a waiting job will be done.

`estimate` checks and counts the files as a job would and measures this machine with the job's model. That
loads torch and the weights, so it has a process of its own: `python -m tunekeeper.jobs.estimate --home HOME`.
"""

import argparse
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunekeeper.errors import Overloaded, TunekeeperError, Unavailable
from tunekeeper.jobs.executor import hold_lifeline, spawn
from tunekeeper.jobs.prepare import Desk, config_of, count, load_data
from tunekeeper.settings import Settings, load_settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Job, Json

_WAIT_S = 30.0
_TIMEOUT_S = 600.0
_one_at_a_time = threading.Lock()


def estimate(job: Job, settings: Settings) -> Json:
    """Time, money and memory that a drafted job would take; raises what would fail the job."""
    if not _one_at_a_time.acquire(timeout=_WAIT_S):
        raise Overloaded("Another estimate is being measured; try again in a minute.")
    try:
        return _in_child(job, settings)
    finally:
        _one_at_a_time.release()


def _in_child(job: Job, settings: Settings) -> Json:
    child = spawn("tunekeeper.jobs.estimate", settings=settings, output=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    timer = threading.Timer(_TIMEOUT_S, child.kill)
    timer.start()
    try:
        pickle.dump(job, child.stdin)
        child.stdin.flush()
        answer = child.stdout.read()
    except BrokenPipeError:
        answer = b""
    finally:
        timer.cancel()
        child.kill()
        child.communicate()
    if not answer:
        raise Unavailable("The estimate could not be made; the server's log says why.")
    result: Json | TunekeeperError = pickle.loads(answer)
    if isinstance(result, TunekeeperError):
        raise result
    return result


def measure_job(job: Job, desk: Desk) -> Json:
    """Count the job's files and measure its model here and now. Needs torch."""
    from tunekeeper.jobs.finetune import machine_of, new_trainer
    from tunekeeper.trainer import estimate as figures

    counts = count(job, desk)
    job = replace(job, extra={**job.extra, "counts": counts, "machine": machine_of(job, desk)})
    tokenizer = desk.tokenizer(job)
    config = config_of(job, desk, counts)
    training = load_data(job.training_file, config, tokenizer, desk)
    held_out = load_data(job.validation_file, config, tokenizer, desk)
    trainer = new_trainer(job, desk, config, training, held_out)
    result = figures.estimate(
        training.trees,
        held_out.trees,
        config,
        trainer.decoder.shape,
        figures.measure(trainer.decoder, training.trees, trainer),
        n_active=len(trainer.adapter.invocation_tokens) if trainer.adapter else 0,
        weight_bytes=_weight_bytes(desk.base_directory(job)),
        truncated=len(training.truncated),
        price_per_hour=desk.settings.price_per_hour,
        currency=desk.settings.currency,
    )
    return {**result.to_wire(), "hyperparameters": config.to_wire()}


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def finish_times(unfinished: Sequence[Job], now: int) -> dict[str, int]:
    """When each job of the queue will be done, as far as that can be told; `unfinished` oldest first.

    A job whose length is not known hides what comes after it.
    """
    times: dict[str, int] = {}
    free_at: int | None = now
    for job in sorted(unfinished, key=lambda job: job.status != "running"):
        if job.status == "paused":
            continue
        seconds = (job.estimate or {}).get("est_wall_seconds")
        if job.status == "running" and job.estimated_finish is not None:
            free_at = max(now, job.estimated_finish)
        elif seconds is not None and free_at is not None:
            free_at += round(seconds)
        else:
            free_at = None
        if free_at is not None:
            times[job.id] = free_at
    return times


def main() -> None:
    """Measure the job that comes, pickled, by the standard input; the lifeline is what follows it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    job: Job = pickle.load(sys.stdin.buffer)
    hold_lifeline()
    settings = load_settings(arguments.home)
    desk = Desk(settings, Store(connect(settings.home)), DirectoryBlobs(settings.home / "blobs"))
    answer: Json | TunekeeperError
    try:
        answer = measure_job(job, desk)
    except TunekeeperError as error:
        answer = error
    sys.stdout.buffer.write(pickle.dumps(answer))


if __name__ == "__main__":
    main()
