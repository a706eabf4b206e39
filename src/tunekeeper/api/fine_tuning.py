"""/fine_tuning: jobs with their events and checkpoints, estimates, and who may use a checkpoint.

What a job object says is the same under every prefix; see `wire`. Work is done by `jobs`, never here.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tunekeeper.api.azure import AzureStyle
from tunekeeper.api.pagination import After, known_query, limit, list_body, metadata_pairs
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.errors import InvalidRequest, ModelNotFound, NotFound, Unsupported
from tunekeeper.jobs import queue
from tunekeeper.jobs.estimate import estimate, finish_times
from tunekeeper.jobs.submit import Submission, draft, submit
from tunekeeper.types import Checkpoint, Event, Job, Json, Permission

router = APIRouter(prefix="/fine_tuning")

_CANCEL_WAIT_S = 3.0
_CANCEL_POLL_S = 0.05
_AS_ASKED = ("n_epochs", "batch_size", "learning_rate_multiplier")


class MethodBody(BaseModel):
    """How to train; `jobs.submit` checks what is inside."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: dict[str, Any] | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class JobBody(BaseModel):
    """What POST /fine_tuning/jobs takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1)
    training_file: str = Field(min_length=1)
    validation_file: str | None = None
    method: MethodBody | None = None
    hyperparameters: dict[str, Any] | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    training_type: str | int | None = Field(default=None, alias="trainingType")
    sweep: dict[str, Any] | None = None

    def submission(self) -> Submission:
        """The same in the words of `jobs`."""
        method = self.method.model_dump(exclude_none=True) if self.method else None
        return Submission(**{**{name: getattr(self, name) for name in type(self).model_fields}, "method": method})


class PermissionsBody(BaseModel):
    """Which projects may use a checkpoint."""

    model_config = ConfigDict(extra="forbid", strict=True)

    project_ids: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(min_length=1, max_length=100)


@router.post("/jobs", dependencies=[known_query()])
def create(body: JobBody, request: Request, response: Response, services: ServicesDep, style: AzureStyle) -> Json:
    """Queue a job."""
    job = submit(body.submission(), services.store, services.settings)
    style.created(response, f"{request.url.path}/{job.id}")
    return wire(job, services)


@router.post("/jobs/estimate", dependencies=[known_query()])
def foresee(body: JobBody, services: ServicesDep) -> Json:
    """Say what a job would take; the body is that of a job, and nothing is created."""
    if body.sweep is not None:
        raise Unsupported("An estimate is of one run; ask for one trial's, without sweep.", param="sweep")
    job = draft(body.submission(), services.store, services.settings)
    waiting = [other for other in services.store.unfinished_jobs() if other.status != "paused"]
    figures = estimate(job, services.settings)
    return {
        "object": "fine_tuning.job.estimate",
        "model": job.model,
        "queue_position": len(waiting),
        **figures,
    }


@router.get("/jobs", dependencies=[known_query("after", "limit", "metadata", "metadata[]")])
def list_jobs(request: Request, services: ServicesDep, n: Annotated[int, limit(100)] = 20, after: After = None) -> Json:
    """List jobs, newest first."""
    page = services.store.list_jobs(after=after, limit=n, metadata=_metadata_filter(request.query_params))
    times = finish_times(services.store.unfinished_jobs(), services.store.now())
    return list_body([_wire(job, services, times) for job in page.data], has_more=page.has_more)


@router.get("/jobs/{job_id}", dependencies=[known_query()])
def retrieve(job_id: str, services: ServicesDep) -> Json:
    """Show one job."""
    return wire(services.store.get_job(job_id), services)


@router.delete("/jobs/{job_id}", dependencies=[known_query()], response_model=None)
def delete(job_id: str, services: ServicesDep, style: AzureStyle) -> Json | Response:
    """Delete a job that has ended; the models that it made stay."""
    queue.delete(services.store, services.settings.home, job_id)
    if style.dated:
        return Response(status_code=204)
    return {"id": job_id, "object": "fine_tuning.job", "deleted": True}


@router.post("/jobs/{job_id}/cancel", dependencies=[known_query()])
def cancel(job_id: str, services: ServicesDep) -> Json:
    """Stop a job for good; a running one is waited for shortly."""
    job = queue.cancel(services.store, services.settings.home, job_id)
    deadline = time.monotonic() + _CANCEL_WAIT_S
    while job.status == "running" and time.monotonic() < deadline:
        time.sleep(_CANCEL_POLL_S)
        job = services.store.get_job(job_id)
    return wire(job, services)


@router.post("/jobs/{job_id}/pause", dependencies=[known_query()])
def pause(job_id: str, services: ServicesDep) -> Json:
    """Ask a running job to stop after its present step."""
    return wire(queue.pause(services.store, job_id), services)


@router.post("/jobs/{job_id}/resume", dependencies=[known_query()])
def resume(job_id: str, services: ServicesDep) -> Json:
    """Queue a paused job again."""
    return wire(queue.resume(services.store, job_id), services)


# Microsoft's samples read both lists by POST.
@router.api_route("/jobs/{job_id}/events", methods=["GET", "POST"], dependencies=[known_query("after", "limit")])
def list_events(job_id: str, services: ServicesDep, n: Annotated[int, limit(1000)] = 20, after: After = None) -> Json:
    """List a job's events, newest first."""
    page = services.store.list_events(job_id, after=after, limit=n)
    return list_body([wire_event(event) for event in page.data], has_more=page.has_more)


@router.api_route("/jobs/{job_id}/checkpoints", methods=["GET", "POST"], dependencies=[known_query("after", "limit")])
def list_checkpoints(
    job_id: str, services: ServicesDep, n: Annotated[int, limit(1000)] = 10, after: After = None
) -> Json:
    """List a job's checkpoints, newest first."""
    page = services.store.list_checkpoints(job_id, after=after, limit=n)
    return list_body([wire_checkpoint(item) for item in page.data], has_more=page.has_more)


@router.post("/checkpoints/{checkpoint:path}/permissions", dependencies=[known_query()])
def add_permissions(checkpoint: str, body: PermissionsBody, services: ServicesDep) -> Json:
    """Let projects use a checkpoint."""
    name = _checkpoint_name(checkpoint, services)
    return list_body([_wire_permission(p) for p in services.store.add_permissions(name, body.project_ids)])


@router.get(
    "/checkpoints/{checkpoint:path}/permissions",
    dependencies=[known_query("after", "limit", "order", "project_id")],
)
def list_permissions(
    checkpoint: str,
    services: ServicesDep,
    n: Annotated[int, limit(100)] = 10,
    after: After = None,
    order: Annotated[Literal["ascending", "descending"], Query()] = "descending",
    project_id: Annotated[str | None, Query()] = None,
) -> Json:
    """List who may use a checkpoint."""
    page = services.store.list_permissions(
        _checkpoint_name(checkpoint, services),
        after=after,
        limit=n,
        order="asc" if order == "ascending" else "desc",
        project_id=project_id,
    )
    return list_body([_wire_permission(p) for p in page.data], has_more=page.has_more)


@router.delete("/checkpoints/{checkpoint:path}/permissions/{permission_id}", dependencies=[known_query()])
def delete_permission(checkpoint: str, permission_id: str, services: ServicesDep) -> Json:
    """Take a permission back."""
    services.store.delete_permission(_checkpoint_name(checkpoint, services), permission_id)
    return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}


def wire(job: Job, services: Services) -> Json:
    """A job as OpenAI shows it, with Azure's and our own fields."""
    return _wire(job, services, finish_times(services.store.unfinished_jobs(), services.store.now()))


def _wire(job: Job, services: Services, times: Mapping[str, int]) -> Json:
    kind = job.method["type"]
    hyperparameters = job.resolved or job.method[kind]["hyperparameters"]
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": services.settings.organization,
        "status": job.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [file for file in _result_files(job) if file],
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "hyperparameters": {name: hyperparameters.get(name, "auto") for name in _AS_ASKED},
        "seed": job.seed,
        "method": {"type": kind, kind: {**job.method[kind], "hyperparameters": hyperparameters}},
        "integrations": job.integrations or [],
        "metadata": job.metadata,
        "distill": job.extra.get("distill"),
        "estimated_finish": times.get(job.id),
        "user_provided_suffix": job.suffix,
        "step": job.step,
        "total_steps": job.total_steps,
        "estimate": job.estimate,
        "trainingType": job.extra.get("training_type"),
        "sweep": job.extra.get("sweep"),
        "eval_id": job.extra.get("eval_id"),
    }


def _result_files(job: Job) -> tuple[str | None, ...]:
    return job.result_file, job.extra.get("samples_file"), *job.extra.get("sweep_files", ())


def wire_event(event: Event) -> Json:
    """An event as OpenAI shows it."""
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def wire_checkpoint(checkpoint: Checkpoint) -> Json:
    """A checkpoint as OpenAI shows it."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.model,
        "step_number": checkpoint.step,
        "metrics": checkpoint.metrics,
        "fine_tuning_job_id": checkpoint.job_id,
    }


def _wire_permission(permission: Permission) -> Json:
    shown = asdict(permission)
    del shown["checkpoint"]
    return {**shown, "object": "checkpoint.permission"}


def _checkpoint_name(checkpoint: str, services: Services) -> str:
    """The model under a checkpoint's id or name, or a tuned model's name; raises NotFound."""
    try:
        return services.store.get_checkpoint(checkpoint).model
    except NotFound as error:
        with suppress(ModelNotFound):
            if services.store.get_model(checkpoint).kind != "base":
                return checkpoint
        raise error


def _metadata_filter(query: Mapping[str, str]) -> "dict[str, str] | Literal['null'] | None":
    if "metadata" in query:
        if query["metadata"] != "null":
            raise InvalidRequest("metadata must be null, or come as metadata[key]=value.", param="metadata")
        return "null"
    return metadata_pairs(query) or None
