"""Pieces of a diff as words in a sentence: names in code, other text in quotation marks, long text cut."""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from tunekeeper.insight.catalogue import Catalogue
from tunekeeper.insight.classify import is_identifier
from tunekeeper.insight.quoting import code, escape, plain

MOST_CHARACTERS = 120
_MOST_WORDS_COMPARED = 400
_BOLD = re.compile(r"\*\*([^*\n]{2,80}?)\*\*")
_SENTENCE = re.compile(r".+?[.!?。](?=\s|$)|.+")


def literal(text: str, words: Catalogue) -> str:
    """Text from the diff within a sentence: a name as code, the rest quoted and escaped."""
    shown = plain(text)
    return code(shown) if is_identifier(shown) else quoted(shown, words)


def quoted(text: str, words: Catalogue) -> str:
    """Text in the language's quotation marks, cut at a word where it is long."""
    shown = plain(text)
    if len(shown) > MOST_CHARACTERS:
        shown = shown[:MOST_CHARACTERS].rsplit(" ", 1)[0].rstrip(" ,.;:") + "…"
    return words.say("quote", text=escape(shown))


def series(texts: Iterable[str], words: Catalogue, limit: int = 8) -> str:
    """Texts as literals in a row, each once."""
    return words.series([literal(text, words) for text in dict.fromkeys(texts) if plain(text)], limit)


def bold_terms(lines: Iterable[str]) -> tuple[str, ...]:
    """What stands in bold in these lines: mostly the terms that a list explains."""
    return tuple(dict.fromkeys(term for line in lines for term in _BOLD.findall(line)))


def first_sentence(text: str) -> str:
    """The first sentence of a text, without Markdown."""
    match = _SENTENCE.match(plain(text))
    return match[0] if match else ""


def edits(old: str, new: str, words: Catalogue) -> list[str]:
    """The words that changed between two texts, each change in a few words; empty where the texts are too long."""
    before, after = plain(old).split(), plain(new).split()
    if len(before) + len(after) > _MOST_WORDS_COMPARED:
        return []
    found = []
    for tag, i, j, m, n in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            found.append(_edit(before[i:j], after[m:n], words))
    return found


def _edit(old: Sequence[str], new: Sequence[str], words: Catalogue) -> str:
    parts = {"old": quoted(" ".join(old), words), "new": quoted(" ".join(new), words)}
    if old and new:
        return words.say("text_replaced", **parts)
    return words.say("text_deleted" if old else "text_inserted", **parts)
