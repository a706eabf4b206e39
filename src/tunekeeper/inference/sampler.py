"""The models of this server as the port that graders ask: for threads, while the answers run on an event loop.

with in_background(Answers(settings, store)) as sampler:      # in a job; the API has a loop of its own
    sampler.complete({"model": "judge", "messages": […], "response_format": {…}})["choices"][0]["message"]
"""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from tunekeeper.datasets.tokenizer import text_of
from tunekeeper.errors import Unsupported, UpstreamFailed
from tunekeeper.inference.answers import Answers, RemoteTarget
from tunekeeper.inference.completion import Completion
from tunekeeper.inference.request import ChatBody, chat_request
from tunekeeper.types import Json
from tunekeeper.validation import shape

T = TypeVar("T")

TIMEOUT_S = 600.0
"""What one answer may take."""


class AnswersSampler:
    """Asks our own models and the upstreams' alike; call it from any thread but the loop's."""

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop, *, embedding_model: str = "") -> None:
        self._answers, self._loop, self._embedding_model = answers, loop, embedding_model
        self._asked: set[Future[Any]] = set()
        self._stopped = False

    def stop(self) -> None:
        """End what is being answered, and answer nothing more: those who wait get CancelledError."""
        self._stopped = True
        for future in list(self._asked):
            future.cancel()

    def check(self, body: Json) -> None:
        """Raises what is known of a chat request before a model is asked; what an upstream takes, it says itself."""
        target = self._wait(self._answers.resolve(body["model"]))
        if not isinstance(target, RemoteTarget):
            for n, message in enumerate(chat_request(shape(ChatBody, body)).messages):
                text_of(message.get("content"), where=f"messages[{n}].content")

    def load(self, model: str) -> None:
        """Have a model of our own in memory, so that its first answer takes no longer; raises TunekeeperErrors."""
        self._wait(self._load(model))

    def complete(self, body: Json) -> Json:
        """Answer a chat request, whole; raises TunekeeperErrors."""
        return self._wait(self._complete(body))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text, of the embedding model; raises TunekeeperErrors."""
        return self._wait(self._embed(texts))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._asked.add(future)
        if self._stopped:
            future.cancel()
        try:
            return future.result(TIMEOUT_S)
        except TimeoutError:
            future.cancel()
            raise
        finally:
            self._asked.discard(future)

    async def _load(self, model: str) -> None:
        target = await self._answers.resolve(model)
        if not isinstance(target, RemoteTarget):
            await self._answers.load(target)

    async def _complete(self, body: Json) -> Json:
        target = await self._answers.resolve(body["model"])
        if isinstance(target, RemoteTarget):
            return await target.remote.chat({**body, "model": target.model})
        asked = shape(ChatBody, body)
        if asked.stream:
            raise Unsupported("Only whole answers are to be had here. Remove stream.", param="stream")
        events = self._answers.chat(target, chat_request(asked))
        return await Completion(asked, target.id, int(time.time())).whole(events)

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        target = await self._answers.resolve(self._embedding_model)
        if not isinstance(target, RemoteTarget):
            raise Unsupported(f"{self._embedding_model!r} is not an upstream's: our own models give no embeddings.")
        body = {"model": target.model, "input": list(texts), "encoding_format": "float"}
        answer = await target.remote.embed(body)
        try:
            data = sorted(answer["data"], key=lambda entry: int(entry["index"]))
            vectors = [[float(value) for value in entry["embedding"]] for entry in data]
        except (LookupError, TypeError, ValueError) as error:
            raise UpstreamFailed(f"{self._embedding_model} did not answer with embeddings: {error!r}.") from error
        if len(vectors) != len(texts):
            raise UpstreamFailed(f"{self._embedding_model} gave {len(vectors)} embeddings of {len(texts)} texts.")
        return vectors


@contextmanager
def in_background(answers: Answers, *, embedding_model: str = "") -> Iterator[AnswersSampler]:
    """A sampler with a loop of its own, in a thread of its own; closes the answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sampler", daemon=True)
    thread.start()
    try:
        yield AnswersSampler(answers, loop, embedding_model=embedding_model)
    finally:
        answers.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
