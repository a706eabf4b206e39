"""/models: bases, tuned models, checkpoints, aliases and what upstream servers offer.

A model is shown with OpenAI's fields and Azure's both, on every prefix, and with ours: `kind`, `parents`,
`context_window`, `license`, `alias_of`, `lifecycle_stage`, `replacement`.
"""

import asyncio
import shutil
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter

from tunekeeper.api import lifecycle
from tunekeeper.api.pagination import known_query, list_body
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.errors import InvalidState, ModelNotFound, PermissionDenied
from tunekeeper.types import Json, Model, new_id

router = APIRouter()

_METHODS = ["supervised", "dpo", "reinforcement"]
DELETED_SUFFIX = ".deleted"
"""Of a directory of weights whose model is gone; what is left of one is removed at the next start."""


@router.get("/models", dependencies=[known_query()])
async def list_models(services: ServicesDep) -> Json:
    """List every model that a request may name."""
    stored, upstream, catalog = await asyncio.gather(
        run_sync(services.store.list_models), services.answers.upstream_models(), run_sync(services.store.catalog)
    )
    by_id = {model.id: model for model in stored}

    def life(model_id: str, *names: str) -> Json:
        return lifecycle.wire(lifecycle.standing(services, [*names, model_id], by_id.get(model_id), catalog))

    shown = {model.id: _wire(model, by_id, life(model.id)) for model in stored}
    for entry in upstream:
        shown.setdefault(entry["id"], _wire_upstream(entry, life(entry["id"])))
    for alias, target in services.settings.aliases.items():
        if target in shown and alias not in shown:
            shown[alias] = {**shown[target], "id": alias, "alias_of": target, **life(target, alias)}
    return list_body(list(shown.values()))


@router.get("/models/{model:path}", dependencies=[known_query()])
async def retrieve(model: str, services: ServicesDep) -> Json:
    """Show one model, under its id, an alias or its checkpoint's id."""
    target = services.settings.aliases.get(model, model)
    catalog = await run_sync(services.store.catalog)
    try:
        found = await run_sync(services.store.get_model, target)
    except ModelNotFound:
        upstream = {entry["id"]: entry for entry in await services.answers.upstream_models()}
        if target not in upstream:
            raise
        life = lifecycle.wire(lifecycle.standing(services, [model, target], None, catalog))
        shown = _wire_upstream(upstream[target], life)
    else:
        by_id = {each.id: each for each in await run_sync(services.store.list_models)}
        life = lifecycle.wire(lifecycle.standing(services, [model, found.id], found, catalog))
        shown = _wire(found, by_id, life)
    return {**shown, "id": model, "alias_of": target} if model != target else shown


@router.delete("/models/{model:path}", dependencies=[known_query()])
def delete(model: str, services: ServicesDep) -> Json:
    """Delete a tuned model and its weights."""
    aliases = services.settings.aliases
    names = [alias for alias, target in aliases.items() if model in (alias, target)]
    if names:
        raise InvalidState(
            f"The alias {names[0]!r} points at {aliases[names[0]]}. Remove it from tunekeeper.toml first.",
            param="model",
            code="model_in_use",
        )
    found = services.store.get_model(model)
    if found.kind == "base":
        raise PermissionDenied(
            f"{model} is a base model; only tuned models can be deleted here. "
            f"Its weights lie in {found.path} on the server.",
            param="model",
        )
    services.store.delete_model(found.id)
    _remove_weights(services, found)
    return {"id": model, "object": "model", "deleted": True}


def remove_deleted_weights(services: Services) -> None:
    """Remove what deletions left that were interrupted."""
    for directory in (services.settings.home / "models").glob(f"*{DELETED_SUFFIX}"):
        shutil.rmtree(directory, ignore_errors=True)


def _remove_weights(services: Services, model: Model) -> None:
    root = (services.settings.home / "models").resolve()
    directory = (services.settings.home / model.path).resolve()
    shared = any(other.path == model.path for other in services.store.list_models())
    if shared or root not in directory.parents or not directory.is_dir():
        return  # weights that others use, or that are not ours, stay
    doomed = directory.rename(root / f"{new_id('model-')}{DELETED_SUFFIX}")
    shutil.rmtree(doomed, ignore_errors=True)


def _wire(model: Model, by_id: dict[str, Model], life: Json) -> Json:
    tuned = model.kind != "base"
    return {
        **_common(model.id, model.created_at, model.owned_by),
        **life,
        "kind": model.kind,
        "model": model.base if tuned else None,
        "fine_tune": model.job_id,
        "step": model.step,
        "parents": _parents(model, by_id),
        "lineage": _lineage(model, by_id),
        "capabilities": _capabilities(fine_tune=True),
        "method_support": _METHODS,
        "context_window": model.info.get("context_window"),
        "license": model.info.get("license"),
        "info": {name: value for name, value in model.info.items() if name != "recipe"},
    }


def _wire_upstream(entry: Json, life: Json) -> Json:
    return {
        **_common(entry["id"], int(entry.get("created") or 0), str(entry.get("owned_by") or "upstream")),
        **life,
        "kind": "upstream",
        "model": None,
        "fine_tune": None,
        "step": None,
        "parents": [],
        "lineage": [],
        "capabilities": _capabilities(fine_tune=False),
        "method_support": [],
        "context_window": entry.get("context_window") or entry.get("max_model_len"),
        "license": None,
        "info": {},
    }


def _common(model_id: str, created: int, owned_by: str) -> dict[str, Any]:
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "created_at": created,
        "owned_by": owned_by,
        "status": "succeeded",
    }


def _capabilities(*, fine_tune: bool) -> Json:
    return {
        "fine_tune": fine_tune,
        "inference": True,
        "completion": False,
        "chat_completion": True,
        "embeddings": False,
    }


def _parents(model: Model, by_id: dict[str, Model]) -> list[str]:
    """The models under it, from the nearest to the base."""
    chain: list[str] = []
    above = model.parent or model.base
    while above not in (model.id, *chain):
        chain.append(above)
        parent = by_id.get(above)
        if parent is None:
            break
        above = parent.parent or parent.base
    return chain


def _lineage(model: Model, by_id: dict[str, Model]) -> list[Json]:
    """What was done to the base to come to this model, in that order: each model with the recipe that made it."""
    chain = [model, *(by_id[name] for name in _parents(model, by_id) if name in by_id)]
    return [
        {"model": each.id, "job": each.job_id, "step": each.step, "recipe": each.info.get("recipe")}
        for each in reversed(chain)
        if each.kind != "base"
    ]
