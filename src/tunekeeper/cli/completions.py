"""`tunekeeper completions`: chats that the server answered and kept."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from tunekeeper.cli.options import Options, options_of
from tunekeeper.types import Json

app = typer.Typer(help="Chats that the server answered and kept.", no_args_is_help=True, rich_markup_mode=None)

CompletionId = Annotated[str, typer.Argument(metavar="ID", help="Id of the completion: chatcmpl-…")]
Model = Annotated[str | None, typer.Option(help="Only answers of this model.")]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="Only those with this pair; repeat for more."),
]


@app.command("list")
def list_completions(
    context: typer.Context,
    model: Model = None,
    metadata: Pairs = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=100)] = 20,
) -> None:
    """List stored completions, newest first."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import moment, show, size, table

    options = options_of(context)
    pairs = {f"metadata[{key}]": value for key, value in pairs_of(metadata).items()}
    with connect(options) as client:
        page = client.get("/chat/completions", model=model, limit=limit, order="desc", **pairs)
    rows = [
        (
            kept["id"],
            moment(kept["created"]),
            kept["model"],
            size(kept["bytes"]),
            "pinned" if kept["pinned"] else "",
            " ".join(f"{key}={value}" for key, value in kept["metadata"].items()),
        )
        for kept in page["data"]
    ]
    headings = ("ID", "CREATED", "MODEL", "SIZE", "", "METADATA")
    show(options, page, lambda: table(headings, rows, empty="No stored completions."))


@app.command("show")
def show_completion(context: typer.Context, completion_id: CompletionId) -> None:
    """Show what was asked and what was answered."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import fields, show

    options = options_of(context)
    messages: list[Json] = []
    with connect(options) as client:
        kept = client.get(path_of("chat/completions", completion_id))
        path, after = path_of("chat/completions", completion_id, "messages"), None
        while True:
            page = client.get(path, limit=100, after=after)
            messages += page["data"]
            if not page["has_more"]:
                break
            after = page["last_id"]

    def text() -> str:
        answers = [choice["message"] for choice in kept["choices"]]
        head = fields({key: value for key, value in kept.items() if key not in ("choices", "tools")})
        return "\n".join([head, *(_said(message) for message in [*messages, *answers])])

    show(options, {**kept, "messages": messages}, text)


@app.command("export")
def export(
    context: typer.Context,
    model: Model = None,
    metadata: Pairs = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="From this day or time on.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Up to the end of this day, or to this time.")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="chat: examples to tune on; eval: items with samples, to judge.")
    ] = "chat",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also save the file here.")] = None,
) -> None:
    """Write completions to a file on the server, and print its id."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import note, show

    options = options_of(context)
    wanted: Json = {"model": model, "metadata": pairs_of(metadata) or None}
    wanted |= {
        "created_after": seconds_of(since, "--since"),
        "created_before": seconds_of(until, "--until", to_the_end=True),
    }
    body = {"filter": {key: value for key, value in wanted.items() if value is not None}, "format": format_}
    with connect(options) as client:
        done = client.post("/chat/completions/export", body)
        if output is not None:
            with output.open("wb") as file:
                client.download(path_of("files", done["id"], "content"), file)
    if not options.as_json:
        note(_outcome(done))
    show(options, done, lambda: str(done["id"]))


@app.command("pin")
def pin(context: typer.Context, completion_id: CompletionId) -> None:
    """Keep a completion when older ones make room."""
    _set_pinned(options_of(context), completion_id, pinned=True)


@app.command("unpin")
def unpin(context: typer.Context, completion_id: CompletionId) -> None:
    """Let a completion make room again."""
    _set_pinned(options_of(context), completion_id, pinned=False)


@app.command("delete")
def delete(context: typer.Context, completion_id: CompletionId) -> None:
    """Delete a stored completion."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        answer = client.delete(path_of("chat/completions", completion_id))
    show(options, answer, lambda: f"Deleted {completion_id}.")


@app.command("stats")
def stats(context: typer.Context) -> None:
    """Say how much is kept, and what was not kept or had to go."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import show, size

    options = options_of(context)
    with connect(options) as client:
        found = client.get("/chat/completions/stats")

    def text() -> str:
        limit = size(found["max_bytes"]) if found["max_bytes"] else "no limit"
        days = found["retention_days"]
        lines = [
            f"kept: {found['completions']:,} ({size(found['bytes'])} of {limit})",
            f"pinned: {found['pinned']:,} ({size(found['pinned_bytes'])})",
            f"made room for newer ones: {found['evicted']:,}",
            f"expired: {found['expired']:,}" + (f" (after {days} days)" if days else " (nothing expires)"),
            f"refused, because all is pinned: {found['refused']:,}",
            f"could not be written since the server's start: {found['since_start']['failed']:,}",
            f"broke off since the server's start: {found['since_start']['unfinished']:,}",
            f"recorded without being asked: {', '.join(found['recorded_models']) or 'none'}",
        ]
        return "\n".join(lines)

    show(options, found, text)


def _set_pinned(options: Options, completion_id: str, *, pinned: bool) -> None:
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    with connect(options) as client:
        kept = client.post(path_of("chat/completions", completion_id), {"pinned": pinned})
    show(options, kept, lambda: f"{'Pinned' if pinned else 'Unpinned'} {completion_id}.")


def pairs_of(given: Sequence[str] | None) -> dict[str, str]:
    """The pairs of --metadata."""
    pairs = {}
    for pair in given or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is no KEY=VALUE.", param_hint="--metadata")
        pairs[key] = value
    return pairs


def seconds_of(given: str | None, option: str, *, to_the_end: bool = False) -> int | None:
    """Unix seconds of a time of this place in ISO form; of a day its first second, or its last."""
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise typer.BadParameter(f"{given!r} is no day YYYY-MM-DD and no time.", param_hint=option) from error
    is_day = len(given) == len("YYYY-MM-DD")
    return int((moment + timedelta(days=1, seconds=-1) if is_day and to_the_end else moment).timestamp())


def _said(message: Json) -> str:
    """A message for people."""
    content: Any = message.get("content") or message.get("content_parts") or message.get("refusal") or ""
    lines = [f"[{message['role']}] {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}"]
    for call in message.get("tool_calls") or []:
        lines.append(f"  calls {call['function']['name']}({call['function']['arguments']})")
    return "\n".join(lines)


def _outcome(done: Json) -> str:
    lines = [f"{done['exported']:,} exported."]
    if done["left_out"]:
        reasons = ", ".join(f"{count:,} {code}" for code, count in done["left_out"].items())
        lines.append(f"Left out: {reasons} (--json lists them).")
    if done["choices_left_out"]:
        lines.append(f"{done['choices_left_out']:,} further choices of the same requests were left out.")
    return "\n".join(lines)
