"""The whole change set in words, from facts alone: highlights, insights and the summary of the front matter."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from tunekeeper.insight import events, templates
from tunekeeper.insight.catalogue import Catalogue
from tunekeeper.insight.changes import ChangeSet
from tunekeeper.insight.classify import (
    Digest,
    Event,
    added_identifiers,
    days_moved,
    is_breaking_event,
    rank,
    removed_identifiers,
)
from tunekeeper.insight.quoting import code, escape, plain
from tunekeeper.insight.report import Highlights, ModificationType
from tunekeeper.insight.words import quoted

MOST_LINES = 8
"""Lines of one part of the highlights, besides retirements, which are all there."""
MOST_SUMMARY_LINES = 3
LEAST_SECTIONS = 2
"""Headings that came, and that went, from which on a page counts as rearranged."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is already written up."""

    item: Digest
    type: ModificationType
    title: str


def highlights(written: Sequence[Written], words: Catalogue) -> Highlights:
    """The most important of the day, retirements first."""
    return Highlights(
        new_features=_cut(*_new(written, words), words),
        breaking_changes=_cut(*_breaking(written, words), words),
        other_updates=_cut(*_other(written, words), words),
    )


def must_tell(written: Sequence[Written], words: Catalogue) -> Highlights:
    """The part of the highlights that no model may leave out: retirements, and whatever is breaking by rule."""
    new, breaking, other = _new(written, words), _breaking(written, words), _other(written, words)
    return Highlights(new_features=new[0], breaking_changes=_cut(*breaking, words), other_updates=other[0])


def insights(changes: ChangeSet, written: Sequence[Written], words: Catalogue) -> tuple[str, ...]:
    """Paragraphs that put the changes in relation: how much, what moved, what comes next, what can hit users."""
    return (
        *_paragraph(_scope(written, words), words),
        *retirement_insights(changes, written, words),
        *_paragraph(_rearranged(written, words), words),
        *hits(written, words),
    )


def retirement_insights(changes: ChangeSet, written: Sequence[Written], words: Catalogue) -> tuple[str, ...]:
    """What the moved dates mean on the day of the report, as a paragraph; nothing where none moved."""
    return _paragraph(_dates(changes, written, words), words)


def hits(written: Sequence[Written], words: Catalogue) -> tuple[str, ...]:
    """Whether users can be hit, as a paragraph; nothing where the diff does not tell."""
    return _paragraph(_hits(written, words), words)


def summary(written: Sequence[Written], found: Highlights, words: Catalogue) -> str:
    """The day in a few sentences of plain text."""
    lines = [*found.breaking_changes, *found.new_features, *found.other_updates]
    groups = events.groups(event for one in written for event in one.item.events)
    first = [events.sentence(group, words) for group in groups[:MOST_SUMMARY_LINES]]
    rest = [line for line in lines if not any(sentence in line for sentence in first)]
    picked = [*first, *(words.say("sentence", text=line) for line in rest)][:MOST_SUMMARY_LINES]
    scope = words.say("summary_scope", n=len(written))
    return plain(words.say("sentence_join").join([scope, *picked]))


# --- highlights: each part is (lines that must stay, lines that may be counted instead) ------------------------------

_Lines = tuple[tuple[str, ...], tuple[str, ...]]


def _new(written: Sequence[Written], words: Catalogue) -> _Lines:
    models = _event_lines(written, lambda event: _is_new_model(event), words)
    pages = [one for one in written if one.item.change.status == "added" and one.item.is_page]
    lines = [words.say("high_added", files=_files(pages, words))] if pages else []
    for one in _of_type(written, "new feature"):
        if one.item.change.status == "added":
            continue
        file = templates.basename(one.item.change.filename)
        if names := added_identifiers(one.item):
            lines.append(words.say("high_rows_added", file=file, names=_names(names, words)))
        elif sections := [quoted(fact.new, words) for fact in templates.headings(one.item)[0]]:
            lines.append(words.say("high_sections_added", file=file, names=words.series(sections, 4)))
    return models, tuple(lines)


def _breaking(written: Sequence[Written], words: Catalogue) -> _Lines:
    models = _event_lines(written, is_breaking_event, words)
    removed = [one for one in written if one.item.change.status == "removed" and one.item.is_page]
    lines = [words.say("high_removed", files=_files(removed, words))] if removed else []
    for one in _of_type(written, "breaking change"):
        if one.item.change.status != "removed" and (names := removed_identifiers(one.item)):
            file = templates.basename(one.item.change.filename)
            lines.append(words.say("high_rows_removed", file=file, names=_names(names, words)))
    return models, tuple(lines)


def _other(written: Sequence[Written], words: Catalogue) -> _Lines:
    models = _event_lines(written, lambda event: not (_is_new_model(event) or is_breaking_event(event)), words)
    lines = []
    moved = [one for one in written if one.item.change.status == "renamed"]
    if moved:
        lines.append(words.say("high_renamed", files=_files(moved, words)))
    rest = [one for one in (*_of_type(written, "minor update"), *_of_type(written, "bug fix")) if _is_told_alone(one)]
    for one in sorted(rest, key=lambda one: -rank(one.item)):
        file = templates.basename(one.item.change.filename)
        lines.append(words.say("high_titled", file=file, title=escape(one.title)))
    return models, (*_shortened(lines, words), *_groups(written, words))


def _groups(written: Sequence[Written], words: Catalogue) -> Iterator[str]:
    """One line for all files of a kind that is not told one by one."""
    if metadata := [one.item for one in written if one.item.is_metadata_only]:
        yield words.say("high_metadata", n=len(metadata), keys=templates.metadata_keys(metadata, words))
    if images := [one for one in written if one.item.is_image]:
        yield words.say("high_images", n=len(images))
    if bare := [one for one in written if _lacks_patch(one.item)]:
        yield words.say("high_no_patch", n=len(bare), files=_files(bare, words))


def _is_told_alone(one: Written) -> bool:
    item = one.item
    grouped = item.is_metadata_only or item.is_image or item.change.patch is None
    return not (grouped or item.retirements or item.change.status == "renamed")


def _lacks_patch(item: Digest) -> bool:
    change = item.change
    return change.patch is None and not item.is_image and (change.is_cut or bool(change.changes) or change.is_binary)


def _event_lines(written: Sequence[Written], wanted: Callable[[Event], bool], words: Catalogue) -> tuple[str, ...]:
    """The retirement events of one part, each sentence with its file where several files tell of retirements."""
    files = [one.item for one in written if one.item.retirements]
    lines = []
    for item in files:
        for group in events.groups(event for event in item.events if wanted(event)):
            line = events.sentence(group, words)
            file = templates.basename(item.change.filename)
            lines.append(words.say("in_file", line=line, file=file) if len(files) > 1 else line)
    return tuple(lines)


def _is_new_model(event: Event) -> bool:
    return event.get("kind") == "model_added" and "retired" not in str(event.get("table", ""))


def _cut(kept: tuple[str, ...], lines: Sequence[str], words: Catalogue) -> tuple[str, ...]:
    return (*kept, *_shortened(lines, words))


def _shortened(lines: Sequence[str], words: Catalogue) -> tuple[str, ...]:
    lines = tuple(lines)
    if len(lines) <= MOST_LINES + 3:  # the other updates end with up to three lines for groups
        return lines
    return (*lines[:MOST_LINES], words.say("high_more", n=len(lines) - MOST_LINES))


def _of_type(written: Iterable[Written], name: ModificationType) -> list[Written]:
    return sorted((one for one in written if one.type == name), key=lambda one: -rank(one.item))


def _files(written: Iterable[Written], words: Catalogue) -> str:
    return words.series(list(dict.fromkeys(templates.basename(one.item.change.filename) for one in written)))


def _names(names: Iterable[str], words: Catalogue) -> str:
    return words.series([code(name) for name in names])


def _paragraph(sentences: Iterable[str], words: Catalogue) -> tuple[str, ...]:
    text = words.say("sentence_join").join(sentences)
    return (text,) if text else ()


# --- insights --------------------------------------------------------------------------------------------------------


def _scope(written: Sequence[Written], words: Catalogue) -> Iterator[str]:
    if not written:
        yield words.say("insight_empty")
        return
    statuses = Counter(one.item.change.status for one in written)
    yield words.say(
        "insight_scope",
        n=len(written),
        statuses=words.say("comma").join(words.say(f"status_{name}", n=n) for name, n in statuses.most_common()),
        additions=sum(one.item.change.additions for one in written),
        deletions=sum(one.item.change.deletions for one in written),
    )
    if all(one.item.is_metadata_only or one.item.is_image for one in written):
        yield words.say("insight_quiet")
        return
    largest = max(written, key=lambda one: one.item.change.changes)
    if len(written) > 1 and largest.item.change.changes:
        yield words.say(
            "insight_largest",
            file=templates.basename(largest.item.change.filename),
            title=escape(largest.title),
            changes=largest.item.change.changes,
        )


def _dates(changes: ChangeSet, written: Sequence[Written], words: Catalogue) -> Iterator[str]:
    """What the moved dates mean on the day of the report."""
    all_events = [event for one in written for event in one.item.events]
    later = sum(days_moved(event) > 0 for event in all_events)
    earlier = sum(days_moved(event) < 0 for event in all_events)
    if later and earlier:
        yield words.say("insight_moved", later=later, earlier=earlier)
    elif later:
        yield words.say("insight_moved_later", n=later)
    if earlier:
        yield words.say("insight_moved_earlier", n=earlier)
    today = words.date(changes.date)
    passed = [e for e in all_events if days_moved(e) > 0 and e["old_date"] < changes.date < e["new_date"]]
    for group in events.groups(passed):
        shown = {"models": events.models(group, words), "field": events.field(group[0], words)}
        yield words.say("insight_passed", old=events.when(group[0], "old", words), today=today, **shown)
    dated = [
        e for e in all_events if str(e.get("new_date") or "") > changes.date and e.get("field") != "deprecation_date"
    ]
    if dated:
        first = min(event["new_date"] for event in dated)
        group = events.groups(event for event in dated if event["new_date"] == first)[0]
        yield words.say(
            "insight_next",
            models=events.models(group, words),
            field=events.field(group[0], words),
            date=events.when(group[0], "new", words),
            today=today,
            n=(date.fromisoformat(first) - date.fromisoformat(changes.date)).days,
        )


def _rearranged(written: Sequence[Written], words: Catalogue) -> Iterator[str]:
    """The page whose sections changed most."""
    pages = [one.item for one in written if one.item.change.status in ("modified", "renamed")]
    sections = [(*templates.headings(item), item) for item in pages]
    added, removed, _, item = max(sections, key=lambda one: min(len(one[0]), len(one[1])), default=((), (), (), None))
    if item is not None and min(len(added), len(removed)) >= LEAST_SECTIONS:
        yield words.say(
            "insight_restructured",
            file=templates.basename(item.change.filename),
            added=len(added),
            removed=len(removed),
            items=words.series([quoted(fact.new, words) for fact in added], 5),
        )


def _hits(written: Sequence[Written], words: Catalogue) -> Iterator[str]:
    if breaking := _of_type(written, "breaking change"):
        yield words.say("insight_breaking", n=len(breaking), files=_files(breaking, words))
    elif any(one.item.rest or one.item.retirements for one in written) and not any(
        one.item.change.is_cut or _lacks_patch(one.item) for one in written
    ):
        yield words.say("insight_none_breaking")
