"""Text from diffs inside Markdown: literals that stay what they are, fences that nothing inside can close.

code("a`b")        # -> "``a`b``"
escape("<b> | *")  # -> "\\\\<b\\\\> \\\\| \\\\*"
plain("**a** `b`") # -> "a b"
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from tunekeeper.errors import Unavailable

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_ACTIVE = re.compile(r"[\\`*\[\]<>&|~${}]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown, Pandoc's attributes or a template language would read; `_` within a word is text."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_BLANKS = re.compile(r"\s+")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def escape(text: str) -> str:
    """The text on one line, so that it is shown as it is."""
    return _ACTIVE.sub(r"\\\g<0>", one_line(text))


def code(text: str) -> str:
    """A code span; nothing inside can end it."""
    text = one_line(text)
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}" if text else ""


def fence(text: str, info: str, *, at_least: int = 3) -> str:
    """A fenced block, its fence longer than any run of backticks inside."""
    ticks = "`" * max(at_least, _longest_run(text) + 1)
    body = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\u240d"))
    return f"{ticks}{info}\n{body.removesuffix(chr(10))}\n{ticks}"


def one_line(text: str) -> str:
    """The text with every run of blanks as one, and nothing that a terminal would obey."""
    return _CONTROL.sub("\ufffd", _BLANKS.sub(" ", text)).strip()


@lru_cache(maxsize=8192)
def plain(markdown: str) -> str:
    """What a reader sees of a line of Markdown: no marks, no targets, no tags."""
    if not _ACTIVE.search(markdown) and "_" not in markdown:
        return one_line(markdown)
    tokens = _parser().parseInline(_BREAK.sub(" ", markdown))[0].children or []
    shown = {"text", "text_special", "code_inline", "image"}
    words = "".join(" " if "break" in token.type else token.content * (token.type in shown) for token in tokens)
    return one_line(words)


_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


def prose(text: str) -> str:
    """Prose whose only Markdown is code in backticks: everything else is shown as it is."""
    parts = []
    at = 0
    for match in _SPAN.finditer(text):
        parts += [_kept(text[at : match.start()]), code(match[2].strip())]
        at = match.end()
    return one_line("".join((*parts, _kept(text[at:]))))


def _kept(text: str) -> str:
    """Escaped, with the blanks at both ends."""
    bare = _ACTIVE.sub(r"\\\g<0>", _CONTROL.sub("\ufffd", text))
    return _BLANKS.sub(" ", bare)


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


@lru_cache(maxsize=1)
def _parser() -> "MarkdownIt":
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise Unavailable("Reports need markdown-it-py: pip install 'tunekeeper[insight]'") from error
    return MarkdownIt("commonmark")
