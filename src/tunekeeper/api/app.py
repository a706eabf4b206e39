"""The application: OpenAI's resources under three prefixes, around one store.

    app = create_app(settings)            # what `tunekeeper serve` runs
    app = create_app(settings, worker=False)   # no jobs are run: for tests

A request passes, from the outside in: Envelope (request id, last error handler), Auth, Intake (size and
pace of the body), Deployments (Azure's paths), the route.
"""

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI

from tunekeeper.api import azure, chat, distill, evals, files, fine_tuning, graders, models, stored, sweeps, uploads
from tunekeeper.api.auth import Auth
from tunekeeper.api.body import whole_texts
from tunekeeper.api.checks import FileChecks
from tunekeeper.api.errors import Envelope, install_error_handlers
from tunekeeper.api.intake import Intake
from tunekeeper.api.recording import Recorder
from tunekeeper.api.services import Services
from tunekeeper.errors import Unavailable
from tunekeeper.inference.answers import Answers
from tunekeeper.jobs.evals import EvalRunner
from tunekeeper.jobs.worker import Supervisor
from tunekeeper.ports import Clock
from tunekeeper.settings import Settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store, SystemClock

_log = logging.getLogger(__name__)

_EXPIRY_PERIOD_S = 60.0
_ROUTERS = (
    files.router,
    uploads.router,
    models.router,
    chat.router,
    distill.router,
    fine_tuning.router,
    sweeps.router,
    graders.router,
    evals.router,
    stored.router,
)


def create_app(
    settings: Settings,
    *,
    store: Store | None = None,
    blobs: DirectoryBlobs | None = None,
    clock: Clock | None = None,
    worker: bool = True,
) -> FastAPI:
    """Build the app; its lifespan holds the home directory and, with `worker`, runs the jobs."""
    clock = clock or SystemClock()
    store = store or Store(connect(settings.home), clock)
    blobs = blobs or DirectoryBlobs(settings.home / "blobs")
    services = Services(
        settings=settings,
        store=store,
        blobs=blobs,
        clock=clock,
        answers=Answers(settings, store),
        checks=FileChecks(store, blobs),
        evals=EvalRunner(store, blobs, settings),
        recorder=Recorder(settings.recording, store, clock),
    )
    app = FastAPI(
        title="Tunekeeper",
        lifespan=_lifespan,
        openapi_url=None,  # three prefixes would describe each route three times
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.lock = HomeLock(settings.home)
    app.state.supervisor = Supervisor(settings) if worker else None
    for prefix in azure.PREFIXES:
        for router in _ROUTERS:
            app.include_router(router, prefix=prefix, dependencies=[Depends(whole_texts)])
    install_error_handlers(app)
    app.add_middleware(azure.Deployments)
    app.add_middleware(Intake, settings=settings)
    app.add_middleware(Auth, settings=settings, store=store)
    app.add_middleware(Envelope)
    return app


class HomeLock:
    """Holds a home directory for one server; the system lets it go when the process ends, however it ends."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the home directory, if it is not held yet; raises Unavailable when another server has it."""
        if self._fd is not None:
            return
        self._home.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise Unavailable(
                f"Another server{self._holder()} uses {self._home}. Use that one, or stop it first.",
                code="home_in_use",
            ) from error
        self._fd = fd

    def release(self) -> None:
        """Let the home directory go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _holder(self) -> str:
        with suppress(OSError, ValueError, KeyError, TypeError):
            server = json.loads((self._home / "server.json").read_text("utf-8"))
            return f" ({server['base_url']}, process {server['pid']})"
        return ""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    app.state.lock.acquire()
    try:
        await run_sync(_tidy, services)
        services.checks.resume()
        expiry = asyncio.create_task(_expire_forever(services))
        try:
            if app.state.supervisor is not None:
                app.state.supervisor.start()
                services.evals.start(evals.sampler_maker(services))
            yield
        finally:
            expiry.cancel()
            if app.state.supervisor is not None:
                await run_sync(app.state.supervisor.stop)
            await run_sync(services.evals.stop)
            await run_sync(services.checks.stop)
            await run_sync(services.answers.close)
            services.store.close()
    finally:
        app.state.lock.release()


def _tidy(services: Services) -> None:
    """Remove what a server that was killed left behind."""
    services.blobs.sweep()
    for sha256 in services.blobs.orphans(services.store.used_blobs()):
        services.drop_blob(sha256)
    models.remove_deleted_weights(services)


def expire(services: Services) -> None:
    """Remove the files, uploads and stored completions whose time is over, and their bytes."""
    for file in services.store.expire_files():
        services.drop_blob(file.sha256)
    for part in services.store.expire_uploads():
        services.drop_blob(part.sha256)
    services.recorder.tidy()


async def _expire_forever(services: Services) -> None:
    while True:
        try:
            await run_sync(expire, services)
        except Exception:
            _log.exception("what has expired could not be removed; trying again in %d s", _EXPIRY_PERIOD_S)
        await asyncio.sleep(_EXPIRY_PERIOD_S)
