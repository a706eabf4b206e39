"""Numbers and dates in English and Japanese prose and in documents, in whatever form they are written.

    text = arabic("二〇二五年九月一日に 1億2,000万 トークン、８２日後")
    dates(text)[0].parts                        # -> (2025, 9, 1)
    [(n.value, n.unit) for n in numbers(text)]  # -> [(Decimal(120000000), ""), (Decimal(82), "day")]

Everything reads text that went through `arabic`: full-width forms made plain, Chinese numerals made digits. A date
has None for a part that is not said. Versions and names are no numbers.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import lru_cache

Parts = tuple[int | None, int | None, int | None]
"""Year, month, day."""


@dataclass(frozen=True, slots=True)
class DateMention:
    """A date in a text; `start` and `end` are its place."""

    parts: Parts
    start: int
    end: int
    raw: str


@dataclass(frozen=True, slots=True)
class NumberMention:
    """A number in a text; `unit` is a class such as "day" or "percent", empty where it counts anything else."""

    value: Decimal
    unit: str
    start: int
    end: int
    raw: str


# --- making digits ---------------------------------------------------------------------------------------------------

_DIGIT = {"〇": 0, "零": 0, "一": 1, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_SMALL = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "億": 10**8, "兆": 10**12}
_COUNTED = (
    r"年|か?月|ヶ月|カ月|ヵ月|箇月|日|件|個|つ|点|行|回|倍|社|種|項目|章|節|箇所|か所|ヶ所|カ所|ヵ所|ファイル|モデル|ページ|"
    r"パーセント|%|割|週|時間|分(?:間|以内|後|前)|秒|円|ドル|トークン|番目|段階|世代|桁|度目|台|列|枚|文字|語|名|人|四半期|本"
)
_QUARTER_JA = re.compile(r"(?<=第)[一二三四](?=四半期)")
_KANJI = re.compile(
    rf"(?P<run>[〇零一二三四五六七八九十百千]+[〇零一二三四五六七八九十百千万億兆]*)(?P<next>(?={_COUNTED})|)"
)


def arabic(text: str) -> str:
    """The text in plain forms: full-width characters made narrow, Chinese numerals that count something made digits."""
    text = _QUARTER_JA.sub(lambda match: str(_DIGIT[match[0]]), unicodedata.normalize("NFKC", text))
    return _KANJI.sub(_digits, text) if _KANJI.search(text) else text


def _digits(match: re.Match[str]) -> str:
    run = match["run"]
    rest = match.string[match.end() :]
    before = match.string[: match.start()]
    is_counted = bool(re.match(_COUNTED, rest)) or before.endswith(("第", "約", "和", "成", "計"))
    is_plain = len(run) >= 3 and all(character in _DIGIT for character in run)  # a year, digit by digit
    if before[-1:].isdigit() or not (is_counted or is_plain or (len(run) > 1 and run[-1] in _LARGE)):
        return run
    return str(kanji_value(run))


def kanji_value(run: str) -> int:
    """The value of a Chinese numeral, by places (二〇二五) or with units (二千二十五)."""
    if all(character in _DIGIT for character in run):
        return int("".join(str(_DIGIT[character]) for character in run))
    total = section = digit = 0
    for character in run:
        if character in _DIGIT:
            digit = digit * 10 + _DIGIT[character]
        elif character in _SMALL:
            section, digit = section + (digit or 1) * _SMALL[character], 0
        else:
            total, section, digit = total + ((section + digit) or 1) * _LARGE[character], 0, 0
    return total + section + digit


# --- dates -----------------------------------------------------------------------------------------------------------

_MONTHS = "january february march april may june july august september october november december"
_ERAS = {"令和": 2018, "平成": 1988, "昭和": 1925, "大正": 1911, "明治": 1867, "R": 2018, "H": 1988, "S": 1925}
_EDGE, _END = r"(?<![\w.])", r"(?![\w])"


@lru_cache
def _patterns(language: str) -> tuple[re.Pattern[str], ...]:
    """What dates look like, the most telling form first; the months' names also in the report's language."""
    month = rf"(?P<name>{'|'.join(sorted(_month_names(language), key=len, reverse=True))})\.?"
    day = r"(?P<d>\d{1,2})(?:st|nd|rd|th|\.)?"
    forms = (
        r"(?P<era>令和|平成|昭和|大正|明治)\s*(?P<y>元|\d{1,2})\s*年(?:\s*(?P<m>\d{1,2})\s*月(?:\s*(?P<d>\d{1,2})\s*日)?)?",
        rf"{_EDGE}(?P<era>[RHS])\s?(?P<y>\d{{1,2}})[./年](?P<m>\d{{1,2}})[./月](?P<d>\d{{1,2}})日?(?!\d)",
        r"(?<!\d)(?P<y>\d{4}|'?\d{2}(?=年\s*\d{1,2}\s*月))\s*年\s*(?P<m>\d{1,2})\s*月(?:\s*(?P<d>\d{1,2})\s*日)?",
        r"(?<!\d)(?P<m>\d{1,2})\s*月\s*(?P<d>\d{1,2})\s*日",
        r"(?<!\d)(?P<y>(?:19|20)\d\d)\s*年",
        r"(?<![\d,.])(?P<m>\d{1,2})\s*月(?!間|目|曜)",
        rf"{_EDGE}(?P<y>\d{{4}})(?P<s>[-/.])(?P<m>\d{{1,2}})(?P=s)(?P<d>\d{{1,2}})(?!\d)",
        rf"{_EDGE}(?P<m>\d{{1,2}})/(?P<d>\d{{1,2}})/(?P<y>\d{{4}}|\d{{2}}){_END}",
        rf"{_EDGE}(?P<d>\d{{1,2}})\.(?P<m>\d{{1,2}})\.(?P<y>(?:19|20)\d\d){_END}",
        rf"{_EDGE}(?P<y>(?:19|20)\d\d)(?P<m>[01]\d)(?P<d>[0-3]\d){_END}",
        rf"\b{month}\s*,?\s+{day}(?:\s*,)?\s*,?\s+(?P<y>\d{{4}}){_END}",
        rf"{_EDGE}{day}\s+(?:of\s+)?{month},?\s+(?P<y>\d{{4}}){_END}",
        rf"\b{month}\s*,?\s+(?:of\s+)?(?P<y>\d{{4}}){_END}",
        rf"\b{month}\s+{day}{_END}",
        rf"{_EDGE}{day}\s+(?:of\s+)?{month}{_END}",
        rf"{_EDGE}(?P<y>(?:19|20)\d\d)-(?P<m>0[1-9]|1[0-2])(?![\w-])",
        rf"{_EDGE}(?P<m>\d{{1,2}})/(?P<d>\d{{1,2}})(?![\w/])",
    )
    return tuple(re.compile(form, re.IGNORECASE if "name" in form else 0) for form in forms)


@lru_cache
def _month_names(language: str) -> dict[str, int]:
    full = _MONTHS.split()
    names = {form: number for number, name in enumerate(full, 1) for form in (name, name[:3])} | {"sept": 9}
    if language not in ("en", "ja"):
        from babel import dates as babel_dates

        for width in ("wide", "abbreviated"):
            for context in ("format", "stand-alone"):
                months = babel_dates.get_month_names(width, context, language)
                names |= {re.escape(str(name).rstrip(".").casefold()): n for n, name in months.items()}
    return names


_CAPITAL_MONTH = re.compile(
    r"(?<![.!?] )(?<!^)\b(January|February|April|June|July|August|September|October|November|December)\b"
)


def dates(text: str, language: str = "en") -> list[DateMention]:
    """The dates in a text, in order; what looks like a date but is on no calendar (31 June) is given too."""
    found: list[DateMention] = []
    taken = bytearray(len(text))
    if any(character.isdigit() for character in text) or "元" in text:
        for pattern in _patterns(language):
            for match in pattern.finditer(text):
                if not any(taken[match.start() : match.end()]) and (parts := _parts(match, language)):
                    found.append(DateMention(parts, match.start(), match.end(), match[0]))
                    taken[match.start() : match.end()] = b"\x01" * (match.end() - match.start())
    for match in _CAPITAL_MONTH.finditer(text):
        if not any(taken[match.start() : match.end()]):
            month = _month_names("en")[match[0].lower()]
            found.append(DateMention((None, month, None), match.start(), match.end(), match[0]))
    return sorted(found, key=lambda mention: mention.start)


def _parts(match: re.Match[str], language: str) -> Parts | None:
    groups = match.groupdict()
    year = groups.get("y")
    month = groups.get("m")
    day = int(groups["d"]) if groups.get("d") else None
    number = _month_names(language)[re.escape(groups["name"].casefold())] if groups.get("name") else None
    number = int(month) if month else number
    if groups.get("era"):
        value = _ERAS[groups["era"]] + (1 if year == "元" else int(year or 0))
    else:
        value = int(year.lstrip("'")) if year else 0
        value += 2000 if year and value < 100 else 0
    if number and day and number > 12 >= day and "/" in match[0]:
        number, day = day, number  # 25/12/2025
    if groups.get("name") == "may":
        return None  # the verb
    if (number and not 1 <= number <= 12) or (day is not None and not 1 <= day <= 31):
        return None if not year else (value or None, number, day)
    return value or None, number, day


def is_real(parts: Parts) -> bool:
    """Whether a full date is on the calendar."""
    year, month, day = parts
    try:
        return not (year and month and day) or bool(date(year, month, day))
    except ValueError:
        return False


# --- numbers ---------------------------------------------------------------------------------------------------------

_SMALL_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {
    **{name: value for value, name in enumerate(_SMALL_WORDS.split())},
    **{name: 10 * value for value, name in enumerate(_TENS.split(), 2)},
}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SUFFIX = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_DIGITS = r"\d+(?:[,_ ](?=\d{3}(?!\d))\d{3})*(?:\.\d+)?"
_JAPANESE = re.compile(rf"(?:{_DIGITS}[十百千]?[万億兆千百])+(?:\d+(?:,\d{{3}})*(?:\.\d+)?)?")
_JAPANESE_PART = re.compile(rf"({_DIGITS})([十百千]?)([万億兆千百]?)")
_PLAIN = re.compile(
    rf"(?<![A-Za-z_\d.])(?P<n>{_DIGITS})"
    r"(?:(?P<suffix>[kKMBT])(?![A-Za-z])|[ -]?(?P<scale>hundred|thousand|million|billion|trillion)s?\b)?"
)
_WORD = rf"(?:{'|'.join(sorted((*_WORDS, *_SCALES), key=len, reverse=True))})"
_SPELLED = re.compile(
    rf"\b(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:(?:[ -]|\s+and\s+){_WORD})*\b", re.IGNORECASE
)
_QUARTER = re.compile(r"\bQ([1-4])\b")
_FACTORS = re.compile(
    r"\b(?P<two>twice|doubl(?:e[ds]?|ing))\b|\b(?P<half>halv(?:e[ds]?|ing)|half)\b|\b(?P<three>tripl(?:e[ds]?|ing))\b"
    r"|(?P<two_ja>倍増|(?<![\d.])倍に)|(?P<half_ja>半減|半分|半額)",
    re.IGNORECASE,
)
_UNITS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("percent", r"\s*-?(?:%|percent|per cent|パーセント|ポイント)"),
        ("tenth", r"\s*割"),
        ("month", r"[ -]*(?:months?\b|[かヶカヵ箇]月)"),
        ("week", r"[ -]*(?:weeks?\b|週)"),
        ("year", r"[ -]*(?:years?\b|年)"),
        ("quarter", r"\s*四半期"),
        ("hour", r"[ -]*(?:hours?\b|hrs?\b|時間)"),
        ("minute", r"[ -]*(?:minutes?\b|mins?\b|分(?:間|以内|後|前|で|に))"),
        ("millisecond", r"[ -]*(?:milliseconds?\b|ms\b|ミリ秒)"),
        ("second", r"[ -]*(?:seconds?\b|secs?\b|秒)"),
        ("day", r"[ -]*(?:calendar |business |working |営業)?(?:days?\b|日)"),
        ("factor", r"\s*(?:[x×](?![a-z])|倍|times\b|-?fold\b)"),
        ("money", r"\s*(?:ドル|円|USD|dollars?\b|yen\b|EUR|ユーロ|セント|cents?\b)"),
        ("KB", r"\s*-?Ki?B\b"),
        ("MB", r"\s*-?Mi?B\b"),
        ("GB", r"\s*-?Gi?B\b"),
        ("TB", r"\s*-?Ti?B\b"),
    )
)
STRICT_UNITS = frozenset(name for name, _ in _UNITS)
"""Units with which a number means something else than without."""


def numbers(text: str) -> list[NumberMention]:
    """The numbers in a text that are no part of a name, in order; blank out dates before."""
    found = list(_japanese(text))
    taken = {n for mention in found for n in range(mention.start, mention.end)}
    for match in _PLAIN.finditer(text):
        if match.start() in taken or _is_name(text, match):
            continue
        scale = _SUFFIX.get((match["suffix"] or "").lower(), 1) * _SCALES.get((match["scale"] or "").lower(), 1)
        if (value := _decimal(match["n"])) is not None:
            found.append(_mention(value * scale, text, match))
    found += [
        NumberMention(Decimal(match[1]), "quarter", match.start(), match.end(), match[0])
        for match in _QUARTER.finditer(text)
    ]
    found += [_mention(Decimal(_spelled(match[0])), text, match) for match in _SPELLED.finditer(text)]
    for match in _FACTORS.finditer(text):
        value = Decimal(2) if match["two"] or match["two_ja"] else Decimal(3) if match["three"] else Decimal("0.5")
        found.append(NumberMention(value, "factor", match.start(), match.end(), match[0]))
    return sorted(found, key=lambda mention: mention.start)


def _japanese(text: str) -> Iterator[NumberMention]:
    for match in _JAPANESE.finditer(text):
        total = Decimal(0)
        for digits, small, large in _JAPANESE_PART.findall(match[0]):
            scale = {**_SMALL, "": 1}[small] * {**_LARGE, **_SMALL, "": 1}[large]
            total += (_decimal(digits) or Decimal(0)) * scale
        yield _mention(total, text, match)


def _mention(value: Decimal, text: str, match: re.Match[str]) -> NumberMention:
    rest, before = text[match.end() : match.end() + 24], text[max(0, match.start() - 2) : match.start()]
    unit = next((name for name, pattern in _UNITS if pattern.match(rest)), "")
    if before.rstrip()[-1:] in ("$", "¥", "€", "£"):
        unit = "money"
    if unit == "tenth":
        value, unit = value * 10, "percent"
    return NumberMention(value.normalize(), unit, match.start(), match.end(), match[0])


def _is_name(text: str, match: re.Match[str]) -> bool:
    """Whether the digits belong to a name or a version: gpt-4, 4o, 1.2.3, 11.8.0-beta."""
    before, after = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
    if re.search(r"[A-Za-z_]-$|[A-Za-z]$", before):
        return True
    return bool(re.match(r"\.\d|_|(?![kKMBT]\b)[A-Za-z](?<!x)", after)) and not any(
        pattern.match(text[match.end() : match.end() + 24]) for _, pattern in _UNITS
    )


def _decimal(digits: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[,_ ]", "", digits))
    except InvalidOperation:
        return None


def _spelled(words: str) -> int:
    total = section = 0
    for word in re.split(r"[\s-]+", words.lower()):
        if word in _WORDS:
            section += _WORDS[word]
        elif word in ("hundred", "dozen"):
            section = (section or 1) * _SCALES[word]
        elif word in _SCALES:
            total, section = total + (section or 1) * _SCALES[word], 0
    return total + section
