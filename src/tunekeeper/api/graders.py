"""/fine_tuning/alpha/graders: check a grader, try it on one sample.

A grader that cannot be built is refused with its place; one that fails on the sample answers 200, reward 0 and a
flag in `metadata.errors`, as OpenAI does. What happened stands in `metadata.faults`, in words.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, TypeVar, get_args

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from tunekeeper.api.pagination import known_query
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.graders.build import BuiltGrader, build_here
from tunekeeper.graders.spec import Spec, parse, to_json
from tunekeeper.graders.template import sample_of
from tunekeeper.inference.sampler import AnswersSampler
from tunekeeper.types import Grade, GradeFault, GradeFaultKind, Json

router = APIRouter(prefix="/fine_tuning/alpha/graders")

T = TypeVar("T")

_AT_ONCE = threading.BoundedSemaphore(16)
FAULT_KINDS: tuple[GradeFaultKind, ...] = get_args(GradeFaultKind)
_DETAILS: tuple[tuple[str, GradeFaultKind, str], ...] = (
    ("model_grader_server_error_details", "model_grader_server_error", "message"),
    ("python_grader_runtime_error_details", "python_grader_runtime_error", "message"),
    ("python_grader_server_error_type", "python_grader_server_error", "type"),
)


class ValidateBody(BaseModel):
    """What POST …/validate takes; `graders.spec` checks what is inside."""

    model_config = ConfigDict(extra="forbid", strict=True)

    grader: dict[str, Any]


class RunBody(ValidateBody):
    """What POST …/run takes."""

    model_sample: str
    item: dict[str, Any] | None = None


@router.post("/validate", dependencies=[known_query()])
async def validate(body: ValidateBody, services: ServicesDep) -> Json:
    """Say whether a grader can grade here."""
    spec = parse(body.grader)
    loop = asyncio.get_running_loop()
    await _in_thread(lambda: _built(spec, services, loop).close())
    return {"grader": to_json(spec)}


@router.post("/run", dependencies=[known_query()])
async def run(body: RunBody, services: ServicesDep) -> Json:
    """Grade one sample."""
    spec = parse(body.grader)
    loop = asyncio.get_running_loop()
    grade = await _in_thread(lambda: _graded(spec, body, services, loop))
    return wire(spec, grade)


async def _in_thread(work: Callable[[], T]) -> T:
    """Do work in a thread of its own, 16 at once.

    A judge's answer may take minutes, and itself needs the threads of the event loop. A daemon, for a server that is
    told to stop does not wait for strangers' code.
    """
    done: Future[T] = Future()

    def run() -> None:
        with _AT_ONCE:
            if not done.set_running_or_notify_cancel():
                return  # the client has gone
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

    threading.Thread(target=run, name="grader", daemon=True).start()
    return await asyncio.wrap_future(done)


def _built(spec: Spec, services: Services, loop: asyncio.AbstractEventLoop) -> BuiltGrader:
    settings = services.settings
    sampler = AnswersSampler(services.answers, loop, embedding_model=settings.embedding_model)
    return build_here(spec, settings, sampler)


def _graded(spec: Spec, body: RunBody, services: Services, loop: asyncio.AbstractEventLoop) -> Grade:
    grader = _built(spec, services, loop)
    try:
        return grader.grade(sample_of(body.model_sample), body.item or {})
    finally:
        grader.close()


def wire(spec: Spec, grade: Grade) -> Json:
    """A grade as OpenAI shows it, with `metadata.faults` and `metadata.details` of our own."""
    return {
        "reward": grade.score,
        "metadata": {
            "name": spec.name,
            "type": spec.type,
            "errors": _errors(grade.faults),
            "faults": [asdict(fault) for fault in grade.faults],
            "execution_time": grade.execution_time_s,
            "scores": dict(grade.sub_scores) or {spec.name: grade.score},
            "token_usage": sum(grade.token_usage.values()) if grade.token_usage else None,
            "sampled_model_name": grade.sampled_model,
            "details": grade.details,
        },
        "sub_rewards": dict(grade.sub_scores),
        "model_grader_token_usage_per_model": dict(grade.token_usage),
    }


def _errors(faults: tuple[GradeFault, ...]) -> Json:
    errors: Json = {kind: any(fault.kind == kind for fault in faults) for kind in FAULT_KINDS}
    for name, kind, field in _DETAILS:
        errors[name] = next((getattr(fault, field) for fault in faults if fault.kind == kind), None)
    return errors
