"""What the retirement of a model means on this server: the operator's policy, the catalog's dates, and the day.

The rule: weights that are stored here never vanish, and never stop answering, unless the operator says so. A date
binds when `[lifecycle.models]` in tunekeeper.toml gives it, or when `[lifecycle] enforce` names the model and the
catalog has a firm date for it. Every other date is information. What an upstream server answers for is the
upstream's own affair, so the catalog's dates are shown for its models without being enforced.

    standing = stand(["smollm2-135m"], settings.lifecycle, catalog, today)
    standing.stage, standing.is_retired, standing.replacement
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunekeeper.errors import ModelRetired
from tunekeeper.lifecycle.catalog import Catalog, Entry
from tunekeeper.settings import Lifecycle, ModelLife

Stage = Literal["preview", "ga", "legacy", "deprecated", "retired"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a model stands today."""

    stage: Stage = "ga"
    shutdown: datetime.date | None = None
    """From this day it does not answer."""
    training_end: datetime.date | None = None
    """From this day no job starts on it."""
    replacement: str = ""
    auto_upgrade: datetime.date | None = None
    is_binding: bool = False
    """Whether this server acts on the dates; else they are information."""
    is_retired: bool = False
    is_closed_for_training: bool = False


def stand(
    names: Sequence[str],
    policy: Lifecycle,
    catalog: Catalog,
    today: datetime.date,
    *,
    is_upstream: bool = False,
    base: str | None = None,
) -> Standing:
    """How a model stands, under any of its names; `base` is the base model of a tuned one."""
    own = next((policy.models[name] for name in names if name in policy.models), ModelLife())
    under = policy.models.get(base, ModelLife()) if base is not None else ModelLife()
    is_enforced = "*" in policy.enforce or any(name in policy.enforce for name in names)
    entry = _entry(names, catalog) if is_enforced or is_upstream else None
    shutdown = own.shutdown_date or under.tuned_shutdown_date or _day(entry, "retirement_date", is_enforced)
    training = own.training_retirement_date or _day(entry, "training_retirement_date", is_enforced) or shutdown
    is_binding = is_enforced or own != ModelLife() or under.tuned_shutdown_date is not None
    return Standing(
        stage=_stage(shutdown, entry, policy, today),
        shutdown=shutdown,
        training_end=training,
        replacement=own.replacement or under.replacement or (entry.replacement if entry else ""),
        auto_upgrade=entry.day("auto_upgrade_date") if entry else None,
        is_binding=is_binding,
        is_retired=is_binding and shutdown is not None and today >= shutdown,
        is_closed_for_training=is_binding and training is not None and today >= training,
    )


def refuse_retired(name: str, standing: Standing) -> None:
    """Raise ModelRetired where the model does not answer any more."""
    if standing.is_retired:
        instead = f" Use {standing.replacement} instead." if standing.replacement else " GET /models lists the others."
        raise ModelRetired(f"The model {name!r} was retired on {standing.shutdown}.{instead}", param="model")


def notices(entry_end: datetime.date, policy: Lifecycle, today: datetime.date) -> int | None:
    """The notice period that a date has entered: the smallest number of days that is still to come, None if none."""
    left = (entry_end - today).days
    return min((days for days in policy.notice_days if 0 <= left <= days), default=None)


def _entry(names: Sequence[str], catalog: Catalog) -> Entry | None:
    """The one entry under a name, before others one written by hand; where several are left, none is taken."""
    for name in names:
        found = catalog.find(name)
        by_hand = [entry for entry in found if any(claim.origin == "manual" for claim in entry.dates.values())]
        if len(by_hand or found) == 1:
            return (by_hand or found)[0]
    return None


def _day(entry: Entry | None, field: str, is_enforced: bool) -> datetime.date | None:
    """A catalog's date; "no earlier than" is no day on which anything ends, so it is never enforced."""
    if entry is None or (is_enforced and not entry.is_firm(field)):
        return None
    return entry.day(field)


def _stage(shutdown: datetime.date | None, entry: Entry | None, policy: Lifecycle, today: datetime.date) -> Stage:
    if shutdown is not None and today >= shutdown and (entry is None or entry.is_firm("retirement_date")):
        return "retired"
    for stage, field, days in (
        ("deprecated", "deprecation_date", policy.deprecated_days),
        ("legacy", "legacy_date", policy.legacy_days),
    ):
        told = entry.day(field) if entry else None
        start = told or (shutdown - datetime.timedelta(days=days) if shutdown and days else None)
        if start is not None and today >= start:
            return "deprecated" if stage == "deprecated" else "legacy"
    return "preview" if entry and "preview" in entry.lifecycle_status.casefold() else "ga"
