"""The endpoint grader: a server elsewhere is posted {"sample", "item", "trace_id"} and answers {"score": number}."""

import uuid

from tunekeeper.graders.post import TIMEOUT_S, PostClient, read_json, said
from tunekeeper.graders.spec import Endpoint, is_score
from tunekeeper.graders.template import Ungradable
from tunekeeper.types import Grade, Json


class EndpointClient:
    """Asks one endpoint for scores."""

    def __init__(self, spec: Endpoint, *, pause_s: float = 0.5, timeout_s: float = TIMEOUT_S) -> None:
        self._client = PostClient(
            spec.url, headers=spec.headers, rate_limit=spec.rate_limit, pause_s=pause_s, timeout_s=timeout_s
        )

    def score(self, sample: Json, item: Json) -> Grade:
        """Ask for the score; raises Ungradable."""
        asked = {"sample": sample, "item": item, "trace_id": f"trace_{uuid.uuid4().hex}"}
        return Grade(score=self._read(self._client.post(asked)))

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def _read(self, body: bytes) -> float:
        answer, url = read_json(body), self._client.url
        if isinstance(answer, dict) and answer.get("error"):
            raise Ungradable("other_error", f"{url} answered with an error{said(body)}")
        score = answer.get("score") if isinstance(answer, dict) else None
        if not is_score(score):
            given = f"a score of {score!r}" if score is not None else f"{body[:100]!r}"
            raise Ungradable("other_error", f'{url} answered with {given}, not with {{"score": number}}.')
        return float(score)  # type: ignore[arg-type]  # is_score has looked
