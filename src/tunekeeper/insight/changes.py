"""The nouns of insight: a set of changed files, and the facts that their diffs prove."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["added", "removed", "modified", "renamed", "copied", "changed"]
"""GitHub's words; git's letters are turned into them."""

FactKind = Literal[
    "table_row_added",
    "table_row_removed",
    "table_row_moved",
    "table_cell_changed",
    "table_column_added",
    "table_column_removed",
    "front_matter_changed",
    "heading_added",
    "heading_removed",
    "heading_changed",
    "link_added",
    "link_removed",
    "link_target_changed",
    "code_added",
    "code_removed",
    "code_changed",
    "image_added",
    "image_removed",
    "image_changed",
    "include_added",
    "include_removed",
    "tab_added",
    "tab_removed",
    "text_added",
    "text_removed",
    "text_changed",
    "file_added",
    "file_removed",
    "file_renamed",
    "file_binary",
    "retirement",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChange:
    """One changed file, with the names of a GitHub compare answer."""

    filename: str
    status: Status
    additions: int
    deletions: int
    patch: str | None
    """The hunks, from the first `@@`; None where there is none: binary, or left out by the source."""
    previous_filename: str | None = None
    is_binary: bool = False
    is_cut: bool = False
    """The source gave only a part of the patch, or none although lines changed."""
    old_text: str | None = None
    """The whole file before, where the source has it: for headers that the hunks do not show."""
    new_text: str | None = None

    @property
    def changes(self) -> int:
        """Lines added and removed."""
        return self.additions + self.deletions


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeSet:
    """What changed between two states of a repository."""

    date: str
    """ISO date that the report is about."""
    url: str
    """Where the diff can be seen; for a local repository its path and range."""
    files: tuple[FileChange, ...]
    base: str = ""
    head: str = ""
    category: str = ""
    """Given by the source, or by `categories.py`."""
    source: str = ""
    """Whom to credit: the repository's name or address."""
    license: str = ""
    lacks: tuple[str, ...] = ()
    """What the source could not give, a `Sentence` each: a cap that was hit, a patch that was left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One change that a diff proves."""

    kind: FactKind
    filename: str
    old_lines: tuple[int, int] | None = None
    """First and last line in the old file, 1-based; None where nothing was there."""
    new_lines: tuple[int, int] | None = None
    section: str = ""
    """The nearest heading above, as far as it is known."""
    subject: str = ""
    """What it is about: a row's key, a heading, a link's text, an identifier, a front-matter key."""
    part: str = ""
    """The column, or the part that changed."""
    old: str = ""
    new: str = ""
    is_metadata: bool = False
    """Dates, authors, tracking: grouped in the report, not narrated."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What else a kind carries: the whole row by column, the identifiers of a code block, a retirement event."""
