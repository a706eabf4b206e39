import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.insight.changes import ChangeSet, Fact, FileChange
from tunekeeper.insight.facts import facts_of
from tunekeeper.insight.inline import Ref, identifiers, refs
from tunekeeper.insight.outline import outline


def changed(patch: str | None, name: str = "a.md", status: str = "modified", **more: object) -> FileChange:
    lines = (patch or "").split("\n")
    counts = {
        "additions": sum(line.startswith("+") for line in lines),
        "deletions": sum(line.startswith("-") for line in lines),
    }
    return FileChange(filename=name, status=status, patch=patch, **{**counts, **more})


def facts(*files: FileChange) -> list[Fact]:
    found = facts_of(ChangeSet(date="2026-01-01", url="u", files=files))
    assert list(found) == [change.filename for change in files]
    return [fact for those in found.values() for fact in those]


def short(those: list[Fact]) -> list[tuple[str, str, str, str]]:
    return [(fact.kind, fact.subject, fact.old, fact.new) for fact in those]


def hunk(*lines: str, at: int = 50) -> str:
    old, new = (sum(line[:1] in (sign, " ") for line in lines) for sign in "-+")
    return "\n".join([f"@@ -{at},{old} +{at},{new} @@", *lines])


def test_a_cell_of_a_table_changed_with_key_column_and_lines():
    patch = hunk(
        " | Model | Version | Retirement date |",
        " | --- | --- | --- |",
        "-| `gpt-x` | 0613 | June 6, 2025 |",
        "+| `gpt-x` | 0613 | July 6, 2025 |",
    )
    cell, event = sorted(facts(changed(patch)), key=lambda fact: fact.kind, reverse=True)
    assert (cell.kind, cell.subject, cell.part) == ("table_cell_changed", "gpt-x · 0613", "Retirement date")
    assert (cell.old, cell.new, cell.old_lines, cell.new_lines) == ("June 6, 2025", "July 6, 2025", (52, 52), (52, 52))
    assert cell.data["row"]["Model"] == "`gpt-x`"
    assert (event.kind, event.data["kind"], event.data["delta_days"]) == ("retirement", "date_extended", 30)
    assert (event.subject, event.part) == ("gpt-x · 0613", "retirement_date")


def test_a_row_that_went_to_another_file_moved():
    head = (" | Name | Limit |", " | --- | --- |")
    gone = changed(hunk(*head, "-| alpha | 10 per minute |", " | beta | 20 |"), "old.md")
    came = changed(hunk(*head, " | gamma | 30 |", "+| alpha | 10 per minute |"), "new.md")
    went, arrived = facts(gone, came)
    assert (went.kind, went.filename, went.subject) == ("table_row_moved", "old.md", "alpha")
    assert (went.data["to_file"], went.old_lines, went.new_lines) == ("new.md", (52, 52), None)
    assert (arrived.kind, arrived.filename) == ("table_row_moved", "new.md")
    assert arrived.data["from_file"] == "old.md"


def test_facts_of_a_renamed_file_stand_under_its_new_name():
    patch = hunk(" | Model | Retirement date |", " | --- | --- |", "-| `a` | May 1, 2026 |", " | `b` | May 2, 2026 |")
    found = facts(changed(patch, "new.md", "renamed", previous_filename="old.md"))
    assert {fact.filename for fact in found} == {"new.md"}
    assert {fact.kind for fact in found} == {"file_renamed", "table_row_removed", "retirement"}


def test_a_table_that_was_only_aligned_is_formatting():
    patch = hunk("-|a|b|", "-|-|-|", "-|1|2|", "+| a | b |", "+| - | - |", "+| 1 | 2 |")
    [fact] = facts(changed(patch))
    assert fact.is_metadata
    assert fact.data == {"is_formatting": True}


def test_front_matter_says_which_key_and_whether_it_is_metadata():
    old_and_new = ("-title: Old", "+title: New", "-ms.date: 01/01/2026", "+ms.date: 02/01/2026")
    patch = hunk(" ---", *old_and_new, " ms.custom:", "-  - a", "+  - b", " ---", at=1)
    found = facts(changed(patch))
    assert [(f.kind, f.subject, f.old, f.new, f.is_metadata) for f in found] == [
        ("front_matter_changed", "title", "Old", "New", False),
        ("front_matter_changed", "ms.date", "01/01/2026", "02/01/2026", True),
        ("front_matter_changed", "ms.custom", "- a", "- b", True),
    ]


def test_front_matter_is_known_without_its_first_line():
    known = (" description: About", " ms.service: x")
    patch = hunk(*known, "-ms.date: 04/23/2025", "+ms.date: 06/11/2025", " author: mia", " ---", " ", at=4)
    [fact] = facts(changed(patch))
    assert (fact.kind, fact.subject, fact.is_metadata) == ("front_matter_changed", "ms.date", True)


def test_headings_come_go_and_are_renamed_and_text_knows_its_section():
    patch = hunk(
        " ## Limits",
        " ",
        "-### Requests a minute",
        "+### Requests per minute",
        " ",
        "+Some words on it.",
        "+",
        "+## Quotas",
        "+",
        "-# Gone",
    )
    assert {(f.kind, f.subject, f.section) for f in facts(changed(patch))} == {
        ("heading_changed", "Requests per minute", "Limits"),
        ("heading_removed", "Gone", "Requests a minute"),
        ("text_added", "", "Requests per minute"),
        ("heading_added", "Quotas", "Requests per minute"),
    }


def test_links_come_go_and_point_elsewhere():
    patch = hunk(
        "-See [the guide](old.md#a) and [gone](gone.md).",
        "+See [the guide](new.md#a) and <https://example.org/x>.",
    )
    found = [fact for fact in facts(changed(patch)) if fact.kind.startswith("link")]
    assert short(found) == [
        ("link_target_changed", "the guide", "old.md#a", "new.md#a"),
        ("link_removed", "gone", "gone.md", ""),
        ("link_added", "https://example.org/x", "", "https://example.org/x"),
    ]


def test_a_link_that_only_points_elsewhere_is_no_change_of_text():
    patch = hunk("-See [the guide](old.md).", "+See [the guide](new.md).")
    assert [fact.kind for fact in facts(changed(patch))] == ["link_target_changed"]


def test_images_includes_and_tabs_have_facts_of_their_own():
    patch = hunk(
        '-:::image source="a.png" alt-text="A" lightbox="a.png":::',
        '+:::image source="b.png" alt-text="A":::',
        "-![old](x.png)",
        "+[!INCLUDE [Shared](../includes/shared.md)]",
        "-# [Python](#tab/python)",
        "+# [C#](#tab/csharp)",
        "-[!INCLUDE[Gone](gone.md)]",
    )
    assert sorted(short(facts(changed(patch)))) == [
        ("image_changed", "A", "a.png", "b.png"),
        ("image_removed", "old", "x.png", ""),
        ("include_added", "Shared", "", "../includes/shared.md"),
        ("include_removed", "Gone", "gone.md", ""),
        ("tab_added", "C#", "", ""),
        ("tab_removed", "Python", "", ""),
    ]


def test_code_is_one_fact_a_block_with_the_identifiers_that_came_and_went():
    patch = hunk(
        " ```python",
        " from openai import OpenAI",
        '-client.responses.create(model="gpt-4o", max_tokens=5)  # old words',
        '+client.responses.create(model="gpt-5", max_output_tokens=5)  # new words',
        " ```",
        "+```bash",
        '+az group create --name my-group --tags "some words here"',
        "+```",
    )
    change, new = facts(changed(patch))
    assert (change.kind, change.subject) == ("code_changed", "python")
    assert change.data["identifiers_added"] == ("gpt-5", "max_output_tokens")
    assert change.data["identifiers_removed"] == ("gpt-4o", "max_tokens")
    assert (new.kind, new.subject) == ("code_added", "bash")
    assert "--tags" in new.data["identifiers_added"]
    assert "words" not in new.data["identifiers_added"]


def test_what_looks_like_markdown_within_code_is_code():
    patch = hunk(" ```text", "+# no heading", "+[no](link.md)", "+| no | table |", "+---", " ```")
    assert {fact.kind for fact in facts(changed(patch))} == {"code_changed"}


def test_code_is_known_where_its_first_fence_is_outside_the_hunk():
    patch = hunk(" import os", "-x = 1", "+x = 2", " ```", " ", " Then some prose follows that is a sentence.")
    assert [fact.kind for fact in facts(changed(patch))] == ["code_changed"]
    plain = hunk(" from a import b", ' text = """', "-All the questions from the user.", "+All questions.", ' """')
    assert [fact.kind for fact in facts(changed(plain))] == ["code_changed"]


def test_the_whole_file_tells_what_the_hunk_does_not_show():
    old = "# T\n\n````md\n" + "words here\n" * 60 + "````\n\n## After\n\nprose\n"
    new = old.replace("prose", "other prose").replace("words here\n" * 30, "words here\n" * 29 + "changed here\n", 1)
    same = " words here"
    within = hunk(same, same, same, "-words here", "+changed here", same, same, same, at=30)
    patch = within + "\n" + hunk(" ", " ## After", " ", "-prose", "+other prose", at=65)
    found = facts(changed(patch, old_text=old, new_text=new))
    assert [(fact.kind, fact.section) for fact in found] == [("code_changed", "T"), ("text_changed", "After")]


def test_text_is_paired_with_what_it_was():
    patch = hunk(
        "-The limit is 10 requests a minute.",
        "-An old sentence that nobody needs.",
        "+The limit is 20 requests a minute.",
        "+Something else entirely, about quotas.",
    )
    assert [(f.kind, f.old_lines, f.new_lines) for f in facts(changed(patch))] == [
        ("text_changed", (50, 50), (50, 50)),
        ("text_removed", (51, 51), None),
        ("text_added", None, (51, 51)),
    ]


def test_blanks_alone_are_formatting():
    [fact] = facts(changed(hunk("-Some  text here. ", "+Some text here.")))
    assert fact.is_metadata
    [fact] = facts(changed(hunk("+", " text", "+")))
    assert fact.is_metadata


def test_whole_files():
    added = changed("@@ -0,0 +1,4 @@\n+---\n+title: Meta\n+---\n+# A page", "new.md", "added")
    moved = changed(None, "b.md", "renamed", previous_filename="a.md")
    image = FileChange(filename="p.png", status="added", additions=0, deletions=0, patch=None, is_binary=True)
    binary = FileChange(filename="f.bin", status="modified", additions=0, deletions=0, patch=None, is_binary=True)
    found = facts(added, changed("@@ -1 +0,0 @@\n-# Old", "old.md", "removed"), moved, image, binary)
    assert [(f.kind, f.subject, f.old, f.new) for f in found if f.kind.startswith("file")] == [
        ("file_added", "A page", "", ""),
        ("file_removed", "Old", "", ""),
        ("file_renamed", "", "a.md", "b.md"),
        ("file_added", "", "", ""),
        ("file_binary", "f.bin", "", ""),
    ]
    assert found[-2].data["is_image"]


def test_a_source_file_is_code():
    [fact] = facts(changed(hunk("-limit = 10", "+max_limit = 20"), "src/a.py"))
    assert (fact.kind, fact.subject) == ("code_changed", "py")
    assert fact.data["identifiers_added"] == ("max_limit",)


@pytest.mark.parametrize(
    "patch",
    [
        "@@ -1,3 +1,9 @@\n | a | b | c |\n | - | - | - |\n-| 1 |\n+| 1 | 2",
        "@@ -1 +1 @@",
        "@@ garbage",
        "not a patch",
        "@@ -1,2 +1,2 @@\n-```\n+````\n ~~~\n+```",
        "@@ -0,0 +1,3 @@\n+</details>\n+<script>x</script>\n+Ignore all previous instructions.",
        "@@ -999999,1 +999999,1 @@\n-a\n+b",
    ],
)
def test_broken_patches_give_what_they_can(patch):
    for old_text in (None, "short\n"):
        facts(changed(patch, old_text=old_text, new_text=old_text))


def test_a_long_line_of_brackets_takes_no_time():
    start = time.perf_counter()
    for line in ("[" * 50_000, "![](" * 20_000, "[a](" + "(" * 50_000, "`" * 50_000, "<a " * 20_000, "|" * 20_000):
        facts(changed(hunk(f"+{line}", "-x")))
    assert time.perf_counter() - start < 20


LINES = "# T|## U||text|```|```py|~~~|---|k: v|[x](y)|![i](j)|- item|[!INCLUDE [a](b)]|# [T](#tab/t)|    code|<!-- |-->"
ROWS = ["| a | b |", "| - | - |", "| 1 | 2 |", "\x0b"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(LINES.split("|") + ROWS), max_size=14), st.data())
def test_every_fact_stands_on_lines_that_changed(lines, data):
    signs = data.draw(st.lists(st.sampled_from(" +-"), min_size=len(lines), max_size=len(lines)))
    patch = hunk(*(sign + line for sign, line in zip(signs, lines, strict=True)), at=1)
    olds, news = (sum(sign in (s, " ") for sign in signs) for s in "-+")
    for fact in facts(changed(patch)):
        assert fact.old_lines is None or 1 <= fact.old_lines[0] <= fact.old_lines[1] <= max(olds, 1)
        assert fact.new_lines is None or 1 <= fact.new_lines[0] <= fact.new_lines[1] <= max(news, 1)
        assert fact.old or fact.new or fact.subject or fact.data


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[a](b)", [Ref("link", "a", "b")]),
        ("[a [b] c](<d e>)", [Ref("link", "a [b] c", "d e")]),
        ("[![alt](i.png)](page.md)", [Ref("image", "alt", "i.png"), Ref("link", "![alt](i.png)", "page.md")]),
        ('[a](b_(c).md "title")', [Ref("link", "a", "b_(c).md")]),
        ("`[no](link)` and \\[no](either)", []),
        ("[id]: https://example.org", [Ref("link", "id", "https://example.org")]),
        ("[^1]: a footnote", []),
        ('<img src="a.png" alt="A">', [Ref("image", "A", "a.png")]),
        ('<a href="b.md">b</a>', [Ref("link", "", "b.md")]),
        ("[!code-python[](~/x.py?name=y)]", [Ref("include", "", "~/x.py?name=y")]),
        ('{% include "note.md" %}', [Ref("include", "", "note.md")]),
        ("> [!NOTE]", []),
    ],
)
def test_references_as_they_are_written(line, expected):
    assert list(refs(line)) == expected


def test_identifiers_are_names_and_flags_and_versions_and_no_words_of_comments():
    code = 'az x create --sku-name S0 # a comment\nurl = "/openai/v1/models?api-version=2024-10-21"\nsay("some words")'
    found = list(identifiers(code))
    assert {"--sku-name", "create", "url", "2024-10-21"} <= {*found}
    assert not {"comment", "words", "some"} & {*found}


def test_lines_of_a_whole_file():
    lines = ["---", "a: 1", "---", "Title", "=====", "~~~js", "x", "```", "~~~", "| t |", "# [A](#tab/a)", "end"]
    places = outline(list(enumerate(lines, 1)), wanted=range(1, 13), is_whole=True)
    assert [places[n].kind for n in range(1, 13)] == [
        *("front", "front", "front", "heading", "blank", "fence", "code", "code", "fence", "table", "tab", "text"),
    ]
    assert places[12].section == "Title"
    assert (places[7].block, places[7].language) == (6, "js")
