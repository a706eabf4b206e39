import datetime
from dataclasses import replace

from retirement_cases import HEAD, changed
from tunekeeper.lifecycle.catalog import Catalog, Claim, event_claims, first_end, page_claims, unsaid
from tunekeeper.lifecycle.retirements import read_records, retirement_events

TABLE = HEAD + "| `gpt-4o` | 2024-05-13 | No earlier than May 1, 2026 | `gpt-5` |\n| `o1` | 1 | TBD | |"


def claim(**changes) -> Claim:
    start = Claim(model="gpt-4o", version="2024-05-13", field="retirement_date", text="2026-05-01", date="2026-05-01")
    return replace(start, **{"source": "a.md", "origin": "page", **changes})


def read(text: str, log=(), now: int = 1) -> list[Claim]:
    before = Catalog(log)
    return unsaid(page_claims(read_records(text, filename="a.md"), before, source="a.md", said_at=now), log)


def test_the_last_claim_holds_and_all_are_kept():
    entry = Catalog([claim(), claim(text="2026-06-01", date="2026-06-01")]).find("gpt-4o")[0]
    assert entry.day("retirement_date") == datetime.date(2026, 6, 1)
    assert [said.text for said in entry.history] == ["2026-05-01", "2026-06-01"]


def test_a_claim_by_hand_stands_above_later_ones():
    by_hand = claim(date="2030-01-01", origin="manual")
    assert Catalog([by_hand, claim()]).find("gpt-4o")[0].day("retirement_date") == datetime.date(2030, 1, 1)


def test_a_model_is_found_under_every_way_to_write_it():
    catalog = Catalog([claim(), claim(model="gpt-35-turbo", version="0613"), claim(model="o1-2024-12-17", version="")])
    for name in ("gpt-4o-2024-05-13", "GPT-4o", "openai/gpt-4o"):
        assert [entry.model for entry in catalog.find(name)] == ["gpt-4o"]
    assert catalog.find("gpt-3.5-turbo-0613") == catalog.find("gpt-35-turbo") != ()
    assert [entry.model for entry in catalog.find("o1")] == ["o1-2024-12-17"]
    assert catalog.find("gpt") == ()


def test_a_page_read_again_says_nothing_new():
    log = read(TABLE)
    assert [(said.field, said.line) for said in log if said.model == "gpt-4o"] == [
        ("listed", 4),
        ("retirement_date", 4),
        ("replacement", 4),
    ]
    assert read(TABLE, log, now=2) == []


def test_a_page_read_later_adds_what_changed_and_what_is_gone():
    log = read(TABLE)
    later = read(HEAD + "| `gpt-4o` | 2024-05-13 | April 1, 2026 | `gpt-5` |", log, now=2)
    assert [(said.model, said.field, said.text) for said in later] == [
        ("gpt-4o", "retirement_date", "April 1, 2026"),
        ("o1", "listed", "removed"),
    ]
    entry = Catalog([*log, *later]).find("gpt-4o")[0]
    assert (entry.is_firm("retirement_date"), first_end(entry)) == (True, datetime.date(2026, 4, 1))


def test_a_text_that_is_no_date_is_kept_and_listed():
    (entry,) = Catalog(read(TABLE)).find("o1")
    assert (entry.dates, [said.text for said in entry.unread]) == ({}, ["TBD"])


def test_events_of_a_change_feed_the_catalog():
    page = changed(TABLE, HEAD + "| `gpt-4o` | 2024-05-13 | April 1, 2026 | `gpt-5` |")
    catalog = Catalog(event_claims(retirement_events([page]), said_at=5))
    assert catalog.find("gpt-4o")[0].day("retirement_date") == datetime.date(2026, 4, 1)
    assert catalog.find("o1")[0].listed == "removed"


def test_what_ends_is_listed_soonest_first():
    catalog = Catalog([claim(date="2026-05-03"), claim(model="b", date="2026-05-01"), claim(model="c", date=None)])
    assert [entry.model for entry in catalog.ending()] == ["b", "gpt-4o"]
    assert [entry.model for entry in catalog.ending(after=datetime.date(2026, 5, 2))] == ["gpt-4o"]
    assert [entry.model for entry in catalog.ending(before=datetime.date(2026, 5, 1))] == ["b"]
