"""Graders that ask a model, the judge: score_model and label_model.

The judge is asked for JSON, {"steps": [{"description", "conclusion"}], "result": …}, by a schema that holds the
range or the labels, and by a sentence that says so. What is not that, is outside the range, was refused or cut
off is a fault of its own kind. A judge that is busy or away is asked again, a few times.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tunekeeper.errors import Overloaded, TunekeeperError, Unavailable, UpstreamFailed
from tunekeeper.graders.spec import InputMessage, LabelModel, ScoreModel, is_score
from tunekeeper.graders.template import Ungradable, template
from tunekeeper.ports import Sampler
from tunekeeper.types import Grade, GradeFaultKind, Json, Message

MOST_STEPS = 16
"""Of a judge's reasons."""
ATTEMPTS = 3

_AGAIN = (Overloaded.code, Unavailable.code, UpstreamFailed.code)

_STEPS: Json = {
    "type": "array",
    "maxItems": MOST_STEPS,
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}


class Judge:
    """Asks one model for a result in a form, and says how it came."""

    def __init__(
        self,
        spec: ScoreModel | LabelModel,
        sampler: Sampler,
        *,
        result: Json,
        wanted: str,
        limit: AbstractContextManager[Any],
        pause_s: float = 0.5,
    ) -> None:
        self._sampler, self._limit, self._pause_s = sampler, limit, pause_s
        self._spec = spec
        self._ask = (
            'Answer with JSON: {"steps": [{"description": "…", "conclusion": "…"}], "result": …}, '
            f"where steps are your reasons and result is {wanted}."
        )
        schema = {
            "type": "object",
            "properties": {"steps": _STEPS, "result": result},
            "required": ["steps", "result"],
            "additionalProperties": False,
        }
        self._fixed: Json = {
            "model": spec.model,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "grade", "strict": True, "schema": schema},
            },
            **_sampling(spec),
        }
        self._check()

    def _check(self) -> None:
        """Ask whether the judge could be asked, with the templates as they stand; the place is the grader's own."""
        messages = [chat_message(message, _as_it_stands) for message in self._spec.input]
        try:
            self._sampler.check({**self._fixed, "messages": _told(messages, self._ask)})
        except TunekeeperError as error:
            if error.param and error.param.startswith("messages"):
                error.param = "input"
            elif error.param and error.param != "model":
                error.param = f"sampling_params.{error.param}"
            raise

    def grade(self, sample: Json, item: Json, read: Callable[[Any], tuple[float, Json]]) -> Grade:
        """Ask, and let `read` turn the result into a score and details; raises Ungradable."""
        messages = [filled_message(message, sample, item) for message in self._spec.input]
        answer = self._answer({**self._fixed, "messages": _told(messages, self._ask)})
        model = str(answer.get("model") or self._spec.model)
        tokens = (answer.get("usage") or {}).get("total_tokens")
        spent = {model: tokens} if isinstance(tokens, int) else {}
        try:
            found = _read(answer)
            score, details = read(found.get("result"))
        except Ungradable as fault:
            fault.known = {"sampled_model": model, "token_usage": spent}
            raise
        steps = {"steps": _steps(found["steps"])} if isinstance(found.get("steps"), list) else {}
        return Grade(score=score, sampled_model=model, token_usage=spent, details={**steps, **details})

    def _answer(self, body: Json) -> Json:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                with self._limit:
                    return self._sampler.complete(body)
            except (TimeoutError, OSError) as error:
                failure = str(error) or type(error).__name__
            except TunekeeperError as error:
                if not (isinstance(error, Overloaded | Unavailable) or error.code in _AGAIN):
                    long = error.code == "context_length_exceeded"
                    kind: GradeFaultKind = "truncated_observation_error" if long else "model_grader_server_error"
                    raise Ungradable(kind, error.message) from error
                failure = error.message
        raise Ungradable(
            "model_grader_server_error", f"The judge {self._spec.model} failed {ATTEMPTS} times: {failure}"
        )


def score_model(
    spec: ScoreModel, sampler: Sampler, limit: AbstractContextManager[Any], *, pause_s: float = 0.5
) -> Callable[[Json, Json], Grade]:
    """The number that the judge says; outside the range it is a fault."""
    low, high = spec.range
    judge = Judge(
        spec,
        sampler,
        result={"type": "number", "minimum": low, "maximum": high},
        wanted=f"a number from {low:g} to {high:g}",
        limit=limit,
        pause_s=pause_s,
    )

    def read(result: Any) -> tuple[float, Json]:
        if not is_score(result):
            raise Ungradable("model_grader_parse_error", f"The judge's result is {result!r}, which is no number.")
        if not low <= result <= high:
            raise Ungradable(
                "model_grader_parse_error", f"The judge's result is {result:g}, outside its range {low:g} to {high:g}."
            )
        return float(result), {}

    return lambda sample, item: judge.grade(sample, item, read)


def label_model(
    spec: LabelModel, sampler: Sampler, limit: AbstractContextManager[Any], *, pause_s: float = 0.5
) -> Callable[[Json, Json], Grade]:
    """1 where the judge chooses a passing label, else 0."""
    judge = Judge(
        spec,
        sampler,
        result={"type": "string", "enum": spec.labels},
        wanted=f"one of {', '.join(map(json.dumps, spec.labels))}",
        limit=limit,
        pause_s=pause_s,
    )

    def read(result: Any) -> tuple[float, Json]:
        if result not in spec.labels:
            raise Ungradable("model_grader_parse_error", f"The judge's result is {result!r}, which is no label.")
        return float(result in spec.passing_labels), {"label": result}

    return lambda sample, item: judge.grade(sample, item, read)


def _sampling(spec: ScoreModel | LabelModel) -> Json:
    if spec.sampling_params is None:
        return {}
    params = spec.sampling_params.model_dump(exclude_none=True)
    if "max_completions_tokens" in params:
        params["max_completion_tokens"] = params.pop("max_completions_tokens")
    return params


def _as_it_stands(text: str) -> str:
    return text


def filled_message(message: InputMessage, sample: Json, item: Json) -> Message:
    """A message as one of a chat, its templates filled in; raises Ungradable."""
    return chat_message(message, lambda text: template(text).render(sample, item))


def chat_message(message: InputMessage, render: Callable[[str], str]) -> Message:
    """A message as one of a chat, its texts rendered."""
    if isinstance(message.content, str):
        return {"role": message.role, "content": render(message.content)}
    parts = message.content if isinstance(message.content, list) else [message.content]
    return {"role": message.role, "content": [_chat_part(part, render) for part in parts]}


def _chat_part(part: Any, render: Callable[[str], str]) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": render(part)}
    if part["type"] == "input_image":
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": render(part["image_url"]), **detail}}
    if part["type"] == "input_audio":
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    return {"type": "text", "text": render(part["text"])}


def _told(messages: list[Message], ask: str) -> list[Message]:
    """The messages with what the answer must be: where instructions stand, first."""
    first, *rest = messages
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": ask}, *messages]
    content = first["content"]
    told = f"{content}\n\n{ask}" if isinstance(content, str) else [*content, {"type": "text", "text": ask}]
    return [{**first, "content": told}, *rest]


def _steps(steps: list[Any]) -> list[Json]:
    """Those that have the form that was asked for."""
    return [step for step in steps if isinstance(step, dict) and all(isinstance(said, str) for said in step.values())]


def _read(answer: Json) -> Json:
    """The JSON that a chat completion says; raises Ungradable."""
    try:
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content = message.get("content")
    except (LookupError, TypeError, AttributeError) as error:
        raise Ungradable("model_grader_parse_error", "The judge's answer has no message.") from error
    if message.get("refusal") or reason == "content_filter":
        said = message.get("refusal") or "its content filter stopped the answer"
        raise Ungradable("model_grader_refusal_error", f"The judge refused: {said}")
    if reason == "length":
        raise Ungradable(
            "model_grader_parse_error", "The judge's answer was cut off. Raise max_completions_tokens of the grader."
        )
    text = content.rpartition("</think>")[2].strip() if isinstance(content, str) else ""  # some leave the thoughts in
    is_fenced = text.startswith("```") and text.endswith("```")
    try:
        found = json.loads(text[3:-3].removeprefix("json") if is_fenced else text)
    except (ValueError, RecursionError) as error:
        said = repr(text[:200]) if text else "nothing"
        raise Ungradable("model_grader_parse_error", f"The judge said {said}, which is not JSON.") from error
    if not isinstance(found, dict):
        raise Ungradable("model_grader_parse_error", f"The judge said {text[:200]!r}, which has no result.")
    return found
