"""/chat/completions: answers of our own models and of upstreams, whole or streamed.

The request's shape is in `inference/request.py`, the answer's in `inference/completion.py`. A request for an
upstream's model is passed on as it is, but for `store` and `metadata`: answers are kept here (`recording`). When
the client leaves, the answer is no longer computed.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from tunekeeper.api.errors import error_body
from tunekeeper.api.lifecycle import refuse
from tunekeeper.api.pagination import known_query
from tunekeeper.api.recording import Recording
from tunekeeper.api.services import ServicesDep
from tunekeeper.errors import InvalidRequest, TunekeeperError
from tunekeeper.inference.answers import RemoteTarget
from tunekeeper.inference.completion import Completion, chained
from tunekeeper.inference.remote import DONE, Remote
from tunekeeper.inference.request import ChatBody, PassedBody, StreamOptions, chat_request
from tunekeeper.types import Json
from tunekeeper.validation import shape

router = APIRouter()
T = TypeVar("T")


@router.post("/chat/completions", dependencies=[known_query()], response_model=None)
async def create(passed: PassedBody, request: Request, services: ServicesDep) -> Response:
    """Answer a chat."""
    target = await services.answers.resolve(passed.model)
    await run_sync(refuse, services, passed.model, None if isinstance(target, RemoteTarget) else target)
    sent = await request.json()
    if isinstance(target, RemoteTarget):
        recording = services.recorder.begin(passed, sent, target, request_id=request.state.request_id)
        return await _pass_on(target, passed, request, recording)
    body = shape(ChatBody, sent)
    recording = services.recorder.begin(body, sent, target, request_id=request.state.request_id)
    asked = chat_request(body)
    if recording is not None and body.stream:
        body = body.model_copy(update={"stream_options": StreamOptions(include_usage=True)})
    answer = Completion(body, target.id, int(services.clock.now()))
    events = services.answers.chat(target, asked)
    if not body.stream:
        whole = await _unless_gone(request, answer.whole(events))
        return JSONResponse(whole if recording is None else await recording.whole(whole))
    # The first event is awaited here: what goes wrong before it is an error response, not a broken stream.
    first = await _unless_gone(request, anext(events))
    chunks = answer.chunks(first, events)
    return _sse(chunks if recording is None else recording.stream(chunks))


async def _pass_on(target: RemoteTarget, body: PassedBody, request: Request, recording: Recording | None) -> Response:
    """The upstream's answer to the request as the client wrote it."""
    sent: Json = {**await request.json(), "model": target.model}
    for ours in ("store", "metadata"):
        sent.pop(ours, None)
    if not body.stream:
        whole = await _unless_gone(request, target.remote.chat(sent))
        return JSONResponse(whole if recording is None else await recording.whole(whole))
    if recording is None:
        return _sse(await _begun(target.remote, sent, request))
    try:
        chunks = await _begun(target.remote, recording.with_usage(sent), request)
    except InvalidRequest:
        if not recording.hides_usage:
            raise
        # Some servers know no stream_options: then the usage stays unknown.
        chunks = await _begun(target.remote, sent, request)
    return _sse(recording.stream(chunks))


async def _begun(remote: Remote, sent: Json, request: Request) -> AsyncGenerator[str]:
    """The chunks of an upstream's answer that has begun."""
    events = remote.chat_stream(sent)
    first = await _unless_gone(request, _first(events, remote))
    return chained(first, events)


async def _first(events: AsyncGenerator[str], remote: Remote) -> str:
    async for data in events:
        return data
    raise TunekeeperError(f"The upstream {remote.upstream.name} sent an empty stream.")


def _sse(events: AsyncGenerator[str]) -> StreamingResponse:
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return _Stream(_framed(events), media_type="text/event-stream", headers=headers)


class _Stream(StreamingResponse):
    """A stream that is closed when its client leaves, not when somebody collects what is left of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            assert isinstance(self.body_iterator, AsyncGenerator)
            with CancelScope(shield=True):
                await self.body_iterator.aclose()


async def _framed(events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """Server-sent events; an error in the midst is the last of them."""
    try:
        async with aclosing(events):
            async for data in events:
                yield f"data: {data}\n\n"
    except TunekeeperError as error:
        yield f"data: {json.dumps(error_body(error))}\n\n"
        return
    yield f"data: {DONE}\n\n"


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of the work; if the client leaves first, the work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
