"""The Diff Insight Report as values: everything but its Markdown, which `render.py` writes."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunekeeper.insight.changes import FileChange

ModificationType = Literal["new feature", "breaking change", "bug fix", "minor update"]

ANCHOR_CHARACTERS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One changed file in the report."""

    change: FileChange
    anchor: str
    """Unique in the report: `item-` and the first characters of the path's MD5."""
    type: ModificationType
    title: str
    """Plain text on one line."""
    explanation: tuple[str, ...]
    """Blocks of Markdown: paragraphs and lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Highlights:
    """What to read first, as lines of inline Markdown."""

    new_features: tuple[str, ...]
    breaking_changes: tuple[str, ...]
    other_updates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What changed in one day and category, written up for people."""

    date: str
    """ISO date."""
    permalink: str
    title: str
    summary: str
    """Plain text on one line."""
    language: str
    highlights: Highlights
    insights: tuple[str, ...]
    """Paragraphs of Markdown."""
    items: tuple[Item, ...]
    source: str = ""
    license: str = ""
    lacks: tuple[str, ...] = ()
    """Lines of inline Markdown: what the source, or the model, could not give."""


def anchors(filenames: Sequence[str]) -> tuple[str, ...]:
    """An anchor for each file, in order; those that would be equal are made longer until they differ."""
    seen: Counter[str] = Counter()
    hashes = []
    for name in filenames:
        again = f"\n{seen[name]}" if seen[name] else ""
        seen[name] += 1
        hashes.append(_md5(name + again))
    return tuple(f"item-{digest[:size]}" for digest, size in zip(hashes, _sizes(hashes), strict=True))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _sizes(hashes: Iterable[str]) -> list[int]:
    hashes = list(hashes)
    sizes = [ANCHOR_CHARACTERS] * len(hashes)
    while True:
        counts = Counter(digest[:size] for digest, size in zip(hashes, sizes, strict=True))
        longer = [size + (counts[digest[:size]] > 1) for digest, size in zip(hashes, sizes, strict=True)]
        if longer == sizes:
            return sizes
        sizes = longer
