from datetime import date, datetime

from icalendar import Calendar

from tunekeeper.insight.calendar import Retirement, Revision, retirements_of, to_ics
from tunekeeper.lifecycle.catalog import Catalog, Claim

JUNE_12 = int(datetime.fromisoformat("2025-06-12T08:00:00+00:00").timestamp())


def claim(field: str, text: str, day: str | None, *, version: str = "2025-03-11", qualifier: str | None = None,
          source: str = "docs/retirements.md", said_at: int = JUNE_12) -> Claim:  # fmt: skip
    return Claim(
        model="computer-use-preview", version=version, publisher="Azure OpenAI", field=field, text=text, date=day,
        qualifier=qualifier, origin="page", source=source, line=96, said_at=said_at,
    )  # fmt: skip


MOVED = [
    claim("retirement_date", "No earlier than June 11, 2025", "2025-06-11", qualifier="not_before", said_at=0),
    claim("retirement_date", "No earlier than September 1, 2025", "2025-09-01", qualifier="not_before"),
]


def events(*claims: Claim) -> list[dict[str, object]]:
    calendar = Calendar.from_ical(to_ics(retirements_of(Catalog(claims)), title="Retirements"))
    assert calendar["X-WR-CALNAME"] == "Retirements"
    return [
        {"day": event.decoded("dtstart"), "summary": str(event["summary"]), "uid": str(event["uid"]),
         "description": str(event["description"]), "stamp": event.decoded("dtstamp"), "sequence": event["sequence"]}
        for event in calendar.walk("VEVENT")
    ]  # fmt: skip


def test_a_date_that_moved_is_one_event_on_the_new_day_and_says_where_it_was() -> None:
    (event,) = events(*MOVED)
    assert event["day"] == date(2025, 9, 1)
    assert event["summary"] == "computer-use-preview 2025-03-11 retires, no earlier than this date"
    assert event["description"] == (
        "Azure OpenAI: No earlier than September 1, 2025\n"
        "2025-06-12: No earlier than June 11, 2025 → No earlier than September 1, 2025\n"
        "Source: docs/retirements.md:96"
    )
    assert event["stamp"] == datetime.fromisoformat("2025-06-12T00:00:00+00:00")
    assert event["sequence"] == 1


def test_an_event_keeps_its_id_when_its_date_moves() -> None:
    (before,), (after,) = events(MOVED[0]), events(*MOVED)
    assert before["uid"] == after["uid"]
    assert before["day"] != after["day"]


def test_the_days_between_are_counted() -> None:
    (retirement,) = retirements_of(Catalog(MOVED))
    assert retirement.history == (
        Revision(seen=date(2025, 6, 12), old=MOVED[0].text, new=MOVED[1].text, days_moved=82),
    )  # fmt: skip


def test_another_source_that_says_another_date_is_no_move() -> None:
    other = claim("retirement_date", "2025-07-01", "2025-07-01", source="litellm.json", said_at=0)
    (retirement,) = retirements_of(Catalog([other, MOVED[1]]))
    assert (retirement.day, retirement.history) == (date(2025, 9, 1), ())


def test_training_and_inference_end_on_their_own_days() -> None:
    found = events(
        claim("retirement_date", "2025-09-01", "2025-09-01"),
        claim("training_retirement_date", "2025-08-01", "2025-08-01"),
        claim("deployment_retirement_date", "2026-08-01", "2026-08-01"),
        claim("deprecation_date", "2025-03-01", "2025-03-01"),
    )
    assert [f"{event['day']} {event['summary']}" for event in found] == [
        "2025-08-01 computer-use-preview 2025-03-11 training ends",
        "2025-09-01 computer-use-preview 2025-03-11 retires",
        "2026-08-01 computer-use-preview 2025-03-11 retires for tuned models",
    ]
    assert len({event["uid"] for event in found}) == 3


def test_what_is_no_date_is_kept_as_text_and_stands_on_no_day() -> None:
    unread = [claim("retirement_date", "At base model retirement", None)]
    (retirement,) = retirements_of(Catalog(unread))
    assert (retirement.day, retirement.text) == (None, "At base model retirement")
    assert events(*unread) == []


def test_commas_line_breaks_and_long_lines_survive() -> None:
    name = "a,b;c\\d " + "長い名前" * 30
    retirement = Retirement(
        publisher="P", model=name, version="", purpose="inference", day=date(2025, 1, 1), text="one\ntwo"
    )
    (event,) = Calendar.from_ical(to_ics([retirement], title="T")).walk("VEVENT")
    assert str(event["summary"]) == f"{name} retires"
    assert str(event["description"]) == "P: one\ntwo"
    assert all(len(line) <= 75 for line in to_ics([retirement], title="T").split(b"\r\n"))


def test_a_source_on_the_web_is_linked_with_its_line() -> None:
    (retirement,) = retirements_of(
        Catalog([claim("retirement_date", "x 2025-01-01", "2025-01-01", source="https://h/a.md")])
    )
    assert retirement.source == "https://h/a.md#L96"
