"""The road of the demo: pull, upload, tune, evaluate, answer. Everything after the pull is the official client."""

import io
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tunekeeper.api.server import background
from tunekeeper.datasets import Tokenizer
from tunekeeper.demo.measure import AT_ONCE, MAX_ANSWER_TOKENS, Score, measure
from tunekeeper.demo.page import write_page
from tunekeeper.demo.tasks import N_HELD_OUT, N_VALIDATION, WHEEL, Task, few_shot, prompt_size, read_tasks, select
from tunekeeper.errors import TunekeeperError, Unavailable
from tunekeeper.models.pull import download, pull
from tunekeeper.settings import Settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Json

if TYPE_CHECKING:
    import openai

BASE = "smollm2-135m"
N_TRAINING, MAX_TRAINING_PROMPT = 256, 200
"""The shorter questions are trained on, for a processor pays by the token; the held-out ones are of every length."""
HYPERPARAMETERS: Json = {
    "n_epochs": 1,
    "batch_size": 4,
    "learning_rate_multiplier": 1.5,
    "save_every": 25,
    "eval_steps": 25,
}
REPORT = Path("demo-report")


def run(settings: Settings) -> None:
    """Do all of it, and print what happens; writes demo-report/index.html."""
    try:
        import openai
    except ImportError as error:
        raise Unavailable(
            "The demo talks through the official client: pip install 'tunekeeper[train,demo]'."
        ) from error
    began = time.monotonic()
    # Where the output goes to a file, rich believes in 80 columns, and the table would be broken up.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    train, validation, held_out = _prepare(settings, console)
    with background(settings) as base_url:
        console.print(f"A server listens on {base_url}; from here on it is the openai client that speaks.")
        client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600)
        job, events = _tune(client, train, validation, console)
        scores = _evaluate(client, job.fine_tuned_model or "", train, held_out, console)
        table = _table(scores)
        console.print(table)
        page = write_page(REPORT, job=job.to_dict(), events=events, scores=scores)
        console.print(f"Loss curve and answers: {page}")
        _answer(client, job.fine_tuned_model or "", held_out[0], console)
    console.print(f"The demo took {time.monotonic() - began:.0f} s. The model is yours: {settings.home}")


def _prepare(settings: Settings, console: Console) -> tuple[list[Task], list[Task], list[Task]]:
    settings.home.mkdir(parents=True, exist_ok=True)
    store = Store(connect(settings.home))
    try:
        with _progress(console) as progress:
            bar = progress.add_task(f"Base model {BASE}", total=None)
            model = pull(
                BASE,
                settings.home,
                progress=lambda at: progress.update(
                    bar, description=f"Base model {BASE}: {at.stage}", total=at.total or None, completed=at.done
                ),
            )
            store.add_model(model)
            progress.update(bar, description="Questions: bfcl-eval")
            wheel = download(WHEEL, settings.home, lambda at: None)
    finally:
        store.close()
    tokenizer = Tokenizer.load(settings.home / model.path)
    tasks = select(read_tasks(wheel), tokenizer)
    held_out, rest = tasks[:N_HELD_OUT], tasks[N_HELD_OUT:]
    validation = rest[:N_VALIDATION]
    short = [task for task in rest[N_VALIDATION:] if prompt_size(task, tokenizer) <= MAX_TRAINING_PROMPT]
    train = short[:N_TRAINING]
    console.print(
        f"{len(tasks)} real questions with checked answers: {len(train)} to train on, {len(validation)} to validate, "
        f"{len(held_out)} held out."
    )
    return train, validation, held_out


def _tune(
    client: "openai.OpenAI", train: Sequence[Task], validation: Sequence[Task], console: Console
) -> tuple[Any, list[Json]]:
    files = [
        client.files.create(file=(f"{name}.jsonl", io.BytesIO(_jsonl(tasks))), purpose="fine-tune")
        for name, tasks in (("train", train), ("validation", validation))
    ]
    for file in files:
        client.files.wait_for_processing(file.id, poll_interval=0.2)
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=files[0].id, validation_file=files[1].id, method=method, suffix="tools", seed=1
    )
    with _progress(console) as progress:
        bar = progress.add_task("Fine-tuning", total=None)
        seen: set[str] = set()
        while True:
            job = client.fine_tuning.jobs.retrieve(job.id)
            _show_events(client, job.id, seen, progress, bar)
            if job.status in {"succeeded", "failed", "cancelled"}:
                break
            time.sleep(1)
    if job.status != "succeeded":
        raise TunekeeperError(f"The job {job.id} {job.status}: {job.error.message if job.error else 'no reason given'}")
    events = [event.to_dict() for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    return job, events[::-1]


def _show_events(client: "openai.OpenAI", job_id: str, seen: set[str], progress: Progress, bar: Any) -> None:
    fresh = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=50):
        if event.id in seen:
            break
        fresh.append(event)
    for event in reversed(fresh):
        seen.add(event.id)
        if event.type == "metrics":
            data: Any = event.data
            progress.update(bar, total=data["total_steps"], completed=data["step"], description=event.message)
        else:
            progress.console.print(f"  {event.message}")


def _evaluate(
    client: "openai.OpenAI", tuned: str, train: Sequence[Task], held_out: Sequence[Task], console: Console
) -> list[Score]:
    rows: tuple[tuple[str, str, list[Task]], ...] = (
        ("base, zero-shot", BASE, []),
        ("base, 3 examples in the prompt", BASE, few_shot(train)),
        ("tuned, zero-shot", tuned, []),
    )
    scores = []
    with _progress(console) as progress:
        for name, model, shown in rows:
            bar = progress.add_task(name, total=len(held_out))
            done = partial(progress.advance, bar)
            score = measure(client, model, held_out, name=name, shown=shown, done=done)
            progress.console.print(f"  {name}: {score.accuracy:.1%} in {score.seconds:.0f} s")
            scores.append(score)
    return scores


def _table(scores: Sequence[Score]) -> Table:
    n = len(scores[0].answers)
    table = Table(title=f"{n} held-out questions, exact match of name and arguments", title_justify="left")
    table.add_column("")
    for column in ("accuracy", "95 % interval", "valid JSON", "prompt tokens", f"s a request ({AT_ONCE} at once)"):
        table.add_column(column, justify="right")
    for score in scores:
        low, high = score.interval
        table.add_row(
            score.name,
            f"{score.accuracy:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{score.valid:.0%}",
            f"{score.prompt_tokens:.0f}",
            f"{score.seconds_per_request:.2f}",
        )
    return table


def _answer(client: "openai.OpenAI", model: str, task: Task, console: Console) -> None:
    messages: Any = task.messages
    tools: Any = task.tools
    console.print(f"\n[bold]You:[/bold] {task.messages[-1]['content']}", highlight=False)
    console.print(f"[bold]{model}:[/bold] ", end="", highlight=False)
    with client.chat.completions.create(
        model=model, messages=messages, tools=tools, temperature=0, stream=True, max_completion_tokens=MAX_ANSWER_TOKENS
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    function = call.function
                    if function is not None:
                        text = (f"{function.name} " if function.name else "") + (function.arguments or "")
                        console.print(text, end="", highlight=False, markup=False)
                if choice.delta.content:
                    console.print(choice.delta.content, end="", highlight=False, markup=False)
    console.print()


def _jsonl(tasks: Sequence[Task]) -> bytes:
    return "".join(json.dumps(task.example(), ensure_ascii=False) + "\n" for task in tasks).encode("utf-8")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
