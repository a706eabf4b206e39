from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from babel.dates import format_date
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.insight.numerals import arabic, dates, is_real, kanji_value, numbers

DAYS = st.dates(min_value=date(1990, 1, 1), max_value=date(2099, 12, 31))
KANJI = "〇一二三四五六七八九"


def read(text: str) -> list[Any]:
    return [mention.parts for mention in dates(arabic(text))]


def counted(text: str) -> list[tuple[float, str]]:
    plain = arabic(text)
    for mention in reversed(dates(plain)):
        plain = plain[: mention.start] + " " + plain[mention.end :]
    return [(float(mention.value), mention.unit) for mention in numbers(plain)]


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def by_places(number: int) -> str:
    return "".join(KANJI[int(digit)] for digit in str(number))


def with_tens(number: int) -> str:
    tens, ones = divmod(number, 10)
    return ("" if tens < 2 else KANJI[tens]) + ("十" if tens else "") + (KANJI[ones] if ones else "")


FORMS = {
    "iso": lambda d: d.isoformat(),
    "slashes": lambda d: f"{d.year}/{d.month}/{d.day}",
    "american": lambda d: f"{d.month:02}/{d.day:02}/{d.year}",
    "compact": lambda d: d.strftime("%Y%m%d"),
    "long": lambda d: format_date(d, "long", "en"),
    "medium": lambda d: format_date(d, "medium", "en"),
    "british": lambda d: format_date(d, "long", "en_GB"),
    "ordinal": lambda d: f"{format_date(d, 'MMMM', 'en')} {d.day}th, {d.year}",
    "comma after the month": lambda d: f"{format_date(d, 'MMMM', 'en')}, {d.day}, {d.year}",
    "japanese": lambda d: f"{d.year}年{d.month}月{d.day}日",
    "japanese with blanks": lambda d: f"{d.year} 年 {d.month} 月 {d.day} 日",
    "full width": lambda d: wide(f"{d.year}年{d.month}月{d.day}日"),
    "chinese numerals": lambda d: f"{by_places(d.year)}年{with_tens(d.month)}月{with_tens(d.day)}日",
    "era": lambda d: f"令和{d.year - 2018}年{d.month}月{d.day}日" if d.year > 2019 else d.isoformat(),
    "short era": lambda d: f"R{d.year - 2018}.{d.month}.{d.day}" if d.year > 2019 else d.isoformat(),
}


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(day=DAYS)
def test_every_form_of_a_date_is_the_same_date(form: str, day: date) -> None:
    assert read(f"から {FORMS[form](day)} に") == [(day.year, day.month, day.day)]
    assert counted(f"from {FORMS[form](day)} on") == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("令和元年5月1日", (2019, 5, 1)),
        ("平成31年4月", (2019, 4, None)),
        ("2025年", (2025, None, None)),
        ("9月", (None, 9, None)),
        ("9月1日", (None, 9, 1)),
        ("September 2025", (2025, 9, None)),
        ("September 1", (None, 9, 1)),
        ("Sept. 1, 2025", (2025, 9, 1)),
        ("1st of September 2025", (2025, 9, 1)),
        ("2025-09", (2025, 9, None)),
        ("25/12/2025", (2025, 12, 25)),
        ("31 June 2025", (2025, 6, 31)),
    ],
)
def test_a_part_that_is_not_said_is_none(text: str, parts: Any) -> None:
    assert read(f"on {text}") == [parts]


def test_a_date_that_is_on_no_calendar_is_seen() -> None:
    assert not is_real((2025, 6, 31))
    assert is_real((2025, 6, None))


@pytest.mark.parametrize(
    "text", ["gpt-4o", "gpt-4.1", "v1.2.3", "11.8.0-beta.1", "o3-mini", "you may 3 times", "3 か月間"]
)
def test_names_and_verbs_are_no_dates(text: str) -> None:
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1億2,000万 トークン", [(120_000_000, "")]),
        ("12万8000", [(128_000, "")]),
        ("12万8千", [(128_000, "")]),
        ("十二万八千件", [(128_000, "")]),
        ("２，０００万円", [(20_000_000, "money")]),
        ("128K tokens", [(128_000, "")]),
        ("1.5 million rows", [(1_500_000, "")]),
        ("150万行", [(1_500_000, "")]),
        ("128,000", [(128_000, "")]),
        ("eighty-two days", [(82, "day")]),
        ("two hundred and five rows", [(205, "")]),
        ("８２日後", [(82, "day")]),
        ("八十二日", [(82, "day")]),
        ("50%", [(50, "percent")]),
        ("５０％", [(50, "percent")]),
        ("3割", [(30, "percent")]),
        ("$3.50", [(3.5, "money")]),
        ("2倍、twice", [(2, "factor"), (2, "factor")]),
        ("Q3", [(3, "quarter")]),
        ("第三四半期", [(3, "quarter")]),
        ("16 GB", [(16, "GB")]),
        ("三つの件", [(3, "")]),
        ("一部の十分な一方で万が一", []),
        ("gpt-4 gpt-4o 1.2.3 o3 v2", []),
    ],
)
def test_numbers_have_value_and_unit(text: str, expected: list[tuple[float, str]]) -> None:
    assert counted(text) == expected


@settings(deadline=None)
@given(st.integers(0, 10**11))
def test_a_number_is_the_same_in_digits_and_full_width(number: int) -> None:
    for text in (f"{number}", f"{number:,}", wide(f"{number:,}")):
        assert [mention.value for mention in numbers(arabic(text))] == [Decimal(number)]


@settings(deadline=None)
@given(st.integers(1, 9999), st.integers(0, 9999))
def test_tens_of_thousands_are_read(high: int, low: int) -> None:
    text = f"{high}万{low or ''}"
    assert [mention.value for mention in numbers(arabic(text))] == [high * 10_000 + low]


@settings(deadline=None)
@given(st.integers(1, 99))
def test_chinese_numerals_have_their_value(number: int) -> None:
    assert kanji_value(with_tens(number)) == number


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789,. 万億年月日/-%kMa一二十〇RQ令和元"), max_size=30))
def test_any_text_can_be_read(text: str) -> None:
    plain = arabic(text)
    dates(plain)
    numbers(plain)
