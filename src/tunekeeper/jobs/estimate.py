"""What a job would take, before it is created; and when a waiting job will be done.

`estimate` checks and counts the files as a job would and measures this machine with the job's model. That
loads torch and the weights, so it has a process of its own: `python -m tunekeeper.jobs.estimate --home HOME`.
"""

import argparse
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunekeeper.errors import Overloaded, TunekeeperError, Unavailable
from tunekeeper.jobs.executor import hold_lifeline, spawn
from tunekeeper.jobs.prepare import Data, Desk, config_of, count, load_data
from tunekeeper.settings import Settings, load_settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.trainer.config import ReinforcementConfig
from tunekeeper.types import Job, Json

if TYPE_CHECKING:
    from tunekeeper.jobs.rollouts import TokenSampler
    from tunekeeper.models.lora import LoraAdapter

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
    from tunekeeper.jobs.rollouts import ProblemPlayer
    from tunekeeper.trainer import estimate as figures
    from tunekeeper.trainer.frozen import default_budget
    from tunekeeper.trainer.loop import Forest
    from tunekeeper.trainer.reinforce import Reinforcer, imagined

    counts = count(job, desk)
    job = replace(job, extra={**job.extra, "counts": counts, "machine": machine_of(job, desk)})
    tokenizer = desk.tokenizer(job)
    config = config_of(job, desk, counts)
    training = load_data(job.training_file, config, tokenizer, desk)
    held_out = load_data(job.validation_file, config, tokenizer, desk)
    with ExitStack() as stack:
        trainer = new_trainer(job, desk, config, training, held_out, stack)
        decoder, adapter = trainer.decoder, trainer.adapter
        trees, valid = training.trees, held_out.trees
        sampling_s = 0.0
        if isinstance(config, ReinforcementConfig):
            n_tokens = max(1, config.max_completion_tokens // 2)
            trees, valid = tuple(imagined(trees, config, n_tokens)), ()
            evaluated = len(held_out.trees) * config.eval_samples * (1 + trainer.total_steps // config.eval_interval)
            answers = len(trees) * config.num_generations * config.n_epochs + evaluated
            assert isinstance(trainer, Reinforcer)
            assert isinstance(trainer.player, ProblemPlayer)
            a_token = _seconds_per_sampled_token(trainer.player.sampler, adapter, training, config, job.seed)
            sampling_s = answers * n_tokens * a_token
        forest = Forest(decoder, trees, adapter, default_budget(decoder.device))
        result = figures.estimate(
            trees,
            valid,
            config,
            decoder.shape,
            figures.measure(forest, trainer.optimizer),
            n_active=len(adapter.invocation_tokens) if adapter else 0,
            weight_bytes=_weight_bytes(desk.base_directory(job)),
            truncated=len(training.truncated),
            price_per_hour=desk.settings.price_per_hour,
            currency=desk.settings.currency,
            sampling_s=sampling_s,
        )
    return {**result.to_wire(), "hyperparameters": config.to_wire()}


def _seconds_per_sampled_token(
    sampler: "TokenSampler",
    adapter: "LoraAdapter | None",
    training: Data,
    config: ReinforcementConfig,
    seed: int,
) -> float:
    """Sample the beginnings of one step's answers, and take the time."""
    from tunekeeper.inference.params import Piece, Sampling

    n_tokens = min(16, config.max_completion_tokens)
    prompts = [tree.trunk for tree in training.trees[: config.batch_size] for _ in range(config.num_generations)]
    inbox: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
    n_sampled = n_ended = 0
    sampler.begin(adapter)
    began = time.perf_counter()
    sampler.ask(prompts, [Sampling(max_tokens=n_tokens, seed=seed)] * len(prompts), [inbox.put] * len(prompts))
    while n_ended < len(prompts):
        piece = inbox.get()
        if isinstance(piece, Exception):
            raise piece
        if piece.finish_reason is not None:
            n_ended += 1
            n_sampled += piece.n_generated
    seconds = time.perf_counter() - began
    sampler.end()
    return seconds / max(1, n_sampled)


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
