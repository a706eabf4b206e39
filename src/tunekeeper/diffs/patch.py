"""A unified patch as hunks of numbered lines."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

_HEADER = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)$")


class Line(NamedTuple):  # not a dataclass: a large day has a hundred thousand, and tuples are made faster
    """One line of a hunk, without its sign and line end."""

    sign: Literal[" ", "+", "-"]
    text: str
    old_number: int | None
    """1-based line in the old file; None for an added line."""
    new_number: int | None
    """1-based line in the new file; None for a removed line."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """A run of lines with its context."""

    old_start: int
    new_start: int
    section: str
    """What git wrote behind the second @@: the nearest earlier heading or line, often cut."""
    lines: tuple[Line, ...]
    is_cut: bool = False
    """The header promised more lines than there are."""


def parse_patch(patch: str) -> tuple[Hunk, ...]:
    """Read the hunks of one file's patch; lines before the first `@@` are skipped, a cut last hunk is marked.

    Only "\\n" ends a line (a "\\r" before it is dropped): other separators may stand within one.
    """
    hunks: list[Hunk] = []
    lines = iter(patch.split("\n"))
    header = next((match for line in lines if (match := _HEADER.match(line))), None)
    while header is not None:
        body, next_header, is_cut = _body(lines, header)
        hunks.append(Hunk(int(header[1]), int(header[3]), header[5].strip(), tuple(body), is_cut))
        header = next_header
    return tuple(hunks)


def _body(lines: Iterator[str], header: re.Match[str]) -> tuple[list[Line], re.Match[str] | None, bool]:
    old, new = int(header[1]), int(header[3])
    old_left = int(header[2]) if header[2] is not None else 1
    new_left = int(header[4]) if header[4] is not None else 1
    body: list[Line] = []
    for line in lines:
        if old_left <= 0 and new_left <= 0:
            if match := _HEADER.match(line):
                return body, match, False
            continue
        if match := _HEADER.match(line):
            return body, match, True
        text = line[1:].removesuffix("\r")
        match line[:1]:
            case "+":
                body.append(Line("+", text, None, new))
                new, new_left = new + 1, new_left - 1
            case "-":
                body.append(Line("-", text, old, None))
                old, old_left = old + 1, old_left - 1
            case "\\":
                continue
            case _:
                body.append(Line(" ", text, old, new))
                old, new = old + 1, new + 1
                old_left, new_left = old_left - 1, new_left - 1
    return body, None, old_left > 0 or new_left > 0


def added(hunks: Iterable[Hunk]) -> Iterator[Line]:
    """The added lines."""
    return (line for hunk in hunks for line in hunk.lines if line.sign == "+")


def removed(hunks: Iterable[Hunk]) -> Iterator[Line]:
    """The removed lines."""
    return (line for hunk in hunks for line in hunk.lines if line.sign == "-")
