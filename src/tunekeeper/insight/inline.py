"""Links, images and includes in a line of Markdown, and the identifiers in a line of code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

RefKind = Literal["link", "image", "include"]

# Every repetition has a bound: a line of a hundred thousand brackets must not take a minute.
_LABEL = r"\[((?:[^\[\]\\]|\\.|!?\[[^\[\]]{0,300}\](?:\([^()\s]{0,500}\))?){0,500})\]"
_TARGET = r"\(\s{0,20}(<[^<>]{0,2000}>|(?:[^()\s\\]|\\.|\([^()\s]{0,500}\)){0,2000})"
_TITLE = r"(?:\s{1,20}[\"'][^\"']{0,500}[\"'])?\s{0,20}\)"
_INLINE = re.compile(r"(?<!\\)(!?)(?<!\\)" + _LABEL + _TARGET + _TITLE)
_INNER_IMAGE = re.compile(r"!\[([^\[\]]{0,300})\]\(([^()\s]{0,500})\)")
_DEFINITION = re.compile(r"^ {0,3}\[([^\[\]^][^\[\]]{0,300})\]:\s{0,20}<?(\S{1,2000}?)>?(?:\s|$)")
_AUTOLINK = re.compile(r"<(https?://[^<>\s]{1,2000})>")
_HTML = re.compile(
    r"<(img|a)\b[^<>]{0,2000}?\b(?:src|href)\s{0,5}=\s{0,5}[\"']([^\"']{1,2000})[\"'][^<>]{0,2000}>", re.I
)
_ALT = re.compile(r"\balt\s*=\s*[\"']([^\"']*)[\"']", re.I)
_DIRECTIVE = re.compile(r":::\s{0,5}(image|code)\b([^\n]{0,3000})")
_ATTRIBUTE = re.compile(r"([\w-]{1,40})\s{0,5}=\s{0,5}\"([^\"]{0,2000})\"")
_INCLUDE = re.compile(
    r"\[!(?:INCLUDE|code(?:-[\w#+-]{1,30})?)\s{0,5}\[([^\[\]]{0,500})\]\(([^()\s]{0,2000})[^()]{0,300}\)\s{0,5}\]", re.I
)
_LIQUID = re.compile(r"\{%-?\s{0,5}include\s{1,5}[\"']?([^\"'%\s]{1,500})")
_CODE_SPAN = re.compile(r"(`{1,5})(?!`)[^`]{0,1000}?(?<!`)\1(?!`)")

_COMMENT = re.compile(r"(?:^|\s)(?:#(?!!)|//|--\s).*$|/\*.*?\*/|<!--.*?-->")
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.){0,2000})\"|'((?:[^'\\]|\\.){0,2000})'")
_IDENTIFIER = re.compile(
    r"(?<![\w/.-])(?:--[A-Za-z][\w-]+|/[A-Za-z][\w{}.-]*(?:/[\w{}.-]+)+|[$@]?[A-Za-z_]\w*(?:[.-]\w+)*|\d{4}-\d{2}-\d{2}(?:-\w+)?)"
)
_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        "and assert async await bool break case catch class const continue def default elif else end "
        "enum except export extends false final finally float for foreach from func function global "
        "implements import int interface internal lambda let long namespace new nil none not null object "
        "override package pass print private protected public raise return self static string struct "
        "super switch then this throw throws true try type typeof undefined using val var void while "
        "with yield the ",
    )
)
"""Of the languages that documentation shows; shorter words are no identifiers anyway."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Something that a line points at."""

    kind: RefKind
    text: str
    """What stands in the brackets; an image's alternative text."""
    target: str


def refs(line: str) -> list[Ref]:
    """Links, images and includes of a line, as they are written; what stands in code marks is none."""
    if "`" in line:
        line = _CODE_SPAN.sub(_blanked, line)
    found: list[Ref] = []
    if "](" in line:
        if "[!" in line:
            found += (Ref("include", text, path) for text, path in _INCLUDE.findall(line))
            line = _INCLUDE.sub("", line)
        for mark, label, target in _INLINE.findall(line):
            found += (Ref("image", alt, source) for alt, source in _INNER_IMAGE.findall(label))
            found.append(Ref("image" if mark else "link", label.replace(_BLANK, "`"), target.strip("<>")))
    if match := _DEFINITION.match(line) if "]:" in line else None:
        found.append(Ref("link", match[1], match[2]))
    if "<" in line:
        found += (Ref("link", url, url) for url in _AUTOLINK.findall(line))
        for match in _HTML.finditer(line):
            alt = _ALT.search(match[0])
            is_image = match[1].lower() == "img"
            found.append(Ref("image" if is_image else "link", alt[1] if alt and is_image else "", match[2]))
    if ":::" in line:
        found += _directives(line)
    if "{%" in line:
        found += (Ref("include", "", path) for path in _LIQUID.findall(line))
    return found


def without_targets(line: str) -> str:
    """The line with the targets of its links left out: what a reader sees of it."""
    return _INLINE.sub(lambda match: match[2], line) if "](" in line else line


def identifiers(code: str) -> Iterator[str]:
    """Names, flags, paths and versions in a piece of code, in order; words of comments and of sentences are none."""
    for line in code.splitlines():
        bare = _COMMENT.sub("", line)
        for quoted in _QUOTED.findall(bare):
            text = quoted[0] or quoted[1]
            if any(character.isspace() for character in text.strip()):
                bare = bare.replace(text, "")
        for match in _IDENTIFIER.finditer(bare):
            name = match[0]
            if len(name) > 2 and name.lower() not in _KEYWORDS:
                yield name


_BLANK = "\x00"


def _blanked(match: re.Match[str]) -> str:
    # Code in a link's text is text; brackets in it are no link.
    return re.sub(r"[\[\]()<>`]", _BLANK, match[0])


def _directives(line: str) -> Iterator[Ref]:
    for kind, rest in _DIRECTIVE.findall(line):
        attributes = dict(_ATTRIBUTE.findall(rest))
        if source := attributes.get("source"):
            yield Ref("image" if kind == "image" else "include", attributes.get("alt-text", ""), source)
