"""Following a job: its events as they come, a bar for its steps, and the end as a person wants to read it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from tunekeeper.cli.client import Client, path_of
from tunekeeper.cli.options import Options
from tunekeeper.cli.output import duration, moment, note, show
from tunekeeper.errors import TunekeeperError
from tunekeeper.types import TERMINAL, Json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_POLL_S = 0.5
_LINE_EVERY_S = 5.0
"""Where there is no terminal: seconds between two lines of metrics."""


def follow(options: Options, client: Client, job_id: str) -> Json:
    """Show what happens to the job until it ends or pauses; return it as it is then."""
    path = path_of("fine_tuning", "jobs", job_id)
    last: str | None = None
    try:
        with _display(options) as display:
            while True:
                job = client.get(path)  # before the events: so that the last of them are never missed
                for event in events_since(client, path, last):
                    display.event(event)
                    last = event["id"]
                display.job(job)
                if job["status"] in TERMINAL or job["status"] == "paused":
                    return job
                time.sleep(_POLL_S)
    except KeyboardInterrupt:
        goes_on = (
            f"{job_id} stops with this command, and goes on from its last saved step with "
            f"`tunekeeper jobs watch {job_id}` or `tunekeeper serve`."
            if client.is_temporary
            else f"{job_id} goes on without you: `tunekeeper jobs watch {job_id}`."
        )
        note(f"\n{goes_on}")
        raise typer.Exit(1) from None


def report_end(options: Options, job: Json) -> None:
    """Print how the job ended and what to do next; raises what it failed with."""
    if job["status"] == "failed":
        error = job.get("error") or {}
        raise TunekeeperError(
            f"{job['id']} failed: {error.get('message', 'no reason is given')}",
            param=error.get("param"),
            code=error.get("code"),
            details=error.get("details") or (),
        )
    show(options, job, lambda: _ending(job))
    if job["status"] == "cancelled":
        raise typer.Exit(1)


def event_line(event: Json) -> str:
    """An event on one line."""
    level = "" if event["level"] == "info" else f"{event['level']}: "
    return f"{moment(event['created_at'])}  {level}{event['message']}"


def _ending(job: Json) -> str:
    if job["status"] != "succeeded":
        return f"{job['id']} is {job['status']}. `tunekeeper jobs resume {job['id']}` lets it go on."
    model = job["fine_tuned_model"]
    took = ""
    if job.get("finished_at"):
        took = f" in {duration(job['finished_at'] - job['created_at'])}"
    tokens = f", {job['trained_tokens']:,} tokens trained" if job.get("trained_tokens") else ""
    return (
        f"{model} is ready{took}{tokens}.\n"
        f"  tunekeeper chat {model}\n"
        f"  or, through any OpenAI client and `tunekeeper serve`, model={model!r}"
    )


def events_since(client: Client, path: str, last: str | None) -> list[Json]:
    """The events since the one that was seen last, oldest first."""
    news: list[Json] = []
    after: str | None = None
    while True:
        page = client.get(f"{path}/events", limit=100, after=after)
        for event in page["data"]:
            if event["id"] == last:
                return news[::-1]
            news.append(event)
        if not page["has_more"] or not page["data"]:
            return news[::-1]
        after = page["data"][-1]["id"]


@contextmanager
def _display(options: Options) -> Iterator["_Bar | _Lines"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if options.as_json or not console.is_terminal:
        yield _Lines(quiet=options.as_json)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, progress.add_task("waiting", total=None, loss=""))


class _Bar:
    """A live bar with the messages above it."""

    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task

    def event(self, event: Json) -> None:
        """Print a message, or move the bar."""
        if event["type"] != "metrics":
            self._progress.console.print(event_line(event), markup=False, highlight=False)
            return
        step: dict[str, Any] = event.get("data") or {}
        if "total_steps" in step:
            self._progress.update(self._task, completed=step["step"], total=step["total_steps"], loss=_losses(step))

    def job(self, job: Json) -> None:
        """Say what the job is doing."""
        self._progress.update(self._task, description=job["status"])


class _Lines:
    """Lines for a log: every message, and the metrics from time to time."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._next_metrics = 0.0

    def event(self, event: Json) -> None:
        """Print the event, if it is due."""
        is_metrics = event["type"] == "metrics"
        if self._quiet or (is_metrics and time.monotonic() < self._next_metrics):
            return
        if is_metrics:
            self._next_metrics = time.monotonic() + _LINE_EVERY_S
        note(event_line(event))

    def job(self, job: Json) -> None:
        """The messages say it already."""


def _losses(step: dict[str, Any]) -> str:
    if step.get("train_mean_reward") is not None:
        valid = step.get("full_valid_mean_reward")
        return f"reward {step['train_mean_reward']:.3f}" + (f", validation {valid:.3f}" if valid is not None else "")
    valid = step.get("full_valid_loss", step.get("valid_loss"))
    text = f"loss {step['train_loss']:.3f}" if step.get("train_loss") is not None else ""
    return text + (f", validation {valid:.3f}" if valid is not None else "")
