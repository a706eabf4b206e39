"""pydantic's faults as our errors, with the dotted parameter as the client wrote it.

shape(ChatBody, {"model": "tiny"})      # raises InvalidRequest: Missing required parameter: 'messages'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    placed = [_placed(fault, body) for fault in faults]
    # Of the forms that a value may have, those that it was not near to say only that it is not of their type.
    of_type = [one for one in placed if one.kind.endswith("_type") or one.kind == "literal_error"]
    telling = [one for one in placed if one not in of_type or not any(one.is_above(other) for other in placed)]
    found = [_explain(one, body) for one in telling]
    first = found[0]
    if len(found) > 1:
        first.details = tuple({"message": e.message, "param": e.param, "code": e.code} for e in found)
    return first


@dataclass(frozen=True, slots=True)
class _Placed:
    """A fault, and where it is in what the client wrote."""

    kind: str
    where: str
    path: tuple[str | int, ...]
    reason: str
    context: Mapping[str, Any]

    def is_above(self, other: "_Placed") -> bool:
        """Whether the other fault is further inside."""
        n = len(self.path)
        return self.where == other.where and n < len(other.path) and other.path[:n] == self.path


def _placed(fault: Mapping[str, Any], body: Any) -> _Placed:
    kind: str = fault["type"]
    where, *path = fault["loc"]
    context = fault.get("ctx", {})
    if where == "body" and kind != "json_invalid":
        path = _real_path(path, body, is_missing=kind == "missing")
    # A field that says which of several forms is meant has its name in quotes.
    field = str(context.get("discriminator", "")).strip("'")
    if kind == "union_tag_not_found":
        kind, path = "missing", [*path, field]
    elif kind == "union_tag_invalid":
        path = [*path, field]
    return _Placed(kind, where, tuple(path), fault["msg"], context)


def _explain(fault: _Placed, body: Any) -> InvalidRequest:
    if fault.kind == "json_invalid":
        reason = fault.context.get("error", "it cannot be parsed")
        at = f" at character {fault.path[0]}" if fault.path else ""
        return InvalidRequest(f"The body is not valid JSON{at}: {reason}.", code="invalid_json")
    param = ".".join(map(str, fault.path)) or None
    if fault.where == "body" and param is None and (fault.kind == "missing" or isinstance(body, bytes)):
        return InvalidRequest(
            f"The body is {'not sent as JSON' if isinstance(body, bytes) else 'missing'}: send JSON, "
            "with content-type: application/json.",
            code="missing_required_parameter",
        )
    reason = fault.reason
    if fault.kind == "union_tag_invalid":
        reason = f"{fault.context['tag']!r} is none of {fault.context['expected_tags']}"
    return InvalidRequest(_sentence(fault.kind, param, reason), param=param, code=_code(fault.kind))


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


def _real_path(path: Sequence[str | int], body: Any, *, is_missing: bool) -> list[str | int]:
    """The path as the client wrote it: pydantic adds the names of union members, which are in no body."""
    real: list[str | int] = []
    for index, step in enumerate(path):
        in_list = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if in_list or (isinstance(body, dict) and step in body):
            body = body[step]
        elif not (is_missing and isinstance(body, dict) and index == len(path) - 1):
            continue
        real.append(step)
    return real
