"""Tables of model retirements, in a change or in a whole page, as records and events.

A record is one model and version in one table: what its row says in each column whose meaning is known. Two sides of
a change are matched by model and version, never by line, so that realigned, re-ordered and split tables give no event;
each difference that is left is one event.

    for event in retirement_events([Page("retirements.md", parse_patch(patch))]):
        print(event.model, event.version, event.kind, event.old_date, "->", event.new_date)
    for record in read_records(text, filename="retirements.md"):
        print(record.model, record.readings["retirement_date"].date)

A new kind of column is one line in `_ROLES`.
"""

import datetime
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Literal

from tunekeeper.diffs.tables import Page, Row, Table, page_tables, plain, read_tables
from tunekeeper.lifecycle.dates import Qualifier, Reading, cell_text, is_empty, read_date

TableKind = Literal["current", "retired", "provider_lifecycle", "fine_tuned", "default_upgrade"]
EventKind = Literal[
    "date_set",
    "date_extended",
    "date_brought_forward",
    "date_removed",
    "date_reworded",
    "qualifier_changed",
    "inline_deprecation_changed",
    "auto_upgrade_set",
    "auto_upgrade_changed",
    "auto_upgrade_removed",
    "replacement_set",
    "replacement_changed",
    "replacement_removed",
    "version_changed",
    "other_changed",
    "model_added",
    "model_removed",
    "moved_to_retired",
    "moved_to_current",
]

DATE_FIELDS = (
    "legacy_date",
    "deprecation_date",
    "retirement_date",
    "training_retirement_date",
    "deployment_retirement_date",
)
_RETIREMENTS = ("retirement_date", "training_retirement_date", "deployment_retirement_date")

_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("other:new_default_version", r"new default"),
        ("other:default_upgrade", r"default upgrade|upgrade date"),
        ("version", r"^(?:current default )?(?:model )?versions?$"),
        ("replacement", r"replace|successor|alternative|migrat|suggested|recommended"),
        ("training_retirement_date", r"\b(?:train|fine.?tun)\w*.*(?:retire|\bdate|sunset)"),
        ("deployment_retirement_date", r"\b(?:deploy|inference)\w*.*(?:retire|\bdate|sunset)"),
        ("retirement_date", r"retire|shut ?down|sunset|end of (?:life|support)|\beol\b|discontinu"),
        ("deprecation_date", r"deprecat"),
        ("legacy_date", r"legacy"),
        ("other:lifecycle_status", r"life ?cycle|status|stage|\bstate\b"),
        ("provider", r"provider|publisher|vendor"),
        ("model", r"^(?:api |base |foundry |deprecated |legacy )*models?(?: names?| ids?| system)?$|^model\b|^name$"),
    )
)
_LIFECYCLE = re.compile(
    r"^(?:preview|ga|generally available(?: \(ga\))?|legacy|deprecat(?:ed|ing)|retired|stable|active)$", re.IGNORECASE
)
_RETIRED = re.compile(
    r"\b(?:deprecated|retired)\b.*\bmodels\b|\bmodels\b.*\b(?:retired|deprecated)$|^(?:retired|deprecated)$"
)
_WERE_RETIRED = re.compile(r"\bmodels (?:were|have been|are) (?:already )?retired\b")
_SPEAKS_OF_RETIREMENT = re.compile(
    r"retire|deprecat|life-?\s?cycle|legacy|sunset|shut ?down|no earlier than|end.of.(?:life|support)", re.IGNORECASE
)
_VERSION = re.compile(r"^(?:v?\d[\w.]*(?:-[\w.]+)*|(?:turbo|vision|preview)(?:-[\w.-]+)?|latest)$", re.IGNORECASE)
_VERSION_IN_NAME = re.compile(
    r"^(?P<model>.*?\S)\s*(?:"
    r"\(\s*(?:versions?\s*:?\s*)?(?P<a>[\w.-]+)\s*\)"
    r"|\s[-–—]\s*(?P<b>v?\d[\w.-]*|[\w.]+-preview|turbo-[\w.-]+)"
    r"|,?\s+versions?\s*:?\s*(?P<c>[\w.-]+)"
    r"|\s+(?P<d>\d{4}(?:-\d{2}-\d{2})?)"
    r")$",
    re.IGNORECASE,
)
_BREAK = re.compile(r"\s*<br\s*/?>\s*", re.IGNORECASE)
_LISTED = re.compile(r"\s*(?:,|;|&|\band\b|\bor\b)\s*(?=[`\[*])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One model and version in one table."""

    table: TableKind
    model: str
    version: str
    publisher: str = ""
    cells: Mapping[str, str]
    """By role, as plain text; a column of unknown meaning is `other:its_name`."""
    readings: Mapping[str, Reading]
    """Of the date columns."""
    filename: str = ""
    line: int = 0
    section: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same model on the other side."""
        return (_folded(self.publisher), _folded(self.model), _folded(self.version))


@dataclass(frozen=True, kw_only=True, slots=True)
class RetirementEvent:
    """One fact about a model's life, and where it stands."""

    table: str
    model: str
    version: str
    kind: EventKind
    field: str
    old_text: str | None = None
    new_text: str | None = None
    old_date: datetime.date | None = None
    new_date: datetime.date | None = None
    old_qualifier: Qualifier | None = None
    new_qualifier: Qualifier | None = None
    delta_days: int | None = None
    old: Record | None = dataclass_field(default=None, repr=False)
    new: Record | None = dataclass_field(default=None, repr=False)

    @property
    def publisher(self) -> str:
        """Whose model it is, "" where the page does not say."""
        record = self.new or self.old
        return record.publisher if record else ""

    def to_dict(self) -> dict[str, Any]:
        """The event in the words of `tunekeeper retirements events`: which names are there depends on the kind."""
        common = {name: getattr(self, name) for name in ("table", "model", "version", "kind", "field")}
        if self.kind in ("model_added", "model_removed"):
            record = self.new or self.old
            assert record is not None
            return {
                **common,
                "cells": dict(record.cells),
                "dates": {name: _reading_dict(reading) for name, reading in record.readings.items()},
            }
        shown: dict[str, Any] = {**common, "old_text": self.old_text, "new_text": self.new_text}
        if self.kind.startswith(("date_", "qualifier_", "moved_", "auto_upgrade_")):
            shown |= {"old_date": _iso(self.old_date), "new_date": _iso(self.new_date)}
        if self.kind.startswith(("date_", "qualifier_", "moved_")):
            shown |= {"old_qualifier": self.old_qualifier, "new_qualifier": self.new_qualifier}
        if self.kind.startswith(("date_", "qualifier_")):
            shown["delta_days"] = self.delta_days
        return shown


def read_records(text: str, *, filename: str = "") -> tuple[Record, ...]:
    """The records of a whole page."""
    return tuple(record for table in read_tables(text, filename=filename) for record in table_records(table))


def retirement_events(pages: Iterable[Page]) -> tuple[RetirementEvent, ...]:
    """What some changed files, read together, say about models' lives."""
    old: list[Record] = []
    new: list[Record] = []
    for page in pages:
        before, after = page_tables(page)
        old += [record for table in before for record in table_records(table)]
        new += [record for table in after for record in table_records(table)]
    return tuple(_events(old, new))


def not_understood(records: Iterable[Record]) -> Iterator[tuple[Record, str]]:
    """The dates that stand there but could not be read, each with its record and field."""
    for record in records:
        for name, reading in record.readings.items():
            if not reading.is_understood:
                yield record, name


# --- tables to records -----------------------------------------------------------------------------------------------


def table_records(table: Table) -> Iterator[Record]:
    """The records of a table; none where it is not about the retirement of models."""
    roles = _roles(table)
    if "model" not in roles or not (set(roles) & {*DATE_FIELDS, "other:default_upgrade"}):
        return
    kind = _table_kind(roles, table)
    for row in table.rows:
        for model, version, cells in _models(row, roles):
            if not model:
                continue
            texts = {role: cell_text(cell) for role, cell in cells.items()} | {"model": model}
            if "version" in roles or version:
                texts["version"] = version
            yield Record(
                table=kind,
                model=model,
                version=version,
                publisher=texts.get("provider", "") or _publisher(table),
                cells=texts,
                readings={
                    role: read_date(cell, about="deprecation" if role == "deprecation_date" else "retirement")
                    for role, cell in cells.items()
                    if role in DATE_FIELDS
                },
                filename=table.filename,
                line=row.line,
                section=table.section,
            )


def _roles(table: Table) -> tuple[str, ...]:
    """The meaning of each column: from its name, or from the rows where the header is outside the hunk."""
    if table.header == "inferred":
        return _inferred_roles(table)
    roles: list[str] = []
    for name in table.columns:
        key = re.sub(r"[^\w]+", " ", re.sub(r"\([^)]*\)", "", name)).strip().casefold()
        role = next((role for role, pattern in _ROLES if pattern.search(key)), "")
        if not role or role in roles:
            role = f"other:{key.replace(' ', '_')}"
        roles.append(role)
    if (
        "model" not in roles
        and roles
        and "retirement_date" in roles
        and re.search(r"\bmodel", " ".join(table.headings))
    ):
        roles[0] = "model" if roles[0].startswith("other:") else roles[0]
    return tuple(roles)


def _inferred_roles(table: Table) -> tuple[str, ...]:
    """Roles by what the cells are, for the layouts that such tables have; none where nothing speaks of retirement."""
    rows = table.evidence or table.rows
    said = [table.filename, *table.headings, *(cell for row in rows for cell in row.cells)]
    if not any(_SPEAKS_OF_RETIREMENT.search(text) for text in said):
        return ()
    width = max((len(row.cells) for row in rows), default=0)
    columns = [[text for row in rows if not is_empty(text := cell_text(row.cell(at)))] for at in range(width)]
    status = next((i for i, texts in enumerate(columns) if i and _mostly(texts, _LIFECYCLE.match)), None)
    dated = [index for index, texts in enumerate(columns) if index and _mostly(texts, _is_dated)]
    # a version is often an ISO date too: the column behind the model, if it holds nothing but such
    versions = [index for index in (1, 2) if index < width and index != status and _is_version(columns[index])]
    if versions and len(dated) > 1 and versions[0] in dated:
        dated.remove(versions[0])
    elif versions and versions[0] in dated:
        versions = []
    if not dated:
        return ()
    upgrade = [index for index in dated if _mostly(columns[index], lambda text: "upgraded to" in text.lower())]
    if width == 4 and versions == [1, 2] and upgrade == [3]:
        return ("model", "version", "other:new_default_version", "other:default_upgrade")
    first = min(dated)
    if status is not None and 0 < status < first:
        first = status + 1  # a date column right behind the stage may be empty
    before = [index for index in range(first) if index != status]
    roles = [""] * width
    has_version = bool(versions and versions[0] < first) or _is_blank_version(table, columns, before)
    named = {1: ("model",), 2: ("model", "version") if has_version else ("provider", "model")}
    for index, role in zip(before, named.get(len(before), ("provider", "model", "version")), strict=False):
        roles[index] = role
    if roles.count("model") == 1 and len(before) == 2 and not columns[before[1]] and not has_version:
        roles[before[0]], roles[before[1]] = "model", "deprecation_date"
    last = max(dated)
    if status is not None:
        roles[status] = "other:lifecycle_status"
    span = [index for index in range(first, last + 1) if index != status]
    for index, role in zip(span, _date_roles(len(span), has_version, last + 1 < width), strict=False):
        roles[index] = role
    if last + 1 < width:
        roles[last + 1] = "replacement"
    return tuple(role or f"other:column_{index + 1}" for index, role in enumerate(roles))


def _date_roles(count: int, has_version: bool, has_more: bool) -> tuple[str, ...]:
    if count == 1:
        return ("retirement_date",)
    if count == 2 and has_version and not has_more:
        return ("training_retirement_date", "deployment_retirement_date")
    return ("legacy_date", "deprecation_date", "retirement_date")[-count:] if count <= 3 else ()


def _is_dated(text: str) -> bool:
    reading = read_date(text)
    beside = reading.auto_upgrade or reading.deprecation
    return bool(reading.date or beside) or re.search(r"\bretirement$|^(?:tbd|tba)$", text, re.IGNORECASE) is not None


def _is_version(texts: Sequence[str]) -> bool:
    return bool(texts) and all(_VERSION.match(text) and not re.match(r"\d{1,2}/\d", text) for text in texts)


def _is_blank_version(table: Table, columns: Sequence[Sequence[str]], before: Sequence[int]) -> bool:
    """Whether the empty second column is that of versions: it is not where the model's cell tells the version."""
    if len(before) != 2 or columns[before[1]]:
        return False
    return not any(_VERSION_IN_NAME.match(text) for text in columns[before[0]])


def _mostly(texts: Sequence[str], holds: Any) -> bool:
    return bool(texts) and sum(bool(holds(text)) for text in texts) * 2 > len(texts)


def _table_kind(roles: Sequence[str], table: Table) -> TableKind:
    headings = " / ".join(table.headings[-2:]).casefold()
    if "other:default_upgrade" in roles and "retirement_date" not in roles:
        return "default_upgrade"
    if "training_retirement_date" in roles or "deployment_retirement_date" in roles:
        return "fine_tuned"
    if _is_of_the_past(table):
        return "retired"
    if "legacy_date" in roles or "provider" in roles:
        return "provider_lifecycle"
    if "current" in headings or "version" in roles or "other:lifecycle_status" in roles:
        return "current"
    return "retired" if "deprecation_date" in roles else "current"


def _is_of_the_past(table: Table) -> bool:
    """Whether the nearest heading above that is no publisher's name says that the models are retired."""
    above = next((text for text in reversed(table.headings) if not _IS_PUBLISHER.fullmatch(text.strip())), "")
    words = above.casefold()
    if len(words.split()) > 6:  # prose that git took for a heading
        return _WERE_RETIRED.search(words) is not None
    return _RETIRED.search(words) is not None


_PUBLISHERS = (
    "AI21 Labs|Anthropic|Azure OpenAI|Black Forest Labs|Bria|Cohere|Core42|Databricks|DeepSeek|Fireworks|Google|Gretel"
    "|Meta|Microsoft|Mistral AI|MoonshotAI|Nixtla|NTT Data|NVIDIA|OpenAI|OpenAI-OSS|Stability AI|xAI|Alibaba|Amazon"
    "|Writer"
)
_IS_PUBLISHER = re.compile(rf"({_PUBLISHERS})(?: models)?", re.IGNORECASE)


def _publisher(table: Table) -> str:
    """The publisher that a heading above names."""
    for heading in reversed(table.headings):
        if match := _IS_PUBLISHER.fullmatch(heading.strip()):
            return match[1]
    return ""


def _models(row: Row, roles: Sequence[str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The models and versions that a row is about, each with its own cells: `<br>` lists are taken apart."""
    cells = {role: row.cell(index) for index, role in enumerate(roles)}
    names = _listed(cells["model"]) or [""]
    versions = _listed(cells.get("version", "")) or [""]
    if len(names) == len(versions):
        pairs = list(zip(names, versions, strict=True))
    else:
        pairs = [(name, version) for name in names for version in versions]
    split = {role: _parallel_dates(cell, len(pairs)) for role, cell in cells.items() if role in DATE_FIELDS}
    is_named = "provider" not in roles and "legacy_date" not in roles
    told = [_told(cell_text(name), cell_text(version), is_named) for name, version in pairs]
    shared = told[-1][1] if not any(number for _, number in told[:-1]) else ""  # "a<br>a-32k - 0314" is both at 0314
    for index, (text, number) in enumerate(told):
        own = {role: parts[index] if (parts := split.get(role)) else cell for role, cell in cells.items()}
        yield text, number or shared, own


def _told(name: str, version: str, is_named: bool) -> tuple[str, str]:
    """A model and its version, which may stand in the name."""
    if not is_empty(version):
        return name, version
    if match := _VERSION_IN_NAME.match(name):
        told = match["a"] or match["b"] or match["c"] or match["d"]
        if re.search(r"\d|-preview$", told) and (is_named or "version" in name.casefold()):
            return match["model"].rstrip(" ,"), told
    return name, ""


def _listed(cell: str) -> list[str]:
    return [part for piece in _BREAK.split(cell) for part in _LISTED.split(piece) if plain(part)]


def _parallel_dates(cell: str, count: int) -> list[str] | None:
    """A date a model, where a cell lists as many bare dates as the row has models."""
    parts = [part for part in _BREAK.split(cell) if plain(part)]
    if count < 2 or len(parts) != count:
        return None
    readings = [read_date(part) for part in parts]
    bare = all(reading.date and not reading.auto_upgrade and len(reading.text) < 40 for reading in readings)
    return parts if bare and not any(re.search(r"retire|deprecat", part, re.IGNORECASE) for part in parts) else None


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", "-", text.casefold())


# --- records to events -----------------------------------------------------------------------------------------------


def _events(old: Sequence[Record], new: Sequence[Record]) -> Iterator[RetirementEvent]:
    """Match the records of both sides, surest first, and tell each difference."""
    left, right = list(old), list(new)
    pairs: list[tuple[Record, Record]] = []

    def match(key: Any) -> None:
        ours, theirs = _by(key, left), _by(key, right)
        matched = [pair for name, before in ours.items() for pair in zip(before, theirs.get(name, ()), strict=False)]
        pairs.extend(matched)
        done = {id(record) for pair in matched for record in pair}
        left[:] = [record for record in left if id(record) not in done]
        right[:] = [record for record in right if id(record) not in done]

    known_old, known_new = {(r.table, r.key) for r in old}, {(r.table, r.key) for r in new}
    match(lambda r: (r.filename, r.table, r.key, tuple(sorted(r.cells.items()))))
    match(lambda r: (r.filename, r.table, r.section, r.key))
    match(lambda r: (r.table, r.key))
    match(lambda r: (r.table, r.key[1:]))
    moved = _moved(left, right)
    for before, after in pairs:
        yield from _differences(before, after)
    for before, after in _renumbered(left, right, pairs):
        yield _event(after, "version_changed", "version", before, old_text=before.version, new_text=after.version)
        yield from _differences(before, after)
    for record in right:
        if (record.table, record.key) not in known_old:
            yield _event(record, "model_added", "row")
    for record in left:
        if (record.table, record.key) not in known_new:
            yield _event(record, "model_removed", "row", record)
    for before, after in moved:
        yield _move_event(before, after)


def _by(key: Any, records: Iterable[Record]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


_LIVES: tuple[TableKind, ...] = ("current", "provider_lifecycle", "retired")


def _moved(left: list[Record], right: list[Record]) -> list[tuple[Record, Record]]:
    """Take out the models that left a table of one kind for one of another, which may not tell versions."""
    moved = []
    for before in list(left):
        there = [r for r in right if r.key[1] == before.key[1] and r.table != before.table]
        there = [r for r in there if {r.table, before.table} <= set(_LIVES)]
        after = next((record for record in there if record.key[2] == before.key[2]), None)
        if after is None and len(there) == 1 and not (there[0].version and before.version):
            alone = sum((r.table, r.key[1]) == (before.table, before.key[1]) for r in left) == 1
            after = there[0] if alone else None
        if after is not None:
            moved.append((before, after))
            left.remove(before)
            right.remove(after)
    return moved


def _renumbered(
    left: list[Record], right: list[Record], pairs: Sequence[tuple[Record, Record]]
) -> list[tuple[Record, Record]]:
    """Take out the rows whose version was rewritten in place: the one such model of its table, between equal rows."""
    found = []
    for before in list(left):
        same = [r for r in left if (r.table, r.key[1]) == (before.table, before.key[1])]
        twins = [r for r in right if (r.table, r.key[1], r.filename) == (before.table, before.key[1], before.filename)]
        if len(same) == len(twins) == 1 and (not before.version or _is_in_place(before, twins[0], pairs)):
            found.append((before, twins[0]))
            left.remove(before)
            right.remove(twins[0])
    return found


def _is_in_place(before: Record, after: Record, pairs: Sequence[tuple[Record, Record]]) -> bool:
    """Whether no row that stayed lies between the two places."""
    return all(
        (old.line < before.line) == (new.line < after.line) for old, new in pairs if old.filename == before.filename
    )


def _event(record: Record, kind: EventKind, name: str, old: Record | None = None, **rest: Any) -> RetirementEvent:
    new = None if kind == "model_removed" else record
    return RetirementEvent(
        table=record.table, model=record.model, version=record.version, kind=kind, field=name, old=old, new=new, **rest
    )


def _move_event(before: Record, after: Record) -> RetirementEvent:
    old, new = _last_date(before), _last_date(after)
    return RetirementEvent(
        table=f"{before.table}->{after.table}",
        model=before.model,
        version=before.version or after.version,
        kind="moved_to_retired" if after.table == "retired" else "moved_to_current",
        field="row",
        old_text=old.text,
        new_text=new.text,
        old_date=old.date,
        new_date=new.date,
        old_qualifier=old.qualifier,
        new_qualifier=new.qualifier,
        old=before,
        new=after,
    )


def _last_date(record: Record) -> Reading:
    return next((record.readings[name] for name in _RETIREMENTS if name in record.readings), Reading(text=""))


def _differences(before: Record, after: Record) -> Iterator[RetirementEvent]:
    """What changed in a model's row, column by column."""
    for role in dict.fromkeys((*after.cells, *before.cells)):
        old, new = before.cells.get(role, ""), after.cells.get(role, "")
        if role in ("model", "version") or old == new:
            continue
        if role in DATE_FIELDS:
            yield from _date_differences(before, after, role)
        elif is_empty(old) and is_empty(new):
            continue
        elif role == "replacement":
            kind: EventKind = "replacement_changed"
            if is_empty(old) or is_empty(new):
                kind = "replacement_set" if is_empty(old) else "replacement_removed"
            yield _event(after, kind, role, before, old_text=old, new_text=new)
        elif role in before.cells and role in after.cells:
            name = role if role.startswith("other:") else f"other:{role}"
            yield _event(after, "other_changed", name, before, old_text=old, new_text=new)


def _date_differences(before: Record, after: Record, role: str) -> Iterator[RetirementEvent]:
    nothing = Reading(text="")
    old, new = before.readings.get(role, nothing), after.readings.get(role, nothing)
    if old.is_empty and new.is_empty:
        return
    texts = {"old_text": old.text, "new_text": new.text}
    dates: dict[str, Any] = {
        **texts,
        "old_date": old.date,
        "new_date": new.date,
        "old_qualifier": old.qualifier,
        "new_qualifier": new.qualifier,
        "delta_days": (new.date - old.date).days if old.date and new.date else None,
    }
    told = 0
    if old.date != new.date:
        kind: EventKind = "date_set"
        if new.date is None:
            kind = "date_removed"
        elif old.date is not None:
            kind = "date_extended" if new.date > old.date else "date_brought_forward"
        told += 1
        yield _event(after, kind, role, before, **dates)
    elif old.qualifier != new.qualifier:
        told += 1
        yield _event(after, "qualifier_changed", role, before, **dates)
    if (old.auto_upgrade, old.auto_upgrade_to) != (new.auto_upgrade, new.auto_upgrade_to):
        upgrade: EventKind = "auto_upgrade_changed"
        if old.auto_upgrade is None or new.auto_upgrade is None:
            upgrade = "auto_upgrade_set" if old.auto_upgrade is None else "auto_upgrade_removed"
        told += 1
        moments = {"old_date": old.auto_upgrade, "new_date": new.auto_upgrade}
        yield _event(after, upgrade, "auto_upgrade_date", before, **texts, **moments)
    if old.deprecation != new.deprecation:
        told += 1
        isos = {"old_text": _iso(old.deprecation), "new_text": _iso(new.deprecation)}
        yield _event(after, "inline_deprecation_changed", "deprecation_date", before, **isos)
    if not told:
        yield _event(after, "date_reworded", role, before, **dates)


def _reading_dict(reading: Reading) -> dict[str, Any]:
    shown = {
        "date": _iso(reading.date),
        "qualifier": reading.qualifier,
        "auto_upgrade": _iso(reading.auto_upgrade),
    }
    return shown | ({"deprecation": _iso(reading.deprecation)} if reading.deprecation else {})


def _iso(date: datetime.date | None) -> str | None:
    return date.isoformat() if date else None
