"""What of the chats that pass is kept: those whose client says `store`, and those of the models in [recording].

An answer is kept before its end is sent, so that whoever has read the end can rely on it; a stream that fails, or
whose client leaves midway, is not kept. What cannot be kept (no room, a full disk, a busy database) harms no
answer: it is logged, and counted in `GET /chat/completions/stats`.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from anyio.to_thread import run_sync

from tunekeeper.errors import InvalidRequest, Unavailable
from tunekeeper.inference.answers import RemoteTarget
from tunekeeper.inference.assembly import Assembly
from tunekeeper.inference.request import ChatBody, PassedBody
from tunekeeper.ports import Clock
from tunekeeper.settings import Recording as Settings
from tunekeeper.storage.store import Store
from tunekeeper.types import Json, Model, StoredCompletion, new_id

_log = logging.getLogger(__name__)

OWN = "own"
"""Source of the completions that models of this server wrote."""

_DAY_S = 86400
_NOT_KEPT = frozenset({"store", "metadata", "stream", "stream_options"})
_HEAD = frozenset({"id", "object", "created", "model", "metadata"})
_USABLE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Recorder:
    """Keeps answers as the settings and the clients say."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings, self._store, self._clock = settings, store, clock
        self.failed = 0
        """Answers that could not be written, since the server's start."""
        self.unfinished = 0
        """Answers that broke off, or whose client left, since the server's start."""
        self._evicted = 0

    def begin(
        self, body: ChatBody | PassedBody, sent: Json, target: Model | RemoteTarget, *, request_id: str
    ) -> "Recording | None":
        """The recording of a request's answer, or None where it is not to be kept; raises InvalidRequest."""
        if isinstance(target, RemoteTarget):
            name, source = target.model, target.remote.upstream.name
        else:
            name, source = target.id, OWN
        if not (self._settings.records(body.model, name) if body.store is None else body.store):
            if body.metadata:
                raise InvalidRequest(
                    "metadata is kept with stored completions only: send store: true with it.", param="metadata"
                )
            return None
        asked_usage = body.stream_options is not None and body.stream_options.include_usage
        draft = StoredCompletion(
            id=new_id("chatcmpl-"),
            created=int(self._clock.now()),
            model=name,
            request={key: value for key, value in sent.items() if key not in _NOT_KEPT},
            response={},
            source=source,
            metadata=body.metadata or {},
            request_id=request_id,
        )
        return Recording(self, draft, n=body.n or 1, hides_usage=not asked_usage)

    def keep(self, completion: StoredCompletion) -> None:
        """Keep a whole answer; raises nothing."""
        try:
            self._evicted += self._store.add_completion(completion, max_bytes=self._settings.max_bytes)
        except Unavailable as error:  # counted by the store
            _log.warning("%s was not kept: %s", completion.id, error.message)
        except Exception:  # whatever the database has: the client is to get its answer
            self.failed += 1
            _log.exception("%s was not kept", completion.id)

    def tidy(self) -> None:
        """Remove what is too old or no longer fits, and say in the log what went; called now and then."""
        days, max_bytes = self._settings.retention_days, self._settings.max_bytes
        n_expired = self._store.expire_completions(int(self._clock.now()) - days * _DAY_S) if days else 0
        if n_expired:
            _log.info("removed %d stored completions that are older than %d days", n_expired, days)
        n_evicted = self._store.evict_completions(max_bytes) + self._evicted
        if n_evicted:
            _log.warning("the %d oldest stored completions made room; %d bytes may be kept", n_evicted, max_bytes)
            self._evicted = 0


class Recording:
    """One request whose answer is to be kept."""

    def __init__(self, recorder: Recorder, draft: StoredCompletion, *, n: int, hides_usage: bool) -> None:
        self._recorder, self._draft, self._n = recorder, draft, n
        self.hides_usage = hides_usage
        """Whether the client did not ask for the usage of a stream; it is asked for all the same."""
        self._began = time.perf_counter()

    def with_usage(self, sent: Json) -> Json:
        """The streamed request, which also asks for the usage."""
        return {**sent, "stream_options": {**(sent.get("stream_options") or {}), "include_usage": True}}

    async def whole(self, answer: Json) -> Json:
        """Keep the answer; returns it."""
        if _is_whole(answer):
            await run_sync(self._keep, answer)
        else:
            self._recorder.unfinished += 1
        return answer

    async def stream(self, chunks: AsyncGenerator[str]) -> AsyncGenerator[str]:
        """The chunks as they come; after the last, before the stream's end, the answer is kept."""
        assembly = Assembly(self._n)
        ended = False
        try:
            async with aclosing(chunks):
                async for data in chunks:
                    chunk = _parsed(data)
                    assembly.add(chunk)
                    if not (self.hides_usage and _is_usage_only(chunk)):
                        yield data
            ended = True
            if assembly.is_whole:
                await run_sync(self._keep, assembly.completion())
        finally:
            if not assembly.is_whole:
                self._recorder.unfinished += 1
            elif not ended:  # the client has read the answer's last word, and did not wait for [DONE]
                asyncio.get_running_loop().run_in_executor(None, self._keep, assembly.completion())

    def _keep(self, answer: Json) -> None:
        draft, now = self._draft, self._draft.created
        said, created, model = answer.get("id"), answer.get("created"), answer.get("model")
        self._recorder.keep(
            StoredCompletion(
                id=said if isinstance(said, str) and _USABLE_ID.fullmatch(said) else draft.id,
                # An upstream's clock is believed where it is near ours: what is kept expires by this time.
                created=created if isinstance(created, int) and abs(created - now) < _DAY_S else now,
                model=model if isinstance(model, str) and model else draft.model,
                request=draft.request,
                response={key: value for key, value in answer.items() if key not in _HEAD},
                source=draft.source,
                metadata=draft.metadata,
                request_id=draft.request_id,
                latency_s=round(time.perf_counter() - self._began, 3),
            )
        )


def _parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _is_usage_only(chunk: Any) -> bool:
    return isinstance(chunk, dict) and chunk.get("choices") == [] and bool(chunk.get("usage"))


def _is_whole(answer: Any) -> bool:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices)
    )
