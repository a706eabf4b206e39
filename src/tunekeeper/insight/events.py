"""Retirement events in words. Events that tell the same of several models make one sentence."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from tunekeeper.insight.catalogue import Catalogue
from tunekeeper.insight.classify import Event, days_moved, event_rank
from tunekeeper.insight.quoting import code, plain
from tunekeeper.insight.words import edits, literal

Group = tuple[Event, ...]
"""Events that differ in nothing but model and version."""

LONG_TEXT = 60
MOST_EDITS = 5
_ISO = re.compile(r"(?!0000)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])")
_ROW_KINDS = ("model_added", "model_removed")
_DETAILS = (
    "training_retirement_date",
    "inference_retirement_date",
    "retirement_date",
    "deprecation_date",
    "legacy_date",
)


def groups(events: Iterable[Event]) -> list[Group]:
    """Events put together by what they tell, the most important first."""
    together: dict[tuple[str, ...], list[Event]] = {}
    for event in events:
        together.setdefault(_told(event), []).append(event)
    return sorted((tuple(same) for same in together.values()), key=lambda same: (-event_rank(same[0]), -len(same)))


def sentence(group: Group, words: Catalogue) -> str:
    """What happened to the group's models, with old and new date and the days between."""
    event = group[0]
    kind = str(event.get("kind"))
    if kind in _ROW_KINDS:
        return _row_sentence(group, words)
    message, changes = _message(event), _rewritten(event, words)
    if message == "changed" and changes:
        return words.say(
            "event_edited",
            models=models(group, words),
            field=field(event, words),
            items=words.series(changes, MOST_EDITS),
        )
    return words.say(
        f"event_{message}",
        models=models(group, words),
        field=field(event, words),
        old=when(event, "old", words),
        new=when(event, "new", words),
        days=days(event, words),
    )


def title(groups: Sequence[Group], words: Catalogue) -> str:
    """A short title for a file with these groups, plain text."""
    group = groups[0]
    event = group[0]
    others = len({str(event.get("model")) for group in groups for event in group}) - 1
    if others > 1:
        return plain(words.say("title_events", models=words.series([code(str(event.get("model")))]), n=others))
    names = words.series(list(dict.fromkeys(code(str(event.get("model"))) for event in group)), limit=2)
    kind = str(event.get("kind"))
    is_schedule = kind in _ROW_KINDS and "retired" not in str(event.get("table", ""))
    message = f"title_{kind if is_schedule else _message(event)}"
    return plain(
        words.say(
            message if words.has(message) else "title_event",
            models=names,
            field=field(event, words),
            new=when(event, "new", words),
            days=days(event, words),
        )
    )


def models(group: Group, words: Catalogue) -> str:
    """The group's models, each once with its versions."""
    names = []
    for name, same in groupby(sorted(group, key=_model), key=lambda event: str(event.get("model") or "")):
        # Where the version itself changed, the sentence has the old and the new one.
        events = [event for event in same if event.get("field") != "version"]
        versions = [code(version) for event in events if (version := str(event.get("version") or ""))]
        shown = code(name)
        if versions:
            shown = words.say("model_version", model=shown, version=words.series(list(dict.fromkeys(versions)), 99))
        names.append(shown)
    return words.series(names, limit=99)


def field(event: Event, words: Catalogue) -> str:
    """The column's name in the reader's language; a moved row is about its retirement date."""
    name = str(event.get("field") or "").removeprefix("other:")
    if name == "row":
        name = "retirement_date"
    return (
        words.say(f"field_{name}")
        if words.has(f"field_{name}")
        else words.say("field_other", name=literal(name, words))
    )


def when(event: Event, side: str, words: Catalogue) -> str:
    """The old or new date with its qualifier; the text itself where there is no date, or it is not one."""
    date = event.get(f"{side}_date")
    if not date:
        text = plain(str(event.get(f"{side}_text") or ""))
        if _ISO.fullmatch(text):
            return words.date(text)
        return literal(text, words) if text else words.say("unstated")
    key = f"date_{event.get(f'{side}_qualifier') or 'exact'}"
    return words.say(key if words.has(key) else "date_exact", date=words.date(str(date)))


def days(event: Event, words: Catalogue) -> str:
    """How far a date moved, in words; empty if it did not."""
    moved = days_moved(event)
    return words.say("days_earlier" if moved < 0 else "days_later", n=abs(moved)) if moved else ""


def _row_sentence(group: Group, words: Catalogue) -> str:
    event = group[0]
    details = [
        words.say("detail", name=words.say(f"field_{name}"), value=value)
        for name in _DETAILS
        if (value := _row_date(event, name, words))
    ]
    if replacement := plain(str(event.get("cells", {}).get("replacement") or "")):
        details.append(words.say("detail", name=words.say("field_replacement"), value=literal(replacement, words)))
    key = f"event_{event['kind']}{'_retired' if 'retired' in str(event.get('table', '')) else ''}"
    return words.say(
        f"{key}_with" if details else key, models=models(group, words), details=words.say("comma").join(details)
    )


def _row_date(event: Event, name: str, words: Catalogue) -> str:
    known = event.get("dates", {}).get(name) or {}
    if known.get("date"):
        key = f"date_{known.get('qualifier') or 'exact'}"
        return words.say(key if words.has(key) else "date_exact", date=words.date(str(known["date"])))
    text = plain(str(event.get("cells", {}).get(name) or ""))
    return literal(text, words) if text else ""


def _message(event: Event) -> str:
    """The key of the sentence for an event that is not about a whole row."""
    kind, moved = str(event.get("kind")), days_moved(event)
    if moved:
        return "moved_earlier" if moved < 0 else "moved_later"
    if kind in ("date_set", "date_removed", "qualifier_changed", "date_reworded", "moved_to_retired"):
        return kind
    if kind.endswith("_removed") or kind.endswith("_set"):
        return kind.rpartition("_")[2]
    old, new = (event.get(f"{side}_text") or event.get(f"{side}_date") for side in ("old", "new"))
    if not old:
        return "set"
    return "changed" if new else "removed"


def _rewritten(event: Event, words: Catalogue) -> list[str]:
    """What changed within two long texts that tell no date; empty otherwise."""
    old, new = (plain(str(event.get(f"{side}_text") or "")) for side in ("old", "new"))
    has_date = event.get("old_date") or event.get("new_date")
    return edits(old, new, words) if not has_date and min(len(old), len(new)) > LONG_TEXT else []


def _told(event: Event) -> tuple[str, ...]:
    """Everything that a sentence shows but model and version."""
    has_dates = event.get("old_date") or event.get("new_date")
    texts = () if has_dates and event.get("kind") != "other_changed" else ("old_text", "new_text")
    names = ("kind", "field", "table", "old_date", "new_date", "old_qualifier", "new_qualifier", "delta_days", *texts)
    return (
        *(str(event.get(name)) for name in names),
        str(event.get("dates")),
        str(event.get("cells", {}).get("replacement")),
    )


def _model(event: Event) -> tuple[str, str]:
    return str(event.get("model") or ""), str(event.get("version") or "")
