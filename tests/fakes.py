"""What stands in for the world in tests: time, and a client on this machine. Nothing is patched."""

from fastapi import FastAPI
from starlette.testclient import TestClient


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
