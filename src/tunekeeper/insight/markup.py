"""Published Markdown as HTML that cannot act: the text of a report comes from other people's documents.

Raw HTML is shown as text. One structure of ours passes, a fold written on lines of their own:

    <details>
    <summary>Diff</summary>

    any Markdown, mostly a fence
    </details>

A `</details>` inside a fence does not end it, and a fold that never ends is text.
`## path{#item-71d8ac}` gives the heading its id and `[text](https://…){target="_blank"}` loses the braces.
Links lead to http, https, mailto, or a heading of the same page; every other link becomes plain text, an image its
alternative text: a page fetches nothing.
"""

import json
import re
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

TYPES = ("breaking change", "new feature", "bug fix", "minor update")
"""The values of `modification_type`, the weightiest first."""

_FENCE = re.compile(r"^ {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)$")
_SUMMARY = re.compile(r"^<summary>(.*)</summary>$")
_HEADING_ID = re.compile(r"[ \t]*\{#([A-Za-z][\w.-]*)\}[ \t]*$")
_LINK_ATTRIBUTES = re.compile(r'^\{target="?_blank"?\}')
_SAFE_LINK = re.compile(r"^(?:https?://|mailto:)", re.IGNORECASE)
_ALIGNED = re.compile(r"^text-align:(left|center|right)$")
_DIFF_CLASSES = {"+": "add", "-": "del", "@": "hunk", "\\": "note"}


def parse(text: str) -> "list[Token]":
    """The tokens of a report's body, links and headings made safe."""
    return _parser().parse(text, {})


def to_html(tokens: "Sequence[Token]", *, type_names: Mapping[str, str] | None = None) -> str:
    """HTML of the tokens, one heading level down: the page has the first.

    `type_names` gives each modification type in the reader's language.
    """
    parser = _parser()
    return str(parser.renderer.render(tokens, parser.options, {"type_names": type_names or {}}))


def plain(inline: "Token") -> str:
    """The text of an inline token without its marks."""
    return "".join(
        " " if child.type in ("softbreak", "hardbreak") else child.content for child in inline.children or ()
    ).strip()


def type_class(modification_type: str) -> str:
    """The CSS class of a modification type; empty for one that is none of ours."""
    return modification_type.replace(" ", "-") if modification_type in TYPES else ""


@lru_cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.block.ruler.before("table", "details", _details, {"alt": ["paragraph"]})
    parser.core.ruler.after("block", "heading_ids", _give_heading_ids)
    parser.core.ruler.push("safe_links", _make_links_safe)
    parser.core.ruler.push("table_classes", _style_to_class)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("modification_type", _type)
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _details(state: "StateBlock", start: int, end: int, silent: bool) -> bool:
    def line(number: int) -> str:
        return state.src[state.bMarks[number] : state.eMarks[number]]

    if state.level or line(start).rstrip() != "<details>" or start + 1 >= end:
        return False
    summary = _SUMMARY.match(line(start + 1).rstrip())
    close = _closing_line([line(number) for number in range(start + 2, end)]) if summary else None
    if summary is None or close is None:
        return False
    if silent:
        return True
    close += start + 2
    state.push("details_open", "details", 1).map = [start, close + 1]
    state.push("summary_open", "summary", 1)
    title = state.push("inline", "", 0)
    title.content, title.map, title.children = summary[1], [start + 1, start + 2], []
    state.push("summary_close", "summary", -1)
    outer_max, state.lineMax = state.lineMax, close
    state.md.block.tokenize(state, start + 2, close)
    state.lineMax = outer_max
    state.push("details_close", "details", -1)
    state.line = close + 1
    return True


def _closing_line(lines: Sequence[str]) -> int | None:
    """Where the first `</details>` outside a fence stands."""
    fence = ""
    for number, line in enumerate(lines):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        elif line.rstrip() == "</details>":
            return number
    return None


def _give_heading_ids(state: "StateCore") -> None:
    headings = [(token, state.tokens[at + 1]) for at, token in enumerate(state.tokens) if token.type == "heading_open"]
    given = [_HEADING_ID.search(inline.content) for _, inline in headings]
    used: set[str] = set()
    for explicit in (True, False):  # what links point at keeps its name; made-up ids go round it
        for (heading, inline), match in zip(headings, given, strict=True):
            if bool(match) != explicit:
                continue
            if match:
                inline.content = inline.content[: match.start()]
            name = match[1] if match else re.sub(r"[^\w]+", "-", inline.content.lower()).strip("-") or "section"
            number = 1
            while (unique := name if number == 1 else f"{name}-{number}") in used:
                number += 1
            used.add(unique)
            heading.attrSet("id", unique)
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, len(token.markup) + 1)}"
    state.env["ids"] = used


def _make_links_safe(state: "StateCore") -> None:
    for token in state.tokens:
        children = token.children or []
        opened: list[Token] = []
        for at, child in enumerate(children):
            if child.type == "link_open":
                _make_safe(child, state.env["ids"])
                opened.append(child)
            elif child.type == "link_close":
                child.tag = opened.pop().tag
                if at + 1 < len(children) and children[at + 1].type == "text":
                    after = children[at + 1]
                    after.content = _LINK_ATTRIBUTES.sub("", after.content)


def _make_safe(link: "Token", ids: set[str]) -> None:
    href = str(link.attrGet("href") or "")
    if _SAFE_LINK.match(href):
        link.attrs = {"href": href, "target": "_blank", "rel": "noopener noreferrer"}
    elif href.startswith("#") and href[1:] in ids:
        link.attrs = {"href": href}
    else:
        link.tag, link.attrs = "span", {"class": "link", "title": href}


def _style_to_class(state: "StateCore") -> None:
    """Alignment as a class: the pages forbid styles in attributes."""
    for token in state.tokens:
        if token.type in ("th_open", "td_open"):
            aligned = _ALIGNED.match(str(token.attrs.pop("style", "")))
            if aligned:
                token.attrJoin("class", aligned[1])


def _fence(_renderer: Any, tokens: "Sequence[Token]", at: int, _options: Any, env: MutableMapping[str, Any]) -> str:
    token = tokens[at]
    language = token.info.strip().split(" ")[0]
    if language == "diff":
        return _diff(token.content)
    if language == "json" and (modification := _modification(token.content)):
        kind, title = modification
        name = env["type_names"].get(kind, kind)
        return (
            f'<p class="modification"><span class="type {type_class(kind)}">{escape(name)}</span> {escape(title)}</p>\n'
        )
    return f"<pre><code>{escape(token.content)}</code></pre>\n"


def _modification(text: str) -> tuple[str, str] | None:
    try:
        match json.loads(text):
            case {"modification_type": str(kind), "modification_title": str(title)}:
                return kind, title
    except (ValueError, RecursionError):
        pass
    return None


def _type(_renderer: Any, tokens: "Sequence[Token]", at: int, _options: Any, env: MutableMapping[str, Any]) -> str:
    kind = tokens[at].content
    return escape(env["type_names"].get(kind, kind))


def _diff(patch: str) -> str:
    parts = []
    for name, run in groupby(patch.splitlines(keepends=True), lambda line: _DIFF_CLASSES.get(line[:1], "")):
        text = escape("".join(run), quote=False)
        parts.append(f'<span class="{name}">{text}</span>' if name else text)
    return f'<pre class="diff" tabindex="0"><code>{"".join(parts)}</code></pre>\n'


def _image(_renderer: Any, tokens: "Sequence[Token]", at: int, _options: Any, _env: Any) -> str:
    token = tokens[at]
    source = escape(str(token.attrGet("src") or ""))
    return f'<span class="image" title="{source}">{escape(plain(token) or "image")}</span>'
