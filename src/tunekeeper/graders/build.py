"""From a grader's JSON to an object that grades.

grader = build(spec, sampler=sampler)
with ThreadPoolExecutor(8) as pool:
    grades = list(pool.map(grader.grade, samples, items))
grader.close()
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from tunekeeper.errors import TunekeeperError, Unavailable
from tunekeeper.graders.endpoint import EndpointClient
from tunekeeper.graders.formula import Formula
from tunekeeper.graders.model import label_model, score_model
from tunekeeper.graders.multi import multi
from tunekeeper.graders.spec import (
    Endpoint,
    Grader,
    LabelModel,
    Multi,
    Python,
    ScoreModel,
    SingleSpec,
    Spec,
    StringCheck,
    TextSimilarity,
    check_host,
    parse,
    parts_of,
)
from tunekeeper.graders.template import Ungradable
from tunekeeper.graders.text import string_check, text_similarity
from tunekeeper.ports import Embedder, Sampler
from tunekeeper.settings import Settings
from tunekeeper.types import Grade, GradeFault, Json

_log = logging.getLogger(__name__)

MAX_JUDGES = 8
"""Questions to judges that are open at once."""

Score = Callable[[Json, Json], Grade]


class SamplerAndEmbedder(Sampler, Embedder, Protocol):
    """Models that answer and that embed."""


class BuiltGrader:
    """A grader of any type: what goes wrong with a sample is in the grade, under the grader's name."""

    def __init__(self, name: str, score: Score, *, owned: Sequence[Callable[[], None]] = ()) -> None:
        self.name = name
        self._score, self._owned = score, owned

    def grade(self, sample: Json, item: Json) -> Grade:
        """Score one sample; safe to call from many threads at once."""
        began = time.perf_counter()
        try:
            grade = self._score(sample, item)
            grade = replace(grade, details=_sendable(grade.details)) if grade.details else grade
        except Ungradable as fault:
            grade = fault.grade()
        except Exception as error:  # one grader's failure must not end a day of training
            _log.exception("the grader %s failed", self.name)
            message = f"The grader failed: {type(error).__name__}: {error}"
            grade = Grade(score=0.0, faults=(GradeFault(kind="other_error", message=message),))
        faults = tuple(
            replace(fault, grader=fault.grader or self.name, message=_sendable(fault.message)) for fault in grade.faults
        )
        return replace(grade, faults=faults, execution_time_s=time.perf_counter() - began)

    def close(self) -> None:
        """End what was started for it."""
        for close in self._owned:
            close()


def build(
    spec: Spec | Json,
    *,
    sampler: Sampler | None = None,
    embedder: Embedder | None = None,
    endpoint_hosts: Collection[str] | None = None,
    max_judges: int = MAX_JUDGES,
    param: str = "grader",
) -> BuiltGrader:
    """Build a grader; raises InvalidRequest, ModelNotFound, PermissionDenied or Unavailable, with the place in `param`.

    `endpoint_hosts` are those that an endpoint grader may ask; None: any.
    """
    spec = parse(spec, param=param) if isinstance(spec, dict) else spec
    builder = _Builder(sampler, embedder, endpoint_hosts, threading.BoundedSemaphore(max_judges))
    places = {key: f"{param}.graders.{key}" if isinstance(spec, Multi) else param for key in parts_of(spec)}
    built: dict[str, BuiltGrader] = {}
    try:
        for key, part in parts_of(spec).items():
            built[key] = builder.build(key, part, places[key])
    except BaseException:
        for grader in built.values():
            grader.close()
        raise
    if not isinstance(spec, Multi):
        return next(iter(built.values()))
    grades: Mapping[str, Score] = {key: grader.grade for key, grader in built.items()}
    score = multi(grades, Formula.parse(spec.calculate_output))
    return BuiltGrader(spec.name, score, owned=[grader.close for grader in built.values()])


def build_here(
    spec: Spec | Json, settings: Settings, sampler: SamplerAndEmbedder, *, param: str = "grader"
) -> BuiltGrader:
    """Build a grader as this server's settings let it: whom it embeds with, whom it may ask. Raises as `build` does."""
    return build(
        spec,
        sampler=sampler,
        embedder=sampler if settings.embedding_model else None,
        endpoint_hosts=settings.endpoint_hosts,
        param=param,
    )


def _sendable(value: Any) -> Any:
    """A value as UTF-8 can hold it: what strangers' code and judges say may have half characters."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


class _Builder:
    """What graders need from outside."""

    def __init__(
        self,
        sampler: Sampler | None,
        embedder: Embedder | None,
        hosts: Collection[str] | None,
        limit: AbstractContextManager[Any],
    ) -> None:
        self._sampler, self._embedder, self._hosts, self._limit = sampler, embedder, hosts, limit

    def build(self, name: str, spec: SingleSpec, param: str) -> BuiltGrader:
        """One grader under its name; an error tells its place."""
        try:
            score, close = self._made(spec)
        except TunekeeperError as error:
            error.param = f"{param}.{error.param}" if error.param else param
            raise
        return BuiltGrader(name, score, owned=[close] if close else [])

    def _made(self, spec: SingleSpec) -> tuple[Score, Callable[[], None] | None]:
        match spec:
            case StringCheck():
                return string_check(spec), None
            case TextSimilarity():
                return text_similarity(spec, self._embedder), None
            case ScoreModel():
                return score_model(spec, self._judge(spec.model), self._limit), None
            case LabelModel():
                return label_model(spec, self._judge(spec.model), self._limit), None
            case Endpoint():
                check_host(spec.url, self._hosts, what="graders", param="url")
                client = EndpointClient(spec)
                return client.score, client.close
            case Python():
                from tunekeeper.graders.code import python_grader

                grader: Grader = python_grader(spec.source, spec.image_tag)
                return grader.grade, grader.close

    def _judge(self, model: str) -> Sampler:
        if self._sampler is None:
            raise Unavailable(f"No model can be asked here, and the grader wants {model!r} to judge.", param="model")
        return self._sampler
