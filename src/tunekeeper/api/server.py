"""Runs the app under uvicorn: `serve` until it is stopped, `background` for as long as a `with` lasts.

    with background(settings) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none")

While a server runs, home/server.json says where: {"base_url", "pid"}.
"""

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunekeeper.api.app import create_app
from tunekeeper.errors import InvalidConfig, Unavailable
from tunekeeper.settings import Settings

_BACKLOG = 2048
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_NOT_STARTED = "The server did not start; its log says why."


def serve(settings: Settings) -> None:
    """Serve until interrupted; raises a TunekeeperError when the server cannot start."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = create_app(settings)
    services = app.state.services
    if not settings.is_loopback and services.store.count_keys() == 0:
        raise InvalidConfig(
            f"The server would listen on {settings.host}, where others can reach it, without any API key. "
            "Make one with `tunekeeper keys create`, or leave the host at 127.0.0.1.",
            param="host",
        )
    try:
        app.state.lock.acquire()
        with _listen(settings) as listener:
            server = _Server(app, settings, listener, log_level="info")
            with suppress(KeyboardInterrupt):  # uvicorn has stopped in order by then
                server.run([listener])
        if not server.started:
            raise Unavailable(_NOT_STARTED)
    finally:
        app.state.lock.release()
        app.state.services.store.close()


@contextmanager
def background(settings: Settings, *, worker: bool = True) -> Iterator[str]:
    """Serve in a thread, on a free port of 127.0.0.1; yields the base_url. Without `worker` no job is run."""
    settings = replace(settings, host="127.0.0.1", port=0)
    app = create_app(settings, worker=worker)
    try:
        app.state.lock.acquire()
        with _listen(settings) as listener:
            server = _Server(app, settings, listener, log_level="warning")
            thread = threading.Thread(target=server.run, args=([listener],), name="tunekeeper-server")
            thread.start()
            try:
                server.wait_until_started()
                yield server.base_url
            finally:
                server.should_exit = True
                thread.join(_STOP_TIMEOUT_S)
    finally:
        app.state.lock.release()
        app.state.services.store.close()


class PunctualProtocol(H11Protocol):
    """uvicorn's protocol, which also ends connections that are opened and then send no whole request head."""

    head_timeout_s = 30.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in data, and see whether the head is whole."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waiting = self.conn.their_state is h11.IDLE
        if waiting and self._deadline is None:
            self._deadline = self.loop.call_later(self.head_timeout_s, self.transport.close)
        elif not waiting and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """uvicorn, which says in home/server.json where it is."""

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket, *, log_level: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PunctualProtocol,
                ws="none",
                log_config=None,  # uvicorn's own would close every handler of the process that the server runs in
                log_level=log_level,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # whether a caller is on this machine is decided by the true peer
                lifespan="on",
                h11_max_incomplete_event_size=64 * 1024,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=10,
                limit_concurrency=1000,
                backlog=_BACKLOG,
            )
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.base_url = f"http://{shown}:{port}/v1"
        self._note = settings.home / "server.json"
        self._decided = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and note the address."""
        try:
            await super().startup(sockets)
            if self.started:
                _write_whole(self._note, json.dumps({"base_url": self.base_url, "pid": os.getpid()}))
        finally:
            self._decided.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Withdraw the address, and stop."""
        self._note.unlink(missing_ok=True)
        await super().shutdown(sockets)

    def wait_until_started(self) -> None:
        """Block until requests are answered; raises Unavailable when the start failed."""
        if not self._decided.wait(_START_TIMEOUT_S) or not self.started:
            raise Unavailable(_NOT_STARTED)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise Unavailable(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Stop what uses the port, or choose another one: --port, or TUNEKEEPER_PORT.",
            code="port_in_use",
        ) from error


def _write_whole(path: Path, text: str) -> None:
    temp = path.with_suffix(f".{os.getpid()}")
    temp.write_text(text, "utf-8")
    temp.replace(path)
