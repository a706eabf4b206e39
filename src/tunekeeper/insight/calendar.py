"""Retirement dates of models, out of the catalog, and as a calendar file that other calendars subscribe to.

Each date is an event of a whole day: training, inference and inference of tuned models have their own. A date that
could not be read (TBD) is in no calendar; the site's page lists it as it is written.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import pairwise
from typing import TYPE_CHECKING, Literal
from uuid import NAMESPACE_URL, uuid5

from tunekeeper.errors import Unavailable
from tunekeeper.lifecycle.catalog import Catalog, Claim, Entry

if TYPE_CHECKING:
    from icalendar import Event

Purpose = Literal["inference", "tuned", "training"]
"""What ends: answers, answers of models tuned on it, training."""

_PURPOSES: dict[str, Purpose] = {
    "retirement_date": "inference",
    "deployment_retirement_date": "tuned",
    "training_retirement_date": "training",
}
_ENDS = {"inference": "retires", "tuned": "retires for tuned models", "training": "training ends"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """One change of a date, as its source said it."""

    seen: date
    """The day of the report or page that said so."""
    old: str
    new: str
    days_moved: int | None
    """Days from the old date to the new: negative is earlier; None where one of them is no date."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retirement:
    """One date in a model's life."""

    publisher: str
    model: str
    version: str
    purpose: Purpose
    day: date | None
    text: str
    """The date as the source writes it."""
    is_lower_bound: bool = False
    """The source says "no earlier than"."""
    replacement: str = ""
    source: str = ""
    """Where the date is from: an address, or a file with its line."""
    seen: date | None = None
    """When the source last said so."""
    history: Sequence[Revision] = ()

    @property
    def id(self) -> str:
        """Stays the same when the date moves, so that a calendar moves its event."""
        name = f"tunekeeper:retirement:{self.publisher}:{self.model}:{self.version}:{self.purpose}"
        return str(uuid5(NAMESPACE_URL, name))

    @property
    def name(self) -> str:
        """Model and version."""
        return f"{self.model} {self.version}".strip()


def retirements_of(catalog: Catalog) -> list[Retirement]:
    """Every date in force on which something ends, with what its source said before."""
    return in_order(retirement for entry in catalog.entries for retirement in _retirements(entry))


def to_ics(retirements: Iterable[Retirement], *, title: str) -> bytes:
    """The dated ones as an iCalendar file (RFC 5545); the same retirements give the same bytes.

    Raises Unavailable where the package `icalendar` is missing.
    """
    try:
        from icalendar import Calendar
    except ImportError as error:
        raise Unavailable("A calendar needs the package icalendar: pip install 'tunekeeper[insight]'.") from error

    calendar = Calendar()
    calendar.add("prodid", "-//tunekeeper//retirements//EN")
    calendar.add("version", "2.0")
    calendar.add("method", "PUBLISH")
    calendar.add("x-wr-calname", title)
    for retirement in in_order(retirements):
        if retirement.day is not None:
            calendar.add_component(_event(retirement, retirement.day))
    return bytes(calendar.to_ical())


def in_order(retirements: Iterable[Retirement]) -> list[Retirement]:
    """By date, then by name; without a date last."""
    return sorted(retirements, key=lambda r: (r.day or date.max, r.publisher, r.model, r.version, r.purpose))


def _retirements(entry: Entry) -> Iterator[Retirement]:
    for claim in (*entry.dates.values(), *entry.unread):
        if claim.field in _PURPOSES:
            yield Retirement(
                publisher=entry.publisher,
                model=entry.model,
                version=entry.version,
                purpose=_PURPOSES[claim.field],
                day=_day(claim),
                text=claim.text,
                is_lower_bound=claim.qualifier == "not_before",
                replacement=entry.replacement,
                source=_place(claim),
                seen=_seen(claim),
                history=_revisions(claim, entry.history),
            )


def _revisions(claim: Claim, history: Sequence[Claim]) -> tuple[Revision, ...]:
    """How the date moved in the source that holds: another source that says another date is no move."""
    said = [c for c in history if (c.field, c.source) == (claim.field, claim.source)]
    return tuple(
        Revision(seen=_seen(new), old=old.text, new=new.text, days_moved=_moved(_day(old), _day(new)))
        for old, new in pairwise(said)
        if (old.text, old.date) != (new.text, new.date)
    )


def _moved(old: date | None, new: date | None) -> int | None:
    return (new - old).days if old and new else None


def _day(claim: Claim) -> date | None:
    return date.fromisoformat(claim.date) if claim.date else None


def _seen(claim: Claim) -> date:
    return datetime.fromtimestamp(claim.said_at, UTC).date()


def _place(claim: Claim) -> str:
    """The source with its line, as GitHub links to lines where it is an address."""
    if claim.line is None:
        return claim.source
    return f"{claim.source}{'#L' if '://' in claim.source else ':'}{claim.line}"


def _event(retirement: Retirement, day: date) -> "Event":
    from icalendar import Event

    bound = ", no earlier than this date" if retirement.is_lower_bound else ""
    lines = [
        f"{retirement.publisher}: {retirement.text}".removeprefix(": "),
        f"Replacement: {retirement.replacement}" if retirement.replacement else "",
        *(f"{revision.seen}: {revision.old or '-'} → {revision.new or '-'}" for revision in retirement.history),
        f"Source: {retirement.source}" if retirement.source else "",
    ]
    event = Event()
    event.add("uid", f"{retirement.id}@tunekeeper")
    event.add("dtstamp", datetime.combine(retirement.seen or day, time(), UTC))
    event.add("sequence", len(retirement.history))
    event.add("dtstart", day)
    event.add("summary", f"{retirement.name} {_ENDS[retirement.purpose]}{bound}")
    event.add("description", "\n".join(line for line in lines if line))
    event.add("transp", "TRANSPARENT")
    event.add("categories", [retirement.publisher or "models", retirement.purpose])
    if retirement.source.startswith(("https://", "http://")):
        event.add("url", retirement.source)
    return event
