from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.lifecycle.dates import parse_date, read_date

NOTICE = (
    "Deployments set to [**Auto-update to default**](/x?tabs=a#b) will be automatically upgraded to version: `0125`"
)


@pytest.mark.parametrize(
    ("cell", "day", "qualifier"),
    [
        ("June 6, 2025", date(2025, 6, 6), "exact"),
        ("April  30, 2025", date(2025, 4, 30), "exact"),
        ("Sept. 14th, 2025", date(2025, 9, 14), "exact"),
        ("31 March 2026", date(2026, 3, 31), "exact"),
        ("**2026-03-31**", date(2026, 3, 31), "exact"),
        ("13/04/2026", date(2026, 4, 13), "exact"),
        ("2026年6月11日", date(2026, 6, 11), "exact"),
        ("Retirement Date: January 27, 2025", date(2025, 1, 27), "exact"),
        ("No earlier than July 02, 2025", date(2025, 7, 2), "not_before"),
        ("No earlier than 2027-04-01¹", date(2027, 4, 1), "not_before"),
        ("Not sooner than February 19, 2026", date(2026, 2, 19), "not_before"),
        ("No retirement scheduled. Will not retire before April 15, 2027", date(2027, 4, 15), "not_before"),
        ("2026-05-01 or later", date(2026, 5, 1), "not_before"),
        ("Between May 1, 2026 and May 15, 2026", date(2026, 5, 1), "not_before"),
        ("No later than 2026-05-01", date(2026, 5, 1), "not_after"),
        ("Tentatively May 1, 2026", date(2026, 5, 1), "about"),
    ],
)
def test_a_date_and_how_sure_it_is(cell, day, qualifier):
    reading = read_date(cell)
    assert (reading.date, reading.qualifier, reading.is_understood) == (day, qualifier, True)


@pytest.mark.parametrize(
    "cell",
    [
        "TBD",
        "At base model retirement",
        "One year after training retirement",
        "April, 30, 2025",
        "2026-09-31<sup>1</sup>",
        "02/03/2025",
        "February 2026",
        "Q1 2026",
        "June 1–15, 2025",
        "version: 2024-11-20",
    ],
)
def test_what_is_no_date_is_kept_as_text_and_never_guessed(cell):
    reading = read_date(cell)
    assert (reading.date, reading.qualifier, reading.is_understood) == (None, None, False)
    assert reading.text


@pytest.mark.parametrize("cell", ["", "-", "—", "n/a", "N/A", " &nbsp; "])
def test_an_empty_cell_is_no_riddle(cell):
    reading = read_date(cell)
    assert (reading.date, reading.is_understood) == (None, True)


def test_an_upgrade_beside_the_date_is_kept_apart():
    reading = read_date(f"January 27, 2025<br><br> {NOTICE}, starting on November 13, 2024.")
    assert (reading.date, reading.auto_upgrade) == (date(2025, 1, 27), date(2024, 11, 13))
    assert reading.auto_upgrade_to == ("0125",)


def test_the_version_that_an_upgrade_leads_to_is_no_date():
    reading = read_date(
        "To be upgraded to **`gpt-4o` version: `2024-11-20`**, starting no sooner than March 10, 2025 **<sup>1</sup>** "
        "<br>Retirement date: April 02, 2025"
    )
    assert (reading.date, reading.qualifier) == (date(2025, 4, 2), "exact")
    assert (reading.auto_upgrade, reading.auto_upgrade_to) == (date(2025, 3, 10), ("gpt-4o", "2024-11-20"))


def test_of_several_dates_each_goes_where_the_words_before_it_say():
    reading = read_date("**Deprecation:** November 15, 2024 <br> **Retirement:** June 6, 2025")
    assert (reading.date, reading.deprecation) == (date(2025, 6, 6), date(2024, 11, 15))
    mixed = read_date(
        "Standard type retires on **2026-03-31**, with auto-upgrades scheduled to start on **2026-03-09**. "
        "For other types the retirement date has been moved to **2026-10-01**."
    )
    assert (mixed.date, mixed.auto_upgrade) == (date(2026, 3, 31), date(2026, 3, 9))


def test_a_column_of_deprecation_dates_owns_them():
    reading = read_date("Deprecated on May 1, 2026", about="deprecation")
    assert (reading.date, reading.deprecation) == (date(2026, 5, 1), None)


@settings(max_examples=50, deadline=None)
@given(st.dates(min_value=date(2000, 1, 1), max_value=date(2099, 12, 31)))
def test_every_written_form_is_read_back(day):
    for form in ("%B %d, %Y", "%b %d, %Y", "%B %d %Y", "%d %B %Y", "%Y-%m-%d", "%Y/%m/%d", "%Y年%m月%d日"):
        assert parse_date(day.strftime(form)) == day
        assert read_date(f"No earlier than {day.strftime(form)}").date == day


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_no_text_is_too_odd(text):
    read_date(text)
