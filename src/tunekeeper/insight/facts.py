"""What a change set proves: facts read from diffs by code, each with its file and lines.

    facts = facts_of(change_set)
    facts["models.md"][0].kind, facts["models.md"][0].subject     # "table_cell_changed", "gpt-4o · 2024-05-13"

Nothing is judged or worded here. Tables come from `diffs/tables.py`, retirements from `lifecycle/`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from tunekeeper.diffs.patch import Hunk, Line, parse_patch
from tunekeeper.diffs.tables import Page, TableChange, table_changes
from tunekeeper.insight.changes import ChangeSet, Fact, FactKind, FileChange
from tunekeeper.insight.inline import Ref, identifiers, refs, without_targets
from tunekeeper.insight.outline import TAB, Place, heading_text, outline
from tunekeeper.insight.source import MARKDOWN
from tunekeeper.lifecycle.retirements import RetirementEvent, retirement_events

METADATA_KEYS = frozenset(
    re.findall(
        r"\S+",
        "ai-usage author contributors date editor lastmod last_modified last_updated manager modified recommendations "
        "reviewer robots update_date updated",
    )
)
"""Keys of front matter that say who and when, not what; those that begin with `ms.` do too."""
CODE = frozenset(
    re.findall(
        r"\S+",
        ".bicep .c .cpp .cs .css .go .h .html .ipynb .java .js .json .jsx .kt .php .ps1 .py .rb .rs .sh .sql .swift "
        ".tf .toml .ts .tsx .xml .yaml .yml",
    )
)
IMAGES = frozenset((".avif", ".bmp", ".gif", ".ico", ".jpeg", ".jpg", ".png", ".svg", ".webp"))

_LIFECYCLE = ("retire", "deprecat", "legacy", "sunset", "shutdown", "shut down", "end of", "eol", "date", "upgrade")
"""What the header of a table of retirements has at least one of, in small letters."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
"""A word; of scripts that put no blanks between words, a character."""
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_MAX_CELLS = 900
"""Lines removed times lines added, up to which the lines of a block are paired by their words."""
_LEAST_ALIKE = 0.3
_PIVOT = re.compile(r"^\s*:::\s*(?:zone|moniker)\s+(?:pivot|range)\s*=\s*\"([^\"]*)\"")


def facts_of(change_set: ChangeSet) -> dict[str, tuple[Fact, ...]]:
    """The facts of each file by its name, in the order of its lines; every file of the change set has its entry."""
    found: dict[str, list[Fact]] = {change.filename: [] for change in change_set.files}
    pages: list[Page] = []
    for change in change_set.files:
        hunks = parse_patch(change.patch or "")
        found[change.filename] += _file_facts(change, hunks)
        if _suffix(change.filename) in MARKDOWN:
            found[change.filename] += _Markdown(change, hunks).facts()
            if any("|" in line.text for hunk in hunks for line in hunk.lines if line.sign != " "):
                pages.append(Page(change.filename, hunks, change.old_text, change.new_text, change.previous_filename))
        elif change.status not in ("added", "removed"):
            found[change.filename] += _plain_facts(change, hunks)
    now = {change.previous_filename: change.filename for change in change_set.files if change.previous_filename}
    tabular = [_named(fact, now) for table_change in table_changes(pages) for fact in _table_facts(table_change)]
    # Models live in tables: a page without a changed table has no event.
    changed = {fact.filename for fact in tabular}
    events = retirement_events(page for page in pages if page.filename in changed and _may_retire(page))
    for fact in (*tabular, *(_named(_retirement_fact(event), now) for event in events)):
        found[fact.filename].append(fact)
    for change in change_set.files:
        if change.patch and not found[change.filename]:
            found[change.filename].append(_formatting(change))
    return {name: tuple(sorted(facts, key=_place)) for name, facts in found.items()}


def _named(fact: Fact, now: Mapping[str, str]) -> Fact:
    """The fact under its file's name of today."""
    return replace(fact, filename=now[fact.filename]) if fact.filename in now else fact


def _place(fact: Fact) -> tuple[bool, int]:
    lines = fact.new_lines or fact.old_lines
    return (not fact.kind.startswith("file_"), lines[0] if lines else 0)


def _file_facts(change: FileChange, hunks: Sequence[Hunk]) -> Iterator[Fact]:
    """What happened to the file as a whole."""
    name = change.filename
    suffix = _suffix(name)
    if change.status == "renamed":
        yield Fact(kind="file_renamed", filename=name, old=change.previous_filename or "", new=name)
    if change.status == "copied":
        yield Fact(kind="file_added", filename=name, subject=name, data={"copied_from": change.previous_filename})
    if change.status in ("added", "removed"):
        is_added = change.status == "added"
        lines = [line.text for hunk in hunks for line in hunk.lines if line.sign != " "]
        whole = (1, len(lines)) if lines else None
        yield Fact(
            kind="file_added" if is_added else "file_removed",
            filename=name,
            new_lines=whole if is_added else None,
            old_lines=None if is_added else whole,
            subject=_title(lines) if suffix in MARKDOWN else "",
            data={"is_image": suffix in IMAGES, "n_lines": change.changes},
        )
    elif change.is_binary:
        data = {"is_image": suffix in IMAGES}
        yield Fact(kind="file_binary", filename=name, subject=PurePosixPath(name).name, data=data)


def _title(lines: Iterable[str]) -> str:
    """The first heading of a page, or the title of its front matter."""
    title = ""
    for line in lines:
        if not title and line.startswith("title:"):
            title = line.partition(":")[2].strip().strip("\"'")
        if line.startswith("# "):
            return heading_text(line)[1]
    return title


def _formatting(change: FileChange) -> Fact:
    """Nothing but spaces, blank lines or the widths of columns changed."""
    data = {"is_formatting": True}
    return Fact(kind="text_changed", filename=change.filename, is_metadata=True, data=data)


# --- files that are not Markdown -------------------------------------------------------------------------------------


def _plain_facts(change: FileChange, hunks: Sequence[Hunk]) -> Iterator[Fact]:
    name, suffix = change.filename, _suffix(change.filename)
    for hunk in hunks:
        for run in _runs(hunk):
            if not any(line.text.strip() for line in run):
                continue
            old, new = _sides(run)
            if suffix in CODE:
                yield _code_fact(name, hunk.section, suffix[1:], old, new)
            else:
                yield from (replace(fact, section=hunk.section) for fact in _text_facts(name, old, new, lambda _: ""))


# --- Markdown --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _CodeBlock:
    old: list[Line] = field(default_factory=list)
    new: list[Line] = field(default_factory=list)
    section: str = ""
    language: str = ""
    is_part: bool = False
    """Some of its lines stayed."""


class _Markdown:
    """One Markdown file's changes, sorted by what their lines are."""

    def __init__(self, change: FileChange, hunks: Sequence[Hunk]) -> None:
        self._name = change.filename
        self._is_page = change.status in ("added", "removed")
        self._hunks = hunks
        self._old = _places(hunks, change.old_text, is_old=True)
        self._new = _places(hunks, change.new_text, is_old=False)

    def facts(self) -> Iterator[Fact]:
        yield from self._front_matter()
        yield from self._references()
        yield from self._code()
        for hunk in self._hunks:
            for run in _runs(hunk):
                kinds = {self._at(line).kind for line in run}
                if "heading" in kinds:
                    yield from self._headings(*_sides(run))
                if "tab" in kinds or any(":::" in line.text for line in run):
                    yield from self._tabs(*_sides(run))
            for run in _runs(hunk, over_blanks=True) if not self._is_page else ():
                old, new = _sides(run)
                yield from _text_facts(self._name, self._prose(old), self._prose(new), self._section)

    def _at(self, line: Line) -> Place:
        if line.sign == "-":
            return self._old.get(line.old_number or 0, _NOWHERE)
        return self._new.get(line.new_number or 0, _NOWHERE)

    def _section(self, line: Line) -> str:
        return self._at(line).section

    def _changed(self) -> Iterator[Line]:
        return (line for hunk in self._hunks for line in hunk.lines if line.sign != " ")

    def _of(self, lines: Iterable[Line], *kinds: str) -> list[Line]:
        return [line for line in lines if self._at(line).kind in kinds]

    def _prose(self, lines: Iterable[Line]) -> list[Line]:
        return [line for line in self._of(lines, "text") if not _is_reference_only(line.text)]

    def _front_matter(self) -> Iterator[Fact]:
        keys: dict[str, tuple[list[Line], list[Line]]] = defaultdict(lambda: ([], []))
        for line in self._changed():
            place = self._at(line)
            if place.kind == "front" and line.text.strip() and line.text.rstrip() != "---":
                keys[place.key][line.sign == "+"].append(line)
        if self._is_page:
            return  # the fact of the file says its title; the rest of a new page's front matter is no change
        for key, (old, new) in keys.items():
            before, after = (" ".join(_value(line.text, key) for line in side) for side in (old, new))
            if before != after:
                yield Fact(
                    kind="front_matter_changed",
                    filename=self._name,
                    old_lines=_span(old),
                    new_lines=_span(new),
                    subject=key,
                    old=before,
                    new=after,
                    is_metadata=key.startswith("ms.") or key.lower() in METADATA_KEYS,
                )

    def _headings(self, old: Sequence[Line], new: Sequence[Line]) -> Iterator[Fact]:
        before, after = self._of(old, "heading"), self._of(new, "heading")
        levels = {heading_text(line.text)[0] for line in (*before, *after)}
        is_same_place = len(before) == len(after) == len(levels) == 1
        for one, other in _aligned(before, after, least=0.0 if is_same_place else _LEAST_ALIKE):
            line = other or one
            assert line is not None
            (_, was), (_, now) = (heading_text(side.text) if side else (0, "") for side in (one, other))
            kind: FactKind = (
                "heading_added" if one is None else "heading_removed" if other is None else "heading_changed"
            )
            yield Fact(
                kind=kind,
                filename=self._name,
                old_lines=_span([one]),
                new_lines=_span([other]),
                section=self._section(line),
                subject=now or was,
                old=was,
                new=now,
                data={"level": heading_text(line.text)[0]},
            )

    def _tabs(self, old: Sequence[Line], new: Sequence[Line]) -> Iterator[Fact]:
        before, after = ([(line, name) for line in side if (name := self._tab(line))] for side in (old, new))
        kept = {name for _, name in before} & {name for _, name in after}
        for side, kind in ((before, "tab_removed"), (after, "tab_added")):
            for line, name in side:
                if name not in kept:
                    yield self._small(kind, line, subject=name)

    def _tab(self, line: Line) -> str:
        place = self._at(line)
        if place.kind == "tab" and (match := TAB.match(heading_text(line.text)[1])):
            return match[1]
        match = _PIVOT.match(line.text) if place.kind == "text" else None
        return match[1] if match else ""

    def _references(self) -> Iterator[Fact]:
        """Links, images and includes that came, went or point elsewhere, over the whole file."""
        kinds = ("text", "heading", "table", "blank", "tab")
        sides: tuple[list[_Pointer], list[_Pointer]] = ([], [])
        for line in self._of(self._changed(), *kinds):
            if self._at(line).kind != "tab":
                sides[line.sign == "+"].extend(_Pointer(line, ref) for ref in refs(line.text))
        old, new = sides
        for kind in ("link", "image", "include"):
            was = [pointer for pointer in old if pointer.ref.kind == kind]
            now = [pointer for pointer in new if pointer.ref.kind == kind]
            _matched(was, now, lambda ref: (ref.text, ref.target))
            by_text = _matched(was, now, lambda ref: ref.text) if kind != "include" else []
            by_target = _matched(was, now, lambda ref: ref.target)
            for before, after in by_text:
                yield self._reference("link_target_changed" if kind == "link" else "image_changed", before, after)
            for before, after in by_target:
                if kind == "image":  # another text of a link is a change of the prose around it
                    yield self._reference("image_changed", before, after)
            removed: FactKind = f"{kind}_removed"  # type: ignore[assignment]
            added: FactKind = f"{kind}_added"  # type: ignore[assignment]
            yield from (self._reference(removed, pointer, None) for pointer in was)
            yield from (self._reference(added, None, pointer) for pointer in now)

    def _reference(self, kind: FactKind, before: "_Pointer | None", after: "_Pointer | None") -> Fact:
        pointer = after or before
        assert pointer is not None
        was, now = (side.ref.target if side else "" for side in (before, after))
        part = "target"
        if before and after and was == now:
            part, was, now = "text", before.ref.text, after.ref.text
        return Fact(
            kind=kind,
            filename=self._name,
            old_lines=_span([before.line if before else None]),
            new_lines=_span([after.line if after else None]),
            section=self._section(pointer.line),
            subject=pointer.ref.text or pointer.ref.target,
            part=part,
            old=was,
            new=now,
        )

    def _code(self) -> Iterator[Fact]:
        """Each block of code that was touched, as one fact."""
        same: dict[int, int] = {}
        for line in (line for hunk in self._hunks for line in hunk.lines if line.sign == " "):
            was, now = self._old.get(line.old_number or 0, _NOWHERE), self._new.get(line.new_number or 0, _NOWHERE)
            if was.block and now.block:
                same[now.block] = was.block
        kept = {*same.values()}
        blocks: dict[tuple[str, int], _CodeBlock] = {}
        for hunk in self._hunks:
            for run in _runs(hunk):
                old, new = (self._of(side, "code", "fence") for side in _sides(run))
                if not old and not new:
                    continue
                same = {
                    **_paired([self._at(line).block for line in old], [self._at(line).block for line in new]),
                    **same,
                }
                for line in (*old, *new):
                    place = self._at(line)
                    number = place.block if line.sign == "-" else same.get(place.block)
                    key = ("new", place.block) if number is None else ("old", number)
                    block = blocks.setdefault(key, _CodeBlock(is_part=number in kept or place.block < 0))
                    block.section, block.language = place.section, place.language or block.language
                    if place.kind == "code":
                        (block.new if line.sign == "+" else block.old).append(line)
        for block in blocks.values():
            if any(line.text.strip() for line in (*block.old, *block.new)):
                yield _code_fact(self._name, block.section, block.language, block.old, block.new, is_part=block.is_part)

    def _small(self, kind: Any, line: Line, *, subject: str) -> Fact:
        is_old = line.sign == "-"
        return Fact(
            kind=kind,
            filename=self._name,
            old_lines=_span([line]) if is_old else None,
            new_lines=None if is_old else _span([line]),
            section=self._section(line),
            subject=subject,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Pointer:
    line: Line
    ref: Ref


_NOWHERE = Place("text")


def _places(hunks: Sequence[Hunk], text: str | None, *, is_old: bool) -> Mapping[int, Place]:
    """What the lines of the hunks are, on one side."""
    sides = [
        [(number, line.text) for line in hunk.lines if (number := line.old_number if is_old else line.new_number)]
        for hunk in hunks
    ]
    if text is not None:
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        if all(n <= len(lines) and lines[n - 1] == shown for side in sides for n, shown in side):
            wanted = {number for side in sides for number, _ in side}
            return outline(list(enumerate(lines, 1)), wanted=wanted, is_whole=True)
    found: dict[int, Place] = {}
    for side in sides:
        found |= outline(side, wanted=range(10**9), is_whole=False)
    return found


def _matched(was: list[_Pointer], now: list[_Pointer], key: Any) -> list[tuple[_Pointer, _Pointer]]:
    """Take out of both lists what has the same key, in order, and return it in pairs."""
    waiting: dict[Any, list[_Pointer]] = defaultdict(list)
    for pointer in now:
        waiting[key(pointer.ref)].append(pointer)
    pairs = []
    for pointer in was:
        if waiting[key(pointer.ref)]:
            pairs.append((pointer, waiting[key(pointer.ref)].pop(0)))
    gone = {id(pointer) for pair in pairs for pointer in pair}
    was[:] = [pointer for pointer in was if id(pointer) not in gone]
    now[:] = [pointer for pointer in now if id(pointer) not in gone]
    return pairs


def _paired(old: Sequence[int], new: Sequence[int]) -> dict[int, int]:
    """New blocks of code that stand where old ones stood, in order."""
    befores, afters = list(dict.fromkeys(old)), list(dict.fromkeys(new))
    return dict(zip(afters, befores, strict=False))


def _is_reference_only(text: str) -> bool:
    """Whether a line is nothing but an image, an include or a pivot, which have facts of their own."""
    if ":::" not in text and "![" not in text and "[!" not in text:
        return False
    bare = text.strip().lstrip("> -*").strip()
    if _PIVOT.match(bare) or bare in (":::", ":::zone-end", ":::moniker-end", "::: zone-end"):
        return True
    if not bare.startswith((":::image", "::: image", ":::code", "::: code", "![", "[!INCLUDE", "[!include", "[!code")):
        return False
    return bare.endswith((":::", ")", "]")) and any(ref.kind != "link" for ref in refs(text))


def _value(text: str, key: str) -> str:
    return text.removeprefix(f"{key}:").strip() if key else text.strip()


# --- tables ----------------------------------------------------------------------------------------------------------

_TABLE_KINDS: Mapping[str, FactKind] = {
    "row_added": "table_row_added",
    "row_removed": "table_row_removed",
    "row_moved": "table_row_moved",
    "cell_changed": "table_cell_changed",
    "column_added": "table_column_added",
    "column_removed": "table_column_removed",
    "column_renamed": "table_column_added",
}


def _table_facts(change: TableChange) -> Iterator[Fact]:
    table = change.new_table or change.old_table
    if change.kind in ("row_removed", "column_removed"):
        table = change.old_table or table
    assert table is not None
    old, new = change.old_row, change.new_row
    data: dict[str, Any] = {}
    if row := new or old:
        data["row"] = {table.column(index): cell for index, cell in enumerate(row.cells)}
    is_row = change.kind in ("row_added", "row_removed", "row_moved")
    fact = Fact(
        kind=_TABLE_KINDS[change.kind],
        filename=table.filename,
        old_lines=(old.line, old.line) if old else None,
        new_lines=(new.line, new.line) if new else None if old else (table.line, table.line),
        section=table.section,
        subject=change.key,
        part=change.column,
        old=" | ".join(old.cells) if is_row and old else change.old,
        new=" | ".join(new.cells) if is_row and new else change.new,
        data=data,
    )
    origin = change.old_table
    if change.kind == "row_moved" and origin:
        yield replace(fact, data={**data, "from_file": origin.filename, "from_section": origin.section})
        if origin.filename != table.filename:  # told where it went as well as where it came
            went = {**data, "to_file": table.filename, "to_section": table.section}
            yield replace(fact, filename=origin.filename, section=origin.section, new_lines=None, data=went)
    elif change.kind == "column_renamed" and origin:
        yield replace(fact, old="")
        lines = (origin.line, origin.line)
        yield replace(
            fact, kind="table_column_removed", old_lines=lines, new_lines=None, part=change.old, old=change.old, new=""
        )
    else:
        yield fact


def _may_retire(page: Page) -> bool:
    """Whether a table's header may speak of retirement; where headers may be outside the hunks, any page may."""
    if page.new_text is None and page.old_text is None:
        return True
    texts = (text.lower() for text in (page.old_text, page.new_text) if text is not None)
    return any(word in line for text in texts for line in text.split("\n") if "|" in line for word in _LIFECYCLE)


def _retirement_fact(event: RetirementEvent) -> Fact:
    record = event.new or event.old
    assert record is not None
    return Fact(
        kind="retirement",
        filename=record.filename,
        old_lines=(event.old.line, event.old.line) if event.old else None,
        new_lines=(event.new.line, event.new.line) if event.new else None,
        section=record.section,
        subject=" · ".join(filter(None, (event.model, event.version))),
        part=event.field,
        old=event.old_text or "",
        new=event.new_text or "",
        data={**event.to_dict(), "publisher": event.publisher},
    )


# --- text and code ---------------------------------------------------------------------------------------------------


def _code_fact(
    filename: str, section: str, language: str, old: Sequence[Line], new: Sequence[Line], *, is_part: bool = True
) -> Fact:
    before, after = ("\n".join(line.text for line in side) for side in (old, new))
    was, now = dict.fromkeys(identifiers(before)), dict.fromkeys(identifiers(after))
    kind: FactKind = "code_changed" if is_part or (old and new) else "code_added" if new else "code_removed"
    return Fact(
        kind=kind,
        filename=filename,
        old_lines=_span(old),
        new_lines=_span(new),
        section=section,
        subject=language,
        old=before,
        new=after,
        is_metadata=before.split() == after.split(),
        data={
            "identifiers_added": tuple(name for name in now if name not in was),
            "identifiers_removed": tuple(name for name in was if name not in now),
        },
    )


def _text_facts(
    filename: str, old: Sequence[Line], new: Sequence[Line], section: Callable[[Line], str]
) -> Iterator[Fact]:
    """One fact for each line that was rewritten, and for each run of lines that came or went."""
    for befores, afters in _grouped(_aligned(old, new), section):
        before, after = ("\n".join(line.text.strip() for line in side) for side in (befores, afters))
        if not before.strip() and not after.strip():
            continue
        is_formatting = before.split() == after.split()
        if not is_formatting and without_targets(before) == without_targets(after):
            continue  # only a link's target: that has its own fact
        yield Fact(
            kind="text_changed" if befores and afters else "text_added" if afters else "text_removed",
            filename=filename,
            old_lines=_span(befores),
            new_lines=_span(afters),
            section=section((*afters, *befores)[0]),
            old=before,
            new=after,
            is_metadata=is_formatting,
            data={"is_formatting": True} if is_formatting else {},
        )


def _aligned(
    old: Sequence[Line], new: Sequence[Line], *, least: float = _LEAST_ALIKE
) -> list[tuple[Line | None, Line | None]]:
    """Old and new lines in order, those side by side that share most of their words."""
    if not old or not new or len(old) * len(new) > _MAX_CELLS:
        return [*((line, None) for line in old), *((None, line) for line in new)]
    words = [[_words(line.text) for line in side] for side in (old, new)]
    alike = [[_overlap(a, b) for b in words[1]] for a in words[0]]
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            together = best[i + 1][j + 1] + alike[i][j] if alike[i][j] >= least else -1.0
            best[i][j] = max(together, best[i + 1][j], best[i][j + 1])
    pairs: list[tuple[Line | None, Line | None]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        if alike[i][j] >= least and best[i][j] == best[i + 1][j + 1] + alike[i][j]:
            pairs.append((old[i], new[j]))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            pairs.append((old[i], None))
            i += 1
        else:
            pairs.append((None, new[j]))
            j += 1
    return [*pairs, *((line, None) for line in old[i:]), *((None, line) for line in new[j:])]


def _words(text: str) -> frozenset[str]:
    return frozenset((_ASCII_WORD if text.isascii() else _WORD).findall(text))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared or 1)


def _grouped(
    pairs: Sequence[tuple[Line | None, Line | None]], section: Callable[[Line], str]
) -> Iterator[tuple[list[Line], list[Line]]]:
    """Rewritten lines one by one; lines that came or went together, and in one section, as one group."""
    for is_pair, run in groupby(pairs, lambda pair: None not in pair):
        if is_pair:
            yield from (([before], [after]) for before, after in run if before and after)
            continue
        lines = list(run)
        for olds in groupby((line for line, _ in lines if line), section):
            yield list(olds[1]), []
        for news in groupby((line for _, line in lines if line), section):
            yield [], list(news[1])


def _runs(hunk: Hunk, *, over_blanks: bool = False) -> Iterator[list[Line]]:
    """Changed lines that no context parts, or none but blank lines."""
    run: list[Line] = []
    for line in hunk.lines:
        if line.sign != " ":
            run.append(line)
        elif run and not (over_blanks and not line.text.strip()):
            yield run
            run = []
    if run:
        yield run


def _sides(run: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    sides: tuple[list[Line], list[Line]] = ([], [])
    for line in run:
        sides[line.sign == "+"].append(line)
    return sides


def _span(lines: Sequence[Line | None]) -> tuple[int, int] | None:
    numbers = [line.old_number or line.new_number or 0 for line in lines if line]
    return (numbers[0], numbers[-1]) if numbers else None


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
