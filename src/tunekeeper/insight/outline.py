"""What the lines of a Markdown file are: front matter, headings, tabs, code, tables or prose.

A whole file is read from its first line; of a hunk the beginning is guessed from what its lines look like, for it
may begin within front matter or within code.

    places = outline([(1, "# Title"), (2, "```py"), (3, "x = 1"), (4, "```")], wanted={3}, is_whole=True)
    places[3].kind, places[3].section, places[3].block      # "code", "Title", 2
"""

import re
from collections.abc import Container, Sequence
from typing import Literal, NamedTuple

PlaceKind = Literal["front", "code", "fence", "heading", "tab", "table", "blank", "text"]
Numbered = tuple[int, str]

HEADING = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
TAB = re.compile(r"^\[(.+)\]\(#tabs?/[^)]*\)$")
_FENCE = re.compile(r"^[ \t>]*(?:[-*+]|\d+[.)])?[ \t]*(`{3,}|~{3,})[ \t]*([^`]*)$")
_KEY = re.compile(r"^([A-Za-z_][\w.-]*):(?=\s|$)")
_FRONT = re.compile(r"^(?:[A-Za-z_][\w.-]*:(?:\s.*)?|\s+\S.*|-\s.*|\s*|#.*)$")
_PROSE = re.compile(r"^(?:[#>*-] )?[A-Z*\[][^;{}=]*\s\w[^;{}=]*\s\w[^;{}=]*[.:?!)]\**\s*$")
_STATEMENT = re.compile(
    r"^\s*(?:(?:from|import|using|const|let|var|def|class|return|public|private|async|await|export)\s.*[\w;({:*]$"
    r"|[\w.$\[\]\"']+\s*[-+]?=\s*\S.*|.*[;{}]$|[)}\]]+[,;)]*$|\"[\w-]+\":.*|(?:curl|pip|az|npm|dotnet) .*)"
)
_PLAIN = re.compile(r"[A-Za-z|\u3040-\u9fff][^`~]*$|$")
"""Lines that can only be prose, a table's row or blank: nearly all, and cheaply told."""
_LAST_FRONT_LINE = 60


class Place(NamedTuple):
    """What a line is and where it stands."""

    kind: PlaceKind
    section: str = ""
    """The nearest heading above; of a heading the one before it."""
    block: int = 0
    """Line of the fence that opens the code; 0 outside code, negative where it lies above the hunk."""
    language: str = ""
    key: str = ""
    """Of front matter: the key that the line belongs to."""


def outline(lines: Sequence[Numbered], *, wanted: Container[int], is_whole: bool) -> dict[int, Place]:
    """The places of the wanted lines; `lines` are consecutive, and begin the file if `is_whole`."""
    found: dict[int, Place] = {}
    starts_file = is_whole or (bool(lines) and lines[0][0] == 1)
    in_front = lines[0][1].rstrip() == "---" if starts_file and lines else _begins_in_front(lines)
    fence, block, language = ("", 0, "") if starts_file or in_front else _open_fence(lines)
    section = key = previous = ""
    for at, (number, text) in enumerate(lines):
        if in_front:
            if match := _KEY.match(text):
                key = match[1]
            kind: PlaceKind = "front"
            if text.rstrip() in ("---", "...") and not (starts_file and at == 0):
                in_front = False
            if number in found or number in wanted:
                found[number] = Place(kind, key="" if text.startswith("---") else key)
            continue
        if number not in wanted and not fence and _PLAIN.match(text):
            previous = "" if text[:1] == "|" else text.strip()
            continue
        place_section = section
        marker = _FENCE.match(text) if "```" in text or "~~~" in text else None
        if fence:
            closes = marker is not None and not marker[2].strip() and _ends(fence, marker[1])
            kind = "fence" if closes else "code"
            if number in wanted:
                found[number] = Place(kind, section, block, language)
            if closes:
                fence, block, language = "", 0, ""
            previous = ""
            continue
        if marker:
            fence, block, language = marker[1], number, (marker[2].split() or [""])[0].strip("{}.")
            if number in wanted:
                found[number] = Place("fence", section, block, language)
            continue
        stripped = text.strip()
        if not stripped:
            kind = "blank"
        elif stripped.startswith("#") and (match := HEADING.match(text)):
            kind = "tab" if TAB.match((match[2] or "").strip()) else "heading"
            if kind == "heading":
                section = (match[2] or "").strip()
        elif stripped.strip("=") == "" and previous:  # the line above was a heading
            kind, section = "blank", previous
            if number - 1 in found:
                found[number - 1] = Place("heading", place_section)
        elif stripped.lstrip("> ").startswith("|"):
            kind = "table"
        else:
            kind = "text"
        previous = stripped if kind == "text" else ""
        if number in wanted:
            found[number] = Place(kind, place_section)
    return found


def heading_text(line: str) -> tuple[int, str]:
    """Level and text of a heading's line; an underlined one is of the first level."""
    match = HEADING.match(line)
    return (len(match[1]), (match[2] or "").strip()) if match else (1, line.strip())


def _ends(fence: str, marker: str) -> bool:
    return marker[0] == fence[0] and len(marker) >= len(fence)


def _begins_in_front(lines: Sequence[Numbered]) -> bool:
    if not lines or lines[0][0] > _LAST_FRONT_LINE:
        return False
    until = next((at for at, (_, text) in enumerate(lines) if text.rstrip() == "---"), len(lines))
    inside = [text for _, text in lines[:until]]
    keys = sum(1 for text in inside if _KEY.match(text))
    return all(_FRONT.match(text) for text in inside) and keys >= (1 if until < len(lines) else 2)


def _open_fence(lines: Sequence[Numbered]) -> tuple[str, int, str]:
    """The fence that must have been opened above the hunk, if its first fence is one that closes."""
    fences = [(at, match) for at, (_, text) in enumerate(lines) if (match := _FENCE.match(text))]
    if not fences and _is_code([text for _, text in lines if text.strip()]):
        return "```", -lines[0][0], ""
    if not fences or fences[0][1][2].strip():
        return "", 0, ""
    first, marker = fences[0]
    if len(fences) > 1 and fences[1][1][2].strip():
        return marker[1], -lines[0][0], ""
    before = [text for _, text in lines[:first] if text.strip()]
    after = [text for _, text in lines[first + 1 : fences[1][0] if len(fences) > 1 else None] if text.strip()]
    is_closing = _proseness(before) < _proseness(after) if before and after else bool(before)
    return (marker[1], -lines[0][0], "") if is_closing else ("", 0, "")


def _is_code(lines: Sequence[str]) -> bool:
    """Whether lines without any fence can only be code: they begin as code does, and a third of them look like it."""
    alike = [bool(_STATEMENT.match(text)) for text in lines]
    return len(lines) >= 3 and alike[0] and sum(alike) * 3 >= len(lines)


def _proseness(lines: Sequence[str]) -> float:
    return sum(1 for text in lines if _PROSE.match(text) or HEADING.match(text)) / len(lines)
