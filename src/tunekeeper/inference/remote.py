"""Upstreams: servers that speak the same API (vLLM, llama.cpp, a vendor), whose models are served as ours.

A request goes there as the client wrote it, with the upstream's name of the model; what comes back is passed
on unchanged. A key is read from the environment variable that the settings name, when it is needed.
"""

import json
import os
import time
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import httpx

from tunekeeper.errors import InvalidRequest, ModelNotFound, Overloaded, TunekeeperError, UpstreamFailed
from tunekeeper.settings import Upstream
from tunekeeper.types import Json

LIST_KEPT_S = 60.0
"""How long the list of an upstream's models is believed."""

LIST_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
DONE = "[DONE]"
ROLLOUTS_PREFIX = "rollouts-"
"""What adapters are called that a job has loaded there to sample from; they are no models to chat with."""


class Remote:
    """One upstream server."""

    def __init__(self, upstream: Upstream, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.upstream = upstream
        self._transport = transport
        self._listed: tuple[float, list[Json]] | None = None

    async def models(self) -> list[Json]:
        """The models that it serves, with `id` and `owned_by`; asked for only if the settings name none."""
        if self.upstream.models:
            return [{"id": name, "owned_by": self.upstream.name} for name in self.upstream.models]
        if self._listed is None or time.monotonic() - self._listed[0] > LIST_KEPT_S:
            found = [entry for entry in await self._ask_models() if not entry["id"].startswith(ROLLOUTS_PREFIX)]
            self._listed = (time.monotonic(), found)
        return self._listed[1]

    async def _ask_models(self) -> list[Json]:
        async with self._client(LIST_TIMEOUT_S) as client:
            try:
                response = await client.get("models")
                if response.status_code != 200:
                    await self._refuse(response)
                owner = {"owned_by": self.upstream.name}
                return [{**entry, "id": str(entry["id"]), **owner} for entry in response.json()["data"]]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise self._failed(error) from error

    async def chat(self, body: Json) -> Json:
        """The whole answer to a chat request."""
        return await self._post("chat/completions", body)

    async def embed(self, body: Json) -> Json:
        """The answer to a request for embeddings."""
        return await self._post("embeddings", body)

    async def _post(self, path: str, body: Json) -> Json:
        async with self._client(self.upstream.timeout_s) as client:
            try:
                response = await client.post(path, json=body)
                if response.status_code != 200:
                    await self._refuse(response)
                answer: Json = response.json()
            except (httpx.HTTPError, ValueError) as error:
                raise self._failed(error) from error
        return answer

    async def chat_stream(self, body: Json) -> AsyncGenerator[str]:
        """The data of each event of a streamed answer, without the last, [DONE]."""
        async with self._client(self.upstream.timeout_s) as client:
            try:
                async with client.stream("POST", "chat/completions", json=body) as response:
                    if response.status_code != 200:
                        await self._refuse(response)
                    async for line in response.aiter_lines():
                        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                        if data == DONE:
                            return
                        if data:
                            yield data
            except httpx.HTTPError as error:
                raise self._failed(error) from error

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.upstream.base_url.rstrip("/") + "/",
            headers=auth_headers(self.upstream),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            transport=self._transport,
        )

    async def _refuse(self, response: httpx.Response) -> NoReturn:
        """Raise what an error response means for our client."""
        await response.aread()
        error = _error_of(response)
        message = f"The upstream {self.upstream.name} says: {error.get('message') or response.text[:300]}"
        param, code = error.get("param"), error.get("code")
        kinds: dict[int, type[TunekeeperError]] = {400: InvalidRequest, 422: InvalidRequest, 429: Overloaded}
        if response.status_code == 404:
            raise ModelNotFound(message, param="model")
        kind = kinds.get(response.status_code)
        if kind is None:
            raise UpstreamFailed(f"{message} (status {response.status_code})")
        raise kind(message, param=param, code=None if code is None else str(code))

    def _failed(self, error: Exception) -> UpstreamFailed:
        reason = str(error) or type(error).__name__
        name, url = self.upstream.name, self.upstream.base_url
        return UpstreamFailed(f"The upstream {name} at {url} did not answer as it should: {reason}.")


def auth_headers(upstream: Upstream) -> dict[str, str]:
    """What an upstream wants to know its client by; raises UpstreamFailed where the key is not in the environment."""
    variable = upstream.api_key_env
    if not variable:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise UpstreamFailed(f"The upstream {upstream.name} needs a key: set the environment variable {variable}.")
    return {"authorization": f"Bearer {key}"}


def _error_of(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.text)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {"message": error}
