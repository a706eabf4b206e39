"""What a cell of a retirement table says: a date, how sure it is, and dates of other things written beside it.

    read_date("No earlier than July 02, 2025").date          # 2025-07-02, qualifier "not_before"
    read_date("At base model retirement").date               # None: kept as text, never guessed

A date is understood when it names year, month and day without doubt. "April, 30, 2025", "2026-09-31", "02/03/2025"
and "Q1 2026" are not: they are kept as text, and `Reading.is_understood` says so.
"""

import datetime
import re
from dataclasses import dataclass
from typing import Literal

from tunekeeper.diffs.tables import plain

Qualifier = Literal["exact", "not_before", "not_after", "about"]
Topic = Literal["retirement", "upgrade", "deprecation"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    rf"(?<![\w-])(?:"
    rf"(?P<mdy_m>{_MONTH})\s+(?P<mdy_d>\d{{1,2}})(?:st|nd|rd|th)?(?:\s*,\s*|\s+)(?P<mdy_y>\d{{4}})"
    rf"|(?P<dmy_d>\d{{1,2}})(?:st|nd|rd|th)?[\s-]+(?:of\s+)?(?P<dmy_m>{_MONTH})[\s,-]+(?P<dmy_y>\d{{4}})"
    rf"|(?P<iso_y>\d{{4}})(?P<sep>[-/.])(?P<iso_m>\d{{1,2}})(?P=sep)(?P<iso_d>\d{{1,2}})(?:T[\d:.]+Z?)?"
    rf"|(?P<num_a>\d{{1,2}})/(?P<num_b>\d{{1,2}})/(?P<num_y>\d{{4}})"
    rf"|(?P<ja_y>\d{{4}})\s*年\s*(?P<ja_m>\d{{1,2}})\s*月\s*(?P<ja_d>\d{{1,2}})\s*日"
    rf")(?![\w-])",
    re.IGNORECASE,
)
_VERSION_BEFORE = re.compile(r"\bversions?\s*:?\s*\(?$|[\w.]\s*\($|\(version\s*$", re.IGNORECASE)
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[a-z0-9)*]\.)\s+(?=[A-Z])|;\s+")
_NOT_BEFORE = re.compile(
    r"\b(?:no|not)\s+(?:earlier|sooner|before)\b|\bnot\s+(?:be\s+\w+\s+|retire\s+)?before\b|\bat the earliest\b"
    r"|\bearliest\b"
    r"|\bon or after\b|\bafter\b|\bor later\b|以降",
    re.IGNORECASE,
)
_NOT_AFTER = re.compile(
    r"\b(?:no|not)\s+later\s+than\b|\bby\b|\bon or before\b|\bbefore\b|\bat the latest\b|まで", re.IGNORECASE
)
_ABOUT = re.compile(
    r"\b(?:approximately|around|about|circa|tentative(?:ly)?|estimated|expected|planned)\b|~", re.IGNORECASE
)
_TOPICS: tuple[tuple[Topic, re.Pattern[str]], ...] = (
    ("upgrade", re.compile(r"\b(?:auto[\s-]?)?upgrad\w*|\bauto[\s-]?updat\w*", re.IGNORECASE)),
    ("deprecation", re.compile(r"\bdeprecat\w*", re.IGNORECASE)),
    (
        "retirement",
        re.compile(
            r"\b(?:retir\w*|shut\s?down|sunset\w*|end[\s-]of[\s-](?:life|support)|eol|discontinu\w*)", re.IGNORECASE
        ),
    ),
)
_EMPTY = re.compile(r"^(?:[-–—−]*|n/?a\.?|none|null|not applicable|\?)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A cell, read; `date` belongs to the column, the others are told beside it in the same cell."""

    text: str
    date: datetime.date | None = None
    qualifier: Qualifier | None = None
    """None where there is no date."""
    auto_upgrade: datetime.date | None = None
    auto_upgrade_to: tuple[str, ...] = ()
    """What deployments are upgraded to, as the cell writes it."""
    deprecation: datetime.date | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands there: an empty cell, a dash, n/a."""
        return is_empty(self.text)

    @property
    def is_understood(self) -> bool:
        """False where something stands there that gives no date: TBD, a date that does not exist."""
        return self.date is not None or self.is_empty or self.auto_upgrade is not None or self.deprecation is not None


def is_empty(text: str) -> bool:
    """Whether a cell's text says nothing."""
    return _EMPTY.match(text.strip()) is not None


def parse_date(text: str) -> datetime.date | None:
    """The one date that a text is, None for anything else; ISO, English and Japanese forms."""
    match = _DATE.fullmatch(text.strip())
    return _value(match) if match else None


def cell_text(cell: str) -> str:
    """A cell as people read it, without the asterisks and daggers of footnotes behind it."""
    return re.sub(r"(?<=\w)\s*(?:\*+|[†‡]+)(?=$|\s)", "", plain(cell)).strip()


def read_date(cell: str, *, about: Topic = "retirement") -> Reading:
    """Read a Markdown cell of a date column; `about` is what the column itself dates."""
    found: dict[Topic, tuple[datetime.date, Qualifier]] = {}
    upgrade_to: tuple[str, ...] = ()
    for clause in _clauses(cell):
        topic: Topic = about
        begin = 0
        matches = [match for match in _DATE.finditer(clause) if not _VERSION_BEFORE.search(clause[: match.start()])]
        for index, match in enumerate(matches):
            lead = clause[begin : match.start()]
            topic = _topic(lead) or (topic if index else _topic(clause[match.end() :]) or about)
            if topic == "upgrade":
                upgrade_to = upgrade_to or _targets(clause)
            date = _value(match)
            if _is_range_end(clause[begin : match.start()]) and index:
                begin = match.end()
                continue
            until = matches[index + 1].start() if index + 1 < len(matches) else len(clause)
            if date is not None and topic not in found:
                found[topic] = (date, _qualifier(lead, clause[match.end() : until]))
            begin = match.end()
    own = found.get(about, (None, None))
    return Reading(
        text=cell_text(cell),
        date=own[0],
        qualifier=own[1],
        auto_upgrade=found["upgrade"][0] if "upgrade" in found else None,
        auto_upgrade_to=upgrade_to,
        deprecation=found["deprecation"][0] if "deprecation" in found and about != "deprecation" else None,
    )


def _clauses(cell: str) -> list[str]:
    """The parts of a cell that stand for themselves, as plain text."""
    parts = [part for piece in _BREAK.split(cell) for part in _SENTENCE.split(cell_text(piece))]
    return [part for part in parts if part]


def _topic(text: str) -> Topic | None:
    """What the words nearest before (or behind) a date speak of."""
    ends = [(match.end(), topic) for topic, pattern in _TOPICS for match in pattern.finditer(text)]
    return max(ends)[1] if ends else None


def _qualifier(lead: str, behind: str) -> Qualifier:
    is_range = re.match(r"\s*(?:-|–|—|to|and|through|until)\s*$", behind, re.IGNORECASE) is not None
    if (
        is_range
        or _NOT_BEFORE.search(lead)
        or re.match(r",?\s*(?:or later|or after|at the earliest|以降)", behind, re.IGNORECASE)
    ):
        return "not_before"
    if _NOT_AFTER.search(lead) or re.match(r",?\s*(?:or earlier|at the latest|まで)", behind, re.IGNORECASE):
        return "not_after"
    if _ABOUT.search(lead) or re.match(r",?\s*\(?(?:tentative|estimated|expected|planned)", behind, re.IGNORECASE):
        return "about"
    return "exact"


def _is_range_end(lead: str) -> bool:
    """Whether only a dash or "to" stands between two dates: the second ends what the first begins."""
    return re.fullmatch(r"\s*(?:-|–|—|to|and|through|until)\s*", lead, re.IGNORECASE) is not None


def _targets(clause: str) -> tuple[str, ...]:
    """Behind "to": the model and the version that an upgrade leads to."""
    match = re.search(r"upgrad\w*\s+to\s+(?:the\s+)?(.+?)(?:,|\s+starting|\s+on\b|\s+no\s|$)", clause, re.IGNORECASE)
    return tuple(re.findall(r"[\w.][\w.-]*\d[\w.-]*", match[1])) if match else ()


def _value(match: re.Match[str]) -> datetime.date | None:
    """The date of a match; None where it does not exist, or where day and month cannot be told apart."""
    parts = match.groupdict()
    if parts["num_y"]:
        one, two = int(parts["num_a"]), int(parts["num_b"])
        if one > 12:
            one, two = two, one
        elif two <= 12 and one != two:
            return None
        return _date(int(parts["num_y"]), one, two)
    for form in ("mdy", "dmy", "iso", "ja"):
        if parts[f"{form}_y"]:
            month = parts[f"{form}_m"]
            number = int(month) if month.isdigit() else _MONTHS.index(month[:3].lower()) + 1
            return _date(int(parts[f"{form}_y"]), number, int(parts[f"{form}_d"]))
    return None


def _date(year: int, month: int, day: int) -> datetime.date | None:
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return None
