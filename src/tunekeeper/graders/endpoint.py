"""The endpoint grader: a server elsewhere is posted {"sample", "item", "trace_id"} and answers {"score": number}."""

import json
import threading
import time
import uuid
from typing import Any

import httpx

from tunekeeper.graders.spec import Endpoint, is_score
from tunekeeper.graders.template import Ungradable
from tunekeeper.types import Grade, Json

TIMEOUT_S = 120.0
ATTEMPTS = 3
MAX_ANSWER_BYTES = 1024**2

_AGAIN = (408, 429, 500, 502, 503, 504)


class EndpointClient:
    """Posts to one endpoint, not faster than it may, a few times if it fails."""

    def __init__(self, spec: Endpoint, *, pause_s: float = 0.5, timeout_s: float = TIMEOUT_S) -> None:
        self._url, self._pause_s, self._timeout_s = spec.url, pause_s, timeout_s
        self._http = httpx.Client(timeout=timeout_s, headers=spec.headers or {})
        self._gap_s = 1 / spec.rate_limit if spec.rate_limit else 0.0
        self._turn = threading.Lock()
        self._next_at = 0.0

    def score(self, sample: Json, item: Json) -> Grade:
        """Ask for the score; raises Ungradable."""
        content = json.dumps({"sample": sample, "item": item, "trace_id": f"trace_{uuid.uuid4().hex}"}).encode()
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            self._wait_turn()
            try:
                status, body = self._post(content)
            except httpx.TimeoutException:
                fault = Ungradable("unresponsive_reward_error", f"{self._url}: no answer in {self._timeout_s:g} s.")
                continue
            except httpx.HTTPError as error:
                fault = Ungradable("unresponsive_reward_error", f"{self._url}: {error or type(error).__name__}")
                continue
            if status == 200:
                return Grade(score=self._read(body))
            fault = Ungradable("other_error", f"{self._url} answered with status {status}{_said(body)}")
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
        with self._http.stream("POST", self._url, content=content, headers=headers) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise Ungradable("other_error", f"{self._url} answered with more than {MAX_ANSWER_BYTES:,} bytes.")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer does not end")
        return response.status_code, bytes(body)

    def _read(self, body: bytes) -> float:
        answer = _json(body)
        if isinstance(answer, dict) and answer.get("error"):
            raise Ungradable("other_error", f"{self._url} answered with an error{_said(body)}")
        score = answer.get("score") if isinstance(answer, dict) else None
        if not is_score(score):
            said = f"a score of {score!r}" if score is not None else f"{body[:100]!r}"
            raise Ungradable("other_error", f'{self._url} answered with {said}, not with {{"score": number}}.')
        return float(score)  # type: ignore[arg-type]  # is_score has looked


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _said(body: bytes) -> str:
    answer = _json(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return f": {str(message)[:300]}" if message else "."
