"""`tunekeeper distill`: a small model tuned on a large one's stored answers, and both on one page."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.completions import Pairs, pairs_of, seconds_of
from tunekeeper.cli.options import Options, grader_of, options_of
from tunekeeper.cli.tune import BatchSize, Epochs, Hyperparameter, LearningRate, Seed, Suffix, named_hyperparameters
from tunekeeper.errors import InvalidRequest, TunekeeperError

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.types import Json

_POLL_S = 0.5
_OPEN = ("queued", "in_progress")


def distill(
    context: typer.Context,
    student: Annotated[str | None, typer.Option("--student", help="Model that learns.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Only answers of this model.")] = None,
    metadata: Pairs = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="From this day or time on.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Up to the end of this day, or to this time.")
    ] = None,
    eval_run: Annotated[str | None, typer.Option(metavar="RUN", help="Only what passed this eval run.")] = None,
    min_score: Annotated[
        float | None, typer.Option(help="With --eval-run: the score that every grader must have given.")
    ] = None,
    scrub: Annotated[
        bool | None, typer.Option("--scrub/--no-scrub", help="Replace keys, mails, telephone and card numbers, …")
    ] = None,
    dedupe: Annotated[bool | None, typer.Option("--dedupe/--no-dedupe", help="Learn each example once.")] = None,
    held_out: Annotated[
        float | None, typer.Option(min=0.0, max=0.9, help="The part of the prompts that is held out (0.1).")
    ] = None,
    pin: Annotated[bool | None, typer.Option("--pin/--no-pin", help="Keep what was used.")] = None,
    grader: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file with a grader; without it agreement counts."),
    ] = None,
    teacher_price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="What a million of the teacher's tokens cost: 2.5,10.")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: LearningRate = None,
    hyperparameter: Hyperparameter = None,
    suffix: Suffix = None,
    seed: Seed = None,
    again: Annotated[
        str | None, typer.Option(metavar="JOB", help="The recipe of this distillation over the traffic of now.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="JOB", help="Go on with this distillation: follow it, evaluate, compare.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be chosen.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Write comparison.html, comparison.md and comparison.json here."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job, evaluate and compare.")] = True,
) -> None:
    """Tune a small model on stored answers of a large one.

    Chooses stored completions, holds some out, tunes, and compares student and teacher on what was held out.
    """
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import note, save_comparison, show

    options = options_of(context)
    graders = [grader_of(path) for path in grader or ()] or None
    chosen = {
        "model": teacher,
        "metadata": pairs_of(metadata) or None,
        "created_after": seconds_of(since, "--since"),
        "created_before": seconds_of(until, "--until", to_the_end=True),
    }
    body = {
        "again": again,
        "student_model": student,
        "filter": {name: value for name, value in chosen.items() if value is not None} or None,
        "eval_run_id": eval_run,
        "min_score": min_score,
        "scrub": scrub,
        "dedupe": dedupe,
        "held_out_fraction": held_out,
        "pin": pin,
        "grader": graders,
        "teacher_price": None if teacher_price is None else _prices(teacher_price),
        "hyperparameters": named_hyperparameters(epochs, batch_size, learning_rate_multiplier, None, hyperparameter)
        or None,
        "suffix": suffix,
        "seed": seed,
        "dry_run": dry_run or None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    if resume is None and student is None and again is None:
        raise InvalidRequest("Name the model that learns: --student (or --again or --resume).", param="student")
    if resume is not None and set(body) - {"grader"}:
        raise InvalidRequest("--resume goes on with what was asked: beside it only --grader and --out.", param="resume")
    # Of a new job the server knows the graders; one that is gone on with may be judged by others.
    other_graders = None if resume is None else graders
    with connect(options, runs_jobs=wait) as client:
        if resume is None:
            made = client.post("/fine_tuning/distill", body)
            if dry_run:
                show(options, made, lambda: _counts_text(made["counts"]))
                return
            if not options.as_json:
                note(_counts_text(made["counts"]))
            if not wait:
                show(options, made, lambda: str(made["job"]["id"]))
                return
            resume = str(made["job"]["id"])
        path = path_of("fine_tuning", "distill", resume)
        found = _followed(options, client, path, other_graders)
        if out is not None:
            save_comparison(client, path, out)
    show(options, found, lambda: _result(found))


def _followed(options: Options, client: "Client", path: str, graders: "list[Json] | None") -> "Json":
    """The distillation as it is when its job and its eval runs have ended."""
    from tunekeeper.cli.output import note
    from tunekeeper.cli.watch import follow

    job = client.get(path)["job"]
    if job["status"] != "succeeded":
        job = follow(options, client, job["id"])
    if job["status"] != "succeeded":
        error = job.get("error") or {}
        message = error.get("message") or f"`tunekeeper jobs resume {job['id']}` lets it go on."
        raise TunekeeperError(f"{job['id']} is {job['status']}: {message}", code=error.get("code"))
    found = client.post(f"{path}/evaluate", {} if graders is None else {"grader": graders})
    if not options.as_json:
        n = found["counts"]["held_out"]
        note(f"Asking {job['fine_tuned_model']} and {job['model']} {n:,} held-out items each.")
    try:
        while any(run["status"] in _OPEN for run in found["evaluation"]["runs"].values()):
            time.sleep(_POLL_S)
            found = client.get(path)
    except KeyboardInterrupt:
        note(f"\n`tunekeeper distill --resume {job['id']}` goes on.")
        raise typer.Exit(1) from None
    for run in found["evaluation"]["runs"].values():
        if run["status"] != "completed":
            error = run["error"] or {}
            note(f"{run['id']} ({run['name']}) {run['status']}: {error.get('message', '')}")
    return found


def _result(found: "Json") -> str:
    from tunekeeper.cli.output import table

    comparison = found["comparison"]
    rows = [_row(one, comparison["currency"]) for one in comparison["series"]]
    headings = ("", "MODEL", "RIGHT", "95 % INTERVAL", "ERRORS", "PROMPT", "ANSWER", "LATENCY", "COST OF 1,000")
    lines = [table(headings, rows, empty="")]
    lines += [f"{pair['after']}: {pair['verdict']['text']}" for pair in comparison["pairs"]]
    lines += [f"{change['name']}: {change['text']}" for change in comparison["pairs"][0]["usage"]]
    lines += comparison["notes"]
    return "\n".join(lines)


def _row(one: "Json", currency: str) -> tuple[Any, ...]:
    passed, usage = one["passed"], one["usage"]

    def mean(name: str, form: str) -> str:
        return form.format(usage[name]["mean"]) if name in usage else "-"

    return (
        one["name"],
        one["model"],
        "-" if passed is None else f"{100 * passed['value']:.1f} %",
        "-" if passed is None else f"{100 * passed['low']:.1f} to {100 * passed['high']:.1f} %",
        one["errors"],
        mean("prompt tokens", "{:.0f}"),
        mean("completion tokens", "{:.0f}"),
        mean("latency, s", "{:.2f} s"),
        mean("cost of 1,000", "{:.3g} " + currency),
    )


def _counts_text(counts: "Json") -> str:
    lines = [
        f"{counts['completions']:,} stored completions: {counts['train']:,} to learn from, "
        f"{counts['held_out']:,} held out."
    ]
    for title, name in (("Left out", "left_out"), ("Replaced", "scrubbed"), ("Answers of", "teachers")):
        if counts[name]:
            lines.append(f"{title}: " + ", ".join(f"{key} {n:,}" for key, n in counts[name].items()) + ".")
    if counts["contradictions"]:
        lines.append(f"{counts['contradictions']:,} answer an earlier prompt otherwise; they are learned too.")
    return "\n".join(lines)


def _prices(text: str) -> "Json":
    try:
        given: Sequence[float] = [float(part) for part in text.split(",")]
        return dict(zip(("input", "output"), given, strict=True))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no IN,OUT, such as 2.5,10.", param_hint="--teacher-price") from error
