"""What stands in for the world in tests: time, and a client on this machine. Nothing is patched."""

from fastapi import FastAPI
from starlette.testclient import TestClient

from tunekeeper.errors import ModelNotFound
from tunekeeper.types import Json


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


def local_client(app: FastAPI, **options: object) -> TestClient:
    """A client that the app sees on its own machine, so that it needs no key. `with` runs the lifespan."""
    return TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000), **options)


class FakeSampler:
    """A judge that says what a test wrote down: texts, whole answers, or errors; the last stays."""

    def __init__(self, *says: object, models: tuple[str, ...] = ("judge",)) -> None:
        self._says, self._models = list(says), models
        self.bodies: list[Json] = []

    def check(self, body: Json) -> None:
        if body["model"] not in self._models:
            raise ModelNotFound(f"The model {body['model']!r} does not exist.", param="model")

    def complete(self, body: Json) -> Json:
        self.bodies.append(body)
        said = self._says.pop(0) if len(self._says) > 1 else self._says[0]
        if isinstance(said, Exception):
            raise said
        if isinstance(said, dict):
            return said
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return {"model": body["model"], "choices": [choice], "usage": {"total_tokens": 7}}
