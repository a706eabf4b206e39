import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from documents import change, change_set, day
from report_checker import check_report
from tunekeeper.insight.changes import FileChange
from tunekeeper.insight.facts import facts_of
from tunekeeper.insight.render import render
from tunekeeper.insight.report import Highlights, Report
from tunekeeper.insight.writer import write_report

HOSTILE = (
    "</details>\n<details>\n````\n`````diff\n---\ntitle: x\n---\n# Highlights\n| a | b |\n|---|---|\n"
    "<script>alert(1)</script>\n{#item-71d8ac}\n{{ x }}\n</summary>\n~~~~\n"
)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_day_has_the_structure_of_a_report(language: str) -> None:
    changes, facts = day()
    check_report(render(write_report(changes, facts, language=language)), changes)


def test_the_parts_are_those_of_the_format_in_their_order() -> None:
    changes, facts = day()
    text = render(write_report(changes, facts, language="en"))
    assert text.startswith("---\ndate: '2025-06-12'\npermalink: https://git.example/docs/compare/a...b\nsummary: ")
    order = [
        'title: Diff Insight Report - models\n\n---\n\n[View Diff on GitHub](https://git.example/docs/compare/a...b){target="_blank"}',
        "Source: Example docs (license: CC BY 4.0)",
        "# Highlights\n\n## New features\n- ",
        "## Breaking changes\n- ",
        "## Other updates\n- ",
        "# Insights\n\n",
        "# Summary Table\n|  Filename  | Type |    Title    | Status | A  | D  | M  |\n",
        "| [guide.md](#item-",
        "# Modified Contents\n\n## docs/guide.md{#item-",
        "<details>\n<summary>Diff</summary>\n\n````diff\n@@ -10,7",
        '````\n\n</details>\n\n### Summary\n\n```json\n{\n    "modification_type": "minor update",\n',
        "}\n```\n\n### Explanation\n",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize("patch", [f"@@ -1 +1 @@\n+{HOSTILE}", "+" + "`" * 50, "@@ -1 +1 @@\n+a\r\n-b\r`````\n", ""])
def test_nothing_in_a_diff_leaves_its_fence(patch: str) -> None:
    changes = change_set(change("a.md", patch), change("b.md", "@@ -1 +1 @@\n-a\n+b"))
    check_report(render(write_report(changes, facts_of(changes), language="ja")), changes)


TEXT = st.text(st.sampled_from("ab `*_[]()<>#|&!~${}\\\n\r\"'-+.1:/\u2028\x0c@é漢"), max_size=60)
LINES = st.lists(st.builds(str.__add__, st.sampled_from([" ", "+", "-", "@@ -1 +1 @@ ", ""]), TEXT), max_size=8)


@st.composite
def files(draw: st.DrawFn) -> tuple[FileChange, ...]:
    names = draw(st.lists(TEXT.filter(lambda name: bool(name.strip("\n\r \u2028\x0c"))), min_size=1, max_size=3))
    patches = [draw(st.none() | LINES.map("\n".join)) for _ in names]
    statuses: Any = st.sampled_from(["added", "removed", "modified", "renamed", "copied"])
    return tuple(
        FileChange(
            filename=" ".join(name.split()),
            status=draw(statuses),
            additions=draw(st.integers(0, 9)),
            deletions=draw(st.integers(0, 9)),
            patch=patch,
            previous_filename=draw(st.none() | TEXT),
            is_cut=draw(st.booleans()),
        )
        for name, patch in zip(names, patches, strict=True)
    )


@settings(max_examples=40, deadline=None)
@example((FileChange(filename="|/", status="added", additions=0, deletions=0, patch=None),), "", "ja")
@given(files(), TEXT, st.sampled_from(["ja", "en"]))
def test_whatever_names_and_diffs_hold_the_report_keeps_its_structure(
    changed: tuple[FileChange, ...], text: str, language: str
) -> None:
    changes = change_set(*changed, source=text, license=text, lacks=(text,), category=f"c{text}")
    check_report(render(write_report(changes, facts_of(changes), language=language)), changes)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_front_matter_is_read_back_as_it_was(summary: str, title: str) -> None:
    report = Report(
        date="2025-06-12",
        permalink="https://x.example",
        title=title,
        summary=summary,
        language="en",
        highlights=Highlights(new_features=(), breaking_changes=(), other_updates=()),
        insights=("a",),
        items=(),
    )
    front = yaml.safe_load(render(report).partition("---\n")[2].partition("\n---\n")[0])
    assert front == {
        "date": "2025-06-12",
        "permalink": "https://x.example",
        "summary": " ".join(summary.split()).replace("\x0c", " "),
        "title": " ".join(title.split()),
    }


def test_a_title_with_pipes_and_html_stays_in_its_cell_and_its_json() -> None:
    changes, facts = day()
    report = write_report(changes, facts, language="en")
    title = 'a | b <b> `c` "d" </details>'
    item = replace(report.items[0], title=title)
    text = render(replace(report, items=(item, *report.items[1:])))
    check_report(text, changes)
    summary = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert summary
    assert json.loads(summary[1])["modification_title"] == title


def test_what_the_source_lacks_is_shown_at_the_top() -> None:
    changes, facts = day(lacks=("The list has 300 files, its limit: there may be more.",))
    text = render(write_report(changes, facts, language="ja"))
    assert text.index("この報告に欠けているもの") < text.index("its limit") < text.index("# Highlights")


def test_a_local_path_with_blanks_is_still_one_link() -> None:
    changes, facts = day()
    text = render(write_report(replace(changes, url="/home/a b/docs (1) 12..34"), facts, language="en"))
    html = MarkdownIt("commonmark").render(text.partition("\n---\n")[2])
    assert '<a href="/home/a%20b/docs%20(1)%2012..34">View Diff on GitHub</a>' in html


def test_a_day_without_files_is_a_report_too() -> None:
    text = render(write_report(change_set(), {}, language="en"))
    assert "Nothing changed." in text
    assert text.count("None found in this diff.") == 3
