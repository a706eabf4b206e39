"""Whether a report has the structure that it must have, in the eyes of a CommonMark renderer.

    check_report(text, changes)      # raises AssertionError that says what is wrong

Headings, their order, anchors that are unique and resolve, one fence a file that holds exactly its diff, summaries
that are JSON, and counts equal to the change set.
"""

import json
import re

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tunekeeper.insight.changes import ChangeSet

TYPES = ("new feature", "breaking change", "bug fix", "minor update")
TOP = ["Highlights", "Insights", "Summary Table", "Modified Contents"]
HIGHLIGHTS = ["New features", "Breaking changes", "Other updates"]
_ANCHOR = re.compile(r"\{#(item-[0-9a-f]{6,})\}$")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")


def check_report(text: str, changes: ChangeSet) -> None:
    """Compare a rendered report with what it reports."""
    front, body = _front_matter(text)
    assert set(front) >= {"date", "permalink", "summary", "title"}
    assert str(front["date"]) == changes.date
    assert front["permalink"] == changes.url
    assert front["summary"].strip()
    assert front["title"].startswith("Diff Insight Report - ")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    headings = [
        (int(token.tag[1]), tokens[at + 1].content, at)
        for at, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
    ]
    assert [name for level, name, _ in headings if level == 1] == TOP
    assert [name for level, name, _ in headings if level == 2][:3] == HIGHLIGHTS
    assert "{target=" in body.partition("# Highlights")[0]
    for name in HIGHLIGHTS:
        assert _below(tokens, headings, name, "bullet_list_open"), f"{name} has no list"
    assert _below(tokens, headings, "Insights", "paragraph_open"), "no insights"
    items = [(name, at) for level, name, at in headings if level == 2][3:]
    assert len(items) == len(changes.files)
    anchors = [match[1] for name, _ in items if (match := _ANCHOR.search(name))]
    assert len({*anchors}) == len(changes.files), "anchors are missing or not unique"
    _check_table(tokens, headings, anchors, changes)
    ends = [*(at for _, at in items[1:]), len(tokens)]
    for (name, at), end, change in zip(items, ends, changes.files, strict=True):
        shown = _ESCAPE.sub(r"\1", _ANCHOR.sub("", name))
        assert shown == " ".join(change.filename.split()), f"{shown} stands where {change.filename} should"
        _check_item(tokens[at:end], change.patch, change.filename)


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    assert text.startswith("---\n")
    front, _, body = text[4:].partition("\n---\n")
    return yaml.safe_load(front), body


def _below(tokens: list[Token], headings: list[tuple[int, str, int]], name: str, kind: str) -> bool:
    index = next(n for n, (_, heading, _) in enumerate(headings) if heading == name)
    end = headings[index + 1][2] if index + 1 < len(headings) else len(tokens)
    return any(token.type == kind for token in tokens[headings[index][2] : end])


def _check_table(
    tokens: list[Token], headings: list[tuple[int, str, int]], anchors: list[str], changes: ChangeSet
) -> None:
    start = next(at for _, name, at in headings if name == "Summary Table")
    end = next(at for _, name, at in headings if name == "Modified Contents")
    cells = [
        tokens[at + 1].content
        for at, token in enumerate(tokens[:end])
        if at > start and token.type in ("th_open", "td_open")
    ]
    rows = [cells[n : n + 7] for n in range(0, len(cells), 7)]
    assert rows[0] == ["Filename", "Type", "Title", "Status", "A", "D", "M"]
    assert len(rows) - 1 == len(changes.files)
    for row, anchor, change in zip(rows[1:], anchors, changes.files, strict=True):
        assert row[0].endswith(f"](#{anchor})"), f"{row[0]} does not lead to {anchor}"
        assert row[1] in TYPES
        assert row[2].strip()
        counts = [str(number) for number in (change.additions, change.deletions, change.changes)]
        assert row[3:] == [change.status, *counts], f"{change.filename}: {row[3:]}"


def _check_item(tokens: list[Token], patch: str | None, filename: str) -> None:
    kinds = [token.type for token in tokens]
    html = [token.content.strip() for token in tokens if token.type == "html_block"]
    assert html[0].startswith("<details>"), filename
    assert "</details>" in html[-1], f"{filename}: the fold does not end"
    diffs = [token for token in tokens if token.type == "fence" and token.info.strip() == "diff"]
    if patch is None:
        assert not diffs
    else:
        assert len(diffs) == 1, f"{filename}: {len(diffs)} diffs"
        assert _comparable(diffs[0].content) == _comparable(patch), f"{filename}: the fence does not hold the diff"
    names = [
        tokens[at + 1].content for at, kind in enumerate(kinds) if kind == "heading_open" and tokens[at].level == 0
    ]
    assert names[1:] == ["Summary", "Explanation"], f"{filename}: {names[1:]}"
    summaries = [token for token in tokens if token.type == "fence" and token.info.strip() == "json"]
    assert len(summaries) == 1
    summary = json.loads(summaries[0].content)
    assert list(summary) == ["modification_type", "modification_title"]
    assert summary["modification_type"] in TYPES
    assert any(
        token.type in ("paragraph_open", "bullet_list_open") and at > kinds.index("fence")
        for at, token in enumerate(tokens)
    ), f"{filename}: no explanation"


def _comparable(diff: str) -> str:
    """A diff without what no Markdown file can carry: carriage returns and control characters."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f�␍\ud800-\udfff]", "", diff).rstrip("\n")
