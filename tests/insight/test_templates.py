from typing import Any

import pytest

from documents import EARLIER, LATER, change, digests, event
from tunekeeper.insight import events, templates
from tunekeeper.insight.catalogue import catalogue
from tunekeeper.insight.changes import Fact
from tunekeeper.insight.classify import digest
from tunekeeper.insight.words import edits, quoted

JA, EN = catalogue("ja"), catalogue("en")
NAME = "docs/page.md"
PATCH = "@@ -1 +1 @@\n-a\n+b"


def told(data: dict[str, Any], words: Any = EN) -> str:
    return events.sentence((data,), words)


@pytest.mark.parametrize(
    ("data", "english", "japanese"),
    [
        (
            LATER,
            "`screen-use-preview` (version `2025-03-11`): the retirement date moved from no earlier than June 11, 2025 "
            "to no earlier than September 1, 2025 (82 days later).",
            "`screen-use-preview` (バージョン `2025-03-11`) の提供終了日が、2025年6月11日以降から"
            "2025年9月1日以降に変わりました (82 日後ろ倒し)。",
        ),
        (
            EARLIER,
            "`old-turbo` (version `0613`): the retirement date was brought forward from December 1, 2025 "
            "to November 15, 2025 (16 days earlier).",
            "`old-turbo` (バージョン `0613`) の提供終了日が、2025年12月1日から2025年11月15日に早まりました "
            "(16 日前倒し)。",
        ),
        (
            {**LATER, "kind": "date_set", "old_text": "TBD", "old_date": None, "delta_days": None, "version": ""},
            "`screen-use-preview`: the retirement date was set to no earlier than September 1, 2025 (before: “TBD”).",
            "`screen-use-preview` の提供終了日が、2025年9月1日以降に決まりました (以前は「TBD」)。",
        ),
        (
            {
                "model": "m-1",
                "kind": "replacement_changed",
                "field": "replacement",
                "old_text": "a-1",
                "new_text": "b-2",
            },
            "`m-1`: the replacement changed from `a-1` to `b-2`.",
            "`m-1` の後継モデルが、`a-1` から `b-2` に変わりました。",
        ),
        (
            {"model": "m-1", "kind": "replacement_set", "field": "replacement", "old_text": "", "new_text": "b-2"},
            "`m-1`: the replacement is now given as `b-2`.",
            "`m-1` の後継モデルとして `b-2` が示されました。",
        ),
        (
            {
                "model": "m-1",
                "kind": "model_added",
                "field": "row",
                "table": "current",
                "cells": {"replacement": "b-2"},
                "dates": {"retirement_date": {"date": "2026-01-02", "qualifier": "exact"}},
            },
            "`m-1`: added to the retirement schedule (retirement date: January 2, 2026, replacement: `b-2`).",
            "`m-1` が、提供終了の予定表に加わりました (提供終了日: 2026年1月2日、後継モデル: `b-2`)。",
        ),
        (
            {"model": "m-1", "kind": "model_removed", "field": "row", "table": "retired"},
            "`m-1`: removed from the table of retired models.",
            "`m-1` が、提供終了済みの表からなくなりました。",
        ),
    ],
)
def test_an_event_is_one_sentence_in_each_language(data: dict[str, Any], english: str, japanese: str) -> None:
    assert told(data, EN) == english
    assert told(data, JA) == japanese


def test_a_date_that_is_gone_is_said_to_be_gone_though_other_text_is_left() -> None:
    data = {
        **{name: LATER[name] for name in ("model", "version", "old_qualifier")},
        "kind": "auto_upgrade_removed",
        "field": "auto_upgrade_date",
        "old_text": "To be upgraded no sooner than April 17, 2025. Retires on May 1, 2025",
        "new_text": "May 1, 2025",
        "old_date": "2025-04-17",
        "new_date": None,
    }
    assert told(data).endswith("the auto-upgrade date is no longer given (before: no earlier than April 17, 2025).")


def test_a_long_text_without_a_date_is_told_by_its_edits() -> None:
    text = "Deployments of every version that follow the default are upgraded, starting on {}."
    data = {"model": "m-1", "kind": "other_changed", "field": "other:default_upgrade"}
    data |= {"old_text": text.format("November 13"), "new_text": text.format("January 13")}
    assert told(data) == "`m-1`: the note on upgrades of the default version was rewritten: “November” → “January”"


def test_titles_count_models_and_not_their_versions() -> None:
    versions = [{**LATER, "version": str(n)} for n in range(3)]
    assert events.title(events.groups(versions), EN) == "screen-use-preview: retirement date 82 days later"
    others = [{**LATER, "model": f"m-{n}"} for n in range(3)]
    assert events.title(events.groups(others), EN) == "Retirement changes: m-0 and 2 more"
    added = {"model": "m-1", "kind": "model_added", "field": "row", "table": "current"}
    assert events.title([(added,)], EN) == "m-1: added to the retirement schedule"


def test_an_unknown_kind_and_field_are_still_told() -> None:
    data = {"model": "m-1", "kind": "surprise", "field": "other:tier", "old_text": "one two", "new_text": "three four"}
    assert told(data) == "`m-1`: the column “tier” changed from “one two” to “three four”."


def test_events_that_say_the_same_make_one_sentence() -> None:
    same = [{**LATER, "model": "b-1"}, {**LATER, "model": "a-1"}, {**LATER, "model": "a-1", "version": "2"}]
    (first, other) = events.groups([*same, EARLIER])
    assert first == (EARLIER,)  # what comes nearer is first
    assert events.models(other, EN) == "`a-1` (version `2` and `2025-03-11`) and `b-1` (version `2025-03-11`)"


def explained(*facts: Fact, words: Any = EN, patch: str | None = PATCH, **options: Any) -> str:
    return "\n".join(templates.explanation(digest(change(NAME, patch, **options), facts), words))


def fact(kind: Any, **options: Any) -> Fact:
    return Fact(kind=kind, filename=NAME, **options)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ([fact("heading_changed", old="Old", new="New")], "The heading “Old” became “New”."),
        ([fact("heading_added", new="A", subject="A"), fact("heading_added", new="B", subject="B")], "“A” and “B”"),
        ([fact("link_target_changed", old="a.md", new="b.md")], "Link targets changed: `a.md` → `b.md`"),
        ([fact("link_added", subject="text", new="/a/b")], "1 link added: `/a/b`"),
        ([fact("code_changed", data={"identifiers_added": ("max_rows",)})], "came into the code samples: `max_rows`"),
        ([fact("table_row_added", subject="gpt-x1 · 2")], "1 table row added: `gpt-x1` · “2”"),
        (
            [fact("table_cell_changed", subject="gpt-x1", part="Context", old="8k", new="16k")],
            "In the table's row `gpt-x1`, “Context” changed from `8k` to `16k`.",
        ),
        ([fact("image_added", subject="alt", new="media/a.png")], "1 image added (not looked at): `media/a.png`"),
        ([fact("text_added", new="Use **one thing**. More.")], "Terms in bold that were added: “one thing”"),
        ([fact("text_changed", old="It is a b c.", new="It was a b c.")], "Text rewritten: “is” → “was”"),
        ([fact("tab_removed", subject="Python")], "Tabs removed: “Python”"),
        ([fact("include_added", new="a/b.md")], "Includes added: `a/b.md`"),
    ],
)
def test_each_kind_of_fact_names_what_is_concerned(facts: list[Fact], line: str) -> None:
    assert line in explained(*facts)


def test_a_heading_on_both_sides_only_moved() -> None:
    text = explained(fact("heading_added", new="A", subject="A"), fact("heading_removed", old="A", subject="A"))
    assert "Headings whose place, level or form changed: “A”" in text
    assert "added: “A”" not in text


def test_metadata_alone_gets_one_short_line() -> None:
    changed = fact("front_matter_changed", subject="ms.date", old="01/02/2025", new="06/10/2025", is_metadata=True)
    assert explained(changed) == "Only metadata changed: `ms.date` `01/02/2025` → `06/10/2025`"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"is_binary": True}, "What changed is not known to this report."),
        (
            {"is_cut": True, "additions": 684, "deletions": 819},
            "could not be had (lines added: 684; lines removed: 819)",
        ),
        ({"status": "renamed", "previous_filename": "docs/old.md"}, "Moved from `docs/old.md` to `docs/page.md`"),
    ],
)
def test_a_file_without_a_patch_says_so_and_claims_nothing(options: dict[str, Any], text: str) -> None:
    found = explained(patch=None, **options)
    assert text in found
    assert "improve" not in found


def test_an_image_is_listed_and_not_described() -> None:
    item = digest(change("a/flow.png", None, status="added"), ())
    assert templates.explanation(item, EN) == ("An image; it was not looked at.",)
    assert templates.title(item, EN) == "Image added: flow.png"


def test_a_cut_patch_is_said_to_be_cut() -> None:
    assert "cut off" in explained(fact("text_added", new="Something."), is_cut=True)


def test_titles_are_plain_and_name_the_most_important() -> None:
    titles = {name: templates.title(item, JA) for name, item in digests().items()}
    assert titles["docs/guide.md"] == "ページの表題を「Tuning considerations」に変更"
    assert titles["docs/glossary.md"] == "メタデータの更新 (ms.date)"
    assert titles["docs/retirements.md"].startswith("old-turbo")
    assert templates.title(digest(change(NAME, PATCH), [event(NAME, LATER)]), JA) == (
        "screen-use-preview の提供終了日を 82 日後ろ倒し"
    )


def test_every_date_of_the_day_is_in_the_explanation() -> None:
    text = "\n".join(templates.explanation(digests()["docs/retirements.md"], JA))
    for part in (
        "`screen-use-preview`",
        "2025年9月1日以降",
        "82 日後ろ倒し",
        "`old-turbo`",
        "16 日前倒し",
        "`ms.date`",
    ):
        assert part in text


def test_what_git_wrote_behind_the_hunk_is_no_section() -> None:
    patch = "@@ -1,2 +1,2 @@ Some sentence that stands above\n-a\n+b"
    assert "Some sentence" not in explained(
        fact("text_changed", section="Some sentence that stands above"), patch=patch
    )
    assert "Sections touched: “Limits”." in explained(fact("text_changed", section="Limits"), patch=patch)


def test_long_text_is_cut_at_a_word_and_long_rewrites_are_not_compared() -> None:
    assert quoted("word " * 60, EN).endswith("word…”")
    assert edits("a " * 300, "b " * 300, EN) == []
