"""Whether prose says only what a diff and its facts say. Pure: text and evidence in, faults out, in words.

    evidence = gather([item], today="2025-06-12")
    check("The date of `gpt-9` is 2026-01-01.", evidence, catalogue("en").lexicon, form="paragraph")
    # -> ["`gpt-9` is not in the diff", "the date 2026-01-01 is not in the diff"]

What is checked: numbers with their units, dates in all forms, names in code and names that look like code, words in
Latin letters within Japanese, capitalized names within English, quotations, URLs; from which date to which, and
whether that is earlier or later, for the model that a sentence names; whether a name that came or went is said to have
come or gone; and the form: no tags, no headings, no template marks, whole sentences, the right language.

What is not checked: whether words without a literal fit ("clearer", "reorganized"), and a false name at the beginning
of an English sentence.
"""

import datetime
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from tunekeeper.diffs.patch import parse_patch
from tunekeeper.insight.changes import Fact
from tunekeeper.insight.classify import Digest, days_moved, row_name
from tunekeeper.insight.numerals import (
    STRICT_UNITS,
    DateMention,
    NumberMention,
    Parts,
    arabic,
    dates,
    is_real,
    numbers,
)

Form = Literal["paragraph", "line", "title"]
Lexicon = Mapping[str, str]

GENERIC = frozenset(
    re.findall(
        r"\w+", "ai api apis cli csv diff faq html http https id ids json llm llms markdown md pdf rest sdk sdks ui url"
    )
)
"""Words in Latin letters that any report may use."""
_SINGLES = frozenset({Decimal(0), Decimal(1)})
_MAX_FAULTS = 12
_HAS_DIGIT = re.compile(r"\d|January|February|April|June|July|August|September|October|November|December|元年")
_RETIREMENT = re.compile(r"retir|deprecat|sunset|discontinu|end[ -]of[ -]|提供終了|廃止|引退", re.IGNORECASE)


@dataclass(slots=True)
class Subject:
    """A model, or a row of a table, whose dates changed."""

    directions: set[str] = field(default_factory=set)
    dates: set[Parts] = field(default_factory=set)
    days: set[Decimal] = field(default_factory=set)
    is_retired: bool = False


@dataclass(slots=True)
class Evidence:
    """All that prose may draw on."""

    text: str = ""
    """Both sides of the diffs, the paths, and the facts' own texts."""
    added: str = ""
    removed: str = ""
    context: str = ""
    dates: set[Parts] = field(default_factory=set)
    numbers: dict[Decimal, set[str]] = field(default_factory=lambda: defaultdict(set))
    pairs: set[tuple[Parts, Parts]] = field(default_factory=set)
    """Old and new date of everything whose date changed."""
    subjects: dict[str, Subject] = field(default_factory=dict)
    folded: str = ""
    """`text` in small letters, made when it is first needed."""

    def has(self, name: str, *, exact: bool = True) -> bool:
        """Whether the name stands in the evidence as a whole, not as part of a longer one."""
        if not exact:
            self.folded = self.folded or self.text.casefold()
        return stands_in(name if exact else name.casefold(), self.text if exact else self.folded)


def gather(items: Sequence[Digest], *, today: str = "") -> Evidence:
    """The evidence of some files; `today` is the report's date, where it may be named."""
    parts: list[str] = []
    sides: dict[str, list[str]] = {"+": [], "-": [], " ": []}
    for item in items:
        change = item.change
        parts += [change.filename, change.previous_filename or "", change.status, change.patch or ""]
        for hunk in parse_patch(change.patch or ""):
            for line in hunk.lines:
                sides[line.sign].append(line.text)
    evidence = Evidence(
        text=arabic("\n".join((*parts, *_fact_texts(items)))),
        added=arabic("\n".join(sides["+"])),
        removed=arabic("\n".join(sides["-"])),
        context=arabic("\n".join(sides[" "])),
    )
    lines = dict.fromkeys(evidence.text.split("\n"))
    dated = "\n".join(line for line in lines if _HAS_DIGIT.search(line))
    mentioned = dates(dated)
    evidence.dates = {mention.parts for mention in mentioned} | ({_iso(today)} if today else set())
    undated = "\n".join(line for line in lines if not _HAS_DIGIT.search(line))
    for number in (*numbers(_blank(dated, mentioned)), *numbers(undated)):
        evidence.numbers[number.value].add(number.unit)
    for count in _counts(items):
        evidence.numbers[Decimal(count).normalize()].add("")
    for item in items:
        _add_changes(evidence, item)
    return evidence


def merge(evidences: Sequence[Evidence], items: Sequence[Digest], *, today: str) -> Evidence:
    """The evidence of all files together, from those of the single ones."""
    merged = Evidence(
        text="\n".join(one.text for one in evidences),
        added="\n".join(one.added for one in evidences),
        removed="\n".join(one.removed for one in evidences),
        context="\n".join(one.context for one in evidences),
        dates={_iso(today)}.union(*(one.dates for one in evidences)),
        pairs=set[tuple[Parts, Parts]]().union(*(one.pairs for one in evidences)),
    )
    for one in evidences:
        for value, units in one.numbers.items():
            merged.numbers[value] |= units
        for name, subject in one.subjects.items():
            known = merged.subjects.setdefault(name, Subject())
            known.directions |= subject.directions
            known.dates |= subject.dates
            known.days |= subject.days
            known.is_retired |= subject.is_retired
    for count in _counts(items):
        merged.numbers[Decimal(count).normalize()].add("")
    return merged


def check(text: str, evidence: Evidence, lexicon: Lexicon, *, form: Form, language: str = "en") -> list[str]:
    """The faults of a text, as sentences for whoever wrote it; none if it may be published."""
    plain = arabic(text)
    found = list(_form_faults(text, lexicon, form))
    for sentence in _sentences(plain):
        found += _Sentence(sentence, evidence, lexicon, language).faults()
    topic = re.search(lexicon["retirement"], _CODE.sub(" ", plain))
    if topic and not _RETIREMENT.search(evidence.text):
        found.append(f"{topic[0]!r}: the diff is not about retirements")
    if re.search(lexicon["no_breaking"], plain):
        found.append("do not say whether there are breaking changes: rules decide that")
    return list(dict.fromkeys(found))[:_MAX_FAULTS]


def stands_in(name: str, text: str) -> bool:
    """Whether a name stands in a text and is not a part of a longer name there."""
    at = text.find(name)
    while at >= 0:
        before, after = text[at - 1 : at] if at else "", text[at + len(name) : at + len(name) + 2]
        starts = not (_joins(before) and _joins(name[:1]))
        ends = not (_joins(name[-1:]) and (_joins(after[:1]) or (after[:1] in (".", "-") and _joins(after[1:2]))))
        if starts and ends and not (before in ("-", ".") and at > 1 and _joins(text[at - 2]) and _joins(name[:1])):
            return True
        at = text.find(name, at + 1)
    return False


def _joins(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "_")


# --- evidence --------------------------------------------------------------------------------------------------------


def _fact_texts(items: Iterable[Digest]) -> Iterator[str]:
    for item in items:
        for fact in (*item.rest, *item.metadata):
            yield from (fact.subject, fact.part, fact.old, fact.new)
        for event in item.events:
            yield from (str(value) for value in event.values() if isinstance(value, str))
            yield from (f"{abs(days_moved(event))} days",) if days_moved(event) else ()


def _counts(items: Sequence[Digest]) -> Iterator[int]:
    """What may be counted: files, lines, facts of a kind."""
    yield len(items)
    changes = [item.change for item in items]
    for name in ("additions", "deletions", "changes"):
        yield from (getattr(change, name) for change in changes)
        yield sum(getattr(change, name) for change in changes)
    by_kind: dict[tuple[str, str], int] = defaultdict(int)
    for item in items:
        for fact in (*item.rest, *item.metadata):
            by_kind[fact.kind, ""] += 1
            by_kind[fact.kind, fact.filename] += 1
        for event in item.events:
            by_kind[str(event.get("kind")), item.change.filename] += 1
            by_kind["retirement", ""] += 1
        by_kind[item.change.status, "files"] += 1
    yield from by_kind.values()


def _add_changes(evidence: Evidence, item: Digest) -> None:
    """What changed its date, from when to when."""
    for event in item.events:
        subject = evidence.subjects.setdefault(arabic(str(event.get("model") or "")), Subject())
        old, new = (_iso(str(event.get(f"{side}_date") or "")) for side in ("old", "new"))
        if event.get("old_date") and event.get("new_date"):
            evidence.pairs.add((old, new))
        texts = " \n ".join(str(value) for name, value in event.items() if name not in ("version", "model"))
        subject.dates |= {mention.parts for mention in dates(arabic(texts))}
        if moved := days_moved(event):
            subject.directions.add("later" if moved > 0 else "earlier")
            subject.days.add(Decimal(abs(moved)).normalize())
        subject.is_retired |= event.get("kind") in ("moved_to_retired", "model_removed") or "retired" in str(
            event.get("table")
        )
    for fact in (*item.rest, *item.metadata):
        if not (fact.old and fact.new):
            continue
        befores, afters = (_full(dates(arabic(side))) for side in (fact.old, fact.new))
        evidence.pairs |= {(old, new) for old in befores for new in afters}
        if len(befores) == len(afters) == 1 and fact.kind == "table_cell_changed":
            _add_row(evidence, fact, befores[0], afters[0])


def _add_row(evidence: Evidence, fact: Fact, old: Parts, new: Parts) -> None:
    subject = evidence.subjects.setdefault(arabic(row_name(fact)), Subject())
    subject.dates |= {old, new, *(mention.parts for mention in dates(arabic(str(fact.data.get("row", "")))))}
    if (moved := _days(old, new)) is not None and moved:
        subject.directions.add("later" if moved > 0 else "earlier")
        subject.days.add(Decimal(abs(moved)).normalize())


def _days(old: Parts, new: Parts) -> int | None:
    """Days from one date to another; None if one is no date of the calendar."""
    if None in (*old, *new) or not (is_real(old) and is_real(new)):
        return None
    return (datetime.date(*new) - datetime.date(*old)).days  # type: ignore[arg-type]


def _full(mentions: Iterable[DateMention]) -> list[Parts]:
    return [mention.parts for mention in mentions if None not in mention.parts]


def _iso(text: str) -> Parts:
    year, month, day = (int(part) for part in text.split("-")) if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else (0, 0, 0)
    return year or None, month or None, day or None


def _blank(text: str, mentions: Iterable[DateMention | NumberMention]) -> str:
    characters = list(text)
    for mention in mentions:
        characters[mention.start : mention.end] = " " * (mention.end - mention.start)
    return "".join(characters)


# --- form ------------------------------------------------------------------------------------------------------------

_LEAKS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a code fence", re.compile(r"```|~~~")),
    ("a heading", re.compile(r"^\s{0,3}#{1,6}(?:\s|$)", re.MULTILINE)),
    ("front matter or a rule", re.compile(r"^\s{0,3}(?:-{3,}|\*{3,}|_{3,})\s*$", re.MULTILINE)),
    ("a list or a quotation block", re.compile(r"^\s{0,3}(?:[-*+>]|\d{1,2}[.)])\s", re.MULTILINE)),
    (
        "a chat template's tag",
        re.compile(r"\[/?(?:INST|SYS|TOOL|system|user|assistant)\]|<<?/?SYS>>?|<\|", re.IGNORECASE),
    ),
    ("an HTML tag or a tag of the prompt", re.compile(r"<[/!]?[A-Za-z][^<>\n]{0,200}>?|</")),
    ("a template's braces", re.compile(r"\{\{|\}\}|\{%|%\}|\{[a-z_]*\}")),
    ("a Markdown link or image", re.compile(r"!?\[[^\]\n]*\]\s?\(")),
    ("a placeholder", re.compile(r"\[(?:TODO|TBD|date|model|name|insert[^\]]*)\]|XXXX?|lorem ipsum", re.IGNORECASE)),
    (
        "a label instead of prose",
        re.compile(
            r"^\s*(?:explanation|title|summary|highlights?|insights?|説明|要約|タイトル)\s*[:：]", re.IGNORECASE
        ),
    ),
    (
        "words about yourself",
        re.compile(r"\bas an ai\b|language model,? i\b|\bsystem prompt\b|システムプロンプト", re.IGNORECASE),
    ),
    ("a control character", re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufffd]")),
)
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_ENDS = re.compile(r"[.!?。！？」』)）”\"]\s*$")
_HANGS = re.compile(
    r"(?:[,、:：;；(（「“\-–—]|(?:^|\s)(?:the|a|an|of|to|and|or|with|for|in|on|by|from|is|are|was|were|that|which|its)"
    r"|[はがをにでとのやもへ])\s*$",
    re.IGNORECASE,
)
_PAIRS = (("「", "」"), ("『", "』"), ("（", "）"), ("(", ")"), ("“", "”"), ("[", "]"))


def _form_faults(text: str, lexicon: Lexicon, form: Form) -> Iterator[str]:
    bare = _CODE.sub(" ", text)
    if not text.strip():
        yield "the text is empty"
        return
    for name, pattern in _LEAKS:
        if match := pattern.search(bare):
            yield f"it has {name} ({match[0].strip()!r}): write plain prose, with names in single backticks"
    if "`" in bare:
        yield "a backtick has no partner"
    for opening, closing in _PAIRS:
        if bare.count(opening) != bare.count(closing):
            yield f"{opening} and {closing} do not match: is the text cut off?"
    stripped = text.strip()
    if stripped.endswith(("...", "…", "‥")):
        yield "it ends in dots: write whole sentences"
    elif form == "paragraph" and any(not _ENDS.search(part) for part in stripped.split("\n") if part.strip()):
        yield "the last sentence is cut off: end it"
    elif form != "paragraph" and ("\n" in stripped or _HANGS.search(bare.rstrip() or " ")):
        yield "the line is cut off or more than one line"
    yield from _language_faults(bare, lexicon, form)


def _language_faults(bare: str, lexicon: Lexicon, form: Form) -> Iterator[str]:
    unquoted = re.sub(r"「[^」]*」|『[^』]*』|“[^”]*”|\"[^\"]*\"", " ", bare)
    if match := re.search(lexicon["foreign"], unquoted):
        yield f"write {lexicon['name']} only (found {match[0]!r})"
    for sentence in _sentences(unquoted) if form == "paragraph" else (unquoted,):
        letters = re.findall(r"[^\W\d_]+", sentence)
        enough = len(letters) > (5 if form == "paragraph" else 8) or (
            form == "paragraph" and re.search(r"[぀-鿿]", sentence)
        )
        if enough and not re.search(lexicon["sentence"], sentence):
            yield f"write {lexicon['name']}: {sentence.strip()[:60]!r} is not"


# --- one sentence ----------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<=[。!?！？])(?![」』)）])|(?<=[.!?])[\"”)]?\s+(?=[^a-z])|\n+")
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>「」、。（）\"'`)]+|\bwww\.[^\s<>「」、。（）\"'`)]+")
_QUOTE = re.compile(r"「([^」]{2,})」|“([^”]{2,})”|\"([^\"]{2,})\"")
_NAME = re.compile(
    r"--?[A-Za-z][\w-]*"  # flags
    r"|(?:\.{0,2}/)?[A-Za-z0-9_@]+(?:[/._@+:#-]+[A-Za-z0-9_]+)*[A-Za-z0-9_+#]*"
)
_CODE_LIKE = re.compile(r"^-|_|[a-z][A-Z]|[A-Z]{2}|[./@:#]\w|(?=.*[A-Za-z])(?=.*\d)")
_VERSION = re.compile(
    r"(?<![\w.])v?\d+(?:\.\d+){1,3}(?:[-.]?[a-z]+\.?\d*)?(?![\w.]*\d)|(?<![\w.])v\d+\b", re.IGNORECASE
)
_VERSION_WORD = re.compile(r"(?:version|バージョン|ver\.?)[\s:`]*([\w][\w.-]*)", re.IGNORECASE)
_VERSION_BEFORE = re.compile(r"(?:version|バージョン)[\s:`]*$", re.IGNORECASE)
_VERSION_AFTER = re.compile(r"^[\s`]*(?:版|version|バージョン)", re.IGNORECASE)
_VAGUE_AFTER = re.compile(r"^\s*(?:の?(?:上旬|中旬|下旬|月?末|初頭|前半|後半|初め|半ば|頃|ごろ))")
_VAGUE_BEFORE = re.compile(r"(?:\b(?:early|mid|late|end of|beginning of)[ -]?(?:in )?)$", re.IGNORECASE)
_FROM_TO = re.compile(
    r"^[\s,、()（）「」“”\"`]*(?:以降|まで|頃)?[」”\"`]?\s*(?:から|より|→|->|to\b|until\b)[\s「“\"`]*"
    r"(?:no (?:earlier|sooner|later) than\s+)?[「“\"`]?\s*$",
    re.IGNORECASE,
)
_PASSIVE = re.compile(r"\b(?:is|are|was|were|be|been|being|gets?|got)\s+(?:\w+ly\s+|now\s+|also\s+)?$", re.IGNORECASE)
_BREAK = re.compile(r"[,;:、。]|\b(?:and|but|while|whereas)\b", re.IGNORECASE)
_JOINED = re.compile(
    r"^[\s`,、・]*(?:(?:and|or|と|および|及び|や)[\s`]*)?(?:[(（](?:version|バージョン)?[^)）]*[)）][\s`,、]*(?:and|と)?[\s`]*)?$",
    re.IGNORECASE,
)
_ATTRIBUTIVE = re.compile(r"^(?:され|し|となっ|れ|が)?(?:てい)?(?:た|る)?\s*`?$")


@dataclass(frozen=True, slots=True)
class _Span:
    """A name at its place in a sentence."""

    name: str
    start: int
    end: int


class _Sentence:
    """One sentence under examination."""

    def __init__(self, text: str, evidence: Evidence, lexicon: Lexicon, language: str) -> None:
        self._text = text
        self._evidence = evidence
        self._lexicon = lexicon
        self._spans = [_Span(m[2].strip(), m.start(), m.end()) for m in _CODE.finditer(text)]
        self._urls = [_Span(m[0].rstrip(".,;:!?"), m.start(), m.end()) for m in _URL.finditer(text)]
        bare = self._without((*self._spans, *self._urls))
        in_code = (
            DateMention(mention.parts, span.start, span.end, span.name)
            for span in self._spans
            for mention in dates(span.name, language)
            if mention.raw == span.name
        )
        free = dates(bare, language)
        self._bare = _blank(bare, free)
        self._dates = sorted((*free, *in_code), key=lambda mention: mention.start)
        self._names = list(self._find_names())
        self._subjects = self._find_subjects()

    def faults(self) -> Iterator[str]:
        """Everything that the evidence does not bear out."""
        yield from self._name_faults()
        yield from self._date_faults()
        yield from self._number_faults()
        yield from self._direction_faults()
        yield from self._side_faults()

    def _without(self, spans: Iterable[_Span]) -> str:
        characters = list(self._text)
        for span in spans:
            # A letter keeps what stands beside a name from reading as a free number or word.
            characters[span.start : span.end] = "\x00" * (span.end - span.start)
        return "".join(characters)

    def _find_names(self) -> Iterator[_Span]:
        for match in _NAME.finditer(self._bare):
            if not match[0].replace(",", "").replace(".", "").isdigit():
                yield _Span(match[0], match.start(), match.end())

    def _find_subjects(self) -> list[_Span]:
        """Where the sentence names a model whose dates changed, in code or not."""
        found: list[_Span] = []
        for name in sorted(self._evidence.subjects, key=len, reverse=True):
            if len(name) < 2:
                continue
            for match in re.finditer(rf"(?<![\w-])(?<![\w]\.){re.escape(name)}(?![\w-]|\.\w)", self._text):
                if not any(span.start < match.end() and match.start() < span.end for span in found):
                    found.append(_Span(name, match.start(), match.end()))
        return sorted(found, key=lambda span: span.start)

    # names

    def _name_faults(self) -> Iterator[str]:
        evidence = self._evidence
        for span in self._spans:
            if not evidence.has(span.name):
                yield f"`{span.name}` is not in the diff"
        for span in self._urls:
            if not evidence.has(span.name):
                yield f"the URL {span.name} is not in the diff"
        for match in _QUOTE.finditer(self._text):
            quote = (match[1] or match[2] or match[3]).strip()
            ascii_letters = sum(character.isascii() and character.isalpha() for character in quote)
            if ascii_letters > len(quote) / 2 and not self._is_quoted(quote):
                yield f"the quotation {quote[:60]!r} is not in the diff word by word"
        for span in self._names:
            if self._needs_proof(span) and not self._is_known(span.name):
                yield f"{span.name!r} is not in the diff"
        for match in _VERSION_WORD.finditer(self._text):
            version = match[1].rstrip(".-")
            if any(character.isdigit() for character in version) and not evidence.has(version):
                yield f"the version {version} is not in the diff"

    def _is_quoted(self, quote: str) -> bool:
        squeeze = re.compile(r"[\s*_`\\]+")
        bare = squeeze.sub(" ", quote).strip(" .,…").casefold()
        return bare in squeeze.sub(" ", self._evidence.text).casefold()

    def _needs_proof(self, span: _Span) -> bool:
        if span.name.casefold() in GENERIC or len(span.name) < 2:
            return False
        if _CODE_LIKE.search(span.name):
            return not re.fullmatch(r"Q[1-4]|\d+(?:st|nd|rd|th)|\d+(?:[kKMBTx]|[KMGT]i?B|ms)", span.name)
        if self._lexicon["spaced"]:  # Latin letters within Japanese are names
            return span.name[0].isalpha()
        before = self._text[: span.start].rstrip('\x00 `"“(')
        is_first = not before or before[-1] in ".!?:。"
        return span.name[0].isupper() and span.name[1:].islower() and not is_first

    def _is_known(self, name: str) -> bool:
        forms = {name, name.removesuffix("'s"), name.removesuffix("s"), name.rstrip(":.-")}
        if any(self._evidence.has(form, exact=False) for form in forms if form):
            return True
        pieces = [piece for piece in re.split(r"[/-]", name) if piece]
        return len(pieces) > 1 and all(
            piece.isalpha() and (piece.islower() or self._evidence.has(piece, exact=False)) for piece in pieces
        )

    # dates and numbers

    def _date_faults(self) -> Iterator[str]:
        for mention in self._dates:
            if not is_real(mention.parts):
                yield f"the date {mention.raw} is on no calendar"
            elif not _matches(mention.parts, self._evidence.dates):
                yield f"the date {mention.raw} is not in the diff"
            elif not self._belongs(mention):
                yield f"the date {mention.raw} is not that of {self._near(mention)}"
            before, after = self._text[: mention.start], self._text[mention.end :]
            vague = _VAGUE_AFTER.match(after) or _VAGUE_BEFORE.search(before)
            if vague and not self._evidence.has(vague[0].strip(), exact=False):
                yield f"{vague[0].strip()!r} with {mention.raw} is not in the diff"
        yield from self._pair_faults()
        match = re.search(self._lexicon["relative"], self._bare)
        if match and not self._evidence.has(match[0], exact=False):
            yield f"give the date itself instead of {match[0]!r}"
        yield from self._weekday_faults()

    def _belongs(self, mention: DateMention) -> bool:
        """Whether a date in a sentence about a model is one of that model's dates."""
        subjects = [self._evidence.subjects[name] for name in self._group(mention.start, mention.end)]
        if not subjects:
            about_models = re.search(self._lexicon["retire"], self._text) and self._evidence.subjects
            subjects = list(self._evidence.subjects.values()) if about_models else []
        if not subjects:
            return True
        known = {parts for subject in subjects for parts in subject.dates}
        return _matches(mention.parts, known) or self._stands_beside(mention)

    def _stands_beside(self, mention: DateMention) -> bool:
        """Whether the date is the version of the model, or a date of no model at all, such as the page's."""
        before, after = self._text[: mention.start], self._text[mention.end :]
        if _VERSION_BEFORE.search(before) or _VERSION_AFTER.match(after):
            return self._evidence.has(mention.raw)
        if re.search(r"ms\.date|メタデータ|metadata", self._text):
            return True
        dated = {found.raw for found in self._dates}
        others = [
            span.name for span in self._spans if span.name not in dated and span.name not in self._evidence.subjects
        ]
        lines = self._evidence.text.split("\n") if others else []
        rows = (line for line in lines if any(stands_in(name, line) for name in others))
        return any(_matches(mention.parts, {found.parts for found in dates(row)}) for row in rows)

    def _pair_faults(self) -> Iterator[str]:
        for one, other in zip(self._dates, self._dates[1:], strict=False):
            between = self._text[one.end : other.start]
            if not _FROM_TO.match(between) or None in one.parts:
                continue
            new = tuple(b if b is not None else a for a, b in zip(one.parts, other.parts, strict=True))
            if (one.parts, new) not in self._evidence.pairs:
                yield f"nothing in the diff changed from {one.raw} to {other.raw}"

    def _weekday_faults(self) -> Iterator[str]:
        for mention in self._dates:
            year, month, day = mention.parts
            if not (year and month and day and is_real(mention.parts)):
                continue
            weekday = datetime.date(year, month, day).weekday()
            before, after = self._text[max(0, mention.start - 12) : mention.start], self._text[mention.end :][:6]
            said = re.search(r"\b(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day,?\s*$", before)
            said_ja = re.match(r"\s*[(（]?([月火水木金土日])(?:曜日?)?[)）]|\s*([月火水木金土日])曜", after)
            if said and ["Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur", "Sun"].index(said[1]) != weekday:
                yield f"{mention.raw} is no {said[1]}day"
            if said_ja and "月火水木金土日".index(said_ja[1] or said_ja[2]) != weekday:
                yield f"the weekday of {mention.raw} is wrong"

    def _number_faults(self) -> Iterator[str]:
        in_names = [
            span
            for span in self._names
            if _CODE_LIKE.search(span.name) and not re.match(r"\d+[a-zA-Z]{1,3}$", span.name)
        ]
        versions = [_Span(m[0], m.start(), m.end()) for m in _VERSION.finditer(self._bare) if m[0].count(".") > 1]
        for span in versions:
            if not self._evidence.has(span.name, exact=False):
                yield f"the version {span.name} is not in the diff"
        for number in numbers(self._bare):
            if any(span.start <= number.start < span.end for span in (*in_names, *versions)):
                continue
            if not self._is_proven(number):
                yield f"the number {number.raw.strip()} ({number.unit or 'no unit'}) is not in the diff"

    def _is_proven(self, number: NumberMention) -> bool:
        units = self._evidence.numbers.get(number.value, set())
        group = self._group(number.start, number.end)
        if number.unit == "day" and group:
            known = {days for name in group for days in self._evidence.subjects[name].days}
            return number.value in known or (not known and "day" in units)
        if number.unit in STRICT_UNITS:
            return number.unit in units
        if units or number.value in _SINGLES:
            return True
        is_year = number.value in {Decimal(parts[0]) for parts in self._evidence.dates if parts[0]}
        return is_year or ("." in number.raw and self._evidence.has(number.raw))

    # directions

    def _group(self, start: int, end: int) -> tuple[str, ...]:
        """The models that a place in the sentence is about: those before it, or the first after it."""
        before = [span for span in self._subjects if span.end <= start]
        if before:
            return self._joined(before[-1])
        return self._joined(self._subjects[0]) if self._subjects else ()

    def _joined(self, span: _Span) -> tuple[str, ...]:
        """A model and those that stand with it in a row."""
        at = self._subjects.index(span)
        first = last = at
        while first and _JOINED.match(self._between(first - 1, first)):
            first -= 1
        while last + 1 < len(self._subjects) and _JOINED.match(self._between(last, last + 1)):
            last += 1
        return tuple(dict.fromkeys(other.name for other in self._subjects[first : last + 1]))

    def _between(self, one: int, other: int) -> str:
        return self._text[self._subjects[one].end : self._subjects[other].start]

    def _near(self, mention: DateMention) -> str:
        names = self._group(mention.start, mention.end)
        return ", ".join(f"`{name}`" for name in names) or "a model whose dates changed"

    def _direction_faults(self) -> Iterator[str]:
        subjects = self._evidence.subjects
        is_about = bool(self._subjects) or bool(self._dates) or bool(re.search(self._lexicon["retire"], self._text))
        if not is_about:
            return
        for direction in ("later", "earlier"):
            for match in re.finditer(self._lexicon[direction], self._bare):
                target = self._target(match, self._subjects)
                names = self._joined(target) if target else tuple(subjects)
                known = [subjects[name].directions for name in names]
                if not any(direction in one for one in known) or (
                    target and not all(direction in one for one in known)
                ):
                    about = ", ".join(f"`{name}`" for name in names) if target else "no date in the diff"
                    yield f"{match[0].strip()!r} is wrong: {about} did not move {direction}"
                elif not target and any(one and direction not in one for one in known):
                    yield f"name the model beside {match[0].strip()!r}: dates moved both ways"
        match_retired = re.search(self._lexicon["retired_already"], self._bare)
        if match_retired and subjects:
            target = self._target(match_retired, self._subjects)
            names = self._joined(target) if target else tuple(subjects)
            if not all(subjects[name].is_retired for name in names):
                yield f"{match_retired[0].strip()!r}: the diff does not say that it happened already"

    def _side_faults(self) -> Iterator[str]:
        """Names said to be added that were removed, and the reverse."""
        spans = [*self._spans, *(span for span in self._names if _CODE_LIKE.search(span.name)), *self._quotes()]
        spans.sort(key=lambda span: span.start)
        for verb, wrong in (("added", "removed"), ("removed", "added")):
            for match in re.finditer(self._lexicon[verb], self._bare):
                target = self._target(match, spans)
                if target and self._side(target.name) == wrong:
                    yield f"{target.name!r} was {wrong}, not {verb}"

    def _quotes(self) -> Iterator[_Span]:
        for match in _QUOTE.finditer(self._text):
            yield _Span((match[1] or match[2] or match[3]).strip(), match.start(), match.end())

    def _side(self, name: str) -> str:
        evidence = self._evidence
        if stands_in(name, evidence.context):
            return ""
        came, went = stands_in(name, evidence.added), stands_in(name, evidence.removed)
        return "" if came == went else "added" if came else "removed"

    def _target(self, match: re.Match[str], spans: Sequence[_Span]) -> _Span | None:
        """What a verb is about: what follows an active verb, else what stands before it."""
        before = [span for span in spans if span.end <= match.start()]
        after = [span for span in spans if span.start >= match.end()]
        if after:
            between = self._bare[match.end() : after[0].start].replace("\x00", "")
            is_attribute = bool(_ATTRIBUTIVE.match(between))
            is_active = bool(re.match(r"[A-Za-z]", match[0])) and not _PASSIVE.search(self._bare[: match.start()])
            if is_attribute or (is_active and not _BREAK.search(between)):
                return after[0]
        if before:
            return before[-1]
        return after[0] if after and re.match(r"[A-Za-z]", match[0]) and not before else None


def _matches(parts: Parts, known: Iterable[Parts]) -> bool:
    return any(all(a is None or a == b for a, b in zip(parts, other, strict=True)) for other in known)


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence and sentence.strip()]
