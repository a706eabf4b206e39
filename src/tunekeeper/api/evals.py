"""/evals: what is asked of models, runs over data, and what came of each item.

Work is done by `jobs.evals`; `jobs.eval_data` checks what a run is given, all of it, before the run exists.
A run's object has fields of ours: finished_at, seconds (worked), cost and currency. So has an output item:
latency_seconds.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.responses import HTMLResponse, PlainTextResponse

from tunekeeper.api.lifecycle import refuse
from tunekeeper.api.pagination import After, Order, known_query, limit, list_body
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.datasets.formats import Fault
from tunekeeper.errors import NotFound
from tunekeeper.graders.spec import to_json
from tunekeeper.inference.answers import RemoteTarget
from tunekeeper.inference.sampler import AnswersSampler
from tunekeeper.jobs.eval_data import (
    DataSource,
    FileContent,
    FileId,
    Line,
    criteria,
    data_source,
    data_source_config,
    freeze,
    frozen_lines,
    lines_of_completions,
    lines_of_content,
    lines_of_file,
    model_of,
    without_content,
)
from tunekeeper.jobs.submit import check_metadata
from tunekeeper.types import CompletionFilter, Eval, EvalItem, EvalItemStatus, EvalRun, EvalRunStatus, Json, new_id

if TYPE_CHECKING:
    from tunekeeper.evals.compare import Comparison

router = APIRouter(prefix="/evals")

Form = Annotated[Literal["json", "markdown", "html"], Query(alias="format")]

_USAGE = ("invocation_count", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EvalBody(_Shape):
    """What POST /evals takes; `jobs.eval_data` checks what is inside."""

    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    name: str | None = None
    metadata: dict[str, str] | None = None


class ChangeBody(_Shape):
    """What of an eval can be changed."""

    name: str | None = None
    metadata: dict[str, str] | None = None


class RunBody(_Shape):
    """What POST /evals/{id}/runs takes; `jobs.eval_data` checks what is inside."""

    data_source: dict[str, Any]
    name: str | None = None
    metadata: dict[str, str] | None = None


@router.post("", status_code=201, dependencies=[known_query()])
async def create(body: EvalBody, services: ServicesDep) -> Json:
    """Say what is asked of models."""
    check_metadata(body.metadata)
    config = data_source_config(body.data_source_config)
    specs = criteria(body.testing_criteria, config)
    await run_sync(services.evals.check, specs, sampler_maker(services)())
    eval_id = new_id("eval_", 32)
    made = Eval(
        id=eval_id,
        created_at=services.store.now(),
        name=body.name or eval_id,
        data_source_config=config,
        testing_criteria=[to_json(spec) for spec in specs],
        metadata=body.metadata,
    )
    return wire(await run_sync(services.store.add_eval, made))


@router.get("", dependencies=[known_query("after", "limit", "order", "order_by")])
def list_evals(
    services: ServicesDep,
    n: Annotated[int, limit(100)] = 20,
    order: Order = "asc",
    order_by: Annotated[Literal["created_at", "updated_at"], Query()] = "created_at",
    after: After = None,
) -> Json:
    """List evals, oldest first."""
    page = services.store.list_evals(after, n, order, by_change=order_by == "updated_at")
    return list_body([wire(eval_) for eval_ in page.data], has_more=page.has_more)


# Ours: a run by its id alone, and runs side by side. No eval has an id like these paths.
@router.get("/runs/{run_id}", dependencies=[known_query()])
def find_run(run_id: str, request: Request, services: ServicesDep) -> Json:
    """Show a run, whatever its eval."""
    run = services.store.get_eval_run(run_id)
    return wire_run(run, services.store.get_eval(run.eval_id), services, request)


@router.get(
    "/compare", dependencies=[known_query("runs", "baseline", "margin", "slices", "format")], response_model=None
)
def compare(
    services: ServicesDep,
    runs: Annotated[str, Query(description="Ids, with commas between.")],
    baseline: Annotated[str | None, Query()] = None,
    margin: Annotated[float, Query(gt=0, lt=1)] = 0.02,
    slices: Annotated[str, Query(description="Fields of the items, with commas between.")] = "",
    form: Form = "json",
) -> Json | Response:
    """Say what differs between runs over the same data, and how sure that is."""
    from tunekeeper.evals import report
    from tunekeeper.jobs.eval_compare import compare_runs

    comparison = compare_runs(
        services.store,
        _words(runs),
        baseline=baseline,
        margin=margin,
        slices=_words(slices),
        price_per_hour=services.settings.price_per_hour,
        currency=services.settings.currency,
    )
    return report.to_json(comparison) if form == "json" else page(comparison, form, "Comparison")


def page(comparison: "Comparison", form: Literal["markdown", "html"], title: str) -> Response:
    """A comparison for people."""
    from tunekeeper.evals import report

    if form == "markdown":
        return PlainTextResponse(report.to_markdown(comparison, title=title), media_type="text/markdown")
    return HTMLResponse(report.to_html(comparison, title=title))


@router.get("/{eval_id}", dependencies=[known_query()])
def retrieve(eval_id: str, services: ServicesDep) -> Json:
    """Show one eval."""
    return wire(services.store.get_eval(eval_id))


@router.post("/{eval_id}", dependencies=[known_query()])
def change(eval_id: str, body: ChangeBody, services: ServicesDep) -> Json:
    """Rename an eval, or replace its metadata."""
    check_metadata(body.metadata)
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    if changes.get("name", "") is None:
        del changes["name"]
    return wire(services.store.update_eval(eval_id, **changes))


@router.delete("/{eval_id}", dependencies=[known_query()])
def delete(eval_id: str, services: ServicesDep) -> Json:
    """Delete an eval with its runs; one under way is ended."""
    for run in services.evals.delete_eval(eval_id):
        services.drop_blob(run.sha256)
    return {"object": "eval.deleted", "deleted": True, "eval_id": eval_id}


@router.post("/{eval_id}/runs", status_code=201, dependencies=[known_query()])
async def create_run(eval_id: str, body: RunBody, request: Request, services: ServicesDep) -> Json:
    """Freeze the data, and queue a run over it."""
    check_metadata(body.metadata)
    eval_ = await run_sync(services.store.get_eval, eval_id)
    source = await run_sync(data_source, body.data_source)
    model, is_own = model_of(source), False
    if model:
        target = await services.answers.resolve(model)
        is_own = not isinstance(target, RemoteTarget)
        await run_sync(refuse, services, model, None if isinstance(target, RemoteTarget) else target)
    run = await run_sync(lambda: _frozen(services, eval_, source, body, is_own_model=is_own))
    services.evals.wake()
    return await run_sync(lambda: wire_run(run, eval_, services, request))


@router.get("/{eval_id}/runs", dependencies=[known_query("after", "limit", "order", "status")])
def list_runs(
    eval_id: str,
    request: Request,
    services: ServicesDep,
    n: Annotated[int, limit(100)] = 20,
    order: Order = "asc",
    status: Annotated[EvalRunStatus | None, Query()] = None,
    after: After = None,
) -> Json:
    """List the runs of an eval, oldest first."""
    eval_ = services.store.get_eval(eval_id)
    page = services.store.list_eval_runs(eval_id, after, n, order, status)
    return list_body([wire_run(run, eval_, services, request) for run in page.data], has_more=page.has_more)


@router.get("/{eval_id}/runs/{run_id}", dependencies=[known_query()])
def retrieve_run(eval_id: str, run_id: str, request: Request, services: ServicesDep) -> Json:
    """Show one run."""
    return wire_run(_run(services, eval_id, run_id), services.store.get_eval(eval_id), services, request)


# The API's description has the shorter path, its clients send the longer one.
@router.post("/{eval_id}/runs/{run_id}", dependencies=[known_query()])
@router.post("/{eval_id}/runs/{run_id}/cancel", dependencies=[known_query()])
def cancel_run(eval_id: str, run_id: str, request: Request, services: ServicesDep) -> Json:
    """End a run for good; what it has stays."""
    _run(services, eval_id, run_id)
    run = services.evals.cancel(run_id)
    return wire_run(run, services.store.get_eval(eval_id), services, request)


@router.delete("/{eval_id}/runs/{run_id}", dependencies=[known_query()])
def delete_run(eval_id: str, run_id: str, services: ServicesDep) -> Json:
    """Delete a run and its items; one under way is ended."""
    _run(services, eval_id, run_id)
    services.drop_blob(services.evals.delete(run_id).sha256)
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


@router.get("/{eval_id}/runs/{run_id}/output_items", dependencies=[known_query("after", "limit", "order", "status")])
def list_output_items(
    eval_id: str,
    run_id: str,
    services: ServicesDep,
    n: Annotated[int, limit(1000)] = 20,
    order: Order = "asc",
    status: Annotated[EvalItemStatus | None, Query()] = None,
    after: After = None,
) -> Json:
    """List what came of a run's items, as they were finished."""
    _run(services, eval_id, run_id)
    page = services.store.list_eval_items(run_id, after, n, order, status)
    return list_body([wire_item(item) for item in page.data], has_more=page.has_more)


@router.get("/{eval_id}/runs/{run_id}/output_items/{item_id}", dependencies=[known_query()])
def retrieve_output_item(eval_id: str, run_id: str, item_id: str, services: ServicesDep) -> Json:
    """Show what came of one item."""
    _run(services, eval_id, run_id)
    item = services.store.get_eval_item(item_id)
    if item.run_id != run_id:
        raise NotFound(f"No such EvalRunOutputItem object: {item_id} of {run_id}", param="id")
    return wire_item(item)


def wire(eval_: Eval) -> Json:
    """An eval as OpenAI shows it."""
    return {
        "id": eval_.id,
        "object": "eval",
        "created_at": eval_.created_at,
        "name": eval_.name,
        "data_source_config": eval_.data_source_config,
        "testing_criteria": eval_.testing_criteria,
        "metadata": eval_.metadata,
    }


def wire_run(run: EvalRun, eval_: Eval, services: Services, request: Request) -> Json:
    """A run as OpenAI shows it, with fields of ours."""
    tally = run.tally
    counts = {name: tally.get(name, 0) for name in ("passed", "failed", "errored")}
    seconds = tally.get("seconds", 0.0)
    price, currency = services.settings.price_per_hour, services.settings.currency
    prefix = str(request.base_url).rstrip("/") + request.url.path.partition("/evals")[0]
    return {
        "id": run.id,
        "object": "eval.run",
        "eval_id": run.eval_id,
        "created_at": run.created_at,
        "name": run.name,
        "status": run.status,
        "model": run.model,
        "report_url": f"{prefix}/evals/{run.eval_id}/runs/{run.id}/output_items",
        "result_counts": {"total": run.total, **counts},
        "per_model_usage": [
            {"model_name": model, **{key: used.get(key, 0) for key in _USAGE}}
            for model, used in tally.get("usage", {}).items()
        ],
        "per_testing_criteria_results": [
            {
                "testing_criteria": spec["name"],
                **{name: counted.get(name, 0) for name in ("passed", "failed", "errored")},
            }
            for spec, counted in zip(
                eval_.testing_criteria, tally.get("criteria") or [{}] * len(eval_.testing_criteria), strict=True
            )
        ],
        "data_source": _with_content(run, services),
        "metadata": run.metadata,
        "error": run.error,
        "finished_at": run.finished_at,
        "seconds": seconds,
        "cost": price * seconds / 3600 if price else None,
        "currency": currency if price else None,
    }


def wire_item(item: EvalItem) -> Json:
    """An output item as OpenAI shows it, with fields of ours."""
    return {
        "id": item.id,
        "object": "eval.run.output_item",
        "created_at": item.created_at,
        "run_id": item.run_id,
        "eval_id": item.eval_id,
        "status": item.status,
        "datasource_item_id": item.datasource_item_id,
        "datasource_item": item.datasource_item,
        "results": item.results,
        "sample": item.sample,
        "latency_seconds": item.latency_s,
    }


def _frozen(services: Services, eval_: Eval, source: DataSource, body: RunBody, *, is_own_model: bool) -> EvalRun:
    """The run, stored, with its data."""
    with ExitStack() as stack:
        lines = _lines(services, eval_, source, stack)
        writer = stack.enter_context(services.blobs.writer())
        total = freeze(lines, eval_, source, writer, is_own_model=is_own_model)
        sha256, _ = writer.commit()
    run_id = new_id("evalrun_", 32)
    run = EvalRun(
        id=run_id,
        eval_id=eval_.id,
        created_at=services.store.now(),
        name=body.name or model_of(source) or run_id,
        data_source=without_content(body.data_source),
        sha256=sha256,
        total=total,
        model=model_of(source),
        metadata=body.metadata,
    )
    return services.store.add_eval_run(run, blob_exists=services.blobs.exists)


def _lines(services: Services, eval_: Eval, source: DataSource, stack: ExitStack) -> "Iterator[Line | Fault]":
    inner = source.source
    if isinstance(inner, FileContent):
        return lines_of_content(inner)
    if isinstance(inner, FileId):
        file = services.store.get_file(inner.id)
        if file.expires_at is not None and file.expires_at <= services.clock.now():
            raise NotFound(f"The File object {inner.id} has expired.", param="data_source.source.id")
        return lines_of_file(stack.enter_context(services.blobs.open(file.sha256)))
    wanted = CompletionFilter(
        model=inner.model,
        metadata={**(eval_.data_source_config.get("metadata") or {}), **(inner.metadata or {})},
        created_after=inner.created_after,
        created_before=inner.created_before,
    )
    return lines_of_completions(services.store.iter_completions(wanted), inner.limit)


def _with_content(run: EvalRun, services: Services) -> Json:
    """The data source as it was asked for."""
    source = run.data_source["source"]
    if source["type"] != "file_content":
        return run.data_source
    with services.blobs.open(run.sha256) as stream:
        content = [line.to_json() for line in frozen_lines(stream)]
    return {**run.data_source, "source": {**source, "content": content}}


def _run(services: Services, eval_id: str, run_id: str) -> EvalRun:
    run = services.store.get_eval_run(run_id)
    if run.eval_id != eval_id:
        raise NotFound(f"No such EvalRun object: {run_id} of {eval_id}", param="id")
    return run


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def sampler_maker(services: Services) -> Callable[[], AnswersSampler]:
    """Makes samplers of this server's models; called on the loop that answers."""
    loop, name = asyncio.get_running_loop(), services.settings.embedding_model
    return lambda: AnswersSampler(services.answers, loop, embedding_model=name)
