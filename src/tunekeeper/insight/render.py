"""A report as Markdown: every heading, table, fence and anchor comes from here, none from prose."""

import json
from collections.abc import Iterator

from tunekeeper.errors import Unavailable
from tunekeeper.insight.catalogue import Catalogue, catalogue
from tunekeeper.insight.quoting import escape, fence, one_line
from tunekeeper.insight.report import Item, Report

_TABLE = (
    "|  Filename  | Type |    Title    | Status | A  | D  | M  |\n"
    "|------------|------|-------------|--------|----|----|----|\n"
)


def render(report: Report) -> str:
    """The whole report, ready for a file."""
    words = catalogue(report.language)
    blocks = [
        _front_matter(report),
        f'[View Diff on GitHub]({_target(report.permalink)}){{target="_blank"}}',
        *_notes(report, words),
        "# Highlights",
        "## New features\n" + _bullets(report.highlights.new_features, words),
        "## Breaking changes\n" + _bullets(report.highlights.breaking_changes, words),
        "## Other updates\n" + _bullets(report.highlights.other_updates, words),
        "# Insights",
        *report.insights,
        "# Summary Table\n" + _TABLE + "\n".join(map(_row, report.items)),
        "# Modified Contents",
        *(block for item in report.items for block in _item(item, words)),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(report: Report) -> str:
    try:
        import yaml
    except ImportError as error:
        raise Unavailable("Reports need pyyaml: pip install 'tunekeeper[insight]'") from error
    fields = {
        "date": report.date,
        "permalink": report.permalink,
        "summary": one_line(report.summary),
        "title": one_line(report.title),
    }
    return f"---\n{yaml.safe_dump(fields, allow_unicode=True, width=float('inf'))}\n---"


def _notes(report: Report, words: Catalogue) -> Iterator[str]:
    """Whom to credit, and what the report lacks."""
    if report.source and report.license:
        yield words.say("credit_with_license", source=escape(report.source), license=escape(report.license))
    elif report.source:
        yield words.say("credit", source=escape(report.source))
    if report.lacks:
        yield words.say("lacks")
        yield "\n".join(f"- {line}" for line in report.lacks)


def _bullets(lines: tuple[str, ...], words: Catalogue) -> str:
    return "\n".join(f"- {line}" for line in lines or (words.say("nothing"),))


def _row(item: Item) -> str:
    change = item.change
    name = escape(change.filename.rsplit("/", 1)[-1]) or escape(change.filename)
    cells = (
        f"[{name}](#{item.anchor})",
        item.type,
        escape(item.title),
        change.status,
        str(change.additions),
        str(change.deletions),
        str(change.changes),
    )
    return f"| {' | '.join(cells)} | "


def _item(item: Item, words: Catalogue) -> Iterator[str]:
    change = item.change
    yield f"## {escape(change.filename)}{{#{item.anchor}}}"
    yield "<details>\n<summary>Diff</summary>"
    yield words.say("no_patch") if change.patch is None else fence(change.patch, "diff", at_least=4)
    yield "</details>"
    yield "### Summary"
    summary = {"modification_type": item.type, "modification_title": item.title}
    yield fence(json.dumps(summary, ensure_ascii=False, indent=4), "json")
    yield "### Explanation\n" + "\n\n".join(item.explanation)


def _target(url: str) -> str:
    """A link's target in angle brackets where the plain form would end early, as with a path that has blanks."""
    url = one_line(url)
    if url and not any(character in url for character in " ()<>\\"):
        return url
    return "<" + "".join(f"\\{character}" if character in "<>\\" else character for character in url) + ">"
