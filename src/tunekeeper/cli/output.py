"""What a command prints: text for people, JSON for programs; progress goes to stderr."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekeeper.cli.options import Options

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client


def show(options: Options, value: Any, text: Callable[[], str]) -> None:
    """Print the value as JSON if that was asked for, else as text."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if options.as_json else text())


def note(text: str) -> None:
    """Tell something beside the result."""
    print(text, file=sys.stderr, flush=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> str:
    """Columns of text, as wide as they need to be: an id that is cut off cannot be copied."""
    if not rows:
        return empty
    cells = [list(headings), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def fields(value: Any, *, indent: str = "") -> str:
    """A JSON object as `name: value` lines, what is empty left out."""
    lines = []
    for name, inner in value.items():
        if inner in (None, [], {}, ""):
            continue
        if isinstance(inner, dict):
            if below := fields(inner, indent=f"{indent}  "):
                lines += [f"{indent}{name}:", below]
        elif isinstance(inner, list) and isinstance(inner[0], dict):
            lines.append(f"{indent}{name}:")
            lines += [f"{indent}  - {json.dumps(entry, ensure_ascii=False)}" for entry in inner]
        else:
            is_time = name.endswith("_at") or name in ("created", "estimated_finish")
            lines.append(f"{indent}{name}: {moment(inner) if is_time else _text(inner)}")
    return "\n".join(lines)


def moment(unix_s: float | None) -> str:
    """A time of day in this place."""
    if unix_s is None:
        return "-"
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def save_comparison(client: "Client", path: str, out: Path, **query: Any) -> None:
    """Write the comparison under a path into a folder: as a page, as Markdown and as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    for form, ending in {"json": "json", "markdown": "md", "html": "html"}.items():
        with (out / f"comparison.{ending}").open("wb") as page:
            client.download(path, page, **query, format=form)
    note(f"The page is {out / 'comparison.html'}; beside it the same as Markdown and JSON.")


@contextmanager
def byte_bars(options: Options) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars of bytes; yields what to tell (label, done, total). Only a terminal sees them."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=options.as_json or not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=None)
            bar.update(tasks[label], completed=done, total=total or None)

        yield tell


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
