"""`tunekeeper retirements`: when models end, who says so, and what a change of a document says about it.

The catalog lies in the home directory, which these commands open themselves.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.home import local_store
from tunekeeper.cli.options import Options, options_of

if TYPE_CHECKING:
    from tunekeeper.lifecycle.catalog import Claim, Entry
    from tunekeeper.storage.store import Store

app = typer.Typer(help="When models end, and who says so.", rich_markup_mode=None)

_ENDING = {"training_retirement_date": "training ", "deployment_retirement_date": "tuned models "}


@app.callback(invoke_without_command=True)
def without_command(context: typer.Context) -> None:
    """When models end, and who says so; without a command: list."""
    if context.invoked_subcommand is None:
        list_retirements(context)


@app.command("list")
def list_retirements(
    context: typer.Context,
    publisher: Annotated[str | None, typer.Option(help="Only of this publisher.")] = None,
    model: Annotated[str | None, typer.Option(help="Only models whose name has this in it.")] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Only what ends before this day.")] = None,
    within: Annotated[int | None, typer.Option(metavar="DAYS", min=0, help="Only what ends in so many days.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only my base models, aliases and upstreams' models.")] = False,
) -> None:
    """List the models with a known end, soonest first."""
    from tunekeeper.cli.output import show, table

    options = options_of(context)
    today = _today()
    latest = _day(before) - timedelta(days=1) if before is not None else None
    if within is not None:
        latest = min(latest or date.max, today + timedelta(days=within))
    with local_store(options) as store:
        found = store.catalog().ending(after=today if within is not None else None, before=latest)
        own = own_names(options, store)
    chosen = [
        (entry, hits)
        for entry, hits in ((entry, _hits(entry, own)) for entry in found)
        if (hits or not mine)
        and (publisher is None or publisher.casefold() in entry.publisher.casefold())
        and (model is None or model.casefold() in entry.name.casefold())
    ]
    value = {"object": "list", "data": [{**_wire(entry, options, today), "hits": hits} for entry, hits in chosen]}
    rows = [
        (entry.name, entry.publisher or None, _ends(entry), entry.replacement or None, ", ".join(hits) or None)
        for entry, hits in chosen
    ]
    empty = "No such model with a known end. `tunekeeper retirements import FILE` reads a page or a list."
    show(options, value, lambda: table(("MODEL", "PUBLISHER", "ENDS", "REPLACEMENT", "HITS"), rows, empty=empty))


@app.command("explain")
def explain(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, with or without its version.")],
) -> None:
    """Show one model's dates, who says so where, and what was said before."""
    from tunekeeper.cli.output import show
    from tunekeeper.errors import ModelNotFound

    options = options_of(context)
    with local_store(options) as store:
        found = store.catalog().find(model)
    if not found:
        raise ModelNotFound(
            f"The catalog knows nothing of {model!r}. `tunekeeper retirements import FILE` reads a page or a list.",
            param="model",
        )
    today = _today()
    data = [{**_wire(entry, options, today), "history": [asdict(claim) for claim in entry.history]} for entry in found]
    value = {"object": "list", "data": data}
    show(options, value, lambda: "\n\n".join(_story(entry) for entry in found))


@app.command("import")
def import_file(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="A Markdown page, YAML, LiteLLM's list (JSON), or a /models answer (JSON).",
        ),
    ],
    source: Annotated[str | None, typer.Option(help="What to call it: an address, say; else the file's path.")] = None,
) -> None:
    """Read dates into the catalog."""
    from tunekeeper.cli.output import note, show
    from tunekeeper.lifecycle.sources import read_claims

    options = options_of(context)
    text = _text(file)
    with local_store(options) as store:
        claims = read_claims(
            text, filename=file.name, source=source or str(file), catalog=store.catalog(), said_at=store.now()
        )
        added = store.add_claims(claims)
    unread = [claim for claim in claims if not claim.is_understood]
    for claim in unread:
        note(
            f"Not understood, kept as text: {claim.model} {claim.version}, {claim.field}: {claim.text!r} ({_at(claim)})"
        )
    n_models = len({claim.key for claim in claims})
    answer = {"models": n_models, "new_statements": added, "not_understood": len(unread)}
    show(options, answer, lambda: f"{n_models} models, {added} new statements.")


@app.command("events")
def events(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help='JSONL of {"id", "filename", "patch"}.')],
) -> None:
    """Print what patches of documents say about models' lives: a line of JSON for each."""
    from tunekeeper.diffs.patch import parse_patch
    from tunekeeper.diffs.tables import Page
    from tunekeeper.lifecycle.retirements import retirement_events

    for line in _patches(file):
        found = retirement_events([Page(line["filename"], parse_patch(line["patch"]))])
        print(json.dumps({"id": line["id"], "events": [event.to_dict() for event in found]}, ensure_ascii=False))


def _patches(file: Path) -> Iterator[dict[str, Any]]:
    from tunekeeper.errors import InvalidRequest

    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"Line {number} of {file} is not valid JSON: {error}.") from error
        if not isinstance(value, dict) or "id" not in value:
            raise InvalidRequest(f"Line {number} of {file} must be an object with id, filename and patch.")
        for name in ("filename", "patch"):
            if not isinstance(value.get(name), str):
                raise InvalidRequest(f"Line {number} of {file}: {name} must be a text.", param=name)
        yield value


def _text(file: Path) -> str:
    from tunekeeper.errors import InvalidRequest

    data = file.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is neither UTF-8 nor UTF-16: {error}. Convert it.") from error


def own_names(options: Options, store: "Store") -> list[str]:
    """What requests name here: base models, aliases and their targets, the upstreams' models."""
    settings = options.settings
    bases = [model.id for model in store.list_models() if model.kind == "base"]
    upstream = [name for server in settings.upstreams for name in server.models]
    return list(dict.fromkeys((*bases, *settings.aliases, *settings.aliases.values(), *upstream)))


def _hits(entry: "Entry", own: Sequence[str]) -> list[str]:
    """Those of my names that mean this model: with its version, or without any."""
    return [name for name in own if entry.answers_to(name)]


def _wire(entry: "Entry", options: Options, today: date) -> dict[str, Any]:
    from tunekeeper.lifecycle.catalog import first_end
    from tunekeeper.lifecycle.policy import notices

    end = first_end(entry)
    return {
        "model": entry.model,
        "version": entry.version,
        "publisher": entry.publisher,
        "dates": {
            field: {name: getattr(claim, name) for name in ("date", "qualifier", "text", "source", "line")}
            for field, claim in entry.dates.items()
        },
        "replacement": entry.replacement or None,
        "lifecycle_status": entry.lifecycle_status or None,
        "listed": entry.listed or None,
        "notice_days": notices(end, options.settings.lifecycle, today) if end else None,
        "not_understood": [{"field": claim.field, "text": claim.text} for claim in entry.unread],
    }


def _ends(entry: "Entry") -> str:
    from tunekeeper.lifecycle.catalog import ENDS

    said = [
        f"{_ENDING.get(field, '')}{'not before ' if not entry.is_firm(field) else ''}{entry.dates[field].date}"
        for field in ENDS
        if field in entry.dates
    ]
    return "; ".join(said)


def _story(entry: "Entry") -> str:
    head = f"{entry.name}" + (f" ({entry.publisher})" if entry.publisher else "")
    lines = [head, f"  ends: {_ends(entry) or 'no date known'}"]
    if entry.replacement:
        lines.append(f"  replacement: {entry.replacement}")
    lines += [f"  not understood: {claim.field}: {claim.text!r}" for claim in entry.unread]
    lines.append("  said so far:")
    for claim in entry.history:
        day = datetime.fromtimestamp(claim.said_at, UTC).date().isoformat()
        lines.append(f"    {day}  {claim.field}: {claim.text or '(nothing)'}  [{_at(claim)}]")
    return "\n".join(lines)


def _at(claim: "Claim") -> str:
    return f"{claim.source}, line {claim.line}" if claim.line else claim.source


def _today() -> date:
    return datetime.now(UTC).date()


def _day(text: str) -> date:
    from tunekeeper.lifecycle.dates import parse_date

    day = parse_date(text)
    if day is None:
        raise typer.BadParameter(f"{text!r} is no date; write YYYY-MM-DD.")
    return day
