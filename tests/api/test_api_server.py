import asyncio
import contextlib
import logging
import socket
import threading
import time

import pytest
import uvicorn

from tunekeeper.api.server import PunctualProtocol, background, serve
from tunekeeper.errors import InvalidConfig, Unavailable
from tunekeeper.settings import Settings


class HastyProtocol(PunctualProtocol):
    head_timeout_s = 0.3


async def slow_app(scope, receive, send):
    await asyncio.sleep(0.6)  # longer than a head may take: answers may
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextlib.contextmanager
def hasty_server():
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(slow_app, http=HastyProtocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()
    listener.close()


def test_a_connection_without_a_whole_request_is_ended_and_a_slow_answer_is_not():
    with hasty_server() as address:
        for opening in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n"):
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(opening)
                began = time.monotonic()
                assert connection.recv(1000) == b""
                assert time.monotonic() - began < 4
        with socket.create_connection(address, timeout=5) as connection:
            for _ in range(2):
                connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 204")


class CountingHandler(logging.Handler):
    n_closed = 0

    def close(self):
        self.n_closed += 1
        super().close()


def test_a_server_in_a_process_leaves_its_log_handlers_open(tmp_path):
    handler = CountingHandler()
    with background(Settings(home=tmp_path), worker=False):
        assert handler.n_closed == 0


def test_a_server_that_others_can_reach_needs_a_key(tmp_path):
    with pytest.raises(InvalidConfig, match="tunekeeper keys create"):
        serve(Settings(home=tmp_path, host="0.0.0.0"))


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=str(port)):
            serve(Settings(home=tmp_path, port=port))
