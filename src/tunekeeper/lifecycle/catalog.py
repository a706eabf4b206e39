"""Which model lives until when, who says so, and what was said before.

The catalog is a log of claims: one source saying one thing about one model. What holds is the last claim on each
field, and one written by hand stands above all others; the log itself is the history. A claim that only repeats what
its source said last is not logged again.

    catalog = Catalog(claims)
    entry = catalog.find("gpt-4o-2024-05-13")[0]
    entry.dates["retirement_date"].date, entry.dates["retirement_date"].source
"""

import datetime
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunekeeper.lifecycle.dates import is_empty
from tunekeeper.lifecycle.retirements import DATE_FIELDS, Record, RetirementEvent

Origin = Literal["manual", "page", "litellm", "models"]

FIELDS = (*DATE_FIELDS, "auto_upgrade_date", "replacement", "lifecycle_status", "listed")
"""What can be claimed; `listed` is the kind of table that names the model, or "removed"."""
ENDS = ("retirement_date", "deployment_retirement_date", "training_retirement_date")
"""The dates on which something stops: answers, answers of tuned models, training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One source says one thing about one model."""

    model: str
    version: str = ""
    publisher: str = ""
    field: str
    text: str
    """As it is written there."""
    date: str | None = None
    """ISO; None where the text is no date, or was not understood."""
    qualifier: str | None = None
    origin: Origin = "manual"
    source: str = ""
    """A file, an address, a page's path."""
    line: int | None = None
    said_at: int = 0
    """When it was recorded, in Unix seconds."""

    @property
    def key(self) -> tuple[str, str]:
        """The publisher and the model, however they are written."""
        return name_key(self.publisher), name_key(f"{self.model}-{self.version}" if self.version else self.model)

    @property
    def is_understood(self) -> bool:
        """False for a date that stands there but could not be read."""
        return self.field not in DATE_FIELDS or self.date is not None or is_empty(self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What holds for one model, and how it came to that."""

    model: str
    version: str
    publisher: str
    dates: dict[str, Claim]
    """By field, those whose date is known."""
    replacement: str = ""
    lifecycle_status: str = ""
    listed: str = ""
    unread: tuple[Claim, ...] = ()
    """Dates in force that were not understood."""
    history: tuple[Claim, ...] = ()
    """Every claim, oldest first."""

    @property
    def name(self) -> str:
        """Model and version, as OpenAI writes them in one."""
        return f"{self.model}-{self.version}" if self.version else self.model

    def answers_to(self, name: str) -> bool:
        """Whether a name means this model: with its version, or without any."""
        key = name_key(name)
        own = name_key(self.name)
        return key in (own, name_key(self.model)) or re.sub(r"-(?:\d{4}-\d{2}-\d{2}|\d{3,4})$", "", own) == key

    def day(self, field: str) -> datetime.date | None:
        """A date of this entry."""
        claim = self.dates.get(field)
        return datetime.date.fromisoformat(claim.date) if claim and claim.date else None

    def is_firm(self, field: str) -> bool:
        """Whether the date is one on which it happens, not one before which it does not."""
        return field in self.dates and self.dates[field].qualifier != "not_before"


class Catalog:
    """All models of which something was claimed."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        by_key: dict[tuple[str, str], list[Claim]] = defaultdict(list)
        for claim in claims:
            by_key[claim.key].append(claim)
        self.entries: tuple[Entry, ...] = tuple(_entry(history) for history in by_key.values())
        """In the order in which they were first named."""

    def find(self, name: str) -> tuple[Entry, ...]:
        """The entries under a name: that model and version exactly, else every version of the model."""
        key = name_key(name)
        exact = tuple(entry for entry in self.entries if name_key(entry.name) == key)
        return exact or tuple(entry for entry in self.entries if entry.answers_to(name))

    def ending(self, *, after: datetime.date | None = None, before: datetime.date | None = None) -> tuple[Entry, ...]:
        """The entries with a known end in a span of days, both included, soonest first."""
        found = [
            (day, entry)
            for entry in self.entries
            if (day := first_end(entry)) and (after is None or day >= after) and (before is None or day <= before)
        ]
        return tuple(entry for _, entry in sorted(found, key=lambda pair: (pair[0], pair[1].name)))


def first_end(entry: Entry) -> datetime.date | None:
    """The first day on which something stops for a model."""
    return min((day for field in ENDS if (day := entry.day(field))), default=None)


def name_key(name: str) -> str:
    """One spelling for all: case, spaces, provider prefixes, and Azure's gpt-35 for gpt-3.5."""
    key = re.sub(r"[\s_]+", "-", name.strip().casefold())
    key = re.sub(r"^(?:azure|openai|azure-ai|anthropic|vertex-ai|gemini|mistral|cohere)/", "", key)
    return key.replace("gpt-35", "gpt-3.5")


def _entry(history: Sequence[Claim]) -> Entry:
    holding: dict[str, Claim] = {}
    for claim in history:
        present = holding.get(claim.field)
        if present is None or present.origin != "manual" or claim.origin == "manual":
            holding[claim.field] = claim
    last = history[-1]
    replacement, status, listed = (holding.get(name) for name in ("replacement", "lifecycle_status", "listed"))
    return Entry(
        model=last.model,
        version=last.version,
        publisher=last.publisher,
        dates={field: holding[field] for field in FIELDS if field in holding and holding[field].date},
        replacement=replacement.text if replacement and not is_empty(replacement.text) else "",
        lifecycle_status=status.text if status else "",
        listed=listed.text if listed else "",
        unread=tuple(claim for claim in holding.values() if not claim.is_understood),
        history=tuple(history),
    )


# --- claims ----------------------------------------------------------------------------------------------------------


def record_claims(record: Record, *, said_at: int, source: str | None = None) -> list[Claim]:
    """What a row of a table claims; `source` is the record's file unless it is given."""
    claims = []
    if record.table != "fine_tuned":  # it tells more about a model that another table lists
        claims.append(_claim(record, "listed", record.table))
    for field, reading in record.readings.items():
        date = reading.date.isoformat() if reading.date else None
        claims.append(_claim(record, field, reading.text, date=date, qualifier=reading.qualifier))
        for other, day in (("auto_upgrade_date", reading.auto_upgrade), ("deprecation_date", reading.deprecation)):
            if day is not None and other not in record.readings:
                claims.append(_claim(record, other, reading.text, date=day.isoformat()))
    for role, field in (("replacement", "replacement"), ("other:lifecycle_status", "lifecycle_status")):
        if role in record.cells:
            claims.append(_claim(record, field, record.cells[role]))
    return [replace(claim, said_at=said_at, source=claim.source if source is None else source) for claim in claims]


def page_claims(records: Sequence[Record], before: Catalog, *, source: str, said_at: int) -> list[Claim]:
    """What a whole page claims, and which models it names no longer."""
    said_once: dict[tuple[object, ...], Claim] = {}
    for record in records:
        if record.table != "default_upgrade":
            for claim in record_claims(record, said_at=said_at, source=source):
                said_once.setdefault((claim.key, claim.field), claim)  # a row may stand there twice
    claims = list(said_once.values())
    named = {claim.key for claim in claims}
    for entry in before.entries:
        said = [claim for claim in entry.history if claim.source == source and claim.field == "listed"]
        if said and said[-1].text != "removed" and said[-1].key not in named:
            gone = said[-1]
            claims.append(
                Claim(
                    model=gone.model,
                    version=gone.version,
                    publisher=gone.publisher,
                    field="listed",
                    text="removed",
                    origin="page",
                    source=source,
                    said_at=said_at,
                )
            )
    return claims


def event_claims(events: Iterable[RetirementEvent], *, said_at: int) -> list[Claim]:
    """What the events of a change claim: of each model the whole new row, or that it is gone."""
    claims: list[Claim] = []
    seen: set[int] = set()
    for event in events:
        if event.new is None and event.old is not None:
            claims.append(replace(_claim(event.old, "listed", "removed"), said_at=said_at))
        elif event.new is not None and id(event.new) not in seen and event.new.table != "default_upgrade":
            seen.add(id(event.new))
            claims += record_claims(event.new, said_at=said_at)
    return claims


def unsaid(claims: Iterable[Claim], log: Iterable[Claim]) -> list[Claim]:
    """The claims that tell something which their source did not say last."""
    last: dict[tuple[object, ...], tuple[object, ...]] = {}
    for claim in log:
        last[(claim.source, claim.key, claim.field)] = (claim.text, claim.date, claim.qualifier)
    fresh = []
    for claim in claims:
        place, said = (claim.source, claim.key, claim.field), (claim.text, claim.date, claim.qualifier)
        if last.get(place) == said or (place not in last and is_empty(claim.text)):
            continue
        last[place] = said
        fresh.append(claim)
    return fresh


def _claim(record: Record, field: str, text: str, *, date: str | None = None, qualifier: str | None = None) -> Claim:
    return Claim(
        model=record.model,
        version=record.version,
        publisher=record.publisher,
        field=field,
        text=text,
        date=date,
        qualifier=qualifier,
        origin="page",
        source=record.filename,
        line=record.line or None,
    )
