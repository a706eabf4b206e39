"""Markdown tables on both sides of a change, and what happened to their rows, cells and columns.

A page is given as a patch, with its whole text where there is one. Tables are read from whole texts if possible, so
that their header is known; else from the hunks, where a header that lies outside is inferred (`Table.header`).
Rows are paired by their key, never by position: realigned, reformatted or re-ordered tables have not changed, and a
row that left one table for another, in the same file or not, has moved.

    for change in table_changes([Page("models.md", parse_patch(patch))]):
        print(change.kind, change.key, change.column, change.old, "->", change.new)

This module knows Markdown; what a column means (a date, a replacement) is the caller's business.
"""

import html
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from tunekeeper.diffs.patch import Hunk

HeaderSource = Literal["read", "page", "inferred"]
ChangeKind = Literal[
    "row_added", "row_removed", "row_moved", "cell_changed", "column_added", "column_removed", "column_renamed"
]


@dataclass(frozen=True, slots=True)
class Row:
    """A table's row: its cells as Markdown, trimmed, `\\|` turned into `|`; rows may be short or long."""

    cells: tuple[str, ...]
    line: int
    """1-based, in its own side of the file."""

    def cell(self, index: int) -> str:
        """The cell of a column, "" where the row is too short."""
        return self.cells[index] if index < len(self.cells) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table, or the part of it that a hunk shows."""

    columns: tuple[str, ...]
    """As plain text; a name per cell, so never shorter than the longest row that the header must explain."""
    rows: tuple[Row, ...]
    line: int
    """The first line that was seen of it."""
    headings: tuple[str, ...] = ()
    """The headings above, outermost first, as far as they are seen."""
    header: HeaderSource = "read"
    """"read" stands in the text; "page" is borrowed from a table of the same page; "inferred" comes from the rows."""
    filename: str = ""
    evidence: tuple[Row, ...] = ()
    """The rows of both sides of a hunk, so that what is inferred from them is the same on both."""

    @property
    def section(self) -> str:
        """The nearest heading above, "" where none is seen."""
        return self.headings[-1] if self.headings else ""

    def column(self, index: int) -> str:
        """The name of a column, also of one beyond the header."""
        return self.columns[index] if index < len(self.columns) else f"Column {index + 1}"


@dataclass(frozen=True, slots=True)
class Page:
    """A changed file as far as it is known: its hunks, and either whole text."""

    filename: str
    hunks: tuple[Hunk, ...] = ()
    old_text: str | None = None
    new_text: str | None = None
    previous_filename: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TableChange:
    """One thing that happened to a row, a cell or a column."""

    kind: ChangeKind
    key: str = ""
    """The row's first cells, that tell it from the others: "gpt-4o · 2024-05-13"."""
    column: str = ""
    """The new name of the column, or the old one of a removed column."""
    old: str = ""
    """The old cell as Markdown, or a renamed column's old name."""
    new: str = ""
    old_table: Table | None = None
    new_table: Table | None = None
    old_row: Row | None = None
    new_row: Row | None = None


# --- text ------------------------------------------------------------------------------------------------------------

_BREAK = re.compile(r"\s*<br\s*/?>\s*", re.IGNORECASE)
_NOTE = re.compile(
    r"\*{0,2}<sup>.*?</sup>\*{0,2}|\[\^[^\]]+\](?!\()|\^\d+\^|(?<![mM])[¹²³⁴-⁹]+", re.IGNORECASE | re.DOTALL
)
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?:[^()]|\([^)]*\))*\)|\[([^\[\]]+)\]\[[^\]]*\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)
_STRONG = re.compile(r"(\*\*|__|~~)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*])(\*|_)(?=[^\s*_])(.+?)(?<=[^\s*_])\1(?![\w*])", re.DOTALL)
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_SPACE_BEFORE_STOP = re.compile(r" +(?=[,.;](?:\s|$))")
_MARKED = re.compile(r"[<>\[\]*_~\\&^¹²³⁴-⁹]")
"""What any of the above begins with; most cells have none of it."""


@lru_cache(maxsize=65_536)
def plain(cell: str) -> str:
    """A cell as people read it: links, emphasis, code marks, tags and footnote marks gone, breaks as spaces."""
    if not _MARKED.search(cell):
        return _tidy(cell.replace("`", ""))
    text = _NOTE.sub(" ", _BREAK.sub(" ", cell))
    text = _LINK.sub(lambda match: match[1] or match[2] or "", _IMAGE.sub(r"\1", text))
    text = _TAG.sub(" ", text).replace("`", "")
    for _ in range(2):  # emphasis within emphasis
        text = _EMPHASIS.sub(r"\2", _STRONG.sub(r"\2", text))
    return _tidy(html.unescape(_ESCAPE.sub(r"\1", text)))


def _tidy(text: str) -> str:
    return _SPACE_BEFORE_STOP.sub("", " ".join(text.split()))


@lru_cache(maxsize=65_536)
def normal(cell: str) -> str:
    """A cell with its spaces and breaks written one way: what tells a change from a realignment."""
    return " ".join(_BREAK.sub("<br>", cell).split())


def split_row(line: str, *, width: int | None = None) -> tuple[str, ...]:
    """The cells of a row. A pipe in code separates, as GFM says, unless only the other reading fits `width`."""
    cells = _split(line, mind_code=False)
    if width is not None and len(cells) != width and "`" in line:
        mindful = _split(line, mind_code=True)
        if len(mindful) == width or (len(cells) > width >= len(mindful)):
            return mindful
    return cells


def _split(line: str, *, mind_code: bool) -> tuple[str, ...]:
    text = line.strip()
    if "\\" not in text and not (mind_code and "`" in text):
        plainly = [cell.strip() for cell in text.removeprefix("|").split("|")]
        return tuple(plainly[:-1] if text.endswith("|") else plainly)
    cells, current, ticks, at = [], "", 0, 0
    while at < len(text):
        char = text[at]
        if char == "\\" and text[at + 1 : at + 2] == "|":
            current, at = current + "|", at + 2
            continue
        if mind_code and char == "`":
            run = len(text) - at - len(text[at:].lstrip("`"))
            if ticks == run:
                ticks = 0
            elif not ticks and "`" * run in text[at + run :]:
                ticks = run
            current, at = current + "`" * run, at + run
            continue
        if char == "|" and not ticks:
            cells.append(current.strip())
            current = ""
        else:
            current += char
        at += 1
    if text.startswith("|"):
        cells = cells[1:]
    if current.strip() or not text.endswith("|") or text.endswith("\\|"):
        cells.append(current.strip())
    return tuple(cells)


# --- reading ---------------------------------------------------------------------------------------------------------

_DELIMITER = re.compile(r"^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"^\s*(```+|~~~+)\s*([^`]*)$")
_QUOTE = re.compile(r"^\s*(?:>\s?)+")
_INTERRUPTS = re.compile(r"^(#{1,6}\s|[-*+]\s|\d+[.)]\s|:::|!\[)")

_Numbered = tuple[int, str]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive lines of one side, and what is known of the heading above them."""

    lines: tuple[_Numbered, ...]
    section: str
    is_whole: bool


def read_tables(text: str, *, filename: str = "") -> tuple[Table, ...]:
    """The tables of a whole page."""
    lines = tuple((number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1))
    return _read([_Stretch(lines, "", True)], filename)


def page_tables(page: Page) -> tuple[tuple[Table, ...], tuple[Table, ...]]:
    """The tables of a page before and after: of the whole texts where they are known, else of the hunks."""
    old_text, new_text = page.old_text, page.new_text
    is_cut = any(hunk.is_cut for hunk in page.hunks)
    if old_text is None and new_text is not None and page.hunks and not is_cut:
        old_text = _applied(new_text, page.hunks, backwards=True)
    elif new_text is None and old_text is not None and page.hunks and not is_cut:
        new_text = _applied(old_text, page.hunks, backwards=False)
    old_name = page.previous_filename or page.filename
    if old_text is not None and new_text is not None:
        return read_tables(old_text, filename=old_name), read_tables(new_text, filename=page.filename)
    before: list[Table] = []
    after: list[Table] = []
    for hunk in page.hunks:
        old, new = _hunk_tables(hunk, old_name, page.filename)
        before += old
        after += new
    return _with_headers(before, (*before, *after)), _with_headers(after, (*before, *after))


def _hunk_tables(hunk: Hunk, old_name: str, new_name: str) -> tuple[list[Table], list[Table]]:
    old = list(_stretch_tables(_side(hunk, "-"), old_name))
    new = list(_stretch_tables(_side(hunk, "+"), new_name))
    for is_headless in (True, False):
        sides = [[at for at, table in enumerate(side) if bool(table.columns) != is_headless] for side in (old, new)]
        for a, b in zip(*sides, strict=False):
            if old[a].columns == new[b].columns and _width(old[a]) == _width(new[b]):
                rows = tuple({_fingerprint(row): row for row in (*old[a].rows, *new[b].rows)}.values())
                old[a], new[b] = replace(old[a], evidence=rows), replace(new[b], evidence=rows)
    return old, new


def _applied(text: str, hunks: Iterable[Hunk], *, backwards: bool) -> str | None:
    """The other side of a text; None where the hunks do not fit it."""
    lines = text.split("\n")
    result: list[str] = []
    at = 0
    drop, add = ("+", "-") if backwards else ("-", "+")
    for hunk in hunks:
        kept = [line for line in hunk.lines if line.sign != add]
        start = hunk.new_start if backwards else hunk.old_start
        first = start - 1 if kept else start
        seen = [line.removesuffix("\r") for line in lines[first : first + len(kept)]]
        if first < at or seen != [line.text for line in kept]:
            return None
        result += lines[at:first]
        result += [line.text for line in hunk.lines if line.sign != drop]
        at = first + len(kept)
    return "\n".join(result + lines[at:])


def _side(hunk: Hunk, sign: Literal["+", "-"]) -> _Stretch:
    lines: list[_Numbered] = []
    for line in hunk.lines:
        number = line.old_number if sign == "-" else line.new_number
        if number is not None:
            lines.append((number, line.text))
    return _Stretch(tuple(lines), hunk.section, False)


def _read(stretches: Iterable[_Stretch], filename: str) -> tuple[Table, ...]:
    found = [table for stretch in stretches for table in _stretch_tables(stretch, filename)]
    return _with_headers(found, found)


def _with_headers(found: Sequence[Table], page: Sequence[Table]) -> tuple[Table, ...]:
    return tuple(_with_header(table, page) for table in found)


def _width(table: Table) -> int:
    return len(table.columns) or max((len(row.cells) for row in table.evidence or table.rows), default=0)


def _stretch_tables(stretch: _Stretch, filename: str) -> Iterator[Table]:
    section = _HEADING.match(stretch.section)
    path: list[tuple[int, str]] = []
    if stretch.section:
        path.append((len(section[1]), plain(section[2])) if section else (2, plain(stretch.section)))
    run: list[_Numbered] = []
    for number, line in (*_outside_code(stretch), (0, "")):
        if not run and "|" not in line and "#" not in line:
            continue
        text = (_QUOTE.sub("", line) if ">" in line else line).strip()
        if run and (not text or (not text.startswith("|") and _INTERRUPTS.match(text))):
            yield from _run_tables(run, tuple(name for _, name in path), filename)
            run = []
        if heading := _HEADING.match(line) if "#" in line else None:
            path = [(level, name) for level, name in path if level < len(heading[1])]
            path.append((len(heading[1]), plain(heading[2])))
        elif "|" in text or (run and run[0][0] > 0 and _has_delimiter(run)):
            run.append((number, text))
        elif run:
            yield from _run_tables(run, tuple(name for _, name in path), filename)
            run = []


def _outside_code(stretch: _Stretch) -> Iterator[_Numbered]:
    """The lines outside fences and comments; a hunk that starts within a fence is recognised where it can be."""
    fences = [] if stretch.is_whole else [match for _, line in stretch.lines if (match := _fence(line))]
    starts_inside = (
        not stretch.is_whole and len(fences) % 2 == 1 and not fences[0][2].strip() and not _pipes_before_fence(stretch)
    )
    fence: str | None = fences[0][1] if starts_inside else None
    in_comment = False
    for number, line in stretch.lines:
        match = _fence(line) if "```" in line or "~~~" in line else None
        if fence is not None:
            if match and match[1].startswith(fence[:3]) and len(match[1]) >= len(fence) and not match[2].strip():
                fence = None
            yield number, ""
            continue
        if in_comment:
            in_comment = "-->" not in line
            yield number, ""
        elif match:
            fence = match[1]
            yield number, ""
        elif "<!--" in line and "-->" not in line.split("<!--")[-1]:
            in_comment = True
            yield number, ""
        else:
            yield number, line


def _fence(line: str) -> re.Match[str] | None:
    return _FENCE.match(_QUOTE.sub("", line)) if "```" in line or "~~~" in line else None


def _pipes_before_fence(stretch: _Stretch) -> bool:
    for _, line in stretch.lines:
        if _fence(line):
            return False
        if line.lstrip().startswith(("|", "#")):
            return True
    return False


def _has_delimiter(run: Sequence[_Numbered]) -> bool:
    return any(_is_delimiter(line) for _, line in run[:2])


def _is_delimiter(line: str) -> bool:
    return "|" in line and _DELIMITER.match(line) is not None


def _run_tables(run: list[_Numbered], headings: tuple[str, ...], filename: str) -> Iterator[Table]:
    """The table in a run of lines with pipes; prose directly above a header is cut off."""
    at = next((index for index, (_, line) in enumerate(run) if _is_delimiter(line)), None)
    columns: tuple[str, ...] = ()
    if at is None:
        body = [(number, line) for number, line in run if line.startswith("|")]
        if not body:
            counts = {len(_split(line, mind_code=True)) for _, line in run}
            if len(run) < 2 or len(counts) != 1 or counts.pop() < 3:
                return
            body = run
        first = body[0][0]
    else:
        width = len(_split(run[at][1], mind_code=False))
        if at > 0:
            columns = tuple(plain(cell) for cell in split_row(run[at - 1][1], width=width))
            if len(columns) == 1 and width == 1 and "|" not in run[at - 1][1]:
                return
        above = [item for item in run[: max(at - 1, 0)] if item[1].startswith("|")]
        if above and len(above) == at - 1 and at > 1:
            yield from _run_tables(above, headings, filename)  # two tables without a blank line between them
        first = run[max(at - 1, 0)][0]
        body = run[at + 1 :]
    if not columns:
        width = Counter(len(_split(line, mind_code=True)) for _, line in body).most_common(1)[0][0] if body else 0
        if not body:
            return
    else:
        width = len(columns)
    rows = tuple(Row(split_row(line, width=width), number) for number, line in body if not _is_delimiter(line))
    if rows or columns:
        yield Table(columns=columns, rows=rows, line=first, headings=headings, filename=filename)


def _with_header(table: Table, page: Sequence[Table]) -> Table:
    """A table whose header is outside the hunk takes it from the table of its page that it most likely continues."""
    if table.columns:
        return table
    kinds = _cell_kinds(table)
    donors = [other for other in page if other.columns and len(other.columns) == len(kinds)]
    donors.sort(key=lambda other: (other.headings != table.headings, abs(other.line - table.line)))
    for other in donors:
        if "Date" in _cell_kinds(other) and _alike(_forms(other), _forms(table)):
            return replace(table, columns=other.columns, header="page")
    return replace(table, columns=_named(kinds), header="inferred")


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the other's columns are written as this one's: dates are neither words nor numbers."""
    fits = {("", "text"), ("text", "number"), ("number", "text")}
    return all(a == b or not b or (a, b) in fits for a, b in zip(one, other, strict=True))


_NUMBER = re.compile(r"v?\d[\w.-]*|-", re.IGNORECASE)  # a version, or a date in digits: they look alike


def _forms(table: Table) -> tuple[str, ...]:
    """How each column is written: "date" (in words), "number", "text", "" where it is empty."""
    forms = []
    for index in range(_width(table)):
        texts = [text for row in table.evidence or table.rows if (text := plain(row.cell(index)))]
        numbers = sum(_NUMBER.fullmatch(text) is not None for text in texts)
        dates = sum(_KINDS[0][1].search(text) is not None and not _NUMBER.fullmatch(text) for text in texts)
        forms.append("" if not texts else "date" if dates else "number" if numbers * 2 > len(texts) else "text")
    return tuple(forms)


_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "Date",
        re.compile(
            r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?,?\s+(?:\d{1,2},?\s+)?\d{4}\b"
            r"|^(?:no earlier than\s+)?\d{4}-\d{2}-\d{2}$|\d{1,2}/\d{1,2}/\d{4}",
            re.IGNORECASE,
        ),
    ),
    ("Version", re.compile(r"^v?\d+(?:[.\-]\w+)+$|^\d{3,4}$", re.IGNORECASE)),
    ("Link", re.compile(r"^https?://\S+$")),
    ("Yes or no", re.compile(r"^(?:yes|no|✅|❌|✔|✓|✗|-|n/a)$", re.IGNORECASE)),
)


def _cell_kinds(table: Table) -> tuple[str, ...]:
    kinds = []
    for index in range(_width(table)):
        texts = [text for row in table.evidence or table.rows if (text := plain(row.cell(index)))]
        kinds.append(next((kind for kind, pattern in _KINDS if texts and _most(pattern.search, texts)), "Column"))
    return tuple(kinds)


def _most(holds: Callable[[str], object], texts: Sequence[str]) -> bool:
    return sum(bool(holds(text)) for text in texts) * 3 >= len(texts) * 2


def _named(kinds: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(kinds)
    names: list[str] = []
    for index, kind in enumerate(kinds):
        names.append(f"Column {index + 1}" if kind == "Column" or counts[kind] > 1 else kind)
    return tuple(names)


# --- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TablePair:
    """What is one table before and after; one side is None for a new or a removed table."""

    old: Table | None
    new: Table | None


def pair_tables(old: Sequence[Table], new: Sequence[Table]) -> tuple[TablePair, ...]:
    """Which old table is which new one, by rows, columns and section; each table stands in one pair."""
    old_of: dict[int, int] = {}
    taken: set[int] = set()
    same: dict[object, list[int]] = defaultdict(list)
    for a, before in enumerate(old):
        same[_content(before)].append(a)
    for b, after in enumerate(new):
        if twins := same.get(_content(after)):
            old_of[b] = twins.pop(0)
            taken.add(old_of[b])
    befores = [(a, _traits(table)) for a, table in enumerate(old) if a not in taken]
    afters = [(b, _traits(table)) for b, table in enumerate(new) if b not in old_of]
    scored = [
        (-score, abs(a - b), a, b)
        for a, before in befores
        for b, after in afters
        if (score := _kinship(before, after)) > 0.3
    ]
    for _, _, a, b in sorted(scored):
        if b not in old_of and a not in taken:
            old_of[b] = a
            taken.add(a)
    pairs = [TablePair(old[old_of[b]] if b in old_of else None, after) for b, after in enumerate(new)]
    return (*pairs, *(TablePair(before, None) for a, before in enumerate(old) if a not in taken))


def _content(table: Table) -> object:
    return table.section, table.columns, tuple(_fingerprint(row) for row in table.rows)


@dataclass(frozen=True, slots=True)
class _Traits:
    """What makes tables alike, each counted once for all comparisons."""

    table: Table
    rows: Counter[object]
    names: Counter[object]
    columns: Counter[object]


def _traits(table: Table) -> _Traits:
    return _Traits(
        table,
        Counter(_fingerprint(row) for row in table.rows),
        Counter(_name(row, 2) for row in table.rows),
        Counter(_column_key(name) for name in table.columns),
    )


def _kinship(before: _Traits, after: _Traits) -> float:
    """0 for strangers, up to 3: shared rows, shared first cells, shared columns, the same section."""
    old, new = before.table, after.table
    if not old.rows or not new.rows:
        rows = names = 1.0 if not old.rows and not new.rows and old.columns == new.columns else 0.0
    else:
        rows, names = _overlap(before.rows, after.rows), _overlap(before.names, after.names)
    if rows == names == 0 and old.section != new.section:
        return 0.0
    columns = _overlap(before.columns, after.columns)
    if rows == names == 0 and not columns > 0.5:
        return 0.0
    return rows + names + columns / 2 + (0.5 if old.section == new.section else 0.0)


def _overlap(one: Counter[object], other: Counter[object]) -> float:
    if one.keys().isdisjoint(other):
        return 0.0
    return sum((one & other).values()) / min(one.total(), other.total())


@lru_cache(maxsize=65_536)
def _fingerprint(row: Row) -> tuple[str, ...]:
    cells = [normal(cell) for cell in row.cells]
    while cells and not cells[-1]:
        cells.pop()
    return tuple(cells)


@lru_cache(maxsize=65_536)
def _name(row: Row, width: int) -> tuple[str, ...]:
    return tuple(plain(cell).casefold() for cell in row.cells[:width])


@lru_cache(maxsize=65_536)
def _column_key(name: str) -> str:
    return re.sub(r"[^\w]+", " ", re.sub(r"\([^)]*\)", "", name)).strip().casefold()


def match_columns(old: Table, new: Table) -> dict[int, int]:
    """Which old column is which new one: by name, else by what stands in it, else by place."""
    if "inferred" in (old.header, new.header) and len(old.columns) == len(new.columns):
        return {index: index for index in range(len(old.columns))}
    matched: dict[int, int] = {}
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(new.columns):
        by_name[_column_key(name)].append(index)
    for index, name in enumerate(old.columns):
        if same := by_name[_column_key(name)]:
            matched[index] = same.pop(0)
    rest = [index for index in range(len(old.columns)) if index not in matched]
    for index in rest:
        free = [at for at in range(len(new.columns)) if at not in matched.values()]
        scores = [(_same_cells(old, index, new, at), -abs(at - index), at) for at in free]
        if not scores:
            break
        likeness, _, likely = max(scores)
        if likeness >= 0.5 or (len(old.columns) == len(new.columns) and likely == index and len(rest) == 1):
            matched[index] = likely
    return matched


def _same_cells(old: Table, old_index: int, new: Table, new_index: int) -> float:
    """How much of a column's text is found in the other, by cell."""
    return _overlap(
        Counter(normal(row.cell(old_index)) for row in old.rows if row.cell(old_index)),
        Counter(normal(row.cell(new_index)) for row in new.rows if row.cell(new_index)),
    )


def key_width(*tables: Table) -> int:
    """How many first cells tell the rows apart, at most 3; 1 where even those do not."""
    for width in (1, 2, 3):
        if all(len({_name(row, width) for row in table.rows}) == len(table.rows) for table in tables):
            return width
    duplicates = [sum(len(t.rows) - len({_name(row, width) for row in t.rows}) for t in tables) for width in (1, 2, 3)]
    return 1 + duplicates.index(min(duplicates))


def _shown_width(*tables: Table) -> int:
    """How many first cells name a row to people: a provider says too little, a version belongs to its model."""
    columns = [_column_key(name) for name in tables[-1].columns[:3]]
    width = key_width(*tables)
    for index, name in enumerate(columns):
        if index == 1 and (
            re.search(r"^(model )?versions?$", name) or re.search(r"\b(provider|publisher|vendor)$", columns[index - 1])
        ):
            width = max(width, index + 1)
    return width


@dataclass(frozen=True, slots=True)
class RowPair:
    """What is one row before and after; one side is None for an added or a removed row."""

    old: Row | None
    new: Row | None


def pair_rows(pair: TablePair) -> tuple[RowPair, ...]:
    """Which old row is which new one: equal rows first, then equal keys, then a row rewritten in its place."""
    if pair.old is None or pair.new is None:
        return tuple(
            [RowPair(row, None) for row in (pair.old.rows if pair.old else ())]
            + [RowPair(None, row) for row in (pair.new.rows if pair.new else ())]
        )
    columns = match_columns(pair.old, pair.new)
    old_rows, new_rows = list(pair.old.rows), list(pair.new.rows)
    partner: dict[int, int] = {}

    def match(old_key: Callable[[Row], object], new_key: Callable[[Row], object], *, only_unique: bool) -> None:
        ours, theirs = defaultdict(list), defaultdict(list)
        for a, row in enumerate(old_rows):
            if a not in partner and (key := old_key(row)) is not None:
                ours[key].append(a)
        taken = set(partner.values())
        for b, row in enumerate(new_rows):
            if b not in taken and (key := new_key(row)) is not None:
                theirs[key].append(b)
        for key, left in ours.items():
            right = theirs.get(key, [])
            if len(left) == len(right) and (len(left) == 1 or not only_unique):
                partner.update(zip(left, right, strict=True))
            elif not only_unique:
                partner.update(zip(left, right, strict=False))

    def mapped(row: Row) -> tuple[str, ...]:
        return tuple(normal(row.cell(index)) for index in columns)

    def mapped_new(row: Row) -> tuple[str, ...]:
        return tuple(normal(row.cell(index)) for index in columns.values())

    def first_cells(width: int) -> tuple[Callable[[Row], object], Callable[[Row], object]]:
        ours = [index for index in range(len(pair.old.columns if pair.old else ())) if index in columns][:width]

        def of(indexes: Sequence[int]) -> Callable[[Row], object]:
            def key(row: Row) -> object:
                name = tuple(plain(row.cell(index)).casefold() for index in indexes)
                return name if any(name) else None

            return key

        return of(ours), of([columns[index] for index in ours])

    match(mapped, mapped_new, only_unique=False)
    narrow = key_width(pair.old, pair.new)
    for width in range(max(narrow, 3), narrow - 1, -1):
        match(*first_cells(width), only_unique=width > narrow)
    if narrow > 1:
        _match_in_place(old_rows, new_rows, columns, partner, similarity=0.5)
        for width in range(narrow - 1, 0, -1):
            candidates = dict(partner)
            match(*first_cells(width), only_unique=True)
            for a in [a for a in partner if a not in candidates]:
                if _similarity(old_rows[a], new_rows[partner[a]], columns) < 0.5:
                    del partner[a]
    _match_in_place(old_rows, new_rows, columns, partner, similarity=0.6)
    taken = {b: a for a, b in partner.items()}
    return tuple(
        [RowPair(old_rows[taken[b]] if b in taken else None, row) for b, row in enumerate(new_rows)]
        + [RowPair(row, None) for a, row in enumerate(old_rows) if a not in partner]
    )


def _match_in_place(
    old_rows: Sequence[Row],
    new_rows: Sequence[Row],
    columns: dict[int, int],
    partner: dict[int, int],
    *,
    similarity: float,
) -> None:
    """Pair the rows that stand in the same gap between paired ones, and are alike."""
    taken = {b: a for a, b in partner.items()}
    gaps: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    last = -1
    for a in range(len(old_rows)):
        if a in partner:
            last = a
        else:
            gaps[last][0].append(a)
    last = -1
    for b in range(len(new_rows)):
        if b in taken:
            last = taken[b]
        else:
            gaps[last][1].append(b)
    for ours, theirs in gaps.values():
        for a in ours:
            scores = [(_similarity(old_rows[a], new_rows[b], columns), -b, b) for b in theirs if b not in taken]
            if scores and max(scores)[0] >= similarity:
                best = max(scores)[2]
                partner[a], taken[best] = best, a


def _similarity(old: Row, new: Row, columns: dict[int, int]) -> float:
    """The share of equal cells among those that are not empty on both sides."""
    cells = [(normal(old.cell(a)), normal(new.cell(b))) for a, b in columns.items()]
    told = [(a, b) for a, b in cells if a or b]
    return sum(a == b for a, b in told) / len(told) if told else 0.0


def table_changes(pages: Iterable[Page]) -> tuple[TableChange, ...]:
    """What happened to the tables of some changed files, read together so that rows can move between them."""
    changes: list[TableChange] = []
    for page in pages:
        old, new = page_tables(page)
        for pair in pair_tables(old, new):
            changes += _pair_changes(pair)
    return _with_moves(changes)


def _pair_changes(pair: TablePair) -> Iterator[TableChange]:
    old, new = pair.old, pair.new
    if old and new and _content(old) == _content(new):
        return
    columns = match_columns(old, new) if old and new else {}
    if old and new:
        yield from _column_changes(old, new, columns)
    width = _shown_width(*(table for table in (old, new) if table))
    for rows in pair_rows(pair):
        row = rows.new or rows.old
        if row is None:
            continue
        whole = TableChange(
            kind="row_added" if rows.old is None else "row_removed",
            key=row_key(row, width),
            old_table=old,
            new_table=new,
            old_row=rows.old,
            new_row=rows.new,
        )
        if rows.old is None or rows.new is None:
            yield whole
        elif new:
            yield from _cell_changes(whole, rows.old, rows.new, new, columns)


def row_key(row: Row, width: int = 1) -> str:
    """A row's first cells as people read them."""
    return " · ".join(text for cell in row.cells[:width] if (text := plain(cell)))


def _cell_changes(
    change: TableChange, old: Row, new: Row, table: Table, columns: dict[int, int]
) -> Iterator[TableChange]:
    known = max(len(each.columns) for each in (change.old_table, table) if each)
    beyond = range(known, max(len(old.cells), len(new.cells)))
    for a, b in (*columns.items(), *((index, index) for index in beyond)):
        if normal(old.cell(a)) != normal(new.cell(b)):
            yield replace(change, kind="cell_changed", column=table.column(b), old=old.cell(a), new=new.cell(b))


def _column_changes(old: Table, new: Table, columns: dict[int, int]) -> Iterator[TableChange]:
    if "inferred" in (old.header, new.header):
        return
    for a, name in enumerate(old.columns):
        if a not in columns:
            yield TableChange(kind="column_removed", column=name, old=name, old_table=old, new_table=new)
        elif name != new.columns[columns[a]]:
            now = new.columns[columns[a]]
            yield TableChange(kind="column_renamed", column=now, old=name, new=now, old_table=old, new_table=new)
    for b, name in enumerate(new.columns):
        if b not in columns.values():
            yield TableChange(kind="column_added", column=name, new=name, old_table=old, new_table=new)


def _with_moves(changes: Sequence[TableChange]) -> tuple[TableChange, ...]:
    """Turn a row removed here and added there into one that moved, with the cells that changed on the way."""
    result: list[TableChange | None] = list(changes)
    for width in (3, 2, 1):
        removed, added = defaultdict(list), defaultdict(list)
        for index, change in enumerate(result):
            if change is None:
                continue
            if change.kind == "row_removed" and change.old_row:
                removed[_identity(change.old_row, width)].append(index)
            elif change.kind == "row_added" and change.new_row:
                for wide in (1, 2, 3):
                    added[_identity(change.new_row, wide)].append(index)
        for identity, sources in removed.items():
            targets = sorted(set(added.get(identity, [])))
            if len(sources) != 1 or len(targets) != 1 or not identity:
                continue
            source, target = result[sources[0]], result[targets[0]]
            if source and target and target.kind == "row_added" and source.old_table is not target.old_table:
                result[sources[0]] = None
                result[targets[0]] = replace(
                    target, kind="row_moved", old_row=source.old_row, old_table=source.old_table
                )
    moved: list[TableChange] = []
    for change in result:
        if change is None:
            continue
        moved.append(change)
        if change.kind == "row_moved" and change.old_row and change.new_row and change.old_table and change.new_table:
            columns = match_columns(change.old_table, change.new_table)
            named = {
                a: b
                for a, b in columns.items()
                if _column_key(change.old_table.column(a)) == _column_key(change.new_table.column(b))
            }
            for cell in _cell_changes(change, change.old_row, change.new_row, change.new_table, named):
                if _identity_text(cell.old) != _identity_text(cell.new) and cell.column != change.new_table.column(0):
                    moved.append(cell)
    return tuple(moved)


def _identity(row: Row, width: int) -> str:
    """A row's first cells without punctuation: "`gpt-4` - 0613" in one cell is gpt-4 and 0613 in two."""
    return "".join(_identity_text(cell) for cell in row.cells[:width])


def _identity_text(cell: str) -> str:
    return re.sub(r"[\W_]+", "", plain(cell)).casefold()
