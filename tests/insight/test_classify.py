from typing import Any

import pytest

from documents import EARLIER, LATER, change, change_set, day, digests, event
from tunekeeper.insight.changes import Fact, FileChange
from tunekeeper.insight.classify import digest, is_spelling, modification_type, rank, removed_identifiers
from tunekeeper.insight.facts import facts_of

NAME = "docs/page.md"


def fact(kind: Any, **options: Any) -> Fact:
    return Fact(kind=kind, filename=NAME, **options)


def type_of(*facts: Fact, **options: Any) -> str:
    return modification_type(digest(change(NAME, "@@ -1 +1 @@\n-a\n+b", **options), facts))


def row(kind: Any, name: str) -> Fact:
    return fact(kind, subject=name)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([event(NAME, EARLIER)], "breaking change"),
        ([event(NAME, {**LATER, "kind": "model_removed", "delta_days": None})], "breaking change"),
        ([event(NAME, {**LATER, "kind": "moved_to_retired", "delta_days": None})], "breaking change"),
        ([event(NAME, {**LATER, "kind": "model_removed", "table": "retired", "delta_days": None})], "minor update"),
        ([event(NAME, LATER)], "minor update"),
        ([event(NAME, LATER), event(NAME, EARLIER)], "breaking change"),
        ([event(NAME, {**LATER, "kind": "model_added", "delta_days": None})], "new feature"),
        ([row("table_row_removed", "`max_rows`")], "breaking change"),
        ([row("table_row_removed", "`max_rows`"), row("table_row_added", "max_rows")], "minor update"),
        ([row("table_row_removed", "`max_rows`"), row("table_row_moved", "`max_rows`")], "minor update"),
        ([row("table_row_removed", "Volume")], "minor update"),
        ([row("table_row_added", "max_rows · string")], "new feature"),
        ([fact("code_changed", data={"identifiers_removed": ("--wait",)})], "breaking change"),
        ([fact("code_changed", data={"identifiers_removed": ("client",)})], "minor update"),
        ([fact("heading_added", new="New")], "new feature"),
        ([fact("heading_added", new="New"), fact("heading_removed", old="Old")], "minor update"),
        ([fact("link_target_changed", old="a.md", new="b.md")], "bug fix"),
        ([fact("text_changed", old="You recieve it.", new="You receive it.")], "bug fix"),
        ([fact("text_changed", old="Up to 5 rows.", new="Up to 6 rows.")], "minor update"),
        ([fact("front_matter_changed", subject="ms.date", is_metadata=True)], "minor update"),
        ([], "minor update"),
    ],
)
def test_the_first_rule_that_holds_gives_the_type(facts: list[Fact], expected: str) -> None:
    assert type_of(*facts) == expected


@pytest.mark.parametrize(
    ("filename", "status", "expected"),
    [
        ("a.md", "removed", "breaking change"),
        ("a.md", "added", "new feature"),
        ("a.png", "removed", "minor update"),
        ("a.png", "added", "minor update"),
        ("a.md", "renamed", "minor update"),
    ],
)
def test_whole_files_have_types_by_what_they_are(filename: str, status: Any, expected: str) -> None:
    file = FileChange(filename=filename, status=status, additions=0, deletions=0, patch=None)
    assert modification_type(digest(file, ())) == expected


def test_a_removed_name_that_the_page_has_elsewhere_is_not_gone() -> None:
    file = change(NAME, "@@ -1 +1 @@\n-a\n+b", new_text="Use `max_rows` here.")
    assert removed_identifiers(digest(file, [row("table_row_removed", "max_rows")])) == ()


def test_spelling_is_not_a_number_a_name_or_another_word() -> None:
    assert is_spelling("the adress is", "the address is")
    assert not is_spelling("at 8 pm", "at 9 pm")
    assert not is_spelling("use `retry_a`", "use `retry_b`")
    assert not is_spelling("it is allowed", "it is forbidden")
    assert not is_spelling("it is", "it is not")


def test_what_a_retirement_tells_is_not_told_again_as_a_cell() -> None:
    item = digests()["docs/retirements.md"]
    assert len(item.events) == 2
    assert item.of("table_cell_changed") == ()


def test_another_cell_of_the_same_row_is_told() -> None:
    cell = fact("table_cell_changed", subject="old-turbo", part="Context", old="8k", new="16k", old_lines=(96, 96))
    assert digest(change(NAME, "@@ -1 +1 @@\n-a\n+b"), [event(NAME, LATER), cell]).rest == (cell,)


def test_dates_that_came_nearer_rank_first_and_metadata_last() -> None:
    ranked = sorted(digests().values(), key=rank, reverse=True)
    assert [item.change.filename for item in ranked][:2] == ["docs/retirements.md", "docs/guide.md"]
    assert {item.change.filename for item in ranked[-2:]} == {"docs/glossary.md", "docs/media/flow.png"}


def test_a_file_without_facts_is_a_minor_update() -> None:
    changes = change_set(change("x.bin", None, is_binary=True))
    assert modification_type(digest(changes.files[0], facts_of(changes)["x.bin"])) == "minor update"


def test_the_days_types() -> None:
    changes, facts = day()
    types = [modification_type(digest(file, facts[file.filename])) for file in changes.files]
    assert types == ["minor update", "breaking change", "bug fix", "minor update", "minor update"]
