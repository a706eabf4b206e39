"""`tunekeeper jobs`: fine-tuning jobs on the server."""

from typing import TYPE_CHECKING, Annotated

import typer

from tunekeeper.cli import sweep
from tunekeeper.cli.options import Options, options_of

if TYPE_CHECKING:
    from tunekeeper.types import Json

app = typer.Typer(help="Fine-tuning jobs.", no_args_is_help=True, rich_markup_mode=None)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job: ftjob-…")]
Limit = Annotated[int, typer.Option(help="How many, newest first.", min=1, max=100)]


@app.command("list")
def list_jobs(context: typer.Context, limit: Limit = 20) -> None:
    """List jobs, newest first."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import moment, show, table

    options = options_of(context)
    with connect(options) as client:
        page = client.get("/fine_tuning/jobs", limit=limit)
    rows = [
        (job["id"], job["status"], job["model"], job.get("fine_tuned_model"), moment(job["created_at"]))
        for job in page["data"]
    ]
    empty = "No jobs. `tunekeeper tune FILE` makes one."
    show(options, page, lambda: table(("ID", "STATUS", "FROM", "MODEL", "CREATED"), rows, empty=empty))


@app.command("show")
def show_job(context: typer.Context, job_id: JobId) -> None:
    """Show one job: its state, its resolved hyperparameters, its result or what went wrong."""
    _print(options_of(context), "GET", job_id)


@app.command("events")
def events(context: typer.Context, job_id: JobId, limit: Limit = 100) -> None:
    """Print a job's events, oldest first."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show
    from tunekeeper.cli.watch import event_line

    options = options_of(context)
    with connect(options) as client:
        page = client.get(path_of("fine_tuning", "jobs", job_id, "events"), limit=limit)
    lines = [event_line(event) for event in reversed(page["data"])]
    show(options, page, lambda: "\n".join(lines) or "No events yet.")


@app.command("checkpoints")
def checkpoints(context: typer.Context, job_id: JobId, limit: Limit = 20) -> None:
    """List the models that a job left on its way; each can be talked to and tuned further."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show, table

    options = options_of(context)
    with connect(options) as client:
        page = client.get(path_of("fine_tuning", "jobs", job_id, "checkpoints"), limit=limit)
    rows = [
        (
            checkpoint["fine_tuned_model_checkpoint"],
            checkpoint["step_number"],
            checkpoint["metrics"].get("train_loss"),
            checkpoint["metrics"].get("full_valid_loss"),
        )
        for checkpoint in page["data"]
    ]
    headings = ("MODEL", "STEP", "TRAIN LOSS", "VALID LOSS")
    show(options, page, lambda: table(headings, rows, empty="No checkpoints yet; each epoch leaves one."))


app.command("trials")(sweep.trials)


@app.command("watch")
def watch(context: typer.Context, job_id: JobId) -> None:
    """Follow a job until it ends; fails if the job does."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.watch import follow, report_end

    options = options_of(context)
    with connect(options, runs_jobs=True) as client:
        job = follow(options, client, job_id)
    report_end(options, job)


@app.command("cancel")
def cancel(context: typer.Context, job_id: JobId) -> None:
    """End a job; its checkpoints stay."""
    _print(options_of(context), "POST", job_id, "cancel")


@app.command("pause")
def pause(context: typer.Context, job_id: JobId) -> None:
    """Stop a running job after its present step; it can be resumed."""
    _print(options_of(context), "POST", job_id, "pause")


@app.command("resume")
def resume(context: typer.Context, job_id: JobId) -> None:
    """Let a paused job go on where it stopped."""
    _print(options_of(context), "POST", job_id, "resume")


@app.command("delete")
def delete(context: typer.Context, job_id: JobId) -> None:
    """Forget a job that has ended; its model stays."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        answer = client.delete(path_of("fine_tuning", "jobs", job_id))
    show(options, answer or {"id": job_id, "deleted": True}, lambda: f"Deleted {job_id}.")


def _print(options: Options, verb: str, job_id: str, action: str = "") -> None:
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import fields, note, show

    path = path_of("fine_tuning", "jobs", job_id, *[action] * bool(action))
    with connect(options) as client:
        job: Json = client.post(path) if verb == "POST" else client.get(path)
    show(options, job, lambda: f"{job['id']} is {job['status']}." if action else fields(job))
    if action == "resume" and client.is_temporary:
        note(f"No server is running: `tunekeeper jobs watch {job_id}` works on it, or `tunekeeper serve`.")
