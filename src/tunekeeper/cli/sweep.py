"""`tunekeeper sweep`: train many trials, keep the best; and the table of what they came to."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.options import options_of
from tunekeeper.cli.tune import (
    Hyperparameter,
    Method,
    Model,
    Seed,
    Suffix,
    TrainingFile,
    Validation,
    asked_method,
    named_hyperparameters,
    refuse_faults,
    send,
)
from tunekeeper.errors import InvalidRequest

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.types import Json

Space = Annotated[
    list[str],
    typer.Option(
        "--space",
        "-s",
        metavar="NAME=VALUES",
        help="What is searched: learning_rate_multiplier=0.3,1,3 or, with --trials, =0.1..10; may be repeated.",
    ),
]


def sweep(
    context: typer.Context,
    file: TrainingFile,
    model: Model,
    space: Space,
    trials: Annotated[
        int | None, typer.Option(min=2, max=64, help="Draw so many trials at random; without it all of the grid.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Train the top third of the layers only.")] = False,
    stopping: Annotated[
        str, typer.Option(help="halving stops the worse half of the trials on the way; none stops nothing.")
    ] = "halving",
    validation: Validation = None,
    validation_split: Annotated[
        float | None, typer.Option(help="Without --validation: the part of FILE that is held out (0.1).")
    ] = None,
    method: Method = "supervised",
    hyperparameter: Hyperparameter = None,
    suffix: Suffix = None,
    seed: Seed = None,
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write the curves here, an SVG.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the sweep until it ends.")] = True,
) -> None:
    """Search hyperparameters.

    Trains the trials on one loaded base, compares them on held-out examples, and keeps the best as the job's model.
    """
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import note, show
    from tunekeeper.cli.watch import follow, report_end

    options = options_of(context)
    asked = asked_method(method, named_hyperparameters(None, None, None, None, hyperparameter))
    search: Json = {"space": _space(space), "stopping": stopping, "fast": fast}
    if trials is not None:
        search |= {"search": "random", "n_trials": trials}
    if validation_split is not None:
        search["validation_split"] = validation_split
    body = {"model": model, "suffix": suffix, "seed": seed, "method": asked, "sweep": search}
    refuse_faults(options, file, validation, asked)
    with connect(options, runs_jobs=wait) as client:
        body["training_file"] = send(options, client, file)
        body["validation_file"] = None if validation is None else send(options, client, validation)
        job = client.post("/fine_tuning/jobs", {name: value for name, value in body.items() if value is not None})
        if wait:
            job = follow(options, client, job["id"])
            found = _found(client, job["id"])
            if picture is not None:
                _save_picture(client, job, picture)
    if not wait:
        show(options, job, lambda: str(job["id"]))
        if client.is_temporary:
            note("No server is running, so the sweep waits for `tunekeeper serve` or `tunekeeper jobs watch`.")
        return
    if options.as_json and job["status"] == "succeeded":
        show(options, found, str)
        return
    if not options.as_json:
        print(trials_text(found), end="\n\n")
    report_end(options, job)


def trials(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a job that is a sweep: ftjob-…")],
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write the curves here, an SVG.")
    ] = None,
) -> None:
    """List the trials of a sweep, the best first."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        found = _found(client, job_id)
        if picture is not None:
            _save_picture(client, client.get(path_of("fine_tuning", "jobs", job_id)), picture)
    show(options, found, lambda: trials_text(found))


def trials_text(found: "Json") -> str:
    """The table of a sweep, with what is to be known of it."""
    from tunekeeper.cli.output import table

    names = [*found["space"]]
    by_preference = found["metric"] == "valid_preference_accuracy"
    columns = ["valid_preference_accuracy"] * by_preference + ["valid_loss", "valid_mean_token_accuracy"]
    rows = [
        (
            f"{trial['trial']}{' *' if trial['trial'] == found['best_trial'] else ''}",
            *(trial["hyperparameters"][name] for name in names),
            trial["status"],
            f"{trial['step']}/{trial['total_steps'] or '?'}",
            *(trial[column] for column in columns),
            float(trial["seconds"]),
        )
        for trial in found["trials"]
    ]
    headings = ("TRIAL", *names, "STATUS", "STEP", *(column.replace("_", " ").upper() for column in columns), "SECONDS")
    return "\n".join([table(headings, rows, empty="No trials."), *[found["note"]] * bool(found["note"])])


def _found(client: "Client", job_id: str) -> "Json":
    from tunekeeper.cli.client import path_of

    return client.get(path_of("fine_tuning", "jobs", job_id, "sweep"))


def _save_picture(client: "Client", job: "Json", path: Path) -> None:
    from tunekeeper.cli.client import path_of
    from tunekeeper.cli.output import note

    for file_id in job["result_files"]:
        if client.get(path_of("files", file_id))["filename"] == "trials.svg":
            with path.open("wb") as out:
                client.download(path_of("files", file_id, "content"), out)
            note(f"{path} has the curves.")
            return
    note("There is no picture: a sweep draws it when it has succeeded, where matplotlib is installed.")


def _space(given: list[str]) -> "Json":
    space: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not name or not equals or not text:
            raise typer.BadParameter(f"{one!r} is no NAME=VALUES.", param_hint="--space")
        if name in space:
            raise InvalidRequest(f"--space names {name} twice; list its values after one =.", param=name)
        low, dots, high = text.partition("..")
        if dots:
            space[name] = {"min": _value(low), "max": _value(high)}
        else:
            space[name] = [_value(value) for value in text.split(",")]
    return space


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()
