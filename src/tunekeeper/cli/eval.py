"""`tunekeeper eval`: measure models on held-out items, and say what differs."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.options import Options, grader_of, options_of
from tunekeeper.errors import InvalidData, InvalidRequest, TunekeeperError

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.types import Json

app = typer.Typer(help="Evals: models measured on held-out items.", no_args_is_help=True, rich_markup_mode=None)

RunIds = Annotated[list[str], typer.Argument(metavar="RUN…", help="Ids of runs over the same data: evalrun_…")]
AnyId = Annotated[str, typer.Argument(metavar="ID", help="Id of a run or of an eval: evalrun_…, eval_…")]
Baseline = Annotated[str | None, typer.Option(help="The model (or run) that the others are compared with.")]
Margin = Annotated[float, typer.Option(help="A pass rate lower by less is no worse: 0.02 is 2 points.")]
Slices = Annotated[str, typer.Option(help="Fields of the items that make slices, with commas between.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", file_okay=False, help="Write comparison.json, comparison.md and comparison.html here."),
]
Limit = Annotated[int, typer.Option(help="How many.", min=1, max=100)]

_POLL_S = 0.3


@app.command("run")
def run(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help='JSONL: {"item", "sample"?}, bare items, or examples of a training file, whose last answer becomes '
            "item.reference.",
        ),
    ],
    grader: Annotated[
        list[Path], typer.Option(exists=True, dir_okay=False, help="JSON file with a grader; may be repeated.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model that answers; may be repeated. Without it the data's own samples are graded."),
    ] = None,
    baseline: Baseline = None,
    prompt: Annotated[
        str | None, typer.Option(help="The user's message, with {{ item.key }}; without it item.messages is asked.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --prompt: the system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0: the likeliest answer.")] = 0.0,
    name: Annotated[str | None, typer.Option(help="Name of the eval; without it the file's.")] = None,
    margin: Margin = 0.02,
    slices: Slices = "",
    out: Out = None,
) -> None:
    """Measure models on a file; with several, compare them."""
    from tunekeeper.cli.client import connect

    options = options_of(context)
    models = list(
        dict.fromkeys([*([baseline] if baseline and model and baseline not in model else []), *(model or [])])
    )
    if system is not None and prompt is None:
        raise InvalidRequest("--system needs --prompt: messages of the items have their own.", param="system")
    if out is not None and len(models) < 2:
        raise InvalidRequest("--out holds a comparison: give at least two --model.", param="out")
    graders = [grader_of(path) for path in grader]
    rows = list(_rows(data))
    with connect(options, runs_jobs=True) as client:
        source = {"type": "file_id", "id": _sent(client, data, rows)}
        made = client.post(
            "/evals",
            {
                "name": name or data.name,
                "data_source_config": {
                    "type": "custom",
                    "item_schema": {"type": "object"},
                    "include_sample_schema": bool(models),
                },
                "testing_criteria": graders,
            },
        )
        asked = _data_sources(models, source, _messages(prompt, system), temperature, max_tokens)
        runs = [client.post(f"/evals/{made['id']}/runs", {"data_source": each}) for each in asked]
        runs = _followed(options, client, runs)
        comparison = _compared(client, runs, baseline, margin, slices, out)
    _report(options, {"eval": made["id"], "runs": runs, "comparison": comparison}, out)
    _raise_failed(runs)


@app.command("list")
def list_evals(context: typer.Context, limit: Limit = 20) -> None:
    """List evals, newest first."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import moment, show, table

    options = options_of(context)
    with connect(options) as client:
        page = client.get("/evals", limit=limit, order="desc")
    rows = [
        (each["id"], each["name"], ", ".join(g["name"] for g in each["testing_criteria"]), moment(each["created_at"]))
        for each in page["data"]
    ]
    empty = "No evals. `tunekeeper eval run DATA --grader GRADER --model MODEL` makes one."
    show(options, page, lambda: table(("ID", "NAME", "GRADERS", "CREATED"), rows, empty=empty))


@app.command("show")
def show_eval(context: typer.Context, any_id: AnyId) -> None:
    """Show a run and its figures, or an eval with its runs."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import fields, show

    options = options_of(context)
    with connect(options) as client:
        if _is_run(any_id):
            found = client.get(path_of("evals", "runs", any_id))
            runs = [found]
            head = {key: found[key] for key in ("id", "eval_id", "status", "created_at", "error")}
        else:
            found = client.get(path_of("evals", any_id))
            runs = client.get(path_of("evals", any_id, "runs"), limit=100, order="desc")["data"]
            head = {key: found[key] for key in ("id", "name", "created_at", "metadata")}
            found = {**found, "runs": runs}
    show(options, found, lambda: f"{fields(head)}\n\n{_table(runs)}")


@app.command("items")
def items(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run: evalrun_…")],
    status: Annotated[str | None, typer.Option(help="Only those: pass, fail or error.")] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 20,
) -> None:
    """Print what came of a run's items: the answers, and what each grader says."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        run_ = client.get(path_of("evals", "runs", run_id))
        path = path_of("evals", run_["eval_id"], "runs", run_id, "output_items")
        page = client.get(path, limit=limit, status=status)
    show(options, page, lambda: "\n".join(map(_item_text, page["data"])) or "No items.")


@app.command("cancel")
def cancel(
    context: typer.Context, run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run: evalrun_…")]
) -> None:
    """End a run; what it has stays."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        run_ = client.get(path_of("evals", "runs", run_id))
        run_ = client.post(path_of("evals", run_["eval_id"], "runs", run_id, "cancel"))
    show(options, run_, lambda: f"{run_id} is {run_['status']}.")


@app.command("delete")
def delete(context: typer.Context, any_id: AnyId) -> None:
    """Delete a run, or an eval with all of its runs; one under way is ended."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        path = path_of("evals", any_id)
        if _is_run(any_id):
            path = path_of("evals", client.get(path_of("evals", "runs", any_id))["eval_id"], "runs", any_id)
        answer = client.delete(path)
    show(options, answer, lambda: f"Deleted {any_id}.")


@app.command("compare")
def compare(
    context: typer.Context,
    runs: RunIds,
    baseline: Baseline = None,
    margin: Margin = 0.02,
    slices: Slices = "",
    out: Out = None,
) -> None:
    """Compare runs over the same data, item by item."""
    from tunekeeper.cli.client import connect, path_of

    options = options_of(context)
    with connect(options) as client:
        found = [client.get(path_of("evals", "runs", run_id)) for run_id in runs]
        comparison = _compared(client, found, baseline, margin, slices, out)
    _report(options, {"runs": found, "comparison": comparison}, out)


def _rows(data: Path) -> "Iterator[Json]":
    """The lines of a file as the API takes them; raises InvalidData with every line that is none."""
    from tunekeeper.datasets.formats import Fault, read_lines

    with data.open("rb") as stream:
        found = list(read_lines(stream))
    faults = [each for each in found if isinstance(each, Fault)]
    if faults or not found:
        what = f"{len(faults)} lines cannot be read" if faults else "it has no line"
        raise InvalidData(f"{data}: {what}.", param="data", details=[fault.to_json() for fault in faults])
    for line in found:
        if not isinstance(line, Fault):
            is_line = isinstance(line.value.get("item"), dict) and set(line.value) <= {"item", "sample"}
            yield line.value if is_line else {"item": _held_out(line.value)}


def _held_out(item: "Json") -> "Json":
    """An example of a training file as an item: what is asked, and the answer as its reference."""
    messages = item.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant" or len(messages or ()) < 2:
        return item
    reference = {"reference": last.get("content")} if last.get("content") is not None else {}
    calls = {"reference_tool_calls": last["tool_calls"]} if last.get("tool_calls") else {}
    return {**item, "messages": item["messages"][:-1], **reference, **calls}


def _sent(client: "Client", data: Path, rows: "Sequence[Json]") -> str:
    """The id of the file that holds the lines, on the server."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / data.name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        file_id: str = client.upload(path, "evals", lambda done, total: None)["id"]
    return file_id


def _messages(prompt: str | None, system: str | None) -> "Json":
    if prompt is None:
        return {"type": "item_reference", "item_reference": "item.messages"}
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"type": "template", "template": [*first, {"role": "user", "content": prompt}]}


def _data_sources(
    models: Sequence[str], source: "Json", messages: "Json", temperature: float, max_tokens: int | None
) -> "list[Json]":
    if not models:
        return [{"type": "jsonl", "source": source}]
    params = {"temperature": temperature, **({"max_completion_tokens": max_tokens} if max_tokens else {})}
    return [
        {
            "type": "completions",
            "model": model,
            "source": source,
            "input_messages": messages,
            "sampling_params": params,
        }
        for model in models
    ]


def _followed(options: Options, client: "Client", runs: "list[Json]") -> "list[Json]":
    """The runs as they ended."""
    from tunekeeper.cli.client import path_of
    from tunekeeper.cli.output import note

    ended = []
    try:
        with _progress(options, runs) as tell:
            for n, run in enumerate(runs):
                while run["status"] in ("queued", "in_progress"):
                    time.sleep(_POLL_S)
                    run = client.get(path_of("evals", run["eval_id"], "runs", run["id"]))
                    tell(n, run)
                ended.append(run)
    except KeyboardInterrupt:
        left = ", ".join(run["id"] for run in runs[len(ended) :])
        where = "when a server runs again" if client.is_temporary else "without you"
        note(f"\n{left}: the work goes on {where}; `tunekeeper eval show RUN`, `tunekeeper eval cancel RUN`.")
        raise typer.Exit(1) from None
    return ended


@contextmanager
def _progress(options: Options, runs: "Sequence[Json]") -> "Iterator[Any]":
    """Yields what to tell (index, run) about a run's progress; only a terminal sees bars."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=options.as_json or not console.is_terminal) as bar:
        tasks = [bar.add_task(run["name"], total=run["result_counts"]["total"], start=False) for run in runs]

        def tell(n: int, run: "Json") -> None:
            counts = run["result_counts"]
            if run["status"] != "queued":
                bar.start_task(tasks[n])
            bar.update(tasks[n], completed=counts["passed"] + counts["failed"] + counts["errored"])

        yield tell


def _compared(
    client: "Client",
    runs: "Sequence[Json]",
    baseline: str | None,
    margin: float,
    slices: str,
    out: Path | None,
) -> "Json | None":
    """The comparison of the runs, written where it was asked for; None: there is only one."""
    from tunekeeper.cli.output import save_comparison

    if len(runs) < 2:
        return None
    asked = {"runs": ",".join(run["id"] for run in runs), "margin": margin, "slices": slices, "baseline": baseline}
    if out is not None:
        save_comparison(client, "/evals/compare", out, **asked)
    return client.get("/evals/compare", **asked)


def _report(options: Options, found: "Json", out: Path | None) -> None:
    from tunekeeper.cli.output import show

    def text() -> str:
        lines = [_table(found["runs"])]
        if comparison := found["comparison"]:
            lines += ["", f"Compared with {comparison['baseline']}:"]
            lines += [f"  {pair['after']}: {pair['verdict']['text']}" for pair in comparison["pairs"]]
            lines += [f"  {note}" for pair in comparison["pairs"] for note in pair["notes"]]
        return "\n".join(lines)

    show(options, found, text)


def _table(runs: "Sequence[Json]") -> str:
    from tunekeeper.cli.output import table

    headings = ("RUN", "NAME", "STATUS", "PASSED", "95 % INTERVAL", "ERRORS", "TOKENS", "SECONDS", "COST")
    return table(headings, [_row(run) for run in runs], empty="No runs yet.")


def _row(run: "Json") -> tuple[Any, ...]:
    from tunekeeper.evals.statistics import wilson

    counts = run["result_counts"]
    graded = counts["passed"] + counts["failed"]
    share, interval = "-", "-"
    if graded:
        low, high = wilson(counts["passed"], graded)
        share = f"{counts['passed']} of {graded} ({100 * counts['passed'] / graded:.1f} %)"
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    tokens = sum(used["total_tokens"] for used in run["per_model_usage"])
    cost = None if run["cost"] is None else f"{run['cost']:.4g} {run['currency']}"
    return run["id"], run["name"], run["status"], share, interval, counts["errored"], tokens, run["seconds"], cost


def _item_text(item: "Json") -> str:
    """An output item in a few lines."""
    said = "\n".join(str(message.get("content") or "") for message in item["sample"]["output"])
    lines = [f"{item['datasource_item_id']}  {item['status']}  {said[:500]!r}"]
    for result in item["results"]:
        outcome = "error" if "error" in result else "pass" if result["passed"] else "fail"
        why = f": {result['error']['message']}" if "error" in result else ""
        lines.append(f"   {result['name']}: {outcome}, {result['score']:.4g}{why}")
    if item["sample"]["error"]:
        lines.append(f"   {item['sample']['error']['message']}")
    return "\n".join(lines)


def _is_run(any_id: str) -> bool:
    return any_id.startswith("evalrun_")


def _raise_failed(runs: "Sequence[Json]") -> None:
    for run in runs:
        if run["status"] == "failed":
            error = run["error"] or {}
            raise TunekeeperError(f"{run['id']} failed: {error.get('message')}", code=error.get("code"))
