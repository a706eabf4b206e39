"""The words of reports, by language: one YAML file each in `catalogues/`.

    words = catalogue("ja")
    words.say("days_later", n=82)      # -> "82 日後ろ倒し"
    words.date("2025-09-01")           # -> "2025年9月1日"

A message is a text with {names}, or one text for each of the language's plural forms ("one", "other", …), which
the value of `n` chooses. A new language is a new file with the same keys.
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from tunekeeper.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from babel import Locale as _Locale

_CODE_SPAN = r"(?<![`\\])`(?!`)[^`]+`(?!`)"
_FILES = resources.files("tunekeeper.insight") / "catalogues"


class Catalogue:
    """One language's messages, dates, numbers and lists."""

    def __init__(self, language: str, messages: Mapping[str, Any]) -> None:
        try:
            from babel import Locale
        except ImportError as error:
            raise Unavailable("Reports need babel: pip install 'tunekeeper[insight]'") from error
        self.language = language
        self.messages = messages["messages"]
        self.lexicon: Mapping[str, str] = messages["lexicon"]
        """Regular expressions by which the verifier reads this language."""
        self.locale: _Locale = Locale.parse(language)

    def say(self, key: str, /, **values: object) -> str:
        """The message under this key; `n` chooses the plural form."""
        message = self.messages[key]
        if isinstance(message, Mapping):
            form = self.locale.plural_form(values.get("n", 0))  # type: ignore[arg-type]
            message = message.get(form) or message["other"]
        shown = {name: self.number(v) if isinstance(v, int) else v for name, v in values.items()}
        return self._spaced(str(message).format(**shown))

    def _spaced(self, text: str) -> str:
        """A blank between code and the letters that ask for one, as between Japanese and Latin text."""
        letter = self.lexicon["spaced"]
        if not letter or "`" not in text:
            return text
        text = re.sub(rf"({letter})(?={_CODE_SPAN})", r"\1 ", text)
        return re.sub(rf"({_CODE_SPAN})(?={letter})", r"\1 ", text)

    def translated(self, text: str) -> str:
        """A Sentence in this language; any other text as it is."""
        if not isinstance(text, Sentence):
            return text
        values = {name: self._told(value) for name, value in text.values.items()}
        return self.say(text.code, **values)

    def _told(self, value: object) -> object:
        if isinstance(value, tuple):
            return self.series(value, 20)
        return self.translated(value) if isinstance(value, str) else value

    def has(self, key: str) -> bool:
        """Whether there is a message under this key."""
        return key in self.messages

    def date(self, iso: str) -> str:
        """An ISO date as people write it."""
        from babel.dates import format_date

        return str(format_date(datetime.date.fromisoformat(iso), "long", self.locale))

    def number(self, value: int) -> str:
        """A whole number with the language's separators."""
        from babel.numbers import format_decimal

        return str(format_decimal(value, locale=self.locale))

    def series(self, items: Sequence[str], limit: int = 8) -> str:
        """The items in a row; those over the limit are counted."""
        from babel.lists import format_list

        if len(items) <= limit:
            return str(format_list(list(items), locale=self.locale))
        return self.say("and_more", items=self.say("comma").join(items[:limit]), n=len(items) - limit)


class Sentence(str):
    """A message in English that can be said in any language: what is told on the screen and in the report.

    A value may be a sentence too; a tuple is a series.
    """

    __slots__ = ("code", "values")
    code: str
    values: dict[str, Any]

    def __new__(cls, code: str, /, **values: Any) -> "Sentence":
        """The message under this code."""
        words = catalogue("en")
        sentence = super().__new__(cls, words.say(code, **{name: words._told(v) for name, v in values.items()}))
        sentence.code, sentence.values = code, values
        return sentence

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.code,), self.values


def languages() -> tuple[str, ...]:
    """The languages that there are catalogues for."""
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in _FILES.iterdir() if entry.name.endswith(".yaml")))


@lru_cache
def catalogue(language: str) -> Catalogue:
    """The catalogue of a language; raises Unsupported where there is none."""
    if language not in languages():
        raise Unsupported(
            f"Reports cannot be written in {language!r}. Choose one of: {', '.join(languages())}.", param="language"
        )
    try:
        import yaml
    except ImportError as error:
        raise Unavailable("Reports need pyyaml: pip install 'tunekeeper[insight]'") from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where there is libyaml
    return Catalogue(language, yaml.load((_FILES / f"{language}.yaml").read_text(encoding="utf-8"), Loader=loader))
