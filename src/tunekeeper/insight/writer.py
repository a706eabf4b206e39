"""From a change set and its facts to the Diff Insight Report, with a model's prose or without.

    report = write_report(change_set, facts_of(change_set), language="ja")
    print(render(report))

Types, titles, explanations, highlights and insights all come from facts by templates. A model, where one is given,
may replace prose; what it writes is checked, and what is wrong never gets here (`prose.py`). Retirements, and what is
breaking by rule, are told by templates in any case: a model adds to them and cannot leave them out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from tunekeeper.errors import InvalidRequest
from tunekeeper.insight import events, overview, quoting, templates
from tunekeeper.insight.catalogue import Catalogue, catalogue
from tunekeeper.insight.changes import ChangeSet, Fact
from tunekeeper.insight.classify import digest, modification_type
from tunekeeper.insight.overview import Written
from tunekeeper.insight.prose import MAX_LINES, MAX_PATCH_CHARACTERS, Author, Fields, Writer
from tunekeeper.insight.report import Highlights, Item, Report, anchors


def write_report(
    changes: ChangeSet,
    facts: Mapping[str, Sequence[Fact]],
    *,
    language: str,
    model: Writer | None = None,
    cache: Path | None = None,
    parallel: int = 16,
    max_patch_characters: int = MAX_PATCH_CHARACTERS,
) -> Report:
    """Write up a change set; `facts` are those of `facts_of`, by file name.

    `model` writes prose, in `parallel` calls at most; its accepted answers are kept in the directory `cache`. If it
    does not answer, the report is written all the same and says so. Raises Unsupported for a language without a
    catalogue, InvalidRequest for a date that is none.
    """
    words = catalogue(language)
    _check_date(changes)
    digests = [digest(change, facts.get(change.filename, ())) for change in changes.files]
    author = model and Author(
        model, words=words, cache=cache, parallel=parallel, max_patch_characters=max_patch_characters
    )
    answers = author.files(digests) if author else {}
    written = [
        Written(item, modification_type(item), _title(item_answer, templates.title(item, words)))
        for item in digests
        for item_answer in (answers.get(item.change.filename, {}),)
    ]
    day = author.day(changes, written) if author else {}
    found = _highlights(day, written, words)
    names = anchors([change.filename for change in changes.files])
    return Report(
        date=changes.date,
        permalink=changes.url,
        title=words.say("title", category=changes.category.strip() or "all"),
        summary=_summary(day, written, found, words),
        language=language,
        highlights=found,
        insights=_insights(day, changes, written, words),
        items=tuple(
            Item(
                change=one.item.change,
                anchor=name,
                type=one.type,
                title=one.title,
                explanation=_explanation(answers.get(one.item.change.filename, {}), one, words),
            )
            for one, name in zip(written, names, strict=True)
        ),
        source=changes.source,
        license=changes.license,
        lacks=(*_lacks(changes, words), *(author.lacks() if author else ())),
    )


def _check_date(changes: ChangeSet) -> None:
    try:
        date.fromisoformat(changes.date)
    except ValueError as error:
        raise InvalidRequest(f"The date {changes.date!r} is not like 2025-06-12.", param="date") from error


def _lacks(changes: ChangeSet, words: Catalogue) -> tuple[str, ...]:
    """What the source could not give, and how many patches that are."""
    n_cut = sum(change.is_cut for change in changes.files)
    counted = (words.say("lacks_patch", n=n_cut),) if n_cut else ()
    return (*(quoting.escape(words.translated(lack)) for lack in changes.lacks), *counted)


# --- a model's fields, where they were accepted, beside the templates' ----------------------------------------------


def _title(answer: Fields, title: str) -> str:
    return quoting.plain(quoting.prose(answer["title"])) if "title" in answer else title


def _explanation(answer: Fields, one: Written, words: Catalogue) -> tuple[str, ...]:
    if "explanation" not in answer:
        return templates.explanation(one.item, words)
    paragraphs = map(quoting.prose, answer["explanation"])
    return (*paragraphs, *templates.retirement_list(one.item, words), *templates.closing(one.item, words))


def _highlights(day: Fields, written: Sequence[Written], words: Catalogue) -> Highlights:
    found, kept = overview.highlights(written, words), overview.must_tell(written, words)
    models = {str(event.get("model")) for one in written for event in one.item.events}
    parts = {}
    for name in ("new_features", "breaking_changes", "other_updates"):
        if day.get(name):
            lines = [quoting.prose(line) for line in day[name] if not any(model in line for model in models)]
            parts[name] = (*getattr(kept, name), *lines[:MAX_LINES])
    return replace(found, **parts)


def _insights(day: Fields, changes: ChangeSet, written: Sequence[Written], words: Catalogue) -> tuple[str, ...]:
    if "insights" not in day:
        return overview.insights(changes, written, words)
    paragraphs = map(quoting.prose, day["insights"])
    return (*overview.retirement_insights(changes, written, words), *paragraphs, *overview.hits(written, words))


def _summary(day: Fields, written: Sequence[Written], found: Highlights, words: Catalogue) -> str:
    if "summary" not in day:
        return overview.summary(written, found, words)
    groups = events.groups(event for one in written for event in one.item.events)
    first = [events.sentence(group, words) for group in groups[: overview.MOST_SUMMARY_LINES]]
    return quoting.plain(words.say("sentence_join").join([*first, quoting.prose(day["summary"])]))
