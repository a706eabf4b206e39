"""`tunekeeper keys`: who may call the server from elsewhere.

Done on the home directory itself, never over the API: a key cannot make keys.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.home import local_store
from tunekeeper.cli.options import options_of

if TYPE_CHECKING:
    from tunekeeper.types import ApiKey

app = typer.Typer(help="API keys of this home directory.", no_args_is_help=True, rich_markup_mode=None)


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for, to recognise it by.")] = "default",
) -> None:
    """Make a key and print it: this once, for only its hash is kept."""
    from tunekeeper.cli.output import note, show

    options = options_of(context)
    with local_store(options) as store:
        key, secret = store.add_key(name)
    show(options, {**_shown(key), "key": secret}, lambda: secret)
    if not options.as_json:
        note("Keep it now: it cannot be shown again. Clients send it as their api_key.")


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """List the keys."""
    from tunekeeper.cli.output import moment, show, table

    options = options_of(context)
    with local_store(options) as store:
        keys = store.list_keys()
    rows = [(key.id, key.name, moment(key.created_at), key.hint) for key in keys]
    empty = "No keys. From this machine none is needed; `tunekeeper keys create` makes one."
    show(
        options,
        {"object": "list", "data": [_shown(key) for key in keys]},
        lambda: table(("ID", "NAME", "CREATED", "KEY"), rows, empty=empty),
    )


@app.command("delete")
def delete(context: typer.Context, key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Delete a key: what uses it is refused from now on."""
    from tunekeeper.cli.output import show

    options = options_of(context)
    with local_store(options) as store:
        key = store.delete_key(key_id)
    show(options, {"id": key_id, "deleted": True}, lambda: f"Deleted {key_id} ({key.name}).")


def _shown(key: "ApiKey") -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(key).items() if name != "hash"}
