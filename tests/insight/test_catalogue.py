import copy
import re
import string
from typing import Any

import pytest

from tunekeeper.errors import Unsupported
from tunekeeper.insight.catalogue import Catalogue, Sentence, catalogue, languages


def names_in(message: Any) -> list[set[str]]:
    forms = message.values() if isinstance(message, dict) else [message]
    return [{name for _, name, _, _ in string.Formatter().parse(form) if name} for form in forms]


def test_there_are_japanese_and_english() -> None:
    assert {"en", "ja"} <= {*languages()}


@pytest.mark.parametrize("language", languages())
def test_every_catalogue_has_the_same_messages_with_the_same_names(language: str) -> None:
    english, other = catalogue("en").messages, catalogue(language).messages
    assert other.keys() == english.keys()
    # An English singular may leave out its number; a name that another language does not fill would fail.
    for key in english:
        allowed = set().union(*names_in(english[key]))
        for names in names_in(other[key]):
            assert names <= allowed | {"title", "n"}, key


@pytest.mark.parametrize("language", languages())
def test_every_lexicon_is_of_regular_expressions(language: str) -> None:
    lexicon = catalogue(language).lexicon
    assert lexicon.keys() == catalogue("en").lexicon.keys()
    for pattern in lexicon.values():
        re.compile(pattern)


@pytest.mark.parametrize(
    ("language", "date", "later", "earlier", "number"),
    [
        ("ja", "2025年9月1日", "82 日後ろ倒し", "1 日前倒し", "1,234"),
        ("en", "September 1, 2025", "82 days later", "1 day earlier", "1,234"),
    ],
)
def test_dates_and_numbers_have_the_languages_form(
    language: str, date: str, later: str, earlier: str, number: str
) -> None:
    words = catalogue(language)
    assert words.date("2025-09-01") == date
    assert words.say("days_later", n=82) == later
    assert words.say("days_earlier", n=1) == earlier
    assert words.number(1234) == number


def test_a_series_counts_what_is_over_its_limit() -> None:
    assert catalogue("en").series(["a", "b", "c"]) == "a, b, and c"
    assert catalogue("ja").series(["a", "b", "c"], limit=2) == "a、b ほか 1 件"


def test_japanese_stands_apart_from_code() -> None:
    assert catalogue("ja").say("title_renamed", old="`a`", new="`b`") == "`a` から `b` への移動"
    assert (
        catalogue("ja")
        .say("event_changed", models="`a`", field="日付", old="`b`", new="「c」")
        .startswith("`a` の日付が、`b` から「c」に")
    )


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Unsupported, match=r"'xx'.*en, ja"):
        catalogue("xx")


def test_a_new_language_needs_only_its_texts() -> None:
    messages = {"days_later": {"one": "{n} Tag später", "other": "{n} Tage später"}, "comma": ", "}
    words = Catalogue("de", {"messages": messages, "lexicon": {"spaced": ""}})
    assert words.say("days_later", n=1) == "1 Tag später"
    assert words.date("2025-09-01") == "1. September 2025"


def test_a_sentence_is_english_and_can_be_said_in_another_language() -> None:
    said = Sentence("lacks_category", n=2, folders=("a/", "b/ (3)"))
    assert said == "2 changed files match no category: a/ and b/ (3)."
    assert catalogue("ja").translated(said) == "どのカテゴリーにも当てはまらない変更ファイル: 2 件 (a/、b/ (3))"
    assert catalogue("ja").translated("as it is") == "as it is"


def test_a_sentence_in_a_sentence_is_translated_too_and_both_survive_a_copy() -> None:
    moved = Sentence("alarm_moved", category="c", what=Sentence("alarm_files", n=3), old="a", new="b")
    alarm = copy.deepcopy(Sentence("alarm_propose", moved=moved, paths="b/**"))
    assert alarm == "The category c: 3 of its files moved from a to b. Use b/** in its paths."
    assert "3 件のファイルが a から b に移動しました" in catalogue("ja").translated(alarm)
