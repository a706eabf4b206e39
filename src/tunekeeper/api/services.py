"""What a route works with: `services: ServicesDep` in its signature brings all of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from tunekeeper.ports import Clock
from tunekeeper.settings import Settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.store import Store

if TYPE_CHECKING:
    from tunekeeper.api.checks import FileChecks
    from tunekeeper.api.recording import Recorder
    from tunekeeper.inference.answers import Answers
    from tunekeeper.jobs.evals import EvalRunner


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that one app is made of."""

    settings: Settings
    store: Store
    blobs: DirectoryBlobs
    clock: Clock
    answers: "Answers"
    checks: "FileChecks"
    evals: "EvalRunner"
    recorder: "Recorder"

    def drop_blob(self, sha256: str) -> None:
        """Remove the bytes from the disk unless another file still holds them."""
        self.store.delete_blob_if_unused(sha256, self.blobs.delete)


def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]
