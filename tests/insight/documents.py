"""A small day of a documentation repository, with a model's date that moved each way, and scripted writers."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekeeper.insight.changes import ChangeSet, Fact, FileChange
from tunekeeper.insight.classify import Digest, digest
from tunekeeper.insight.facts import facts_of
from tunekeeper.insight.prose import Message

RETIREMENTS = """@@ -4,3 +4,3 @@ title: Retirements
 description: When models go.
-ms.date: 04/23/2025
+ms.date: 06/11/2025
 author: someone
@@ -93,6 +93,6 @@ These models are available.
 
 | Model | Version | Retirement date | Replacement model |
 |-------|---------|-----------------|-------------------|
-| `screen-use-preview` | 2025-03-11 | No earlier than June 11, 2025 | |
+| `screen-use-preview` | 2025-03-11 | No earlier than September 1, 2025 | |
-| `old-turbo` | 0613 | December 1, 2025 | `new-turbo` |
+| `old-turbo` | 0613 | November 15, 2025 | `new-turbo` |
 | `draw-3` | 3 | June 30, 2026 | |"""  # noqa: W293

GUIDE = """@@ -10,7 +10,9 @@ recommendations: false
-# When to tune
+# Tuning considerations
 
-Use `max_rows` with 50,000 rows at most, see [limits](limits.md).
+Use `max_tokens` with 120,000 tokens at most, see [quotas](quotas.md).
 
+## Key benefits
+
+A tuned model needs **shorter prompts**.
 Last line."""  # noqa: W293

TYPO = """@@ -3,3 +3,3 @@ title: Errors
 
-You recieve an error and retry with `--wait`.
+You receive an error and retry with `--wait`.
 """  # noqa: W293

METADATA = """@@ -3,3 +3,3 @@ title: Glossary
 author: someone
-ms.date: 01/02/2025
+ms.date: 06/10/2025
 ---"""

LATER = {
    "table": "current",
    "model": "screen-use-preview",
    "version": "2025-03-11",
    "kind": "date_extended",
    "field": "retirement_date",
    "old_text": "No earlier than June 11, 2025",
    "new_text": "No earlier than September 1, 2025",
    "old_date": "2025-06-11",
    "new_date": "2025-09-01",
    "old_qualifier": "not_before",
    "new_qualifier": "not_before",
    "delta_days": 82,
}
EARLIER = {
    **LATER,
    "model": "old-turbo",
    "version": "0613",
    "kind": "date_brought_forward",
    "old_text": "December 1, 2025",
    "new_text": "November 15, 2025",
    "old_date": "2025-12-01",
    "new_date": "2025-11-15",
    "old_qualifier": "exact",
    "new_qualifier": "exact",
    "delta_days": -16,
}


def change(filename: str, patch: str | None, **options: Any) -> FileChange:
    """A modified file with the counts of its patch."""
    lines = (patch or "").split("\n")
    counts = {
        "status": "modified",
        "additions": sum(line.startswith("+") for line in lines),
        "deletions": sum(line.startswith("-") for line in lines),
    }
    return FileChange(filename=filename, patch=patch, **{**counts, **options})


def change_set(*files: FileChange, **options: Any) -> ChangeSet:
    """Files of one day."""
    given = {"date": "2025-06-12", "url": "https://git.example/docs/compare/a...b", "category": "models", **options}
    return ChangeSet(files=files, **given)


def event(filename: str, data: Mapping[str, Any], old_line: int = 96) -> Fact:
    """A retirement event as a fact."""
    place = (old_line, old_line)
    return Fact(
        kind="retirement", filename=filename, subject=data["model"], data=data, old_lines=place, new_lines=place
    )


def day(**options: Any) -> tuple[ChangeSet, dict[str, tuple[Fact, ...]]]:
    """Five files: retirements, a rewritten guide, a typo, a date only, an image."""
    changes = change_set(
        change("docs/guide.md", GUIDE),
        change("docs/retirements.md", RETIREMENTS),
        change("docs/errors.md", TYPO),
        change("docs/glossary.md", METADATA),
        change("docs/media/flow.png", None, status="added", is_binary=True),
        source="Example docs",
        license="CC BY 4.0",
        **options,
    )
    facts = facts_of(changes)
    others = tuple(fact for fact in facts["docs/retirements.md"] if fact.kind != "retirement")
    # Lines of the patch above: the first row is 96 on both sides, the second 97.
    told = (event("docs/retirements.md", LATER), event("docs/retirements.md", EARLIER, 97))
    return changes, {**facts, "docs/retirements.md": (*others, *told)}


def digests() -> dict[str, Digest]:
    """The day's files, sorted for writing."""
    changes, facts = day()
    return {file.filename: digest(file, facts[file.filename]) for file in changes.files}


class Scripted:
    """A writer that says what a function of its prompt says, and counts."""

    name = "scripted"

    def __init__(self, answer: Callable[[Sequence[Message], Mapping[str, Any]], str]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.prompts: list[Sequence[Message]] = []

    def complete(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        with self._lock:
            self.prompts.append(messages)
        return self._answer(messages, schema)


def saying(file: Mapping[str, Any], overview: Mapping[str, Any]) -> Scripted:
    """A writer that always says the same of a file, and of the day."""
    return Scripted(
        lambda _, schema: json.dumps(file if "explanation" in schema["properties"] else overview, ensure_ascii=False)
    )
