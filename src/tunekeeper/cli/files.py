"""`tunekeeper files`: data files on the server."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tunekeeper.cli.options import options_of

app = typer.Typer(help="Data files on the server.", no_args_is_help=True, rich_markup_mode=None)

FileId = Annotated[str, typer.Argument(metavar="ID", help="Id of the file: file-…")]


@app.command("upload")
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    purpose: Annotated[str, typer.Option(help="What the file is for.")] = "fine-tune",
) -> None:
    """Send a file, and print its id."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import byte_bars, show

    options = options_of(context)
    with connect(options) as client, byte_bars(options) as tell:
        file = client.upload(path, purpose, partial(tell, f"Upload {path.name}"))
    show(options, file, lambda: str(file["id"]))


@app.command("list")
def list_files(
    context: typer.Context,
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=10_000)] = 100,
) -> None:
    """List files, newest first."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import moment, show, size, table

    options = options_of(context)
    with connect(options) as client:
        page = client.get("/files", purpose=purpose, limit=limit)
    rows = [
        (
            file["id"],
            file["filename"],
            file["purpose"],
            file["status"],
            size(file["bytes"]),
            moment(file["created_at"]),
        )
        for file in page["data"]
    ]
    headings = ("ID", "NAME", "PURPOSE", "STATUS", "SIZE", "CREATED")
    show(options, page, lambda: table(headings, rows, empty="No files."))


@app.command("show")
def show_file(context: typer.Context, file_id: FileId) -> None:
    """Show one file, and what is wrong with it."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import fields, show

    options = options_of(context)
    with connect(options) as client:
        file = client.get(path_of("files", file_id))
    show(options, file, lambda: fields(file))


@app.command("content")
def content(
    context: typer.Context,
    file_id: FileId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of to the screen.")] = None,
) -> None:
    """Print a file's bytes, or save them."""
    import sys

    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    path = path_of("files", file_id, "content")
    with connect(options) as client:
        if output is None:
            client.download(path, sys.stdout.buffer)
            return
        with output.open("wb") as file:
            client.download(path, file)
    saved: dict[str, Any] = {"id": file_id, "path": str(output), "bytes": output.stat().st_size}
    show(options, saved, lambda: f"Saved {output} ({saved['bytes']:,} bytes).")


@app.command("delete")
def delete(context: typer.Context, file_id: FileId) -> None:
    """Delete a file."""
    from tunekeeper.cli.client import connect, path_of
    from tunekeeper.cli.output import show

    options = options_of(context)
    with connect(options) as client:
        answer = client.delete(path_of("files", file_id))
    show(options, answer, lambda: f"Deleted {file_id}.")
