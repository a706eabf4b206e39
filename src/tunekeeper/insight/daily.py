"""Reports as files: OUT/YYYY/MM/diff-insight-report-CATEGORY-YYYY-MM-DD.md, one a day and category.

    published = publish(split(change_set, categories)[0], compose, out)         # one change set
    outcome = catch_up(repository, state_file, compose, …)                      # every day since last time

`compose` turns a change set into Markdown; it knows facts, language and model, and this module none of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from tunekeeper.insight.catalogue import Sentence
from tunekeeper.insight.categories import (
    Alarm,
    Categories,
    Category,
    folders,
    pathspecs,
    silence,
    split,
    watch_paths,
)
from tunekeeper.insight.changes import ChangeSet
from tunekeeper.insight.source import Repository, Span
from tunekeeper.insight.state import State, StateFile, write_atomically

Compose = Callable[[ChangeSet], str]
"""A change set as the Markdown of its report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One report that was written."""

    category: str
    date: str
    path: Path
    n_files: int
    is_update: bool
    """The day had a report already, with less in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run did."""

    published: tuple[Published, ...] = ()
    unmatched: tuple[str, ...] = ()
    """Changed paths that no category takes."""
    alarms: tuple[Alarm, ...] = ()
    lacks: tuple[str, ...] = ()
    """What the source could not give."""


def report_path(out: Path, category: str, day: str) -> Path:
    """Where the report of a day and category is."""
    year, month, _ = day.split("-")
    return out / year / month / f"diff-insight-report-{category}-{day}.md"


def publish(parts: Mapping[str, ChangeSet], compose: Compose, out: Path) -> list[Published]:
    """Write the reports of one day; nothing is written before all are composed."""
    texts = {name: compose(change_set) for name, change_set in parts.items()}
    published = []
    for name, text in texts.items():
        path = report_path(out, name, parts[name].date)
        is_update = path.exists()
        write_atomically(path, text)
        n_files = len(parts[name].files)
        published.append(
            Published(category=name, date=parts[name].date, path=path, n_files=n_files, is_update=is_update)
        )
    return published


def publish_nothing(
    change_set: ChangeSet, compose: Compose, out: Path, names: Iterable[str], alarms: Sequence[Alarm] = ()
) -> list[Published]:
    """Write for each category that a day's changes could not be read; a report that is there already stays."""
    silent = {name: report_path(out, name, change_set.date) for name in names}
    parts = {
        name: replace(
            change_set,
            files=(),
            category=name,
            lacks=(*(alarm.message for alarm in alarms if alarm.category == name), *change_set.lacks),
        )
        for name, path in silent.items()
        if not path.exists()
    }
    return publish(parts, compose, out)


def sorted_into(
    change_set: ChangeSet, categories: Categories, alarms: Sequence[Alarm] = ()
) -> tuple[dict[str, ChangeSet], tuple[str, ...]]:
    """The change set of each category, with its alarms and the unmatched paths in `lacks`; and those paths."""
    parts, unmatched = split(change_set, categories)
    lacks = (*change_set.lacks, *([_unmatched_lack(unmatched)] if unmatched else ()))
    for name, part in parts.items():
        own = (alarm.message for alarm in alarms if alarm.category == name)
        parts[name] = replace(part, lacks=(*own, *lacks))
    return parts, unmatched


def catch_up(
    repository: Repository,
    file: StateFile,
    compose: Compose,
    *,
    branch: str,
    categories: Categories,
    out: Path,
    today: date,
    since: date | None = None,
    only: str | None = None,
) -> Outcome:
    """Report every day with commits since last time; the state follows each day that was published.

    A day that is not over is reported as far as it went, and again as a whole when more has come. Where the
    repository could not be reached and has nothing unreported, today's report says so, and the state stays.
    """
    state = file.load()
    if repository.lacks:
        state = replace(state, unread_since=state.unread_since or today.isoformat())
    spans = _spans(repository, state, branch, since)
    head = spans[-1].head if spans else repository.commit(branch)
    alarms = watch_paths(repository, categories, base=spans[0].base if spans else None, head=head)
    published: list[Published] = []
    unmatched: dict[str, None] = {}
    for span in spans:
        change_set = repository.changes(span)
        parts, rest = sorted_into(change_set, categories, alarms)
        if span.date == state.day:
            # What was reported earlier today and is undone by now must not stay.
            for category in categories.categories:
                if category.name not in parts and report_path(out, category.name, span.date).exists():
                    parts[category.name] = replace(change_set, files=(), category=category.name)
        if only is not None:
            parts = {name: part for name, part in parts.items() if name == only}
        published += publish(parts, compose, out)
        if rest:
            write_atomically(
                report_path(out, "", span.date).with_name(f"unmatched-{span.date}.txt"), "".join(f"{p}\n" for p in rest)
            )
        unmatched |= dict.fromkeys(rest)
        state = _after(state, span, categories, parts)
        file.save(state)
    state = replace(_with_history(repository, state, categories, head), unread_since=_unread(repository, state))
    file.save(state)
    if repository.lacks and not spans:
        nothing = repository.changes(Span(head, head, today.isoformat()))
        names = [category.name for category in categories.categories if only in (None, category.name)]
        published += publish_nothing(nothing, compose, out, names, alarms)
    alarms += _silences(state, categories, alarms, today)
    if only is not None:
        alarms = [alarm for alarm in alarms if alarm.category == only]
    _write_alarms(out, alarms, today)
    return Outcome(published=tuple(published), unmatched=tuple(unmatched), alarms=tuple(alarms), lacks=repository.lacks)


def one_category(name: str) -> Categories:
    """Everything in one category."""
    return Categories(categories=(Category(name=name, paths=("**",), silent_after_days=0),))


def _spans(repository: Repository, state: State, branch: str, since: date | None) -> list[Span]:
    if not state.head:
        return repository.days(branch=branch, since=since)
    spans = repository.days(branch=branch, after=state.head, after_day=state.day)
    if spans and spans[0].date == state.day and spans[0].base == state.head:
        spans[0] = replace(spans[0], base=state.day_base)
    if spans and state.unread_since and not repository.lacks:
        lack = Sentence("lacks_days_in_time", day=state.unread_since)
        spans[0] = replace(spans[0], lacks=(*spans[0].lacks, lack))
    return spans


def _after(state: State, span: Span, categories: Categories, parts: Mapping[str, ChangeSet]) -> State:
    is_new_day = span.date != state.day
    last_match, quiet = dict(state.last_match), dict(state.quiet_reports)
    for category in categories.categories:
        name = category.name
        # A file that only moved out is told in the category's report, and is no sign of life.
        if name in parts and any(category.matches(change.filename) for change in parts[name].files):
            last_match[name], quiet[name] = span.date, 0
        elif is_new_day:
            quiet[name] = quiet.get(name, 0) + 1
    return replace(
        state,
        head=span.head,
        day=span.date,
        day_base=span.base,
        last_match=last_match,
        quiet_reports=quiet,
    )


def _unread(repository: Repository, state: State) -> str:
    return state.unread_since if repository.lacks else ""


def _with_history(repository: Repository, state: State, categories: Categories, head: str) -> State:
    """For categories that have not matched since the first run: when they last did before it."""
    last_match = dict(state.last_match)
    for category in categories.categories:
        if category.name not in last_match and (touched := repository.last_touched(pathspecs(category), head)):
            last_match[category.name] = touched[1]
    return replace(state, last_match=last_match)


def _silences(state: State, categories: Categories, alarms: Sequence[Alarm], today: date) -> list[Alarm]:
    loud = {alarm.category for alarm in alarms}
    found = (
        silence(
            category,
            last_match=state.last_match.get(category.name),
            quiet_reports=state.quiet_reports.get(category.name, 0),
            today=today,
        )
        for category in categories.categories
        if category.name not in loud
    )
    return [alarm for alarm in found if alarm]


def _write_alarms(out: Path, alarms: Sequence[Alarm], today: date) -> None:
    path = out / "alarms.json"
    if alarms or path.exists():
        entries = [{"date": today.isoformat(), **asdict(alarm)} for alarm in alarms]
        write_atomically(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def _unmatched_lack(paths: Sequence[str]) -> str:
    return Sentence("lacks_category", n=len(paths), folders=tuple(folders(paths).split(", ")))
