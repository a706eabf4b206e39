"""JSON posted to somebody's server: not faster than it may be asked, a few times if it fails, never without end."""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

from tunekeeper.graders.template import Ungradable
from tunekeeper.types import Json

TIMEOUT_S = 120.0
ATTEMPTS = 3
MAX_ANSWER_BYTES = 1024**2

_AGAIN = (408, 429, 500, 502, 503, 504)


class PostClient:
    """Posts to one address. Safe to call from many threads at once."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        rate_limit: int | None = None,
        pause_s: float = 0.5,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`rate_limit`: requests a second, at most; `pause_s`: before the second attempt, doubled before each next."""
        self.url, self._pause_s, self._timeout_s = url, pause_s, timeout_s
        self._http = httpx.Client(timeout=timeout_s, headers=dict(headers or {}))
        self._gap_s = 1 / rate_limit if rate_limit else 0.0
        self._turn = threading.Lock()
        self._next_at = 0.0

    def post(self, body: Json) -> bytes:
        """What the server answers with status 200; raises Ungradable."""
        content = json.dumps(body).encode()
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            self._wait_turn()
            try:
                status, answer = self._post(content)
            except httpx.TimeoutException:
                fault = Ungradable("unresponsive_reward_error", f"{self.url}: no answer in {self._timeout_s:g} s.")
                continue
            except httpx.HTTPError as error:
                fault = Ungradable("unresponsive_reward_error", f"{self.url}: {error or type(error).__name__}")
                continue
            if status == 200:
                return answer
            fault = Ungradable("other_error", f"{self.url} answered with status {status}{said(answer)}")
            if status not in _AGAIN:
                break
        raise fault

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def _wait_turn(self) -> None:
        with self._turn:
            now = time.monotonic()
            at = max(now, self._next_at)
            self._next_at = at + self._gap_s
        if at > now:
            time.sleep(at - now)

    def _post(self, content: bytes) -> tuple[int, bytes]:
        body = bytearray()
        deadline = time.monotonic() + self._timeout_s  # httpx's own is for each read
        headers = {"content-type": "application/json"}
        with self._http.stream("POST", self.url, content=content, headers=headers) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise Ungradable("other_error", f"{self.url} answered with more than {MAX_ANSWER_BYTES:,} bytes.")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer does not end")
        return response.status_code, bytes(body)


def read_json(body: bytes) -> Any:
    """The answer as JSON; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def said(body: bytes) -> str:
    """What an answer says of its error, after a colon."""
    answer = read_json(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return f": {str(message)[:300]}" if message else "."
