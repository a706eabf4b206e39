"""What comes in is bounded: how much a body may hold, and how long the client may be silent in its middle."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunekeeper.errors import InvalidRequest, TooLarge, TooSlow
from tunekeeper.settings import Settings

# What a multipart body may hold beside the file: boundaries, headers, the other fields.
_FORM_BYTES = 1024**2
RECEIVE_TIMEOUT_S = 60.0


class Intake:
    """Limits the size of a body while it arrives, and the pauses in it."""

    def __init__(self, app: ASGIApp, *, settings: Settings, receive_timeout_s: float = RECEIVE_TIMEOUT_S) -> None:
        self._app = app
        self._settings = settings
        self._timeout_s = receive_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its body bounded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit(scope["path"], headers)
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            raise InvalidRequest(f"content-length is {declared!r}, which is no number.")
        if int(declared) > limit:
            raise _too_large(limit)
        await self._app(scope, self._bounded(receive, limit), send)

    def _limit(self, path: str, headers: Headers) -> int:
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        if form and path.endswith("/files"):
            return self._settings.max_file_bytes + _FORM_BYTES
        if form and path.endswith("/parts"):
            return self._settings.max_part_bytes + _FORM_BYTES
        return self._settings.max_body_bytes

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        received = 0
        complete = False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # from here on only the client's leaving is waited for
            try:
                async with asyncio.timeout(self._timeout_s):
                    message = await receive()
            except TimeoutError as error:
                raise TooSlow(
                    f"Nothing arrived for {self._timeout_s:.0f} s in the middle of the body. Send it again."
                ) from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise _too_large(limit)
            return message

        return bounded


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than {limit:,} bytes, the most that is taken here. "
        "Files of up to 8 GB go through /uploads; the limits are settings of the server."
    )
