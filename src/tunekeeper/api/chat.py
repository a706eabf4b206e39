"""/chat/completions: answers of our own models and of upstreams, whole or streamed.

The request's shape is in `inference/request.py`, the answer's in `inference/completion.py`. A request for an
upstream's model is passed on as it is. When the client leaves, the answer is no longer computed.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse

from tunekeeper.api.errors import error_body
from tunekeeper.api.lifecycle import refuse
from tunekeeper.api.pagination import known_query
from tunekeeper.api.services import ServicesDep
from tunekeeper.errors import TunekeeperError
from tunekeeper.inference.answers import RemoteTarget
from tunekeeper.inference.completion import Completion, chained
from tunekeeper.inference.remote import DONE, Remote
from tunekeeper.inference.request import ChatBody, chat_request
from tunekeeper.types import Json

router = APIRouter()
T = TypeVar("T")


@router.post("/chat/completions", dependencies=[known_query()], response_model=None)
async def create(body: ChatBody, request: Request, services: ServicesDep) -> Response:
    """Answer a chat."""
    target = await services.answers.resolve(body.model)
    await run_sync(refuse, services, body.model, None if isinstance(target, RemoteTarget) else target)
    if isinstance(target, RemoteTarget):
        return await _pass_on(target, body, request)
    answer = Completion(body, target.id, int(services.clock.now()))
    events = services.answers.chat(target, chat_request(body))
    if not body.stream:
        return JSONResponse(await _unless_gone(request, answer.whole(events)))
    # The first event is awaited here: what goes wrong before it is an error response, not a broken stream.
    first = await _unless_gone(request, anext(events))
    return _sse(answer.chunks(first, events))


async def _pass_on(target: RemoteTarget, body: ChatBody, request: Request) -> Response:
    """The upstream's answer to the request as the client wrote it."""
    sent: Json = {**await request.json(), "model": target.model}
    if not body.stream:
        return JSONResponse(await _unless_gone(request, target.remote.chat(sent)))
    events = target.remote.chat_stream(sent)
    first = await _unless_gone(request, _first(events, target.remote))
    return _sse(chained(first, events))


async def _first(events: AsyncGenerator[str], remote: Remote) -> str:
    async for data in events:
        return data
    raise TunekeeperError(f"The upstream {remote.upstream.name} sent an empty stream.")


def _sse(events: AsyncGenerator[str]) -> StreamingResponse:
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(_framed(events), media_type="text/event-stream", headers=headers)


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
