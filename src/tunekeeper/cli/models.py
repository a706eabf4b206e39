"""`tunekeeper models`: what can be tuned and talked to.

list, show and delete ask the server; pull and add work on the home directory itself, for weights are its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.home import local_store
from tunekeeper.cli.options import Options, options_of

if TYPE_CHECKING:
    from tunekeeper.models.pull import Report
    from tunekeeper.types import Model

app = typer.Typer(help="Base models and tuned models.", no_args_is_help=True, rich_markup_mode=None)

DEFAULT_BASE = "smollm2-135m"

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias of the model.")]


@app.command("list")
def list_models(context: typer.Context) -> None:
    """List every model that a request may name."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import moment, show, table

    options = options_of(context)
    with connect(options) as client:
        page = client.get("/models")
    rows = [
        (model["id"], model.get("kind"), _note(model), moment(model["created"]), model.get("license"))
        for model in page["data"]
    ]
    empty = "No models. `tunekeeper models pull` brings a first base model."
    show(options, page, lambda: table(("ID", "KIND", "FROM", "CREATED", "LICENSE"), rows, empty=empty))


@app.command("show")
def show_model(context: typer.Context, model: ModelId) -> None:
    """Show one model: what it is made of, and what it may be used for."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import fields, show

    options = options_of(context)
    with connect(options) as client:
        found = client.get(path_of("models", model))
    show(options, found, lambda: fields(found))


@app.command("delete")
def delete(context: typer.Context, model: ModelId) -> None:
    """Delete a tuned model and its weights."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        answer = client.delete(path_of("models", model))
    show(options, answer, lambda: f"Deleted {model}.")


@app.command("pull")
def pull(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name that we know, or a hub id: owner/name.")] = DEFAULT_BASE,
) -> None:
    """Bring a base model home."""
    from tunekeeper.models.pull import pull as fetch

    options = options_of(context)
    with local_store(options) as store, _bars(options, name) as progress:
        model = store.add_model(fetch(name, options.settings.home, progress=progress))
    _show_added(options, model)


@app.command("add")
def add(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, help="A model directory with safetensors, or a GGUF file.")],
    name: Annotated[str | None, typer.Option(help="Id to give it; else the name of the directory or file.")] = None,
) -> None:
    """Take weights on this machine as a base model; a directory stays where it is."""
    from tunekeeper.models.pull import add_local

    options = options_of(context)
    with local_store(options) as store, _bars(options, path.name) as progress:
        model = store.add_model(add_local(path, options.settings.home, name=name, progress=progress))
    _show_added(options, model)


@contextmanager
def _bars(options: Options, name: str) -> Iterator["Report"]:
    """One bar a stage: download, convert."""
    from tunekeeper.cli.output import byte_bars

    with byte_bars(options) as tell:
        yield lambda at: tell(f"{at.stage.capitalize()} {name}", at.done, at.total)


def _show_added(options: Options, model: "Model") -> None:
    from dataclasses import asdict

    from tunekeeper.cli.output import show

    known = model.info.get("license") or "unknown; look it up before you use the model"
    text = (
        f"{model.id} is ready (licence: {known}).\n"
        f"  tunekeeper chat {model.id}\n"
        f"  tunekeeper tune train.jsonl --model {model.id}"
    )
    show(options, asdict(model), lambda: text)


def _note(model: dict[str, Any]) -> Any:
    return model.get("alias_of") or model.get("model") or (model.get("info") or {}).get("source")
