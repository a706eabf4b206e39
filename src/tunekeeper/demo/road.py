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
MAX_TRAINING_PROMPT = 200
"""The shorter questions are trained on, for a processor pays by the token; the held-out ones are of every length."""
HYPERPARAMETERS: Json = {
    "n_epochs": 1,
    "batch_size": 4,
    "learning_rate_multiplier": 1.5,
    "prompt_loss_weight": 0.1,
    "save_every": 25,
    "eval_steps": 25,
}
SECONDS = 540
"""What all of it may take, with a minute left for setting up the environment: so many questions are trained on."""
FEWEST = 120
"""Questions that are trained on however slow the machine is."""
MARGIN = 1.1
"""What the tuned model's questions may take, in the base's seconds; and training, in the estimate's."""
JOB_SECONDS = 20
"""Of a job before its first step and after its last: checks, a process, the weights."""
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
        base = _evaluate(client, "base, zero-shot", BASE, [], held_out, console)
        few = _evaluate(client, "base, 3 examples in the prompt", BASE, few_shot(train), held_out, console)
        deadline = began + SECONDS - MARGIN * base.seconds
        job, events = _tune(client, train, validation, deadline, console)
        tuned = _evaluate(client, "tuned, zero-shot", job.fine_tuned_model or "", [], held_out, console)
        scores = [base, few, tuned]
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
    console.print(
        f"{len(tasks)} real questions with checked answers: {len(short)} to train on, {len(validation)} to validate, "
        f"{len(held_out)} held out."
    )
    return short, validation, held_out


def _tune(
    client: "openai.OpenAI", train: Sequence[Task], validation: Sequence[Task], deadline: float, console: Console
) -> tuple[Any, list[Json]]:
    body: Json = {
        "model": BASE,
        "training_file": _upload(client, "train", train),
        "validation_file": _upload(client, "validation", validation),
        "method": {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
        "suffix": "tools",
        "seed": 1,
    }
    estimate: Any = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)
    seconds = MARGIN * estimate["est_wall_seconds"] / len(train)
    n, n_epochs = affordable(deadline - time.monotonic() - JOB_SECONDS, seconds, len(train))
    console.print(
        f"Training takes about {seconds:.2f} s a question here: {n} of the {len(train)} are trained on, "
        f"{'twice' if n_epochs == 2 else 'once'}."
    )
    hyperparameters = {**HYPERPARAMETERS, "n_epochs": n_epochs}
    body["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    if n < len(train):
        body["training_file"] = _upload(client, "train", train[:n])
    job = client.fine_tuning.jobs.create(**body)
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


def affordable(seconds_left: float, seconds: float, n: int) -> tuple[int, int]:
    """How many of `n` questions to train on, in whole batches, and in how many epochs, at so many seconds each."""
    if seconds_left >= 2 * n * seconds:
        return n, 2
    batch = HYPERPARAMETERS["batch_size"]
    return min(n, max(FEWEST, int(seconds_left / seconds) // batch * batch)), 1


def _upload(client: "openai.OpenAI", name: str, tasks: Sequence[Task]) -> str:
    file = client.files.create(file=(f"{name}.jsonl", io.BytesIO(_jsonl(tasks))), purpose="fine-tune")
    return client.files.wait_for_processing(file.id, poll_interval=0.2).id


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
    client: "openai.OpenAI", name: str, model: str, shown: Sequence[Task], held_out: Sequence[Task], console: Console
) -> Score:
    with _progress(console) as progress:
        bar = progress.add_task(name, total=len(held_out))
        score = measure(client, model, held_out, name=name, shown=shown, done=partial(progress.advance, bar))
        progress.console.print(f"  {name}: {score.accuracy:.1%} in {score.seconds:.0f} s")
    return score


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
