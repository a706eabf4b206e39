"""The training phase of a job that is a sweep: many trials on one loaded base, the best of which is its model.

    jobs/<id>/state/step-00000012/           the mark of 12 steps, of all trials together, that no crash takes back
    jobs/<id>/state/trial-003/state/step-…   what trial 3 goes on from

A trial is a run as any other: with the same files, seed and hyperparameters it gives the adapter that a job of its
own gives. It is trained in legs, each up to a rung where it is measured (`trainer.sweep`). What was measured is
written to the job's row after the state that it was measured on; a run that was killed asks `next_leg` again with
what is there, and goes on from the trial's last state. Prompts, activations and reference log-probabilities that no
trial changes are computed once for all.
"""

import io
import math
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunekeeper.errors import InvalidData, TunekeeperError, Unavailable
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.finetune import Course, Superseded, all_events, generation_prompt, restore
from tunekeeper.jobs.outcome import keep_file
from tunekeeper.jobs.prepare import Desk, load_files, sweep_of, trials_of
from tunekeeper.jobs.progress import Progress
from tunekeeper.jobs.results import history, metrics_data, metrics_message, results_csv
from tunekeeper.jobs.trials import finite, picture, report, scores, trials_csv, values_text
from tunekeeper.models.load import load_adapter, load_decoder
from tunekeeper.trainer.config import ReinforcementConfig
from tunekeeper.trainer.diagnosis import diagnose
from tunekeeper.trainer.fast import FastTrainer, first_trained
from tunekeeper.trainer.loop import DIVERGED, Trainer
from tunekeeper.trainer.step import Step
from tunekeeper.trainer.sweep import Leg, next_leg, planned_steps, statuses, winner
from tunekeeper.types import Job, Json


def train_sweep(job: Job, desk: Desk) -> None:
    """Train a sweep that runs until it is done or pauses."""
    search = _Search(job, desk)
    while (leg := search.next_leg()) is not None:
        if not search.run(leg):
            return
    search.finish()


class _Search:
    """A sweep under way: the base and the data, and what was measured of each trial."""

    def __init__(self, job: Job, desk: Desk) -> None:
        sweep = sweep_of(job)
        assert sweep is not None
        self.desk, self.sweep = desk, sweep
        trials = trials_of(job, sweep, desk, job.extra["counts"])
        self.values = [values for values, _ in trials]
        self.configs = [config for _, config in trials]
        tokenizer = desk.tokenizer(job)
        # What is searched changes nothing in how a file is read.
        self.training, self.held_out = load_files(job, self.configs[0], tokenizer, desk)
        if not self.held_out.trees:
            raise InvalidData(
                "No example to compare the trials on is left: all are longer than max_seq_len, or teach nothing.",
                param="validation_file",
            )
        self.invocation = generation_prompt(tokenizer) if self.configs[0].adapter_scope == "completion" else ()
        machine = job.extra["machine"]
        self.decoder = load_decoder(desk.base_directory(job), dtype=machine["dtype"], device=machine["device"])
        self.donor: Trainer | None = None
        self.job = job if "trials" in job.extra else self._begin(job)

    def _begin(self, job: Job) -> Job:
        n_trees = len(self.training.trees)
        totals = [-(-n_trees // config.batch_size) * config.n_epochs for config in self.configs]
        extra: Json = {
            "trials": [{"total_steps": total, "measures": [], "tokens": 0, "seconds": 0.0} for total in totals]
        }
        if self.sweep.fast:
            n_layers = self.decoder.shape.n_layers
            extra["trained_layers"] = list(range(first_trained(n_layers), n_layers))
        text = f"Sweep of {len(totals)} trials, compared by {self.sweep.metric.replace('_', ' ')}"
        self.desk.store.add_event(job.id, "info", text, key="sweep")
        return self.desk.store.update_job(job.id, extra={**job.extra, **extra})

    @property
    def records(self) -> list[Json]:
        """What was measured of each trial."""
        records: list[Json] = self.job.extra["trials"]
        return records

    @property
    def totals(self) -> list[int]:
        """Steps of each trial's whole run."""
        return [record["total_steps"] for record in self.records]

    @property
    def planned(self) -> int:
        """Steps of the whole sweep."""
        return planned_steps(self.totals, scores(self.records, self.sweep.metric), self.sweep.stopping)

    def steps_done(self, *, without: int | None = None) -> int:
        """Steps of all trials, or of all but one."""
        last = [record["measures"][-1]["step"] if record["measures"] else 0 for record in self.records]
        return sum(step for number, step in enumerate(last) if number != without)

    def tokens_done(self, *, without: int | None = None) -> int:
        """Tokens that all trials, or all but one, were trained on."""
        return sum(int(record["tokens"]) for number, record in enumerate(self.records) if number != without)

    def next_leg(self) -> Leg | None:
        """What comes next."""
        return next_leg(self.totals, scores(self.records, self.sweep.metric), self.sweep.stopping)

    def _trainer(self, trial: int) -> Trainer:
        """A trial at step 0, with what other trials have computed already."""
        config = self.configs[trial]
        assert not isinstance(config, ReinforcementConfig)
        trees, valid = self.training.trees, self.held_out.trees
        if self.sweep.fast:
            trainer: Trainer = FastTrainer(
                self.decoder, trees, valid, config, seed=self.job.seed, invocation_tokens=self.invocation
            )
        else:
            model = self.desk.store.get_model(self.job.model)
            is_adapter = model.kind == "adapter"
            parent = load_adapter(self.desk.settings.home / model.path, self.decoder) if is_adapter else None
            trainer = Trainer(
                self.decoder,
                trees,
                valid,
                config,
                seed=self.job.seed,
                parent=parent,
                invocation_tokens=self.invocation,
            )
        if self.donor is not None:
            trainer.share(self.donor)
        return trainer

    def progress(self, trial: int) -> "_TrialProgress":
        """Where a trial keeps its states."""
        return _TrialProgress(job_directory(self.desk.settings.home, self.job.id), trial, self)

    def run(self, leg: Leg) -> bool:
        """Train a trial up to its rung and measure it; False when the job pauses before."""
        trial = self._course(leg.trial)
        if trial.trainer.step < leg.step and trial.trainer.stopped is None:
            trial.progress.mark_trained(leg.step)
            if not trial.steps():
                return False
            self.job = trial.job
        measure = self._measure(trial)
        record = {
            "total_steps": self.totals[leg.trial],
            "measures": [*self.records[leg.trial]["measures"], measure],
            "tokens": trial.trainer.tokens,
            "seconds": self.records[leg.trial]["seconds"] + trial.leg_seconds,
        }
        records = [record if number == leg.trial else old for number, old in enumerate(self.records)]
        self._tell(leg, measure, records)
        self.job = self.desk.store.update_job(self.job.id, extra={**self.job.extra, "trials": records})
        self._drop_losers()
        self.donor = trial.trainer
        return True

    def _course(self, number: int) -> "_Trial":
        """A trial where it stands."""
        progress = self.progress(number)
        trainer = self._trainer(number)
        restore(trainer, progress)
        return _Trial(self.job, self.desk, self.configs[number], trainer, progress, search=self, number=number)

    def _measure(self, trial: "_Trial") -> Json:
        """What the trial is compared by, on the whole validation set."""
        trainer, step = trial.trainer, trial.last
        if step is not None and step.full_valid_loss is not None:
            loss, accuracy, details = step.full_valid_loss, step.full_valid_mean_token_accuracy, step.details
            preferred = details.get("full_valid_preference_accuracy")
        else:
            measured = trainer.measure_valid()
            loss, accuracy = measured.loss, measured.accuracy
            preferred = measured.details.get("preference_accuracy")
        return {
            "step": trainer.step,
            "valid_loss": finite(loss),
            "valid_mean_token_accuracy": None if accuracy is None else finite(accuracy),
            **({} if preferred is None else {"valid_preference_accuracy": preferred}),
            "diverged": trainer.stopped == DIVERGED or not math.isfinite(loss),
        }

    def _tell(self, leg: Leg, measure: Json, records: list[Json]) -> None:
        """Events of what was measured, and of who is stopped for it."""
        store, n = self.desk.store, len(records)
        name = f"Trial {leg.trial + 1}/{n} ({values_text(self.values[leg.trial])})"
        if measure["diverged"]:
            text = f"{name} is stopped after step {measure['step']}: {DIVERGED}"
            store.add_event(self.job.id, "warn", text, key=f"trial-{leg.trial + 1}-diverged")
        else:
            text = f"{name}: validation loss={measure['valid_loss']:.4f} after step {measure['step']}/"
            text += str(records[leg.trial]["total_steps"])
            data = {"trial": leg.trial + 1, **measure}
            store.add_event(self.job.id, "info", text, data=data, key=f"trial-{leg.trial + 1}-rung-{leg.rung}")
        for number, status in enumerate(self._statuses(records)):
            if status == "stopped":
                text = (
                    f"Trial {number + 1}/{n} ({values_text(self.values[number])}) is stopped after step "
                    f"{records[number]['measures'][-1]['step']}/{records[number]['total_steps']}: "
                    "it is in the worse half at this part of its run"
                )
                store.add_event(self.job.id, "info", text, key=f"trial-{number + 1}-stopped")

    def _statuses(self, records: list[Json]) -> list[str]:
        totals = [record["total_steps"] for record in records]
        return [*statuses(totals, scores(records, self.sweep.metric), self.sweep.stopping)]

    def _drop_losers(self) -> None:
        for number, status in enumerate(self._statuses(self.records)):
            if status in ("stopped", "diverged"):
                shutil.rmtree(self.progress(number).directory, ignore_errors=True)

    def finish(self) -> None:
        """Publish the best trial's model and the results; the job's last state comes last."""
        best = winner(scores(self.records, self.sweep.metric), self.sweep.stopping)
        if best is None:
            raise TunekeeperError(
                "Every trial diverged: their losses were not numbers. Search lower learning rates, or check the data.",
                code="diverged",
            )
        store, done = self.desk.store, self.steps_done()
        course = self._course(best)
        course.progress.mark_sweep(done)
        self.desk.progress(self.job).mark_trained(done)
        resolved = {**self.configs[best].to_wire(), "dtype": self.job.extra["machine"]["dtype"]}
        course.job = store.update_job(self.job.id, resolved=resolved)
        text = f"The best of {len(self.records)} trials is {best + 1}: {values_text(self.values[best])}"
        store.add_event(self.job.id, "info", text, data={"trial": best + 1, **self.values[best]}, key="best")
        course.diagnose()
        model = course.keep_model()
        result = course.publish(pictured=True)
        store.add_event(self.job.id, "info", f"New fine-tuned model created: {model}", key="model")
        store.add_event(self.job.id, "info", "The job has successfully completed", key="succeeded")
        store.transition(
            self.job.id,
            "succeeded",
            from_={"running"},
            fine_tuned_model=model,
            result_file=result,
            trained_tokens=self.tokens_done(),
            step=done,
            total_steps=done,
            finished_at=store.now(),
            estimated_finish=None,
            request=None,
        )
        self.desk.progress(self.job).clear()


class _TrialProgress(Progress):
    """The states of one trial; each that stays also moves the sweep's mark, by which a worker sees progress."""

    def __init__(self, job_directory: Path, number: int, search: _Search) -> None:
        self.directory = job_directory / "state" / f"trial-{number + 1:03d}"
        super().__init__(self.directory)
        self._sweep = Progress(job_directory)
        self._offset = search.steps_done(without=number)

    def prune(self) -> None:
        """Drop older states, and mark what is done."""
        super().prune()
        self.mark_sweep(self._offset + self.step)

    def mark_trained(self, step: int) -> None:
        """Settle where the present leg ends."""
        self.directory.mkdir(parents=True, exist_ok=True)
        super().mark_trained(step)

    def mark_sweep(self, step: int) -> None:
        """Mark how many steps all trials have done."""
        self._sweep.place(step).mkdir(exist_ok=True)
        for older, path in self._sweep.states():
            if older != step:
                shutil.rmtree(path, ignore_errors=True)


@dataclass
class _Trial(Course):
    """One trial's run, whose steps are told as steps of the whole sweep; it leaves no checkpoints."""

    search: _Search = field(kw_only=True)
    number: int = field(kw_only=True)
    trainer: Trainer
    last: Step | None = None
    leg_seconds: float = 0.0
    progress: _TrialProgress

    def _record(self, step: Step) -> None:
        self.last = step
        self.seconds += step.seconds
        self.leg_seconds += step.seconds
        pace = self._pace_after(step)
        store, told = self.desk.store, self._placed(step)
        data = {**metrics_data(told), "trial": self.number + 1, "trial_step": step.step}
        text = f"Trial {self.number + 1}/{len(self.search.records)}, {metrics_message(step)}"
        key = f"trial-{self.number + 1}-step-{step.step}"
        store.add_event(self.job.id, "info", text, type="metrics", data=data, key=key)
        now = store.update_job(
            self.job.id,
            step=max(told.step, self.job.step),
            total_steps=told.total_steps,
            trained_tokens=self.search.tokens_done(without=self.number) + step.tokens,
            estimated_finish=store.now() + round(pace * (told.total_steps - told.step)),
            extra={**self.job.extra, "seconds": self.seconds},
        )
        if step.stop_reason is not None and step.stop_reason != DIVERGED:
            text = f"Trial {self.number + 1}/{len(self.search.records)} ends after step {step.step}: {step.stop_reason}"
            store.add_event(self.job.id, "info", text, key=f"trial-{self.number + 1}-ended")
        if now.status != "running" or now.attempts != self.job.attempts:
            raise Superseded(f"{now.status}, attempt {now.attempts}; this was attempt {self.job.attempts}")
        self.job = now

    def _placed(self, step: Step) -> Step:
        """The step as one of the whole sweep."""
        done = self.search.steps_done(without=self.number)
        return replace(step, step=done + step.step, total_steps=max(self.search.planned, done + step.step))

    def _pause(self, step: Step, why: str) -> None:
        super()._pause(self._placed(step), why)

    def _checkpoint(self, step: Step) -> None:
        """Of all trials only the best is kept, and as the job's model."""

    def diagnose(self) -> None:
        """Say what the curves of this trial alone look like."""
        total = self.search.totals[self.number]
        own = [
            replace(event, data={**event.data, "step": event.data["trial_step"], "total_steps": total})
            for event in all_events(self.job.id, self.desk.store)
            if event.type == "metrics" and event.data is not None and event.data["trial"] == self.number + 1
        ]
        for finding in diagnose(history(own)):
            store, text = self.desk.store, f"Trial {self.number + 1}: {finding.message}"
            store.add_event(self.job.id, finding.level, text, key=f"diagnosis-{finding.code}")

    def keep_model(self) -> str:
        """The present weights as the job's model; returns its id."""
        return self._keep_model(self.job.extra["tuned_model"], self.job.id, step=None).id

    def _recipe(self) -> Json:
        """The best trial's recipe is that of a job with its hyperparameters, but for what only a sweep does."""
        own: Json = {"trial": self.number + 1}
        if self.search.sweep.fast:
            own["trained_layers"] = self.job.extra["trained_layers"]
        if self.search.sweep.validation_split is not None:
            own["validation_split"] = self.search.sweep.validation_split
        return {**super()._recipe(), "sweep": own}

    def _publish(self) -> str:
        return self.publish(pictured=False)  # a picture takes as long as many a step

    def publish(self, *, pictured: bool) -> str:
        """Bring the result files up to date; returns the id of the first."""
        store, blobs = self.desk.store, self.desk.blobs
        events = list(all_events(self.job.id, store))
        found = report(self.job)
        steps = keep_file(
            store, blobs, self.job, "step_metrics.csv", io.BytesIO(results_csv(events, first=("trial", "trial_step")))
        )
        files = [keep_file(store, blobs, self.job, "trials.csv", io.BytesIO(trials_csv(found))).id]
        if pictured:
            try:
                drawn = picture(found, events)
            except Unavailable as error:
                store.add_event(self.job.id, "warn", error.message, key="picture")
            else:
                files.append(keep_file(store, blobs, self.job, "trials.svg", io.BytesIO(drawn)).id)
        self.job = store.update_job(self.job.id, extra={**self.job.extra, "sweep_files": files})
        self.published_at = time.monotonic()
        return steps.id
