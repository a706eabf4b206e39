"""`tunekeeper serve` and `tunekeeper demo`."""

from typing import Annotated

import typer

from tunekeeper.cli.home import local_store
from tunekeeper.cli.options import options_of


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond 127.0.0.1 a key is needed.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8000).", min=1, max=65535)] = None,
) -> None:
    """Serve the OpenAI API, and work on jobs."""
    from dataclasses import replace

    from tunekeeper.api.server import serve as run
    from tunekeeper.cli.output import note
    from tunekeeper.settings import load_settings

    settings = load_settings(options_of(context).home, host=host, port=port)
    with local_store(replace(options_of(context), url=None)) as store:
        if not store.list_models() and not settings.upstreams:
            note("There is no base model yet: `tunekeeper models pull` brings one.")
    note(f"Tunekeeper starts at http://{settings.host}:{settings.port}/v1 on {settings.home}; Ctrl-C ends it.")
    run(settings)


def demo(context: typer.Context) -> None:
    """See it work. Tunes a small model on this machine, from nothing to an answer."""
    from tunekeeper.demo import run

    run(options_of(context).settings)
