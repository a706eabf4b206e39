"""`tunekeeper grade`: try a grader on a file before a job depends on it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.options import grader_of, options_of
from tunekeeper.errors import InvalidData

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.graders.build import BuiltGrader
    from tunekeeper.graders.rows import Row
    from tunekeeper.graders.spec import Spec
    from tunekeeper.types import Grade, Json

MOST_FAULTS = 100
"""Lines that a refusal names."""


def grade(
    context: typer.Context,
    grader: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON file with the grader.")],
    data: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help='JSONL: {"item", "sample"} or bare items.')],
    samples: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSONL of samples, one for each line of the data."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="Write each line's grade here.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Samples that are graded at once.")] = 8,
) -> None:
    """Grade a file of items and samples, and print what came of it."""
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.output import show
    from tunekeeper.graders.spec import LabelModel, Multi, ScoreModel, TextSimilarity, parse, parts_of
    from tunekeeper.graders.tally import Tally

    options = options_of(context)
    spec = parse(grader_of(grader))
    rows = _rows(spec, data, samples)
    tally = Tally()
    if isinstance(spec, Multi):
        tally.add_parts(*spec.graders)
    asks = any(
        isinstance(part, ScoreModel | LabelModel)
        or (isinstance(part, TextSimilarity) and part.evaluation_metric == "cosine")
        for part in parts_of(spec).values()
    )
    with ExitStack() as opened:
        client = opened.enter_context(connect(options)) if asks else None
        built = _built(spec, client)
        opened.callback(built.close)
        file = opened.enter_context(out.open("w", encoding="utf-8")) if out else None
        for row, found in zip(rows, _graded(built, rows, workers), strict=True):
            tally.add(found)
            if file:
                file.write(json.dumps({"line": row.line, **_wire(found)}, ensure_ascii=False) + "\n")
    summary = {"name": spec.name, "type": spec.type, "lines": len(rows), **tally.to_json()}
    show(options, summary, lambda: _text(summary))
    if not tally.whole.n:
        raise InvalidData(f"No line of {data} could be graded; the errors above say why.", param="grader")


def _rows(spec: "Spec", data: Path, samples: Path | None) -> list["Row"]:
    """The file's rows, each with its sample; raises InvalidData with every line that cannot be graded."""
    from tunekeeper.cli.output import note
    from tunekeeper.datasets.formats import Fault
    from tunekeeper.graders.rows import Row, read_rows, read_samples
    from tunekeeper.graders.spec import item_faults

    with data.open("rb") as stream:
        found = list(read_rows(stream))
    faults = [each for each in found if isinstance(each, Fault)]
    rows = [each for each in found if isinstance(each, Row)]
    if samples is not None:
        with samples.open("rb") as stream:
            given = list(read_samples(stream))
        if bad := [each for each in given if isinstance(each, Fault)]:
            raise _invalid(samples, bad)
        if len(given) != len(found):
            raise InvalidData(f"{samples} has {len(given)} samples, {data} has {len(found)} lines: they must agree.")
        rows = [
            Row(row.line, row.item, sample)
            for row, sample in zip(found, given, strict=True)
            if isinstance(row, Row) and not isinstance(sample, Fault)
        ]
    for row in rows:
        if row.sample is None:
            message = 'there is no sample. Write {"item": …, "sample": …}, or give a file with --samples.'
            faults.append(Fault(row.line, "/sample", "bad_sample", "error", message))
        faults += item_faults(spec, row.line, row.item)
    faults.sort(key=lambda fault: fault.line)
    if not rows or any(fault.level == "error" for fault in faults):
        raise _invalid(data, [fault for fault in faults if fault.level == "error"])
    for fault in faults[:MOST_FAULTS]:
        note(f"line {fault.line}: {fault.message}")
    return rows


def _invalid(path: Path, faults: "list[Any]") -> InvalidData:
    details = [fault.to_json() for fault in islice(faults, MOST_FAULTS)]
    what = f"{len(faults)} faults keep this grader from grading it" if faults else "it has no line"
    return InvalidData(f"{path}: {what}.", param="data", details=details)


def _built(spec: "Spec", client: "Client | None") -> "BuiltGrader":
    from tunekeeper.graders.build import build

    return build(spec, sampler=None if client is None else ClientSampler(client))


def _graded(grader: "BuiltGrader", rows: list["Row"], workers: int) -> Iterator["Grade"]:
    """The grades, in the rows' order."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda row: grader.grade(row.sample or {}, row.item), rows)


class ClientSampler:
    """Lets the server's models judge."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def check(self, body: "Json") -> None:
        """Raises NotFound for a model that the server does not have."""
        from tunekeeper.cli.client import path_of

        self._client.get(path_of("models", body["model"]))

    def complete(self, body: "Json") -> "Json":
        """The server's answer to a chat request."""
        return self._client.post("/chat/completions", body)


def _wire(grade: "Grade") -> "Json":
    from dataclasses import asdict

    return {name: value for name, value in asdict(grade).items() if value not in (None, (), {})}


def _text(summary: "Json") -> str:
    from tunekeeper.cli.output import table

    series = [(summary["name"], summary["score"])]
    series += [(f"  {key}", each) for key, each in summary["sub_scores"].items()]
    headings = ("GRADER", "SCORED", "MEAN", "MIN", "MAX", "ERRORS")
    rows = [(name, each["n"], each["mean"], each["min"], each["max"], each["errors"]) for name, each in series]
    lines = [table(headings, rows, empty="")]
    lines += [f"{each['count']} x {each['kind']} of {each['grader']}: {each['example']}" for each in summary["errors"]]
    lines += [f"{tokens:,} tokens of {model}" for model, tokens in summary["token_usage"].items()]
    return "\n".join(lines)
