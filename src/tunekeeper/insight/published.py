"""Published reports, read back: what the site, the feeds and the notices are made of.

A report is a file `YYYY/MM/diff-insight-report-<category>-YYYY-MM-DD.md`: front matter (date, permalink, summary,
title) and the sections Highlights, Insights, Summary Table and Modified Contents. A file that cannot be used is left
out and said: it never stops the others. A section that is missing is empty.

    reports, warnings = read_reports(Path("reports"))
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunekeeper.errors import InvalidData, NotFound, Unavailable
from tunekeeper.insight.catalogue import catalogue, languages
from tunekeeper.insight.markup import parse, plain, type_class

if TYPE_CHECKING:
    from markdown_it.token import Token

_NAME = re.compile(r"diff-insight-report-([^\W_][\w.-]*)-(\d{4}-\d{2}-\d{2})\.md")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)+")
_MAX_IDENTIFIERS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedItem:
    """One changed file of a report: its row of the Summary Table and its section."""

    anchor: str
    """Id of its section; empty where the table links to none."""
    filename: str
    """The whole path where the section names it, else what the table says."""
    type: str
    title: str
    status: str
    explanation: str = ""
    identifiers: tuple[str, ...] = ()
    """Names and numbers in the changed lines, each once: for the search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Whom a report is about, and so whom to credit."""

    name: str
    url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One published report."""

    stem: str
    """The name of its file without `.md`."""
    category: str
    day: date
    title: str
    summary: str
    permalink: str
    """Address of the diff; for a local repository its path and range."""
    language: str
    """`ja`, `ko`, `zh` or `en`, or what the front matter calls `language`."""
    license: str
    """Of the source, where the report's line of credit says it."""
    highlights: Mapping[str, Sequence[str]]
    """The points below each heading of the Highlights: New features, Breaking changes, Other updates."""
    insights: str
    items: Sequence[PublishedItem]
    tokens: "Sequence[Token]"
    """The body, parsed and safe."""

    @property
    def path(self) -> str:
        """Where its page is on the site, from the site's root; not quoted as an address is."""
        return f"{self.day:%Y/%m}/{self.stem}.html"

    @property
    def link(self) -> str:
        """The permalink where it is an address on the web, else empty."""
        return self.permalink if urlsplit(self.permalink).scheme in ("http", "https") else ""

    @property
    def source(self) -> Source | None:
        """The repository behind the permalink; None where the front matter names none."""
        parts = urlsplit(self.link)
        owner, _, rest = parts.path.strip("/").partition("/")
        repository = rest.split("/")[0]
        if self.link and repository:
            return Source(name=f"{owner}/{repository}", url=f"{parts.scheme}://{parts.netloc}/{owner}/{repository}")
        return Source(name=self.permalink, url=self.link) if self.permalink else None


def read_reports(directory: Path) -> tuple[list[Published], list[str]]:
    """All reports below the directory, oldest first, and a sentence for each file that was left out.

    Raises NotFound where there is no such directory.
    """
    if not directory.is_dir():
        raise NotFound(f"There is no directory {directory}. Give the one that `tunekeeper report --out` writes to.")
    found: dict[tuple[date, str], tuple[Path, Published]] = {}
    warnings = []
    for path in sorted(directory.rglob("*.md")):
        try:
            report = read_report(path)
        except (InvalidData, Unavailable) as error:
            warnings.append(error.message)
            continue
        first, _ = found.setdefault((report.day, report.category), (path, report))
        if first != path:
            warnings.append(
                f"{path} is left out: {first} is already the report on {report.category} of {report.day}. "
                "Delete one of them."
            )
    return [report for _, (_, report) in sorted(found.items())], warnings


def read_report(path: Path) -> Published:
    """One report; raises InvalidData that says what is wrong with the file."""
    day, category = _day_and_category(path)
    front, body = _front_matter(_text(path), path)
    if (said := front.get("date", "")) != day.isoformat():
        raise InvalidData(
            f"{path} is left out: its name says {day}, its front matter says date {said or '(none)'}. "
            "Correct the one that is wrong."
        )
    tokens = parse(body)
    highlights, insights, items = _sections(tokens)
    prose = " ".join([front.get("summary", ""), insights, *(point for all_ in highlights.values() for point in all_)])
    return Published(
        stem=path.stem,
        category=category,
        day=day,
        title=front.get("title") or f"Diff Insight Report - {category}",
        summary=front.get("summary", ""),
        permalink=front.get("permalink", ""),
        language=front["language"] if _LANGUAGE.fullmatch(front.get("language", "")) else language_of(prose),
        license=_license(tokens),
        highlights=highlights,
        insights=insights,
        items=items,
        tokens=tokens,
    )


def language_of(text: str) -> str:
    """The language of a text by its script: one quoted word does not make it Japanese."""
    letters = [unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha()]
    counts = {script: letters.count(script) for script in ("HIRAGANA", "KATAKANA", "HANGUL", "CJK")}
    if sum(counts.values()) * 5 < len(letters) or not letters:
        return "en"
    if counts["HANGUL"] > counts["HIRAGANA"]:
        return "ko"
    return "ja" if counts["HIRAGANA"] or counts["KATAKANA"] else "zh"


def _day_and_category(path: Path) -> tuple[date, str]:
    if match := _NAME.fullmatch(path.name):
        try:
            return date.fromisoformat(match[2]), match[1]
        except ValueError:
            pass
    raise InvalidData(
        f"{path} is left out: a report is named diff-insight-report-CATEGORY-YYYY-MM-DD.md. Rename or move the file."
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path} is left out: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    except OSError as error:
        raise Unavailable(f"{path} is left out: it cannot be read: {error.strerror}.") from error


def _front_matter(text: str, path: Path) -> tuple[dict[str, str], str]:
    import yaml

    match = _FRONT_MATTER.match(text)
    if match is None:
        raise InvalidData(f"{path} is left out: no front matter. A report begins with a block between two lines ---.")
    try:
        # The base loader makes strings of all that it reads, and no objects.
        front = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", -1) + 2
        where = f"line {line} of " if line > 1 else ""
        raise InvalidData(f"{path} is left out: {where}its front matter is no YAML. Quote what is in it.") from error
    if not isinstance(front, dict) or not all(isinstance(value, str) for value in front.values()):
        raise InvalidData(f"{path} is left out: its front matter is not a list of `name: text`.")
    return front, text[match.end() :]


def _license(tokens: "Sequence[Token]") -> str:
    """What the line of credit above the first heading says, in whichever language it is."""
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            break
        if token.type == "inline":
            for pattern in _credits():
                if match := pattern.fullmatch(plain(tokens[at])):
                    return match["license"]
    return ""


@lru_cache
def _credits() -> list[re.Pattern[str]]:
    messages = (re.escape(catalogue(language).messages["credit_with_license"]) for language in languages())
    return [re.compile(re.sub(r"\\{(source|license)\\}", r"(?P<\1>.+)", message)) for message in messages]


def _sections(tokens: "Sequence[Token]") -> tuple[dict[str, list[str]], str, list[PublishedItem]]:
    """Highlights, Insights and items. Marks the cells of the Summary Table with their types on the way."""
    highlights: dict[str, list[str]] = {}
    insights: list[str] = []
    rows: list[PublishedItem] = []
    contents: dict[str, tuple[str, list[str], list[str]]] = {}
    for place, at in _places(tokens):
        token = tokens[at]
        match place:
            case ["Highlights", (heading, _), *_] if token.type == "inline":
                highlights.setdefault(heading, []).append(plain(token))
            case ["Insights", *_] if token.type == "inline":
                insights.append(plain(token))
            case ["Summary Table", *_] if token.type == "tr_open":
                rows += _row(tokens[at : next(n for n in range(at, len(tokens)) if tokens[n].type == "tr_close")])
            case ["Modified Contents", (filename, anchor), *below]:
                _, explanation, changed = contents.setdefault(anchor, (filename, [], []))
                if token.type == "inline" and below and below[0][0] == "Explanation":
                    explanation.append(plain(token))
                elif token.type == "fence" and token.info.strip() == "diff":
                    changed += [line[1:] for line in token.content.splitlines() if line[:1] in "+-"]
    return highlights, "\n".join(insights), [_with_contents(row, contents) for row in rows]


def _places(tokens: "Sequence[Token]") -> Iterator[tuple[list[Any], int]]:
    """Where each token below a heading stands: the text of the first heading, then (text, id) of those below it."""
    above: list[tuple[int, str, str]] = []
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            level = len(token.markup)
            above = [heading for heading in above if heading[0] < level]
            above.append((level, plain(tokens[at + 1]), str(token.attrGet("id"))))
        elif above and tokens[at - 1].type != "heading_open":
            yield [above[0][1], *((text, anchor) for _, text, anchor in above[1:])], at


def _row(tokens: "Sequence[Token]") -> list[PublishedItem]:
    cells = [(token, tokens[at + 1]) for at, token in enumerate(tokens) if token.type in ("th_open", "td_open")]
    for cell, _ in cells[4:]:
        cell.attrJoin("class", "number")
    if len(cells) < 4 or cells[0][0].type == "th_open":
        return []
    filename, kind, title, status = (plain(inline) for _, inline in cells[:4])
    link = next((child for child in cells[0][1].children or () if child.type == "link_open"), None)
    cells[1][0].attrJoin("class", f"type {type_class(kind)}".strip())
    cells[1][1].type, cells[1][1].content = "modification_type", kind
    anchor = str(link.attrGet("href") or "") if link else ""
    return [
        PublishedItem(
            anchor=anchor[1:] if anchor.startswith("#") else "",
            filename=filename,
            type=kind,
            title=title,
            status=status,
        )
    ]


def _with_contents(row: PublishedItem, contents: Mapping[str, tuple[str, list[str], list[str]]]) -> PublishedItem:
    filename, explanation, changed = contents.get(row.anchor, (row.filename, [], []))
    identifiers = dict.fromkeys(name for line in changed for name in _IDENTIFIER.findall(line))
    return PublishedItem(
        anchor=row.anchor,
        filename=filename,
        type=row.type,
        title=row.title,
        status=row.status,
        explanation="\n".join(explanation),
        identifiers=tuple(identifiers)[:_MAX_IDENTIFIERS],
    )
