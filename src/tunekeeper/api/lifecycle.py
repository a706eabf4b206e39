"""How the retirement of models shows on the wire: the fields of a model, and the refusal of one that is retired."""

import datetime

from tunekeeper.api.services import Services
from tunekeeper.lifecycle.catalog import Catalog
from tunekeeper.lifecycle.policy import Standing, refuse_retired, stand
from tunekeeper.types import Json, Model


def standing(services: Services, names: list[str], model: Model | None, catalog: Catalog) -> Standing:
    """How a served model stands today; `model` is None for an upstream's."""
    base = model.base if model is not None and model.kind != "base" else None
    today = datetime.datetime.fromtimestamp(services.clock.now(), datetime.UTC).date()
    return stand(names, services.settings.lifecycle, catalog, today, is_upstream=model is None, base=base)


def refuse(services: Services, name: str, model: Model | None) -> None:
    """Raise ModelRetired for a model that the operator's policy has retired; it reads nothing where there is none."""
    policy = services.settings.lifecycle
    if not policy.models and not policy.enforce:
        return
    catalog = services.store.catalog() if policy.enforce else Catalog(())
    target = model.id if model is not None else services.settings.aliases.get(name, name)
    refuse_retired(name, standing(services, list(dict.fromkeys((name, target))), model, catalog))


def wire(standing: Standing) -> Json:
    """The fields of a model: OpenAI's shutdown_date, Azure's status and Unix times, and ours."""
    upgrade = standing.auto_upgrade
    return {
        "shutdown_date": standing.shutdown.isoformat() if standing.shutdown else None,
        "lifecycle_status": "preview" if standing.stage == "preview" else "generally-available",
        "lifecycle_stage": standing.stage,
        "deprecation": {"fine_tune": _unix(standing.training_end), "inference": _unix(standing.shutdown)},
        "replacement": {
            "model": standing.replacement,
            "auto_upgrade_start": upgrade.isoformat() if upgrade else None,
        }
        if standing.replacement
        else None,
    }


def _unix(day: datetime.date | None) -> int | None:
    if day is None:
        return None
    return int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp())
