import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retirement_cases import CASES, HEAD, changed, evaluate
from tunekeeper.diffs.patch import parse_patch
from tunekeeper.diffs.tables import Page
from tunekeeper.lifecycle.retirements import not_understood, read_records, retirement_events

PAGE = """# Retirements

## Current models

| Model | Version | Retirement date | Replacement model |
|---|---|---|---|
| `a`<br>`a-32k` | 0613 | June 6, 2026 | `b` |
| `c` | 1 | April, 30, 2026 | |

### Cohere

| Model | Version | Lifecycle | Retirement date | Replacement |
|---|---|---|---|---|
| rerank | — | Retired | 2026-05-14 | rerank-2, rerank-3 |

#### Fine-tuned models

| Model | Version | Training retirement date | Deployment retirement date |
|---|---|---|---|
| `a` | 0613 | No earlier than 2026-03-31 | One year after training retirement |
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_change_gives_the_events_that_a_careful_reader_names(case):
    score = evaluate(case)
    assert (score.missed, score.invented) == ((), ())
    assert (score.precision, score.recall) == (1.0, 1.0)


def test_a_page_gives_a_record_for_each_model_with_its_place():
    records = read_records(PAGE, filename="page.md")
    assert [(r.table, r.publisher, r.model, r.version, r.line) for r in records] == [
        ("current", "", "a", "0613", 7),
        ("current", "", "a-32k", "0613", 7),
        ("current", "", "c", "1", 8),
        ("current", "Cohere", "rerank", "", 14),
        ("fine_tuned", "Cohere", "a", "0613", 20),
    ]


def test_training_and_inference_dates_stay_apart():
    tuned = read_records(PAGE)[-1]
    assert tuned.readings["training_retirement_date"].date == datetime.date(2026, 3, 31)
    assert tuned.readings["deployment_retirement_date"].date is None
    assert "retirement_date" not in tuned.readings


def test_dates_that_cannot_be_read_are_listed():
    assert [(record.model, name) for record, name in not_understood(read_records(PAGE))] == [
        ("c", "retirement_date"),
        ("a", "deployment_retirement_date"),
    ]


def test_an_extended_date_is_told_with_both_texts_and_the_days_between():
    page = changed(HEAD + "| `a` | 1 | No earlier than June 11, 2025 | |", HEAD + "| `a` | 1 | September 1, 2025 | |")
    (event,) = retirement_events([page])
    assert event.to_dict() == {
        "table": "current",
        "model": "a",
        "version": "1",
        "kind": "date_extended",
        "field": "retirement_date",
        "old_text": "No earlier than June 11, 2025",
        "new_text": "September 1, 2025",
        "old_date": "2025-06-11",
        "new_date": "2025-09-01",
        "old_qualifier": "not_before",
        "new_qualifier": "exact",
        "delta_days": 82,
    }


def test_an_added_model_is_told_with_its_row():
    (event,) = retirement_events(
        [changed(HEAD, HEAD + "| `a` | 1 | **Deprecation:** May 1, 2026 <br> June 1, 2026 | `b` |")]
    )
    assert event.to_dict() == {
        "table": "current",
        "model": "a",
        "version": "1",
        "kind": "model_added",
        "field": "row",
        "cells": {
            "model": "a",
            "version": "1",
            "retirement_date": "Deprecation: May 1, 2026 June 1, 2026",
            "replacement": "b",
        },
        "dates": {
            "retirement_date": {
                "date": "2026-06-01",
                "qualifier": "exact",
                "auto_upgrade": None,
                "deprecation": "2026-05-01",
            }
        },
    }


def test_events_know_their_lines():
    old = PAGE.replace("2026-05-14", "2026-05-13")
    page = Page("page.md", changed(old, PAGE).hunks, old, PAGE)
    (event,) = retirement_events([page])
    assert event.old is not None
    assert event.new is not None
    assert (event.publisher, event.old.line, event.new.line) == ("Cohere", 14, 14)


def test_a_headless_table_of_a_page_about_something_else_is_none():
    patch = (
        "@@ -40,3 +40,3 @@\n | `a` | 0613 | May 1, 2026 |\n-| `b` | 0613 | May 1, 2026 |\n+| `b` | 0613 | May 2, 2026 |"
    )
    assert retirement_events([Page("docs/releases.md", parse_patch(patch))]) == ()
    assert len(retirement_events([Page("docs/model-retirements.md", parse_patch(patch))])) == 1


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("The following models were retired at midnight on the specified dates and cannot be deployed", "retired"),
        ("Models labeled _Retired_ are no longer available for use. You can't create new deployments", "current"),
    ],
)
def test_a_sentence_above_the_hunk_says_that_the_models_under_a_publisher_are_retired(section, kind):
    table = "#### Cohere\n| Model | Retirement date | Suggested replacement model |\n|---|---|---|\n"
    (event,) = retirement_events([changed(table, table + "| rerank | May 31, 2026 | N/A |", section=section)])
    assert (event.table, event.publisher, event.model) == (kind, "Cohere", "rerank")


def test_a_cut_patch_still_tells_what_it_shows():
    patch = (
        "@@ -1,90 +1,90 @@\n | Model | Version | Retirement date |\n |---|---|---|\n"
        "-| `b` | 1 | May 1, 2026 |\n+| `b` | 1 | May 2, 2026 |"
    )
    (event,) = retirement_events([Page("p.md", parse_patch(patch))])
    assert (event.kind, event.delta_days) == ("date_extended", 1)


days = st.dates(min_value=datetime.date(2024, 1, 1), max_value=datetime.date(2028, 12, 31))
phrases = st.one_of(
    days.map(lambda day: day.strftime("%B %d, %Y")),
    days.map(lambda day: f"No earlier than {day}"),
    st.sampled_from(["", "TBD", "—", "At base model retirement"]),
)
models = st.lists(st.integers(0, 999), min_size=1, max_size=15, unique=True)


@settings(max_examples=30, deadline=None)
@given(models, st.data())
def test_rewriting_a_table_gives_no_event(names, data):
    rows = [(f"`m-{name}`", f"00{name}", data.draw(phrases), "`next`") for name in names]
    shuffled = data.draw(st.permutations(rows))
    pad = data.draw(st.integers(0, 8))
    old = HEAD + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    new = HEAD + "\n".join("|" + "|".join(f" {cell}{' ' * pad} " for cell in row) + "|" for row in shuffled)
    assert retirement_events([changed(old, new)]) == ()


@settings(max_examples=30, deadline=None)
@given(models, days, days, st.data())
def test_one_moved_date_is_one_event_with_its_direction(names, before, after, data):
    at = data.draw(st.sampled_from(names))
    rows = [(f"`m-{name}`", f"00{name}", before, "") for name in names]
    moved = [(model, version, after if model == f"`m-{at}`" else day, last) for model, version, day, last in rows]
    page = changed(
        HEAD + "\n".join(f"| {a} | {b} | {c} | {d} |" for a, b, c, d in rows),
        HEAD + "\n".join(f"| {a} | {b} | {c} | {d} |" for a, b, c, d in reversed(moved)),
    )
    told = [(event.kind, event.model, event.delta_days) for event in retirement_events([page])]
    if before == after:
        assert told == []
    else:
        kind = "date_extended" if after > before else "date_brought_forward"
        assert told == [(kind, f"m-{at}", (after - before).days)]
