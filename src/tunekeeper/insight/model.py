"""A writer behind an OpenAI-compatible chat API: any model that Tunekeeper serves, or any other server's.

writer = ChatModel("http://127.0.0.1:8000/v1", "smollm2-135m", api_key="…")
writer.complete(messages, schema)
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tunekeeper.errors import UpstreamFailed
from tunekeeper.insight.prose import ANSWER_CUT, Message

ATTEMPTS = 3
CONNECT_TIMEOUT_S = 10.0
MAX_WAIT_S = 10.0
"""Between two attempts, whatever the server asks for."""


class ChatModel:
    """One model of one server. Threads may share it."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "",
        timeout_s: float = 120.0,
        max_tokens: int = 4096,
        parallel: int = 16,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.name = model
        self._url = base_url
        self._max_tokens = max_tokens
        self._is_structured = threading.Event()
        self._is_structured.set()
        self._client = httpx.Client(
            base_url=base_url.rstrip("/") + "/",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            limits=httpx.Limits(max_connections=parallel),
            transport=transport,
        )

    def complete(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        """The answer's text; raises UpstreamFailed if there is none, with the code `answer_cut` if it is cut."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        structure = {"type": "json_schema", "json_schema": {"name": "prose", "strict": True, "schema": dict(schema)}}
        if self._is_structured.is_set():
            response = self._post({**body, "response_format": structure})
            if response.status_code in (400, 422) and "response_format" in response.text:
                self._is_structured.clear()  # the prompt asks for JSON as well
                response = self._post(body)
        else:
            response = self._post(body)
        return self._text(response)

    def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        """The server's answer; one that is overloaded or failed is asked again."""
        for attempt in range(ATTEMPTS):
            try:
                response = self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                raise self._failed(str(error) or type(error).__name__) from error
            is_last = attempt + 1 == ATTEMPTS
            if is_last or (response.status_code != 429 and response.status_code < 500):
                break
            time.sleep(_wait_s(response, attempt))
        return response

    def _text(self, response: httpx.Response) -> str:
        if response.status_code != 200:
            raise self._failed(f"status {response.status_code}: {response.text[:300]}")
        try:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"] or ""
        except (ValueError, LookupError, TypeError) as error:
            raise self._failed(f"this is no chat completion: {response.text[:300]}") from error
        if choice.get("finish_reason") == "length":
            raise UpstreamFailed(f"The answer of {self.name} was cut at {self._max_tokens} tokens.", code=ANSWER_CUT)
        return str(text)

    def _failed(self, reason: str) -> UpstreamFailed:
        return UpstreamFailed(f"The model {self.name} at {self._url} did not answer as it should: {reason}")


def _wait_s(response: httpx.Response, attempt: int) -> float:
    try:
        asked = float(response.headers.get("retry-after", ""))
    except ValueError:
        asked = 0.5 * 2**attempt
    return min(max(asked, 0.0), MAX_WAIT_S)
