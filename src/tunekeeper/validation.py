"""pydantic's faults as our errors, with the dotted parameter as the client wrote it.

shape(ChatBody, {"model": "tiny"})      # raises InvalidRequest: Missing required parameter: 'messages'.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunekeeper.errors import InvalidRequest
from tunekeeper.types import Json

M = TypeVar("M", bound=BaseModel)

# pydantic's error types -> OpenAI's codes; what is not listed is an invalid_value.
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}


def shape(kind: type[M], body: Json, *, param: str = "") -> M:
    """The body in its shape; raises InvalidRequest with every fault, `param` before each place."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        found = invalid(faults, body)
        if param:
            found.param = f"{param}.{found.param}" if found.param else param
        raise found from error


def invalid(faults: Sequence[Mapping[str, Any]], body: Any) -> InvalidRequest:
    """One error of all faults, each with `loc` beginning in "body", "query" or "path"."""
    found = [_explain(fault, body) for fault in faults]
    first = found[0]
    if len(found) > 1:
        first.details = tuple({"message": e.message, "param": e.param, "code": e.code} for e in found)
    return first


def _explain(fault: Mapping[str, Any], body: Any) -> InvalidRequest:
    kind: str = fault["type"]
    where, *path = fault["loc"]
    if kind == "json_invalid":
        reason = fault.get("ctx", {}).get("error", "it cannot be parsed")
        at = f" at character {path[0]}" if path else ""
        return InvalidRequest(f"The body is not valid JSON{at}: {reason}.", code="invalid_json")
    param = ".".join(str(step) for step in (_real_path(path, body) if where == "body" else path)) or None
    if kind == "missing" and param is None:
        return InvalidRequest(
            "The body is missing: send JSON, with content-type: application/json.",
            code="missing_required_parameter",
        )
    return InvalidRequest(_sentence(kind, param, fault["msg"]), param=param, code=_code(kind))


def _code(kind: str) -> str:
    if kind in _CODES:
        return _CODES[kind]
    return "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"


def _sentence(kind: str, param: str | None, reason: str) -> str:
    if kind == "missing":
        return f"Missing required parameter: '{param}'."
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{param}'. Remove it: it would have no effect."
    # pydantic writes "Value error, " before what our own validators say
    reason = reason.removeprefix("Value error, ").rstrip(".")
    return f"Invalid value for '{param}': {reason}." if param else f"Invalid body: {reason}."


def _real_path(path: Sequence[str | int], body: Any) -> list[str | int]:
    """The path as the client wrote it: pydantic adds the names of union members, which are in no body."""
    real: list[str | int] = []
    for index, step in enumerate(path):
        in_list = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if in_list or (isinstance(body, dict) and step in body):
            body = body[step]
        elif not (isinstance(body, dict) and index == len(path) - 1):
            continue
        real.append(step)
    return real
