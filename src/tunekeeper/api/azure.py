"""What Azure OpenAI's dated API does otherwise: /openai/…?api-version=…, deployments in paths, 201 on create.

Any api-version is accepted, or none. `AzureStyle` tells a route which of the two conventions the client
follows; `Deployments` turns a deployment's path into the plain one, with the deployment as the model.
"""

import json
import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIXES = ("/v1", "/openai/v1", "/openai")

# Deployment ids may hold slashes; operation names do not.
_DEPLOYMENT = re.compile(r"/openai/deployments/(?P<model>.+)/(?P<operation>chat/completions)")


@dataclass(frozen=True, slots=True)
class Style:
    """Which convention a request follows."""

    dated: bool

    def created(self, response: Response, location: str) -> None:
        """Mark a response as a creation: 201 with its place on dated Azure, plain 200 elsewhere."""
        if self.dated:
            response.status_code = 201
            response.headers["location"] = location


def _style(request: Request) -> Style:
    path = request.url.path
    return Style(dated=path.startswith("/openai/") and not path.startswith("/openai/v1/"))


AzureStyle = Annotated[Style, Depends(_style)]


class Deployments:
    """Answers /openai/deployments/{model}/chat/completions by the same route as any other prefix."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, under its plain path."""
        match = _DEPLOYMENT.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is None:
            await self._app(scope, receive, send)
            return
        path = f"/openai/{match['operation']}"
        scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, _naming(match["model"], receive), send)


def _naming(model: str, receive: Receive) -> Receive:
    """`receive`, with the model of the JSON body set; its size is limited further out."""
    delivered = False

    async def receive_named() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        delivered = True
        return {"type": "http.request", "body": _with_model(bytes(body), model), "more_body": False}

    return receive_named


def _with_model(body: bytes, model: str) -> bytes:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body  # the route says what is wrong with it
    return json.dumps({**request, "model": model}).encode() if isinstance(request, dict) else body
