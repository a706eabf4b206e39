"""The home directory opened by a command itself, for what is not done over the API."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from tunekeeper.cli.options import Options

if TYPE_CHECKING:
    from tunekeeper.storage.store import Store


@contextmanager
def local_store(options: Options) -> Iterator["Store"]:
    """The store of the home directory, opened in this process; a server may run beside it."""
    if options.url is not None:
        raise typer.BadParameter("this works on the server's own machine; leave --url and TUNEKEEPER_URL out.")
    # Here, not above: SQLAlchemy is needed only by the few commands that do not go through the API.
    from tunekeeper.storage.db import connect
    from tunekeeper.storage.store import Store

    store = Store(connect(options.settings.home))
    try:
        yield store
    finally:
        store.close()
