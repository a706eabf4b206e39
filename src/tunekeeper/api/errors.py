"""The one place that turns our errors into HTTP, and that marks each response with its request id.

The body is OpenAI's: {"error": {"message", "type", "param", "code"}}, with `details` where an error has
several parts. A stack trace or the text of an unexpected exception never leaves: those go to the log, under
the request id that the client was given.
"""

import http
import logging
import secrets
import time

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunekeeper.errors import (
    DiskFull,
    InvalidRequest,
    InvalidState,
    ModelRetired,
    NotFound,
    Overloaded,
    PermissionDenied,
    TooLarge,
    TooSlow,
    TunekeeperError,
    Unauthenticated,
    Unavailable,
)
from tunekeeper.types import Json
from tunekeeper.validation import invalid

_log = logging.getLogger(__name__)

_STATUS: dict[type[TunekeeperError], int] = {
    InvalidRequest: 400,
    Unauthenticated: 401,
    PermissionDenied: 403,
    NotFound: 404,
    TooSlow: 408,
    ModelRetired: 410,
    TooLarge: 413,
    Overloaded: 429,
    Unavailable: 503,
    DiskFull: 507,
    TunekeeperError: 500,
}


def status_of(error: TunekeeperError) -> int:
    """The HTTP status of an error: that of the nearest class above it in the table."""
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)


def error_body(error: TunekeeperError) -> Json:
    """The body of an error response; streams send it as an `error` chunk."""
    inner: Json = {
        "message": error.message,
        "type": _type_of(status_of(error)),
        "param": error.param,
        "code": error.code,
    }
    if error.details:
        inner["details"] = [dict(detail) for detail in error.details]
    return {"error": inner}


def error_response(error: TunekeeperError) -> Response:
    """The whole response to an error."""
    headers: dict[str, str] = {}
    if isinstance(error, InvalidState | DiskFull):
        headers["x-should-retry"] = "false"  # the official client would send it again, to no effect
    if isinstance(error, TooSlow):
        headers["connection"] = "close"
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Overloaded):
        headers["retry-after"] = "1"
    return JSONResponse(error_body(error), status_of(error), headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """Make the app answer every error in OpenAI's form."""
    app.add_exception_handler(TunekeeperError, _on_tunekeeper_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


class Envelope:
    """The outermost layer: request id, time taken, and an answer to what nobody else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer what it raises."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                ms = f"{(time.perf_counter() - began) * 1000:.0f}"
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", ms.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            _log.info("%s: the client left before its request was complete", request_id)
        except Exception as error:
            if not isinstance(error, TunekeeperError):
                _log.exception("%s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # the server cuts the connection: the client must not take half a body for a whole one
            known = error if isinstance(error, TunekeeperError) else _unexpected(request_id)
            await error_response(known)(scope, receive, send_marked)


def _unexpected(request_id: str) -> TunekeeperError:
    return TunekeeperError(f"The server failed on this request. Its log says more under the request id {request_id}.")


def _type_of(status: int) -> str:
    if status == 429:
        return "requests"
    return "server_error" if status >= 500 else "invalid_request_error"


def _route_advice(path: str) -> str:
    if path.startswith(("/v1/", "/openai/")):
        return "This server does not have it: the reference lists what it has."
    return "Check base_url: it ends in /v1."


async def _on_tunekeeper_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TunekeeperError)
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid(error.errors(), error.body))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, TunekeeperError):  # raised while the framework read the body
        return error_response(error.__cause__)
    if isinstance(error.__cause__, ClientDisconnect):
        raise error.__cause__
    place = f"{request.method} {request.url.path}"
    messages = {
        400: "The body could not be read as UTF-8 JSON.",
        404: f"There is no such route: {place}. {_route_advice(request.url.path)}",
        405: f"{place} is not allowed; allowed are {(error.headers or {}).get('allow', 'other methods')}.",
    }
    codes = {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}
    message = messages.get(error.status_code) or f"{http.HTTPStatus(error.status_code).phrase}: {place}"
    code = codes.get(error.status_code, "http_error")
    body = {"message": message, "type": _type_of(error.status_code), "param": None, "code": code}
    return JSONResponse({"error": body}, error.status_code, headers=error.headers)
