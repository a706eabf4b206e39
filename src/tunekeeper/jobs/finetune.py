"""The child process that runs one phase of a job: `python -m tunekeeper.jobs.finetune JOB_ID --home HOME`.

It may be killed at any moment and run again: what it did stays done, what it did halfway is done again to the
same result. For that, the order of a step's writes is fixed:

    metrics event -> checkpoint (files, then rows) -> mark that training is over -> state -> next step
    final model's files -> its row -> result file -> events -> the job's last state

A state is the receipt for everything before it. Events have keys, checkpoints their step, models and files
ids that follow from the job's, so doing any of it again changes nothing. The job's end is written last.
"""

import argparse
import errno
import io
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from tunekeeper.datasets.render import prompt_text
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import DiskFull, InvalidData, InvalidState, NotFound, TunekeeperError
from tunekeeper.jobs.executor import EXIT_NO_ROOM, exclusive, hold_lifeline, job_directory
from tunekeeper.jobs.outcome import fail, keep_file
from tunekeeper.jobs.prepare import Data, Desk, config_of, load_data, prepare
from tunekeeper.jobs.progress import Progress
from tunekeeper.jobs.results import (
    SAMPLES_FILE,
    checkpoint_metrics,
    history,
    metrics_data,
    metrics_message,
    results_csv,
    samples_jsonl,
)
from tunekeeper.jobs.submit import base_under, check_sampled_elsewhere, root_of
from tunekeeper.models.process import prepare_process
from tunekeeper.settings import Upstream, load_settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.trainer.config import Config, ReinforcementConfig, hyperparameters_of
from tunekeeper.trainer.step import Step
from tunekeeper.types import Checkpoint, Event, Job, Json, Message, Model, new_id

if TYPE_CHECKING:
    from tunekeeper.trainer.loop import Learner, Trainer
    from tunekeeper.trainer.reinforce import Reinforcer

_PUBLISH_EVERY_S = 15.0
"""How old the result file of a running job may be."""
_EVENTS_PAGE = 1000
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXTS = ("No space left", "disk is full", "File too large", "Disk quota exceeded")
_NO_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The job is no longer ours: it was cancelled or deleted, or another process has it."""


def run(job_id: str, desk: Desk) -> None:
    """Run the job's present phase to its end; a failure that its owner can mend becomes the job's error."""
    with exclusive(job_directory(desk.settings.home, job_id) / "lock"):
        try:
            job = desk.store.get_job(job_id)
            if job.status == "validating_files":
                prepare(job, desk)
            elif job.status in {"queued", "running"}:
                train(job, desk)
        except Superseded as reason:
            _log.info("%s: %s", job_id, reason)
        except Exception as error:
            known = _explain(error)
            if known is None:
                raise
            _log.error("%s: %s", job_id, known.message, exc_info=error)
            _note(job_id, known, desk.store)


def train(job: Job, desk: Desk) -> None:
    """Train a queued or interrupted job until it is done or pauses."""
    job = _start(job, desk)
    if "sweep" in job.extra:
        from tunekeeper.jobs.sweep import train_sweep

        train_sweep(job, desk)
        return
    progress = desk.progress(job)
    config = config_of(job, desk, job.extra["counts"])
    tokenizer = desk.tokenizer(job)
    if (upstream := _sampler_of(job, desk)) and isinstance(config, ReinforcementConfig):
        check_sampled_elsewhere(config, upstream)  # it may have been configured since the job was submitted
    training = load_data(job.training_file, config, tokenizer, desk)
    held_out = load_data(job.validation_file, config, tokenizer, desk)
    with ExitStack() as stack:
        trainer = new_trainer(job, desk, config, training, held_out, stack)
        restore(trainer, progress)
        course = Course(job, desk, config, trainer, progress)
        if not progress.is_trained and not course.steps():
            return
        course.finish()


def _start(job: Job, desk: Desk) -> Job:
    """Mark the job as running, on a machine whose properties stay the same until its end."""
    import torch

    machine = job.extra.get("machine") or machine_of(job, desk)
    # The order of a sum depends on the number of threads: a resumed run must add as the first one did.
    torch.set_num_threads(machine["threads"])
    desk.store.add_event(job.id, "info", "Fine-tuning job started", key="started")
    if sampler := machine.get("sampler"):
        desk.store.add_event(job.id, "info", f"Answers are sampled by the upstream {sampler}", key="sampler")
    return desk.store.transition(
        job.id,
        "running",
        from_={"queued", "running"},
        resolved={**(job.resolved or {}), "dtype": machine["dtype"]},
        extra={**job.extra, "machine": machine},
    )


def machine_of(job: Job, desk: Desk) -> Json:
    """What of this machine a run's numbers depend on."""
    import torch

    from tunekeeper.models.load import compute_dtype

    said = hyperparameters_of(job.method)
    asked = said.get("dtype", "auto")
    if asked == "auto":  # weights in bf16 would not move by the small steps of full fine-tuning
        asked = "fp32" if said.get("full_finetune") else desk.settings.dtype
    dtype = compute_dtype(asked)
    sampler = _sampler_of(job, desk)
    return {
        "threads": desk.settings.threads or torch.get_num_threads(),
        "dtype": "bf16" if dtype == torch.bfloat16 else "fp32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "cache_tokens": desk.settings.cache_tokens,
        "max_batch": desk.settings.max_concurrent_requests,
        **({} if sampler is None else {"sampler": sampler.name}),
    }


def _sampler_of(job: Job, desk: Desk) -> Upstream | None:
    """The server that would sample a job's answers; None: the embedded engine would."""
    if job.method["type"] != "reinforcement":
        return None
    return desk.settings.sampler_of(base_under(desk.store.get_model(job.model), desk.store).id)


def new_trainer(
    job: Job, desk: Desk, config: Config, training: Data, held_out: Data, stack: ExitStack
) -> "Trainer | Reinforcer":
    """A trainer at step 0, on the job's base or on the adapter that it starts from; `stack` ends what it needs."""
    from tunekeeper.models.load import load_adapter, load_decoder
    from tunekeeper.trainer.loop import Trainer

    machine = job.extra["machine"]
    model = desk.store.get_model(job.model)
    decoder = load_decoder(desk.base_directory(job), dtype=machine["dtype"], device=machine["device"])
    parent = load_adapter(desk.settings.home / model.path, decoder) if model.kind == "adapter" else None
    invocation = generation_prompt(desk.tokenizer(job)) if config.adapter_scope == "completion" else ()
    if isinstance(config, ReinforcementConfig):
        from tunekeeper.jobs.rollouts import open_player
        from tunekeeper.trainer.reinforce import Reinforcer

        return Reinforcer(
            decoder,
            training.trees,
            held_out.trees,
            config,
            stack.enter_context(open_player(job, desk, config, decoder, training, held_out)),
            seed=job.seed,
            parent=parent,
            invocation_tokens=invocation,
        )
    return Trainer(
        decoder, training.trees, held_out.trees, config, seed=job.seed, parent=parent, invocation_tokens=invocation
    )


def restore(trainer: "Learner", progress: Progress) -> None:
    """Put the trainer where its newest whole state was taken; without one it stays at step 0."""
    for step, directory in progress.states():
        try:
            trainer.load_state(directory)
        except InvalidData as error:
            _log.warning("the state of step %d is passed over: %s", step, error)
            shutil.rmtree(directory)
            continue
        _log.info("going on after step %d", step)
        return


@dataclass
class Course:
    """A training run under way: its steps, and what each leaves behind."""

    job: Job
    desk: Desk
    config: Config
    trainer: "Learner"
    progress: Progress
    published_at: float = 0.0
    seconds: float = 0.0
    pace: float | None = None

    def steps(self) -> bool:
        """Train on to the last step; False when the job pauses before."""
        self.seconds = float(self.job.extra.get("seconds", 0.0))
        settled = self.progress.trained_at
        store = self.desk.store
        if (prepared := self.trainer.prepare()) is not None:
            store.add_event(self.job.id, "info", prepared, key="prepared")
            self._keep_evaluation(0, 0.0)
            self.trainer.save_state(self.progress.place(self.trainer.step))
        for step in self.trainer.steps():
            self._record(step)
            is_last = step.stop_reason is not None or step.step in (step.total_steps, settled)
            why_pause = None if is_last else self._why_pause()
            if step.epoch_end or why_pause:
                self._checkpoint(step)
            if step.epoch_end or why_pause or time.monotonic() - self.published_at > _PUBLISH_EVERY_S:
                store.update_job(self.job.id, result_file=self._publish())
            if is_last:
                self.progress.mark_trained(step.step)
            if is_last or why_pause or step.step % self.config.save_every == 0:
                self.trainer.save_state(self.progress.place(step.step))
                self.progress.prune()
            if why_pause:
                self._pause(step, why_pause)
                return False
            if is_last:
                break
        return True

    def finish(self) -> None:
        """Publish the model and the results; the job's last state comes last."""
        job, store = self.job, self.desk.store
        self._diagnose()
        model = self._keep_model(self.job.extra["tuned_model"], job.id, step=None)
        result = self._publish()
        store.add_event(job.id, "info", f"New fine-tuned model created: {model.id}", key="model")
        store.add_event(job.id, "info", "The job has successfully completed", key="succeeded")
        store.transition(
            job.id,
            "succeeded",
            from_={"running"},
            fine_tuned_model=model.id,
            result_file=result,
            trained_tokens=self.trainer.tokens,
            step=self.trainer.step,
            finished_at=store.now(),
            estimated_finish=None,
            request=None,
        )
        self.progress.clear()

    def _record(self, step: Step) -> None:
        """Store what the step measured; raises Superseded when the job has been taken from us."""
        store = self.desk.store
        self.seconds += step.seconds
        pace = self._pace_after(step)
        store.add_event(
            self.job.id,
            "info",
            metrics_message(step),
            type="metrics",
            data=metrics_data(step),
            key=f"step-{step.step}",
        )
        if step.samples is not None:
            text = f"Best and worst answers after step {step.step}"
            store.add_event(
                self.job.id, "info", text, data={"step": step.step, **step.samples}, key=f"samples-{step.step}"
            )
            self._keep_evaluation(step.step, step.details["timing"]["step"]["eval"])
        now = store.update_job(
            self.job.id,
            # A resumed run repeats steps; what people see never goes back.
            step=max(step.step, self.job.step),
            total_steps=step.total_steps,
            trained_tokens=step.tokens,
            estimated_finish=store.now() + round(pace * (step.total_steps - step.step)),
            extra={**self.job.extra, "seconds": self.seconds},
        )
        if now.status != "running" or now.attempts != self.job.attempts:
            raise Superseded(f"{now.status}, attempt {now.attempts}; this was attempt {self.job.attempts}")
        self.job = now
        if not math.isfinite(step.train_loss):
            raise TunekeeperError(
                f"Step {step.step}: {step.stop_reason}. Checkpoints of earlier steps are good.",
                code="diverged",
            )
        if step.stop_reason is not None:
            text = f"Training ends after step {step.step}/{step.total_steps}: {step.stop_reason}"
            store.add_event(self.job.id, "warn", text, key="stopped")

    def _keep_evaluation(self, step: int, seconds: float) -> None:
        """Keep what a reinforcement job's evaluation came to as a run of its eval."""
        from tunekeeper.jobs.rft_evals import add_run
        from tunekeeper.jobs.rollouts import ProblemPlayer
        from tunekeeper.trainer.reinforce import Reinforcer

        if isinstance(self.trainer, Reinforcer) and isinstance(self.trainer.player, ProblemPlayer):
            add_run(self.job, self.desk, step, self.trainer.player.evaluated, seconds)

    def _pace_after(self, step: Step) -> float:
        """The present pace: recent steps count more."""
        self.pace = step.seconds if self.pace is None else 0.8 * self.pace + 0.2 * step.seconds
        return self.pace

    def _why_pause(self) -> str | None:
        if self.job.request == "pause":
            return "as asked"
        if self.job.extra.get("limits_lifted"):
            return None
        limit = self.config.max_wall_seconds
        if limit is not None and self.seconds >= limit:
            return f"for it has trained {self.seconds:.0f} s, and max_wall_seconds is {limit:g}"
        cost = self.seconds / 3600 * self.desk.settings.price_per_hour
        if self.config.max_cost is not None and cost >= self.config.max_cost:
            currency = self.desk.settings.currency
            return f"for it has cost {cost:.2f} {currency}, and max_cost is {self.config.max_cost:g}"
        return None

    def _pause(self, step: Step, why: str) -> None:
        asked = self.job.request == "pause"
        text = f"Job paused after step {step.step}/{step.total_steps}, {why}; resume it to go on"
        store = self.desk.store
        store.add_event(self.job.id, "info" if asked else "warn", text, key=f"paused-{step.step}")
        # A limit is for one stretch: who resumes the job has seen it.
        extra = self.job.extra if asked else {**self.job.extra, "limits_lifted": True}
        store.transition(self.job.id, "paused", from_={"running"}, request=None, estimated_finish=None, extra=extra)

    def _checkpoint(self, step: Step) -> None:
        store, job = self.desk.store, self.job
        model = self._keep_model(
            f"{job.extra['tuned_model']}:ckpt-step-{step.step}", f"{job.id}-step-{step.step}", step=step.step
        )
        store.add_checkpoint(
            Checkpoint(
                id=new_id("ftckpt_"),
                job_id=job.id,
                created_at=store.now(),
                model=model.id,
                step=step.step,
                metrics=checkpoint_metrics(step),
            )
        )
        store.add_event(job.id, "info", f"Checkpoint created at step {step.step}", key=f"checkpoint-{step.step}")
        if self.desk.settings.keep_checkpoints:
            drop_checkpoints(job, self.desk, keep=self.desk.settings.keep_checkpoints)

    def _keep_model(self, model_id: str, directory: str, *, step: int | None) -> Model:
        """The present weights as a model that answers; the files come before the row."""
        store, home = self.desk.store, self.desk.settings.home
        parent = store.get_model(self.job.model)
        base = base_under(parent, store)
        path = Path("models") / directory
        full = self.config.full_finetune
        # A directory appears whole or not at all, and equal weights give equal bytes: what is there is right.
        if not (home / path).exists():
            self.trainer.save_model(home / path, base_id=base.id, base_directory=self.desk.base_directory(self.job))
        return store.add_model(
            Model(
                id=model_id,
                created_at=store.now(),
                kind="full" if full else "adapter",
                path=str(path),
                base=root_of(parent, store).id if full else base.id,
                owned_by=self.desk.settings.organization,
                parent=None if parent.kind == "base" else parent.id,
                job_id=self.job.id,
                step=step,
                info={**base.info, "recipe": self._recipe()},
            )
        )

    def _recipe(self) -> Json:
        """All that is needed to run the job again, also elsewhere; it stays with the model when the job is deleted."""
        job, kind = self.job, self.job.method["type"]
        files = {"training_file": job.training_file, "validation_file": job.validation_file}
        return {
            "model": job.model,
            "method": {"type": kind, kind: {**job.method[kind], "hyperparameters": job.resolved}},
            "seed": job.seed,
            "files": {name: {"id": id_, "sha256": self._sha256(id_)} for name, id_ in files.items() if id_},
        }

    def _sha256(self, file_id: str) -> str:
        return self.desk.store.get_file(file_id).sha256

    def _publish(self) -> str:
        """Bring the result files up to date; returns the id of the first."""
        events = list(all_events(self.job.id, self.desk.store))
        content = io.BytesIO(results_csv(events))
        file = keep_file(self.desk.store, self.desk.blobs, self.job, "step_metrics.csv", content)
        if samples := samples_jsonl(events):
            kept = keep_file(self.desk.store, self.desk.blobs, self.job, SAMPLES_FILE, io.BytesIO(samples))
            self.job = self.desk.store.update_job(self.job.id, extra={**self.job.extra, "samples_file": kept.id})
        self.published_at = time.monotonic()
        return file.id

    def _diagnose(self) -> None:
        from tunekeeper.trainer.diagnosis import diagnose

        if isinstance(self.config, ReinforcementConfig):
            return  # its loss is near 0 whatever is learned: the rewards tell, and they are in every event
        for finding in diagnose(history(all_events(self.job.id, self.desk.store))):
            self.desk.store.add_event(self.job.id, finding.level, finding.message, key=f"diagnosis-{finding.code}")


def drop_checkpoints(job: Job, desk: Desk, *, keep: int) -> None:
    """Forget all but the newest checkpoints, with their models; one that something was trained on stays."""
    for checkpoint in desk.store.list_checkpoints(job.id, limit=_EVENTS_PAGE).data[keep:]:
        try:
            model = desk.store.get_model(checkpoint.model)
            desk.store.delete_model(checkpoint.model)
        except InvalidState:
            continue
        except NotFound:
            pass  # deleted by hand, or by this very code before it was killed
        else:
            shutil.rmtree(desk.settings.home / model.path, ignore_errors=True)
        desk.store.delete_checkpoint(checkpoint.id)


def generation_prompt(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that the chat template puts before an answer."""
    probe: Message = {"role": "user", "content": "x"}
    before = tokenizer.render_chat([probe])
    with_prompt = prompt_text(tokenizer, [probe])
    if not with_prompt.startswith(before):
        return ()
    return tuple(tokenizer.encode(with_prompt[len(before) :], continues=True))


def all_events(job_id: str, store: Store) -> Iterator[Event]:
    """A job's events, newest first."""
    after: str | None = None
    while True:
        page = store.list_events(job_id, after=after, limit=_EVENTS_PAGE)
        yield from page.data
        if not page.has_more:
            return
        after = page.data[-1].id


def _explain(error: Exception) -> TunekeeperError | None:
    """The error as its owner should see it; None for a fault of ours, which is a crash."""
    text = str(error)
    if isinstance(error, TunekeeperError):
        return error
    is_full = isinstance(error, OSError) and error.errno in _NO_ROOM
    if is_full or any(part in text for part in _NO_ROOM_TEXTS):
        return DiskFull(
            f"The disk is full ({text.splitlines()[0]}). Free some space, then resume the job: it goes on "
            "from its last state."
        )
    if isinstance(error, MemoryError) or any(part in text.lower() for part in _NO_MEMORY_TEXTS):
        return TunekeeperError(
            "Memory ran out. Try a smaller batch_size or max_seq_len, or a smaller model.",
            code="out_of_memory",
        )
    return None


def _note(job_id: str, error: TunekeeperError, store: Store) -> None:
    """Fail the job, unless it was cancelled or deleted meanwhile."""
    try:
        with suppress(InvalidState, NotFound):
            fail(store, store.get_job(job_id), error)
    except (SQLAlchemyError, OSError):
        _log.exception("%s: its failure cannot be noted", job_id)
        sys.exit(EXIT_NO_ROOM)


def main() -> None:
    """Run the phase; the lifeline is the standard input."""
    hold_lifeline()
    prepare_process()
    parser = argparse.ArgumentParser()
    parser.add_argument("job_id")
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(arguments.home)
    desk = Desk(settings, Store(connect(settings.home)), DirectoryBlobs(settings.home / "blobs"))
    # Not this module's own `run`: here its name is __main__, and a sweep imports it once more, with other classes.
    from tunekeeper.jobs.finetune import run

    run(arguments.job_id, desk)


if __name__ == "__main__":
    main()
