"""Changes of retirement tables in the shapes that providers' documents have, with the events a careful reader names.

Each case is the old and the new lines of one stretch of a page (or of several); the expected events were written
from them by hand. An event is (kind, model, version, field) and, where dates belong to it, the old and new date.
"""

# ruff: noqa: E501  (a table's row is one line)

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunekeeper.diffs.patch import parse_patch
from tunekeeper.diffs.tables import Page
from tunekeeper.lifecycle.retirements import RetirementEvent, retirement_events

Expected = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One change."""

    name: str
    pages: tuple[Page, ...]
    expected: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """How events that were found compare with those expected."""

    found: int
    missed: tuple[Expected, ...]
    invented: tuple[Expected, ...]

    @property
    def precision(self) -> float:
        """The share of the events given that are right."""
        given = self.found + len(self.invented)
        return self.found / given if given else 1.0

    @property
    def recall(self) -> float:
        """The share of the expected events that were given."""
        wanted = self.found + len(self.missed)
        return self.found / wanted if wanted else 1.0


def told(event: RetirementEvent, like: Sequence[str | None]) -> Expected:
    """An event in as many words as an expected one."""
    shown = event.to_dict()
    words = (event.kind, event.model, event.version, event.field, shown.get("old_date"), shown.get("new_date"))
    return words[: len(like)]


def evaluate(case: Case) -> Score:
    """Run a case and compare, as multisets."""
    length = {(word[0], word[1], word[2], word[3]): len(word) for word in case.expected}
    given = Counter(
        told(event, "......"[: length.get((event.kind, event.model, event.version, event.field), 6)])
        for event in retirement_events(case.pages)
    )
    expected = Counter(case.expected)
    return Score(
        sum((given & expected).values()),
        tuple((expected - given).elements()),
        tuple((given - expected).elements()),
    )


def changed(old: str, new: str, *, context: int = 3, section: str = "", name: str = "docs/retirements.md") -> Page:
    """A page of which only the patch is known, with so much context."""
    lines = difflib.unified_diff(old.strip("\n").split("\n"), new.strip("\n").split("\n"), n=context, lineterm="")
    patch = "\n".join(f"{line} {section}" if line.startswith("@@") else line for line in list(lines)[2:])
    return Page(name, parse_patch(patch))


HEAD = """
| Model | Version | Retirement date | Replacement model |
| ---- | ---- | ---- | --- |
"""

FAR = "\n".join(f"| `filler-{n}` | 000{n} | No earlier than May 1, 202{n} | |" for n in range(6, 9))

FINE = """
| Model | Version | Training retirement date | Deployment retirement date |
| --- | --- | --- | --- |
"""

STAGES = """
| Model Name | Model Version<sup>1</sup> | Lifecycle Status | Deprecation Date (No New Customers) | Retirement Date | Replacement Model |
|:--|:--|:--|:--|:--|:--|
"""

PROVIDERS = """
| Model provider | Model | Legacy date (UTC) | Deprecation date (UTC) | Retirement date (UTC) | Suggested replacement model |
| ---- | ---- | ---- | --- | ---- | --- |
"""

PROVIDER = """
| Model | Legacy date | Retirement date | Suggested replacement model |
|-------|-------------|-----------------|-----------------------------|
"""

PAST = """
## Deprecated models

| Model | Deprecation date | Retirement date | Suggested replacement |
| --------- | --------------------- | ------------------- | -------------------- |
"""

PAST_SHORT = """
| Model | Retirement date | Suggested replacement model |
|-------|-----------------|-----------------------------|
"""

LONG = HEAD + "".join(f"| `aurora-{n}` | 000{n} | No earlier than May 1, 202{n} | |\n" for n in range(6, 9))

AFTER = "".join(f"| `borea-{n}` | 2024-05-1{n} | No earlier than May 1, 202{n} | |\n" for n in range(6, 9))

FAR_STAGES = "".join(f"| `preview-{n}` | 2025-03-1{n} | Preview | n/a | 2026-03-1{n} | |\n" for n in range(4))

UPGRADE = "Deployments set to [**Auto-update to default**](/how-to/models?tabs=a#auto) will be automatically upgraded to version"

CASES: tuple[Case, ...] = (
    Case(
        "brought forward, and firm now",
        (
            changed(
                HEAD + "| `aurora-4` | 0613 | No earlier than December 1, 2025 | |",
                HEAD + "| `aurora-4` | 0613 | October 15, 2025 | |",
            ),
        ),
        (("date_brought_forward", "aurora-4", "0613", "retirement_date", "2025-12-01", "2025-10-15"),),
    ),
    Case(
        "a date after TBD",
        (changed(HEAD + "| `aurora-4` | 0613 | TBD | |", HEAD + "| `aurora-4` | 0613 | March 31, 2026 | |"),),
        (("date_set", "aurora-4", "0613", "retirement_date", None, "2026-03-31"),),
    ),
    Case(
        "a date withdrawn",
        (changed(HEAD + "| `aurora-4` | 0613 | March 31, 2026 | |", HEAD + "| `aurora-4` | 0613 | TBA | |"),),
        (("date_removed", "aurora-4", "0613", "retirement_date", "2026-03-31", None),),
    ),
    Case(
        "fine-tuning dates in place of words, each in its column",
        (
            changed(
                FINE + "| `aurora-4.1` | 2025-04-14 | Base model retirement | One year after training retirement |",
                FINE + "| `aurora-4.1` | 2025-04-14 | No earlier than 2026-09-30 | 2027-03-31 |",
            ),
        ),
        (
            ("date_set", "aurora-4.1", "2025-04-14", "training_retirement_date", None, "2026-09-30"),
            ("date_set", "aurora-4.1", "2025-04-14", "deployment_retirement_date", None, "2027-03-31"),
        ),
    ),
    Case(
        "fine-tuning dates whose header is outside the hunk",
        (
            changed(
                FINE
                + "| `a-1` | 1106 | At base model retirement | At training retirement |\n"
                + "| `a-2` | 0125 | At base model retirement | At training retirement |\n"
                + "| `a-3` | 2024-05-13 | No earlier than 2025-09-31 | 2026-09-30 |\n"
                + "| `aurora-4o` | 2024-08-06 | No earlier than 2026-03-31 | 2027-03-31 |\n",
                FINE
                + "| `a-1` | 1106 | At base model retirement | At training retirement |\n"
                + "| `a-2` | 0125 | At base model retirement | At training retirement |\n"
                + "| `a-3` | 2024-05-13 | No earlier than 2025-09-31 | 2026-09-30 |\n"
                + "| `aurora-4o` | 2024-08-06 | No earlier than 2026-09-30<sup>1</sup> | 2027-03-31 |\n",
            ),
        ),
        (("date_extended", "aurora-4o", "2024-08-06", "training_retirement_date", "2026-03-31", "2026-09-30"),),
    ),
    Case(
        "a day that does not exist was put right",
        (
            changed(
                FINE + "| `aurora-4o` | 2024-08-06 | No earlier than 2026-09-31<sup>1</sup> | 2027-03-31 |",
                FINE + "| `aurora-4o` | 2024-08-06 | No earlier than 2026-09-30<sup>1</sup> | 2027-03-31 |",
            ),
        ),
        (("date_set", "aurora-4o", "2024-08-06", "training_retirement_date", None, "2026-09-30"),),
    ),
    Case(
        "columns in another order",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 | `b` |\n| `c` | 2 | May 2, 2026 | `d` |",
                "| Model | Version | Replacement model | Retirement date |\n|---|---|---|---|\n"
                "| `a` | 1 | `b` | May 1, 2026 |\n| `c` | 2 | `d` | May 2, 2026 |",
            ),
        ),
        (),
    ),
    Case(
        "realigned, rows in another order, other emphasis",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 | `b` |\n| `c` | 2 | No earlier than May 2, 2026 | `d` |\n| e | | | |",
                "| Model      | Version | Retirement date     | Replacement model |\n|:-----------|:-------:|--------|----|\n"
                "| e          |         |                     | — |\n"
                "| **c**      | 2       | No earlier than May 2, 2026 <sup>2</sup> | [d](https://example.com/d) |\n"
                "| `a`        | `1`     | **May 1, 2026**     | b |",
            ),
        ),
        (),
    ),
    Case(
        "the same date written in ISO",
        (changed(HEAD + "| `a` | 1 | April 11, 2026 | |", HEAD + "| `a` | 1 | 2026-04-11 | |"),),
        (("date_reworded", "a", "1", "retirement_date", "2026-04-11", "2026-04-11"),),
    ),
    Case(
        "stages with the header outside the hunk",
        (
            changed(
                STAGES
                + "| `n-1` | 2024-05-13 | `Generally Available` | 2025-05-13 | 2026-03-31 | `n-5.1` |\n"
                + "| `n-2` | 2025-08-07 | `Preview` | n/a | 2026-03-01 | `n-5.2` |\n"
                + "| `n-3` | 2025-03-11 | `Preview` | n/a | No earlier than 2026-04-14 |  |\n"
                + "| `n-4o` | 2024-11-20 | `Generally Available` | 2025-11-20 | 2026-03-01 | `n-5.1` |\n"
                + "| `n-5` | 2024-12-17 | `Generally Available` | 2025-12-17 | 2026-07-15 | `n-3` |\n",
                STAGES
                + "| `n-1` | 2024-05-13 | `Generally Available` | 2025-05-13 | 2026-03-31 | `n-5.1` |\n"
                + "| `n-2` | 2025-08-07 | `Preview` | n/a | 2026-03-01 | `n-5.2` |\n"
                + "| `n-3` | 2025-03-11 | `Preview` | n/a | No earlier than 2026-04-14 |  |\n"
                + "| `n-4o` | 2024-11-20 | `Deprecated` | 2025-11-20 | 2026-10-01 | `n-5.1` |\n"
                + "| `n-5` | 2024-12-17 | `Generally Available` | 2025-12-17 | 2026-07-15 | `n-3` |\n",
            ),
        ),
        (
            ("date_extended", "n-4o", "2024-11-20", "retirement_date", "2026-03-01", "2026-10-01"),
            ("other_changed", "n-4o", "2024-11-20", "other:lifecycle_status"),
        ),
    ),
    Case(
        "moved to a table of retired models that has no version column",
        (
            changed(
                "## Current models\n"
                + HEAD
                + "| `a` | 0301 | May 1, 2025 | `b` |\n| `k` | 1 | May 2, 2026 | |\n\ntext\n\n"
                "## Retired models\n\n| Model | Deprecation date | Retirement date | Suggested replacement |\n"
                "|---|---|---|---|\n| old-1 | July 6, 2023 | June 14, 2024 | b |",
                "## Current models\n" + HEAD + "| `k` | 1 | May 2, 2026 | |\n\ntext\n\n"
                "## Retired models\n\n| Model | Deprecation date | Retirement date | Suggested replacement |\n"
                "|---|---|---|---|\n| `a` (0301) | | May 1, 2025 | `b` |\n| old-1 | July 6, 2023 | June 14, 2024 | b |",
            ),
        ),
        (("moved_to_retired", "a", "0301", "row", "2025-05-01", "2025-05-01"),),
    ),
    Case(
        "a row gone for good",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2025 | |\n| `k` | 1 | May 2, 2026 | |", HEAD + "| `k` | 1 | May 2, 2026 | |"
            ),
        ),
        (("model_removed", "a", "1", "row"),),
    ),
    Case(
        "a row of two models split into two rows",
        (
            changed(
                HEAD + "| `a`<br>`a-32k` | 0613 | June 6, 2025 | `b` |\n| `k` | 1 | May 2, 2026 | |",
                HEAD
                + "| `a` | 0613 | June 6, 2025 | `b` |\n| `a-32k` | 0613 | June 6, 2025 | `b` |\n| `k` | 1 | May 2, 2026 | |",
            ),
        ),
        (),
    ),
    Case(
        "one of two models leaves the row",
        (
            changed(
                HEAD + "| `a` <br/> `a-16k` | 0613 | June 6, 2025 | `b` |",
                HEAD + "| `a` | 0613 | June 6, 2025 | `b` |\n| `a-16k` | 0613 | July 16, 2025 | `b` |",
            ),
        ),
        (("date_extended", "a-16k", "0613", "retirement_date", "2025-06-06", "2025-07-16"),),
    ),
    Case(
        "replacements set, removed, and a dash that says nothing",
        (
            changed(
                HEAD
                + "| `a` | 1 | May 1, 2026 | — |\n| `b` | 1 | May 1, 2026 | `nova-2` |\n| `c` | 1 | May 1, 2026 | |",
                HEAD
                + "| `a` | 1 | May 1, 2026 | `nova-2` |\n| `b` | 1 | May 1, 2026 | n/a |\n| `c` | 1 | May 1, 2026 | — |",
            ),
        ),
        (("replacement_set", "a", "1", "replacement"), ("replacement_removed", "b", "1", "replacement")),
    ),
    Case(
        "a table moved into an include, with one date changed on the way",
        (
            changed(
                "# Page\n" + HEAD + "| `a` | 1 | May 1, 2026 | |\n| `b` | 1 | May 1, 2026 | |",
                "# Page\n\n[!INCLUDE [m](m.md)]",
                name="docs/page.md",
            ),
            changed("", HEAD + "| `a` | 1 | May 1, 2026 | |\n| `b` | 1 | June 1, 2026 | |", name="docs/includes/m.md"),
        ),
        (("date_extended", "b", "1", "retirement_date", "2026-05-01", "2026-06-01"),),
    ),
    Case(
        "an upgrade announced beside the date",
        (
            changed(
                HEAD + "| `a` | 1106 | July 16, 2025 | |",
                HEAD + f"| `a` | 1106 | July 16, 2025 <br><br> {UPGRADE}: `0125`, starting on June 20, 2025. | |",
            ),
        ),
        (("auto_upgrade_set", "a", "1106", "auto_upgrade_date", None, "2025-06-20"),),
    ),
    Case(
        "a provider's three dates",
        (
            changed(
                PROVIDERS
                + "| Mistral AI | [M-large](https://x.y/m) | December 15, 2024 | January 15, 2025 | April 15, 2025 | [M-2](https://x.y) |",
                PROVIDERS
                + "| Mistral AI | [M-large](https://x.y/m2) | December 20, 2024 | January 10, 2025 | April 15, 2025 | [M-2](https://x.y/new) |",
            ),
        ),
        (
            ("date_extended", "M-large", "", "legacy_date", "2024-12-15", "2024-12-20"),
            ("date_brought_forward", "M-large", "", "deprecation_date", "2025-01-15", "2025-01-10"),
        ),
    ),
    Case(
        "a new column of stages changes nobody's dates",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 | `b` |\n| `c` | 2 | May 2, 2026 | |",
                "| Model Name | Model Version | Lifecycle Status | Retirement Date | Replacement Model |\n|---|---|---|---|---|\n"
                "| `a` | 1 | `Preview` | May 1, 2026 | `b` |\n| `c` | 2 | `Preview` | May 2, 2026 | |",
            ),
        ),
        (),
    ),
    Case(
        "dates in tables that are not about models",
        (
            changed(
                "| API version | Release date | Retirement date |\n|---|---|---|\n| 2023-05-15 | May 15, 2023 | July 1, 2024 |",
                "| API version | Release date | Retirement date |\n|---|---|---|\n| 2023-05-15 | May 15, 2023 | August 1, 2024 |",
            ),
        ),
        (),
    ),
    Case(
        "OpenAI's table, where the date comes first",
        (
            changed(
                "## 2025-04-28: o-preview\n\n| Shutdown date | Model / system | Recommended replacement |\n| --- | --- | --- |\n| 2025-07-28 | `o-preview` | `o3` |",
                "## 2025-04-28: o-preview\n\n| Shutdown date | Model / system | Recommended replacement |\n| --- | --- | --- |\n"
                "| 2025-07-28 | `o-preview` | `o3` |\n| 2025-10-27 | `o-mini` | `o4-mini` |",
            ),
        ),
        (("model_added", "o-mini", "", "row"),),
    ),
    Case(
        "Anthropic's table, where deprecated is a date",
        (
            changed(
                "| API Model Name | Current State | Deprecated | Tentative Retirement Date |\n|:--|:--|:--|:--|\n"
                "| `opal-3` | Active | N/A | Not sooner than February 19, 2026 |",
                "| API Model Name | Current State | Deprecated | Tentative Retirement Date |\n|:--|:--|:--|:--|\n"
                "| `opal-3` | Deprecated | August 13, 2025 | February 19, 2026 |",
            ),
        ),
        (
            ("other_changed", "opal-3", "", "other:lifecycle_status"),
            ("date_set", "opal-3", "", "deprecation_date", None, "2025-08-13"),
            ("qualifier_changed", "opal-3", "", "retirement_date", "2026-02-19", "2026-02-19"),
        ),
    ),
    Case(
        "the default version moves on",
        (
            changed(
                "| Model | Current default version | New default version | Default upgrade date |\n|---|---|---|---|\n"
                f"| `a` | 0301 | 0125 | {UPGRADE}: `0125`, starting on June 20, 2025. |",
                "| Model | Current default version | New default version | Default upgrade date |\n|---|---|---|---|\n"
                f"| `a` | 0125 | 0914 | {UPGRADE}: `0914`, starting on July 20, 2026. |",
            ),
        ),
        (
            ("version_changed", "a", "0125", "version"),
            ("other_changed", "a", "0125", "other:new_default_version"),
            ("other_changed", "a", "0125", "other:default_upgrade"),
        ),
    ),
    Case(
        "a table without outer pipes",
        (
            changed(
                "Model | Version | Retirement date\n--- | --- | ---\n`a` | 1 | May 1, 2026\n`b` | 1 | May 1, 2026",
                "Model | Version | Retirement date\n--- | --- | ---\n`a` | 1 | May 1, 2026\n`b` | 1 | June 1, 2026",
            ),
        ),
        (("date_extended", "b", "1", "retirement_date", "2026-05-01", "2026-06-01"),),
    ),
    Case(
        "a row that stood there twice stands there once",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 | |\n| `a` | 1 | May 1, 2026 | |\n| `b` | 1 | May 1, 2026 | |",
                HEAD + "| `a` | 1 | May 1, 2026 | |\n| `b` | 1 | May 1, 2026 | |",
            ),
        ),
        (),
    ),
    Case(
        "an example in a code block",
        (
            changed(
                "Text\n\n```markdown" + HEAD + "| `a` | 1 | May 1, 2026 | |\n```\n",
                "Text\n\n```markdown" + HEAD + "| `a` | 1 | June 1, 2026 | |\n```\n",
            ),
        ),
        (),
    ),
    Case(
        "prose about dates",
        (
            changed(
                "## History\n\n`a` retires on May 1, 2026.",
                "## History\n\n`a` retires on June 1, 2026.\n\n- `b` (0301) retirement changed to July 2, 2026.",
            ),
        ),
        (),
    ),
    Case(
        "rows that are too short",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 |\n| `b` | 1 | May 1, 2026 |",
                HEAD + "| `a` | 1 | May 1, 2026 | |\n| `b` | 1 | May 1, 2026 | `c` |",
            ),
        ),
        (("replacement_set", "b", "1", "replacement"),),
    ),
    Case(
        "a new version beside the old one, without a header",
        (
            changed(
                HEAD + FAR + "\n| `a` | 2024-10-01 | No earlier than September 30, 2025 | `a` (version 2024-12-17) |",
                HEAD + FAR + "\n| `a` | 2024-10-01 | No earlier than September 30, 2025 | `a` (version 2024-12-17) |\n"
                "| `a` | 2024-12-17 | No earlier than December 17, 2025 | |",
            ),
        ),
        (("model_added", "a", "2024-12-17", "row"),),
    ),
    Case(
        "several headings, one table each, a model moved from preview to generally available",
        (
            changed(
                "### Preview" + HEAD + "| `a` | 1 | No earlier than May 1, 2026 | |\n| `p` | 1 | May 1, 2026 | |\n\n"
                "### Generally available" + HEAD + "| `g` | 1 | May 1, 2027 | |",
                "### Preview" + HEAD + "| `p` | 1 | May 1, 2026 | |\n\n"
                "### Generally available"
                + HEAD
                + "| `a` | 1 | No earlier than May 1, 2027 | |\n| `g` | 1 | May 1, 2027 | |",
            ),
        ),
        (("date_extended", "a", "1", "retirement_date", "2026-05-01", "2027-05-01"),),
    ),
    Case(
        "the target of an upgrade",
        (
            changed(
                HEAD
                + "| `a` | vision-preview | To be upgraded to `a` version: `turbo-2024-04-09`, starting no sooner than March 10, 2025 <br>Retirement date: April 02, 2025 | |",
                HEAD
                + "| `a` | vision-preview | To be upgraded to **`b` version: `2024-11-20`**, starting no sooner than March 10, 2025 <br>Retirement date: May 15, 2025 | |",
            ),
        ),
        (
            ("date_extended", "a", "vision-preview", "retirement_date", "2025-04-02", "2025-05-15"),
            ("auto_upgrade_changed", "a", "vision-preview", "auto_upgrade_date", "2025-03-10", "2025-03-10"),
        ),
    ),
    Case(
        "a comma too many is no date",
        (changed(HEAD + "| `a` | 1 | April, 30, 2025 | |", HEAD + "| `a` | 1 | April  30, 2025 | |"),),
        (("date_set", "a", "1", "retirement_date", None, "2025-04-30"),),
    ),
    Case(
        "a range begins no earlier than its first day",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 | |",
                HEAD + "| `a` | 1 | Between May 1, 2026 and May 15, 2026 | |",
            ),
        ),
        (("qualifier_changed", "a", "1", "retirement_date", "2026-05-01", "2026-05-01"),),
    ),
    Case(
        "a header below is not taken for a table of versions, and what left that table is seen in the other",
        (
            changed(
                LONG
                + "| `aurora-3` | 0301 | February 13, 2026 | `b` |\n"
                + AFTER
                + PAST
                + "| old-1 | | May 1, 2024 | |",
                LONG + AFTER + PAST + "| `aurora-3` - 0301 | | February 13, 2026 | `b` |\n| old-1 | | May 1, 2024 | |",
            ),
        ),
        (("moved_to_retired", "aurora-3", "0301", "row", "2026-02-13", "2026-02-13"),),
    ),
    Case(
        "moved to a table that tells no versions",
        (
            changed(
                HEAD + "| `aurora-2` | 2 | Retirement Date: January 27, 2026 | |\n| `b` | 1 | May 1, 2027 | |\n" + PAST,
                HEAD + "| `b` | 1 | May 1, 2027 | |\n" + PAST + "| aurora-2 | | January 27, 2026 | |",
            ),
        ),
        (("moved_to_retired", "aurora-2", "2", "row", "2026-01-27", "2026-01-27"),),
    ),
    Case(
        "of two versions that left, one cannot be told to be the row without a version",
        (
            changed(
                HEAD + "| `a` | 1 | May 1, 2026 | |\n| `a` | 2 | May 1, 2026 | |\n" + PAST,
                HEAD + PAST + "| a | | May 1, 2026 | |",
            ),
        ),
        (
            ("model_removed", "a", "1", "row"),
            ("model_removed", "a", "2", "row"),
            ("model_added", "a", "", "row"),
        ),
    ),
    Case(
        "two names before one version are both of that version",
        (
            changed(
                HEAD + "| `a`<br>`a-32k` | 0314 | June 6, 2026 | `b` |\n| `b` | 1 | May 1, 2027 | |\n" + PAST,
                HEAD + "| `b` | 1 | May 1, 2027 | |\n" + PAST + "| `a`<br>`a-32k` - 0314 | | June 6, 2026 | `b` |",
            ),
        ),
        (
            ("moved_to_retired", "a", "0314", "row", "2026-06-06", "2026-06-06"),
            ("moved_to_retired", "a-32k", "0314", "row", "2026-06-06", "2026-06-06"),
        ),
    ),
    Case(
        "a version without digits, or with a word before them, behind the name",
        (
            changed(
                PAST + "| old-1 | | May 1, 2024 | |",
                PAST
                + "| old-1 | | May 1, 2024 | |\n"
                + "| `a` - vision-preview | | May 15, 2026 | |\n| `a` - turbo-2024-04-09 | | May 15, 2026 | |",
            ),
        ),
        (("model_added", "a", "vision-preview", "row"), ("model_added", "a", "turbo-2024-04-09", "row")),
    ),
    Case(
        "from a publisher's table to that under retired models",
        (
            changed(
                "## Timelines\n\n#### Cohere\n"
                + PROVIDER
                + "| [rerank](https://x) | May 1, 2026 | May 31, 2026 | N/A |",
                "## Retired models\n\n#### Cohere\n" + PAST_SHORT + "| rerank | May 31, 2026 | N/A |",
            ),
        ),
        (("moved_to_retired", "rerank", "", "row", "2026-05-31", "2026-05-31"),),
    ),
    Case(
        "the rows around a removed one are understood as before, though it alone had a date in its column",
        (
            changed(
                STAGES + FAR_STAGES + "| `a` | 2025-11-13 | Preview | n/a | No earlier than 2026-03-31 | |\n"
                "| `b` | 2025-12-11 | Generally Available | 2026-12-12 | 2027-05-12 | |\n"
                "| `c` | 2025-12-11 | Preview | n/a | No earlier than 2026-04-01 | |",
                STAGES + FAR_STAGES + "| `a` | 2025-11-13 | Preview | n/a | No earlier than 2026-03-31 | |\n"
                "| `c` | 2025-12-11 | Preview | n/a | No earlier than 2026-04-01 | |",
            ),
        ),
        (("model_removed", "b", "2025-12-11", "row"),),
    ),
    Case(
        "stages without any date of deprecation, header outside the hunk",
        (
            changed(
                STAGES + FAR_STAGES + "| `c` | 2025-12-11 | Preview | n/a | No earlier than 2026-04-01 | |",
                STAGES + FAR_STAGES + "| `c` | 2025-12-11 | Preview | n/a | No earlier than 2026-05-13 | |",
            ),
        ),
        (("date_extended", "c", "2025-12-11", "retirement_date", "2026-04-01", "2026-05-13"),),
    ),
    Case(
        "rows behind a blank line belong to the table before it",
        (
            changed(
                PAST
                + "| `a` - 0613 | | May 1, 2025 | `b` |\n\n| old-1 | | May 1, 2024 | |\n| old-2 | July 6, 2023 | May 1, 2024 | |",
                PAST + "| `a` - 0613 | | May 1, 2025 | `b` |\n\n| old-1 | | May 1, 2024 | |",
            ),
        ),
        (("model_removed", "old-2", "", "row"),),
    ),
)
