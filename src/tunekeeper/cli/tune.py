"""`tunekeeper tune`, `check` and `estimate`: from a file to a tuned model, or to what stands in its way."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.options import Options, options_of
from tunekeeper.errors import InvalidData, InvalidRequest

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.datasets.report import Report
    from tunekeeper.datasets.tokenizer import Tokenizer
    from tunekeeper.types import Json

TrainingFile = Annotated[str, typer.Argument(metavar="FILE", help="Training file (JSONL), or the id of one: file-…")]
Model = Annotated[str, typer.Option(help="Model to start from: a base, a tuned model or a checkpoint.")]
Validation = Annotated[str | None, typer.Option(help="Validation file, or the id of one.")]
Method = Annotated[str, typer.Option(help="How to learn: supervised, dpo or reinforcement.")]
Epochs = Annotated[int | None, typer.Option(min=1, max=50, help="Times through the data.")]
BatchSize = Annotated[int | None, typer.Option(min=1, max=256, help="Examples a step.")]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate-multiplier", help="Times the learning rate that fits the model."),
]
Beta = Annotated[
    float | None, typer.Option(min=0.0, max=2.0, help="With dpo: how hard the model is held to the one it was.")
]
Hyperparameter = Annotated[
    list[str] | None,
    typer.Option("--hyperparameter", "-H", metavar="NAME=VALUE", help="Any other hyperparameter; may be repeated."),
]
Grader = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="With reinforcement: the grader, a JSON file."),
]
ResponseFormat = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="With reinforcement: the form of answers, a JSON file."),
]
Tools = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="With reinforcement: servers that run functions, a JSON file."),
]
Suffix = Annotated[str | None, typer.Option(help="Part of the new model's name.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="The same seed gives the same model.")]


def tune(
    context: typer.Context,
    file: TrainingFile,
    model: Model,
    validation: Validation = None,
    method: Method = "supervised",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: LearningRate = None,
    beta: Beta = None,
    grader: Grader = None,
    response_format: ResponseFormat = None,
    tools: Tools = None,
    hyperparameter: Hyperparameter = None,
    suffix: Suffix = None,
    seed: Seed = None,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends.")] = True,
) -> None:
    """Tune a model on a file.

    Checks the file, sends it, says what the run will take, follows it, and names the new model.
    """
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import note, show
    from tunekeeper.cli.watch import follow, report_end

    options = options_of(context)
    hyperparameters = named_hyperparameters(epochs, batch_size, learning_rate_multiplier, beta, hyperparameter)
    asked = asked_method(method, hyperparameters, grader=grader, response_format=response_format, tools=tools)
    body = {"model": model, "suffix": suffix, "seed": seed, "method": asked}
    refuse_faults(options, file, validation, asked)
    with connect(options, runs_jobs=wait) as client:
        body["training_file"] = send(options, client, file)
        body["validation_file"] = None if validation is None else send(options, client, validation)
        body = {name: value for name, value in body.items() if value is not None}
        if not options.as_json:
            note(_estimate_text(client.post("/fine_tuning/jobs/estimate", body)))
        job = client.post("/fine_tuning/jobs", body)
        if wait:
            job = follow(options, client, job["id"])
    if wait:
        report_end(options, job)
        return
    show(options, job, lambda: str(job["id"]))
    if client.is_temporary:
        note("No server is running, so the job waits for `tunekeeper serve` or `tunekeeper jobs watch`.")


def estimate(
    context: typer.Context,
    file: TrainingFile,
    model: Model,
    validation: Validation = None,
    method: Method = "supervised",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: LearningRate = None,
    beta: Beta = None,
    grader: Grader = None,
    response_format: ResponseFormat = None,
    tools: Tools = None,
    hyperparameter: Hyperparameter = None,
) -> None:
    """Say what a run would take.

    Tokens, time, memory and cost, and what each "auto" comes to; nothing is trained.
    """
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import show

    options = options_of(context)
    hyperparameters = named_hyperparameters(epochs, batch_size, learning_rate_multiplier, beta, hyperparameter)
    asked = asked_method(method, hyperparameters, grader=grader, response_format=response_format, tools=tools)
    body: Json = {"model": model, "method": asked}
    refuse_faults(options, file, validation, asked)
    with connect(options) as client, ExitStack() as sent:
        body["training_file"] = sent.enter_context(_sent_for_now(options, client, file))
        if validation is not None:
            body["validation_file"] = sent.enter_context(_sent_for_now(options, client, validation))
        found = client.post("/fine_tuning/jobs/estimate", body)
    show(options, found, lambda: _estimate_text(found))


def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Training file (JSONL).")],
    validation: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Validation file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Count tokens as this model does: a base model here, or a model directory."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="supervised, dpo or reinforcement; else what the first line looks like.")
    ] = None,
    grader: Grader = None,
    report: Annotated[Path | None, typer.Option(help="Write every fault here, one JSON object a line.")] = None,
) -> None:
    """Check a training file.

    Needs no server, and fails if a job would. Finds faults line by line, duplicates, overlap with the
    validation file, answers that contradict each other, examples that are too long, and what looks like a
    secret or personal data.
    """
    from tunekeeper.cli.output import show

    options = options_of(context)
    tokenizer, max_tokens = (None, None) if model is None else _tokenizer(options, model)
    found = _checked(
        options,
        file,
        validation,
        method,
        grader=None if grader is None else _json_of(grader),
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        faults_to=report,
    )
    show(options, found.to_json(), lambda: found.to_text().rstrip("\n"))
    if not found.ok:
        raise typer.Exit(1)


def _checked(
    options: Options,
    file: Path,
    validation: Path | None,
    method: str | None,
    *,
    grader: Any = None,
    tokenizer: "Tokenizer | None" = None,
    max_tokens: int | None = None,
    faults_to: Path | None = None,
) -> "Report":
    from tunekeeper.datasets.formats import detect_method
    from tunekeeper.datasets.validate import check as check_file

    item_faults = None
    if grader is not None:
        from tunekeeper.graders import spec

        item_faults = partial(spec.item_faults, spec.parse(grader))
    with ExitStack() as opened:
        stream = opened.enter_context(file.open("rb"))
        return check_file(
            stream,
            method=method or detect_method(stream),
            item_faults=item_faults,
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            validation=None if validation is None else opened.enter_context(validation.open("rb")),
            min_examples=options.settings.min_examples,
            faults_out=None if faults_to is None else opened.enter_context(faults_to.open("w", encoding="utf-8")),
        )


def refuse_faults(options: Options, file: str, validation: str | None, method: "Json") -> None:
    """Look at local files before they are sent; raises InvalidData with what a job would fail on."""
    if _is_id(file):
        return
    held_out = None if validation is None or _is_id(validation) else _path(validation)
    kind = method["type"]
    report = _checked(options, _path(file), held_out, kind, grader=method[kind].get("grader"))
    if not report.ok:
        raise InvalidData(
            f"{file}: {report.summary} Nothing was sent. `tunekeeper check {file}` shows everything.",
            param="training_file",
            details=[fault.to_json() for fault in report.faults if fault.level == "error"],
        )
    if report.n_warnings and not options.as_json:
        from tunekeeper.cli.output import note

        note(f"{file}: {report.summary} `tunekeeper check {file}` shows them.")


def _tokenizer(options: Options, name: str) -> tuple["Tokenizer", int | None]:
    """The tokenizer of a model, and the longest example that it takes."""
    from tunekeeper.datasets.tokenizer import Tokenizer

    directory = Path(name)
    if not (directory / "tokenizer.json").is_file():
        directory = _base_directory(options, name)
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = {}  # a directory with a tokenizer only: nothing is too long for it
    return Tokenizer.load(directory), config.get("max_position_embeddings")


def _base_directory(options: Options, name: str) -> Path:
    from tunekeeper.cli.home import local_store

    settings = options.settings
    with local_store(options) as store:
        model = store.get_model(settings.aliases.get(name, name))
        while model.kind != "base":
            model = store.get_model(model.base)
    return settings.home / model.path


@contextmanager
def _sent_for_now(options: Options, client: "Client", file: str) -> Iterator[str]:
    """The id of the file on the server; what had to be sent is deleted again."""
    from tunekeeper.cli.client import path_of

    file_id = send(options, client, file)
    try:
        yield file_id
    finally:
        if file_id != file:
            client.delete(path_of("files", file_id))


def send(options: Options, client: "Client", file: str) -> str:
    """The id of the file on the server, which has looked at it; raises InvalidData if it found faults."""
    import time

    from tunekeeper.cli.client import path_of
    from tunekeeper.cli.output import byte_bars

    if _is_id(file):
        return file
    path = _path(file)
    with byte_bars(options) as tell:
        sent = client.upload(path, "fine-tune", partial(tell, f"Upload {path.name}"))
    while sent["status"] not in ("processed", "error"):
        time.sleep(0.1)
        sent = client.get(path_of("files", sent["id"]))
    if sent["status"] == "error":
        raise InvalidData(
            f"The server found faults in {file}: `tunekeeper files show {sent['id']}` shows them.",
            param="training_file",
        )
    return str(sent["id"])


def _is_id(file: str) -> bool:
    return file.startswith("file-") and not Path(file).exists()


def _path(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {file}, and it is no id (file-…) either.")
    return path


def asked_method(name: str, hyperparameters: "Json", **files: Path | None) -> "Json":
    """A job's `method`; `files` are JSON files of its parts."""
    read = {key: _json_of(path) for key, path in files.items() if path is not None}
    return {"type": name, name: {**read, "hyperparameters": hyperparameters}}


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}.", param=str(path)) from error


def named_hyperparameters(
    epochs: int | None,
    batch_size: int | None,
    learning_rate_multiplier: float | None,
    beta: float | None,
    others: list[str] | None,
) -> "Json":
    """The hyperparameters that the options name; raises InvalidRequest for one that is given twice."""
    named = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
        "beta": beta,
    }
    values: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for other in others or ():
        name, equals, value = other.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{other!r} is no NAME=VALUE.", param_hint="--hyperparameter")
        if name in values:
            raise InvalidRequest(f"The hyperparameter {name} is given twice.", param=name)
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value  # a word, such as auto or cosine, needs no quotes
    return values


def _estimate_text(found: "Json") -> str:
    from tunekeeper.cli.output import duration, fields, size

    lines = [
        f"{found['training_tokens']:,} tokens x {found['n_epochs']} epochs = {found['billable_tokens']:,}, "
        f"{found['steps']:,} steps",
        f"about {duration(found['est_wall_seconds'])} at {found['tokens_per_second']:,.0f} tokens/s, "
        f"{size(found['peak_memory_bytes'])} of memory",
    ]
    if found.get("truncated_examples"):
        lines.append(f"{found['truncated_examples']:,} examples are too long and lose their end")
    cost = found.get("est_cost") or {}
    if cost.get("amount"):
        lines.append(f"{cost['amount']} {cost['currency']} ({cost['basis']})")
    return "\n".join([*lines, "hyperparameters:", fields(found["hyperparameters"], indent="  ")])
