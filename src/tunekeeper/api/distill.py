"""/fine_tuning/distill: a small model tuned on a large one's stored answers, and the page with both.

    POST …/distill                 choose traffic, write the files, queue the job (again: a job's recipe once more)
    POST …/distill/{job}/evaluate  start an eval's runs over the held-out items: teacher, student, student before
    GET  …/distill/{job}           how it stands; with format=html or markdown the page

The work is done by `jobs.distill`; the evals are those of /evals, so they go on after a restart.
"""

import asyncio
import secrets
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tunekeeper.api import evals, files, fine_tuning
from tunekeeper.api.pagination import known_query
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.api.stored import FilterBody
from tunekeeper.errors import InvalidData, InvalidRequest, InvalidState, NotFound, TunekeeperError
from tunekeeper.graders.spec import parse
from tunekeeper.jobs.distill import (
    LEAST_ANSWER,
    Found,
    Prices,
    Recipe,
    Sinks,
    choose,
    compared,
    data_sources,
    graders_of,
    passed_ids,
    student_of,
)
from tunekeeper.jobs.evals import UNENDED
from tunekeeper.jobs.submit import Submission, submit
from tunekeeper.storage.blobs import BlobWriter
from tunekeeper.types import File, Job, Json

router = APIRouter(prefix="/fine_tuning/distill")

_PURPOSES = {"train": "fine-tune", "held_out": "evals", "provenance": "user_data"}
_OPEN_RUNS = (*UNENDED, "completed")
_evaluating = asyncio.Lock()
"""An evaluation is started once, however many ask for it."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PriceBody(_Shape):
    """What a million of the teacher's tokens cost."""

    input: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    output: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DistillBody(_Shape):
    """What POST /fine_tuning/distill takes."""

    again: str | None = None
    student_model: Annotated[str, Field(min_length=1)] | None = None
    filter: FilterBody = FilterBody()
    eval_run_id: str | None = None
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    scrub: bool = False
    dedupe: bool = True
    held_out_fraction: Annotated[float, Field(gt=0, le=0.9)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    pin: bool = False
    grader: dict[str, Any] | list[dict[str, Any]] | None = None
    teacher_price: PriceBody | None = None
    hyperparameters: dict[str, Any] | None = None
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    dry_run: bool = False


class EvaluateBody(_Shape):
    """What POST /fine_tuning/distill/{job}/evaluate takes."""

    grader: dict[str, Any] | list[dict[str, Any]] | None = None


@router.post("", dependencies=[known_query()])
def create(body: DistillBody, services: ServicesDep) -> Json:
    """Choose stored completions, write them to files, and queue the job."""
    submission, recipe = _asked(body, services)
    store, settings = services.store, services.settings
    student = student_of(submission.model, submission.hyperparameters or {}, store, settings)
    passed = None
    if recipe.eval_run_id is not None:
        passed = passed_ids(recipe.eval_run_id, recipe.min_score, store)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(services.blobs.writer()) for name in _PURPOSES}
        found = choose(store.iter_completions(recipe.filter), recipe, student, Sinks(**writers), passed=passed)
        if body.dry_run:
            return {"object": "fine_tuning.distillation", "job": None, "counts": found.counts()}
        _check_enough(found, recipe, settings.min_examples)
        kept = {name: _file(services, name, writer) for name, writer in writers.items()}
    longest = found.longest_answer
    distill = {
        "recipe": recipe.to_json(),
        "again": body.again,
        "files": {name: file.id for name, file in kept.items()},
        "counts": found.counts(),
        "summary": found.text(),
        "busy_seconds": found.busy_s,
        "grader": graders_of(recipe, found),
        # The student may go on for twice as long as the teacher did, in tokens of its own.
        "max_completion_tokens": None if longest is None else max(LEAST_ANSWER, 2 * longest),
    }
    try:
        job = submit(replace(submission, training_file=kept["train"].id, distill=distill), store, settings)
    except TunekeeperError:
        for file in kept.values():
            services.drop_blob(store.delete_file(file.id).sha256)
        raise
    files.begin_check(services, kept["train"])
    store.add_event(job.id, "info", f"Distilled from {found.text()}", key="distilled")
    if recipe.pin:
        store.pin_completions(found.used)
    return wire(job, services)


@router.get("/{job_id}", dependencies=[known_query("format")], response_model=None)
def retrieve(
    job_id: str,
    services: ServicesDep,
    request: Request,
    form: evals.Form = "json",
) -> Json | Response:
    """Show how a distillation stands, with the comparison once its runs have ended; or the page."""
    job = _job(job_id, services)
    if form == "json":
        return wire(job, services, request)
    comparison = compared(job, services.store, services.settings)
    return evals.page(comparison, form, f"Distillation: {job.fine_tuned_model}")


@router.post("/{job_id}/evaluate", dependencies=[known_query()])
async def evaluate(job_id: str, body: EvaluateBody, request: Request, services: ServicesDep) -> Json:
    """Start the eval runs of a job that succeeded; those that were started already are shown, not started again.

    With another grader, or after a run that failed, all are started anew.
    """
    async with _evaluating:
        job = await run_sync(_job, job_id, services)
        if job.status != "succeeded":
            raise InvalidState(f"The job {job_id} is {job.status}: there is no student to evaluate.", param="id")
        if body.grader is not None or not await run_sync(_is_evaluated, job, services):
            job = await _begin(job, _listed(body.grader), request, services)
    return await run_sync(wire, job, services, request)


def wire(job: Job, services: Services, request: Request | None = None) -> Json:
    """A distillation; with the request that asks for it, its runs and their comparison too."""
    distill = job.extra["distill"]
    evaluation = distill.get("evaluation")
    shown: Json = {
        "object": "fine_tuning.distillation",
        "job": fine_tuning.wire(job, services),
        **{name: value for name, value in distill.items() if name != "evaluation"},
        "evaluation": evaluation,
        "comparison": None,
    }
    if evaluation is None or request is None:
        return shown
    try:
        runs = {role: evals.find_run(run_id, request, services) for role, run_id in evaluation["runs"].items()}
    except NotFound:  # deleted since
        return {**shown, "evaluation": None}
    shown["evaluation"] = {**evaluation, "runs": runs}
    if all(run["status"] not in UNENDED for run in runs.values()):
        from tunekeeper.evals import report

        shown["comparison"] = report.to_json(compared(job, services.store, services.settings))
    return shown


def _asked(body: DistillBody, services: Services) -> tuple[Submission, Recipe]:
    """The job's and the choice's part of a request; what `again` names fills in what is not given."""
    given = {name: getattr(body, name) for name in body.model_fields_set}
    if "filter" in given:
        given["filter"] = body.filter.filter()
    if "grader" in given:
        given["grader"] = _listed(body.grader)
    if "teacher_price" in given:
        given["teacher_price"] = body.teacher_price and Prices(**body.teacher_price.model_dump())
    chosen: Json = {name: given[name] for name in Recipe.__dataclass_fields__ if name in given}
    if body.again is not None:
        job = _job(body.again, services)
        recipe = Recipe.from_json(job.extra["distill"]["recipe"])
        submission = Submission(
            model=given.get("student_model") or job.model,
            training_file="",
            hyperparameters=given.get("hyperparameters", job.method["supervised"]["hyperparameters"]),
            suffix=given.get("suffix", job.suffix),
            seed=given.get("seed", job.seed),
            metadata=given.get("metadata", job.metadata),
        )
        return submission, _replaced(recipe, chosen)
    if body.student_model is None:
        raise InvalidRequest(
            "Missing required parameter: 'student_model' (or 'again').",
            param="student_model",
            code="missing_required_parameter",
        )
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    recipe = _replaced(Recipe(filter=body.filter.filter(), seed=seed), {**chosen, "seed": seed})
    submission = Submission(
        model=body.student_model,
        training_file="",
        hyperparameters=body.hyperparameters,
        suffix=body.suffix,
        seed=seed,
        metadata=body.metadata,
    )
    return submission, recipe


def _replaced(recipe: Recipe, changes: Json) -> Recipe:
    recipe = replace(recipe, **changes)
    if recipe.min_score is not None and recipe.eval_run_id is None:
        raise InvalidRequest("min_score is of an eval run: give eval_run_id too.", param="min_score")
    for spec in recipe.grader or ():
        parse(spec, param="grader")
    return recipe


def _check_enough(found: Found, recipe: Recipe, least: int) -> None:
    if not found.completions:
        raise InvalidRequest("No stored completion fits the filter.", param="filter")
    if found.lines["train"] < least or not found.lines["held_out"]:
        missing = (
            f"at least {least} are needed to learn from"
            if found.lines["train"] < least
            else f"none is held out at held_out_fraction {recipe.held_out_fraction:g}"
        )
        raise InvalidData(
            f"Too little traffic, {missing}. {found.text()} Record more, or widen the filter.",
            param="filter",
            code="invalid_n_examples",
            details=found.listed,
        )


def _file(services: Services, name: str, writer: BlobWriter) -> File:
    return files.written(services, writer, filename=f"distill-{name.replace('_', '-')}.jsonl", purpose=_PURPOSES[name])


def _job(job_id: str, services: Services) -> Job:
    job = services.store.get_job(job_id)
    if "distill" not in job.extra:
        raise InvalidRequest(f"The job {job_id} is no distillation.", param="id")
    return job


def _is_evaluated(job: Job, services: Services) -> bool:
    """Whether its runs have ended well, or are under way."""
    evaluation = job.extra["distill"].get("evaluation")
    if evaluation is None:
        return False
    try:
        runs = [services.store.get_eval_run(run_id) for run_id in evaluation["runs"].values()]
    except NotFound:  # deleted since
        return False
    return all(run.status in _OPEN_RUNS for run in runs)


async def _begin(job: Job, grader: list[Json] | None, request: Request, services: Services) -> Job:
    """Make the eval and its three runs."""
    distill = job.extra["distill"]
    chosen: Json = distill["grader"] if grader is None else {"specs": grader, "agreement": False, "why": "given"}
    asked = evals.EvalBody(
        name=f"Distillation {job.id}",
        data_source_config={"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
        testing_criteria=chosen["specs"],
        metadata={"distillation": job.id},
    )
    eval_id = (await evals.create(asked, services))["id"]
    runs = {}
    for role, source in data_sources(job).items():
        run = evals.RunBody(data_source=source, name=f"{role} of {job.id}", metadata={"distillation": job.id})
        runs[role] = (await evals.create_run(eval_id, run, request, services))["id"]
    extra = {**job.extra, "distill": {**distill, "evaluation": {"eval_id": eval_id, "grader": chosen, "runs": runs}}}
    return await run_sync(lambda: services.store.update_job(job.id, extra=extra))


def _listed(grader: Json | list[Json] | None) -> list[Json] | None:
    return [grader] if isinstance(grader, dict) else grader
