"""A job's first phase: its files checked and counted, "auto" turned into numbers. Needs no torch.

What is found wrong fails the job with every faulty line; what is merely doubtful becomes a warning event.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, TextIO

from tunekeeper.datasets.formats import ProblemExample, read_examples
from tunekeeper.datasets.render import render
from tunekeeper.datasets.report import Report
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.datasets.validate import ItemFaults, check
from tunekeeper.errors import InvalidConfig, InvalidData, NotFound
from tunekeeper.graders.spec import item_faults
from tunekeeper.graders.spec import parse as parse_grader
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.outcome import keep_file
from tunekeeper.jobs.progress import Progress
from tunekeeper.jobs.submit import base_under, context_of, hidden_size_of, parent_shape, read_config
from tunekeeper.ports import Blobs
from tunekeeper.settings import Settings
from tunekeeper.storage.store import Store
from tunekeeper.trainer.config import (
    Config,
    ReinforcementConfig,
    SupervisedConfig,
    hyperparameters_of,
    method_of,
    resolve,
)
from tunekeeper.trainer.sweep import Sweep, held_out_lines, n_held_out, planned_steps, points, read_sweep, with_values
from tunekeeper.types import Job, Json, Tree


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a job finds its files and leaves its results."""

    settings: Settings
    store: Store
    blobs: Blobs

    def progress(self, job: Job) -> Progress:
        """The job's states on disk."""
        return Progress(job_directory(self.settings.home, job.id))

    def base_directory(self, job: Job) -> Path:
        """The weights that the job trains on."""
        model = base_under(self.store.get_model(job.model), self.store)
        return self.settings.home / model.path

    def tokenizer(self, job: Job) -> Tokenizer:
        """The base's tokenizer; a template that writes the date writes the job's, however long it runs."""
        created = datetime.fromtimestamp(job.created_at)
        return Tokenizer.load(self.base_directory(job), now=lambda: created)

    def open(self, file_id: str) -> BinaryIO:
        """A file's bytes."""
        return self.blobs.open(self.store.get_file(file_id).sha256)


@dataclass(frozen=True, slots=True)
class Data:
    """A file as the trainer reads it."""

    trees: tuple[Tree, ...]
    n_examples: int
    truncated: tuple[int, ...]
    """Lines whose end was cut off."""
    left_out: tuple[int, ...]
    """Lines of which nothing that is learned was left."""
    problems: tuple[ProblemExample, ...] = ()
    """With reinforcement: the example of each tree."""

    @property
    def n_tokens(self) -> int:
        """Tokens of one pass over the file."""
        return sum(tree.size for tree in self.trees)


def prepare(job: Job, desk: Desk) -> Job:
    """Move the job from validating_files to queued; raises what fails the job."""
    tokenizer = desk.tokenizer(job)
    report = _check(job, desk, tokenizer)
    counts = _counts(report, job)
    config = config_of(job, desk, counts)
    data, _ = load_files(job, config, tokenizer, desk)
    _check_tools(job, data)
    for finding in report.findings:
        desk.store.add_event(job.id, finding.level, finding.message, key=f"finding-{finding.code}")
    desk.store.add_event(job.id, "info", "Files validated, moving job to queued state", key="validated")
    return desk.store.transition(
        job.id,
        "queued",
        from_={"validating_files"},
        resolved=config.to_wire(),
        total_steps=_all_steps(job, data, config, desk, counts),
        estimate=_foresee(job, data, config, desk.store),
        extra={**job.extra, "counts": counts},
    )


def config_of(job: Job, desk: Desk, counts: Json) -> Config:
    """The job's hyperparameters as numbers: the same whenever it is asked."""
    model = desk.store.get_model(job.model)
    base = read_config(desk.base_directory(job))
    return resolve(
        job.method,
        n_examples=counts["n_examples"],
        n_valid=counts["n_valid"],
        context=context_of(base),
        hidden_size=hidden_size_of(base),
        parent=parent_shape(model, desk.settings.home),
    )


def load_data(file_id: str | None, config: Config, tokenizer: Tokenizer, desk: Desk) -> Data:
    """The file's examples as trees, in the order of its lines."""
    trees: list[Tree] = []
    truncated: list[int] = []
    left_out: list[int] = []
    problems: list[ProblemExample] = []
    count = 0
    if file_id is None:
        return Data((), 0, (), ())
    with desk.open(file_id) as stream:
        for example in read_examples(stream, method=method_of(config)):
            count += 1
            rendered = render(
                example,
                tokenizer,
                max_tokens=config.max_seq_len,
                prompt_loss_weight=config.prompt_loss_weight if isinstance(config, SupervisedConfig) else 0.0,
                # An adapter of completions acts from the last generation prompt on: each answer is a tree.
                split_turns=config.adapter_scope == "completion",
            )
            trees.extend(item.tree for item in rendered)
            if isinstance(example, ProblemExample) and rendered:
                problems.append(example)
            if not rendered:
                left_out.append(example.line)
            elif any(item.truncated for item in rendered):
                truncated.append(example.line)
    return Data(tuple(trees), count, tuple(truncated), tuple(left_out), tuple(problems))


def sweep_of(job: Job) -> Sweep | None:
    """The search that the job is, if it is one."""
    given = job.extra.get("sweep")
    return None if given is None else read_sweep(given, job.method, validated=job.validation_file is not None)


def trials_of(job: Job, sweep: Sweep, desk: Desk, counts: Json) -> list[tuple[Json, Config]]:
    """What each trial of a sweep names, and all of its numbers."""
    named = points(sweep, job.seed)
    return [(values, config_of(replace(job, method=with_values(job.method, values)), desk, counts)) for values in named]


def load_files(job: Job, config: Config, tokenizer: Tokenizer, desk: Desk) -> tuple[Data, Data]:
    """The training and the validation examples; a sweep without a validation file holds some of the first out."""
    training = load_data(job.training_file, config, tokenizer, desk)
    sweep = sweep_of(job)
    if sweep is None or sweep.validation_split is None:
        return training, load_data(job.validation_file, config, tokenizer, desk)
    held_out = held_out_lines([*{tree.line for tree in training.trees}], sweep.validation_split, job.seed)
    parts = [tuple(tree for tree in training.trees if (tree.line in held_out) is taken) for taken in (False, True)]
    return replace(training, trees=parts[0]), replace(training, trees=parts[1])


def count(job: Job, desk: Desk) -> Json:
    """The sizes of the job's files, which "auto" depends on; raises InvalidData with their faults."""
    return _counts(_check(job, desk, desk.tokenizer(job)), job)


def _counts(report: Report, job: Job) -> Json:
    sweep = sweep_of(job)
    if sweep is not None and sweep.validation_split is not None:
        n_valid = n_held_out(report.n_examples, sweep.validation_split)
        return {"n_examples": report.n_examples - n_valid, "n_valid": n_valid}
    return {"n_examples": report.n_examples, "n_valid": report.n_validation_examples or 0}


def _foresee(job: Job, data: Data, config: Config, store: Store) -> Json:
    """How much there is to train, and how long that takes at the pace of the last job on this model."""
    billable = data.n_tokens * config.n_epochs
    foreseen: Json = {
        "training_tokens": data.n_tokens,
        "billable_tokens": billable,
        "n_epochs": config.n_epochs,
        "steps": _steps(data, config),
        "truncated_examples": len(data.truncated),
        "left_out_examples": len(data.left_out),
    }
    if "sweep" in job.extra:  # its trials differ in the rest
        return {name: foreseen[name] for name in ("training_tokens", "truncated_examples", "left_out_examples")}
    for other in store.list_jobs(limit=100).data:
        seconds = other.extra.get("seconds")
        same = other.model == job.model and other.method["type"] == job.method["type"] and "sweep" not in other.extra
        if not same or not seconds:
            continue
        if isinstance(config, ReinforcementConfig) and other.step:  # what it samples is not known yet, the steps are
            return {**foreseen, "est_wall_seconds": round(_steps(data, config) * seconds / other.step, 1)}
        if other.trained_tokens:
            return {**foreseen, "est_wall_seconds": round(billable * seconds / other.trained_tokens, 1)}
    return foreseen


def _all_steps(job: Job, data: Data, config: Config, desk: Desk, counts: Json) -> int:
    sweep = sweep_of(job)
    if sweep is None:
        return _steps(data, config)
    totals = [_steps(data, trial) for _, trial in trials_of(job, sweep, desk, counts)]
    return planned_steps(totals, [[] for _ in totals], sweep.stopping)


def _steps(data: Data, config: Config) -> int:
    return -(-len(data.trees) // config.batch_size) * config.n_epochs


def _check(job: Job, desk: Desk, tokenizer: Tokenizer) -> Report:
    """Check both files; raises InvalidData with their faults."""
    context = context_of(read_config(desk.base_directory(job)))
    asked = hyperparameters_of(job.method).get("max_seq_len", "auto")
    with ExitStack() as stack:
        faults = stack.enter_context(TemporaryFile("w+", encoding="utf-8"))
        report = check(
            stack.enter_context(desk.open(job.training_file)),
            method=job.method["type"],
            tokenizer=tokenizer,
            max_tokens=context if asked == "auto" else min(asked, context),
            validation=stack.enter_context(desk.open(job.validation_file)) if job.validation_file else None,
            min_examples=desk.settings.min_examples,
            item_faults=_item_faults(job),
            faults_out=faults,
        )
        if not report.ok:
            faults.seek(0)
            raise _invalid(report, desk.settings.min_examples, _keep_report(job, desk, faults))
    return report


def _item_faults(job: Job) -> ItemFaults | None:
    """What looks for the variables that the job's grader reads."""
    if job.method["type"] != "reinforcement":
        return None
    return partial(item_faults, parse_grader(job.method["reinforcement"]["grader"]))


def _check_tools(job: Job, data: Data) -> None:
    """Refuse a tool server that no line can make the model call."""
    known = {str(tool["function"]["name"]) for problem in data.problems for tool in problem.tools or ()}
    for n, tool in enumerate(job.method[job.method["type"]].get("tools", ())):
        if tool["name"] not in known:
            raise InvalidConfig(
                f"No line of the training file has a function {tool['name']!r} in its tools, so the model could never "
                "call it. Add it to the lines' tools, with its parameters, or leave the server out.",
                param=f"method.reinforcement.tools[{n}].name",
            )


def _keep_report(job: Job, desk: Desk, faults: TextIO) -> str:
    """Keep the faults as a file, and say where; a job that is only estimated keeps none."""
    try:
        desk.store.get_job(job.id)
    except NotFound:
        return ""
    faults.seek(0)
    kept = keep_file(desk.store, desk.blobs, job, "validation-report.jsonl", faults.buffer)
    return f" All faults are in the file {kept.id}."


def _invalid(report: Report, min_examples: int, where: str) -> InvalidData:
    errors = [fault for fault in report.faults if fault.level == "error"]
    first = errors[0]
    file = f"{first.file}_file"
    if first.code == "too_few_examples" and first.file == "training":
        count = f"Training file has {report.n_examples} example(s)"
        message = f"{count}, but must have at least {min_examples} examples"
        return InvalidData(message, param=file, code="invalid_n_examples", details=[first.to_json()])
    return InvalidData(
        f"The job failed due to an invalid {first.file} file. {report.summary}{where}",
        param=file,
        code=f"invalid_{file}",
        details=[fault.to_json() for fault in errors],
    )
