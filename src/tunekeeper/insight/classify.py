"""What a file's facts amount to: the type of its modification, and what matters most. Rules only, no model.

The first rule that holds gives the type:

    breaking change   a page, a model or a documented identifier is gone; a date was brought forward
    new feature       a page, a model, a documented row or a section came, and nothing of its kind went
    bug fix           only spelling or link targets changed
    minor update      the rest: extended dates, rewritten text, images, metadata, files without a patch
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import PurePosixPath
from typing import Any

from tunekeeper.insight.changes import Fact, FactKind, FileChange
from tunekeeper.insight.quoting import one_line, plain
from tunekeeper.insight.report import ModificationType

PAGES = frozenset({".md", ".mdx", ".markdown", ".rst", ".adoc", ".html", ".htm", ".ipynb", ".txt"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".ico", ".avif"})

ROW_KEY_SEPARATOR = " · "
_IDENTIFIER = re.compile(r"(?=.*[A-Za-z])[\w$@{}<>*:/.+-]*[\w}>*]", re.ASCII)
_CODE_LIKE = re.compile(r"[_$@{}/.\d]|--?\w|[a-z][A-Z]|\w-\w")
_SPELLING_RATIO = 0.75
_MOST_TEXTS_FOR_SPELLING = 20

Event = Any
"""A retirement event: a mapping with `model`, `kind`, `field`, and the old and new text and date."""


@dataclass(frozen=True, slots=True)
class Digest:
    """One file's facts, sorted for writing."""

    change: FileChange
    retirements: tuple[Fact, ...]
    rest: tuple[Fact, ...]
    """What is worth words besides retirements."""
    metadata: tuple[Fact, ...]

    def of(self, *kinds: FactKind) -> tuple[Fact, ...]:
        """The facts of these kinds, in the file's order."""
        return tuple(fact for fact in self.rest if fact.kind in kinds)

    @property
    def events(self) -> tuple[Event, ...]:
        """The retirement events."""
        return tuple(fact.data for fact in self.retirements)

    @property
    def is_metadata_only(self) -> bool:
        """Whether nothing but dates, authors and the like changed."""
        has_only = bool(self.metadata) and not self.retirements and not self.rest
        return has_only and self.change.status in ("modified", "changed")

    @property
    def suffix(self) -> str:
        """The file name's ending, in small letters."""
        return PurePosixPath(self.change.filename).suffix.lower()

    @property
    def is_image(self) -> bool:
        """Whether the file is a picture: listed, never described."""
        return self.suffix in IMAGES

    @property
    def is_page(self) -> bool:
        """Whether people read the file as a document."""
        return self.suffix in PAGES


def digest(change: FileChange, facts: Iterable[Fact]) -> Digest:
    """Sort a file's facts; what a retirement event tells already is not told again as a table's cell or row."""
    facts = tuple(facts)
    retirements = tuple(fact for fact in facts if fact.kind == "retirement")
    rest = tuple(
        fact for fact in facts if fact.kind != "retirement" and not fact.is_metadata and not _is_told(fact, retirements)
    )
    return Digest(change, retirements, rest, tuple(fact for fact in facts if fact.is_metadata))


def modification_type(item: Digest) -> ModificationType:
    """The type of a file's modification, by the first rule that holds."""
    rules: tuple[tuple[ModificationType, Callable[[Digest], bool]], ...] = (
        ("minor update", lambda item: item.is_metadata_only or item.is_image),
        ("breaking change", is_breaking),
        ("new feature", is_new),
        ("bug fix", is_fix),
    )
    return next((name for name, holds in rules if holds(item)), "minor update")


def is_breaking(item: Digest) -> bool:
    """Whether something that readers may rely on is gone, or will be earlier than it was said."""
    return (
        (item.change.status == "removed" and item.is_page)
        or any(is_breaking_event(event) for event in item.events)
        or bool(removed_identifiers(item))
    )


def is_breaking_event(event: Event) -> bool:
    """Whether a model is gone, or a date came nearer."""
    if days_moved(event) < 0 or event.get("kind") == "moved_to_retired":
        return True
    return event.get("kind") == "model_removed" and "retired" not in str(event.get("table", ""))


def is_new(item: Digest) -> bool:
    """Whether there is something that was not there before, and nothing of its kind went."""
    if item.change.status == "added":
        return item.is_page
    return (
        any(event.get("kind") == "model_added" and event.get("table") != "retired" for event in item.events)
        or bool(added_identifiers(item))
        or (bool(item.of("heading_added")) and not item.of("heading_removed", "heading_changed"))
    )


def is_fix(item: Digest) -> bool:
    """Whether nothing changed but link targets and spelling."""
    texts = item.of("text_changed", "heading_changed")
    others = [fact for fact in item.rest if fact.kind not in ("text_changed", "heading_changed", "link_target_changed")]
    if not item.rest or others or item.retirements or len(texts) > _MOST_TEXTS_FOR_SPELLING:
        return False
    return all(is_spelling(fact.old, fact.new) for fact in texts)


def is_spelling(old: str, new: str) -> bool:
    """Whether two texts differ only in the spelling of words, with no number or name in code touched."""
    before, after = old.split(), new.split()
    changes = [op for op in SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if op[0] != "equal"]
    return bool(changes) and all(
        tag == "replace" and j - i == n - m and all(map(_same_word, before[i:j], after[m:n]))
        for tag, i, j, m, n in changes
    )


def _same_word(old: str, new: str) -> bool:
    if old == new:
        return True
    if any(character.isdigit() or character in "`_-" for character in old + new):
        return False
    return SequenceMatcher(None, old, new, autojunk=False).ratio() >= _SPELLING_RATIO


def removed_identifiers(item: Digest) -> tuple[str, ...]:
    """Documented names that are gone: keys of table rows, flags and names in code, unless the file has them still."""
    gone = _names(item, "table_row_removed", "identifiers_removed")
    came = {name.casefold() for name in _names(item, "table_row_added", "identifiers_added")}
    moved = {row_name(fact).casefold() for fact in item.of("table_row_moved")}
    text = item.change.new_text or ""
    return tuple(name for name in gone if name.casefold() not in came | moved and name not in text)


def added_identifiers(item: Digest) -> tuple[str, ...]:
    """Documented names that came, where none went."""
    if item.of("table_row_removed", "table_column_removed"):
        return ()
    text = item.change.old_text or ""
    return tuple(name for name in _names(item, "table_row_added", "") if name not in text)


def _names(item: Digest, row_kind: FactKind, code_key: str) -> tuple[str, ...]:
    names = [name for fact in item.of(row_kind) if is_identifier(name := row_name(fact))]
    for fact in item.of("code_removed", "code_changed", "code_added"):
        names += [name for name in map(str, fact.data.get(code_key, ())) if name.startswith("--")]
    return tuple(dict.fromkeys(names))


def row_name(fact: Fact) -> str:
    """The first part of a row's key, which names what the row is about."""
    return plain(fact.subject.split(ROW_KEY_SEPARATOR)[0])


def is_identifier(text: str) -> bool:
    """Whether a text is a name for programs: one word with a digit, `_`, `-`, `/`, `.` or a capital inside."""
    return bool(_IDENTIFIER.fullmatch(text)) and bool(_CODE_LIKE.search(text))


def days_moved(event: Event) -> int:
    """Days by which a date moved; negative is earlier, 0 where no date moved or that is not known."""
    return int(event.get("delta_days") or 0)


_EVENT_RANK = {
    "model_removed": 92,
    "moved_to_retired": 91,
    "date_set": 88,
    "date_extended": 86,
    "date_removed": 84,
    "model_added": 80,
    "qualifier_changed": 74,
    "replacement_removed": 68,
    "replacement_changed": 67,
    "replacement_set": 66,
}
_RANK = {
    "table_row_removed": 40,
    "table_row_added": 36,
    "table_cell_changed": 34,
    "heading_changed": 30,
    "heading_added": 30,
    "heading_removed": 29,
    "code_changed": 26,
    "code_removed": 26,
    "code_added": 25,
    "table_row_moved": 20,
    "text_changed": 12,
    "text_added": 12,
    "text_removed": 12,
    "link_target_changed": 10,
}


def event_rank(event: Event) -> int:
    """How much an event matters: dates that came nearer first, wording last."""
    return 100 if days_moved(event) < 0 else _EVENT_RANK.get(str(event.get("kind")), 60)


def rank(item: Digest) -> int:
    """How much a file's change matters: retirements first, metadata last."""
    if item.retirements:
        return max(event_rank(event) for event in item.events)
    if item.is_image:
        return 2
    if item.change.status in ("removed", "added") and item.is_page:
        return 55 if item.change.status == "removed" else 50
    if item.change.status == "renamed":
        return 45
    bonus = 12 if removed_identifiers(item) else 0
    return bonus + max((_RANK.get(fact.kind, 6) for fact in item.rest), default=1)


def _is_told(fact: Fact, retirements: Sequence[Fact]) -> bool:
    if not fact.kind.startswith(("table_row", "table_cell")):
        return False
    near = [other for other in retirements if _overlap(fact, other)]
    return any(fact.kind != "table_cell_changed" or _tells(fact, other.data) for other in near)


def _overlap(one: Fact, other: Fact) -> bool:
    pairs = ((one.old_lines, other.old_lines), (one.new_lines, other.new_lines))
    return any(a and b and a[0] <= b[1] and b[0] <= a[1] for a, b in pairs)


_EVENT_COLUMN = re.compile(r"retire|deprecat|legacy|replac|upgrade|sunset|shut", re.IGNORECASE)


def _tells(fact: Fact, event: Event) -> bool:
    same = _bare(fact.old) == _bare(event.get("old_text")) and _bare(fact.new) == _bare(event.get("new_text"))
    return same or bool(_EVENT_COLUMN.search(fact.part))


def _bare(text: object) -> str:
    return one_line(plain(str(text or ""))).casefold()
