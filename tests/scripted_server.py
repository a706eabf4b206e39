"""A server that says what a test wrote down, over real HTTP: for what the real one cannot be made to say."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedServer(ThreadingHTTPServer):
    """Answers by (method, path); a list is used up, its last answer stays. Remembers the requests."""

    daemon_threads = True
    request_queue_size = 128
    """Connections that may wait: of more than the usual five at once some are lost, and tried again a second later."""

    def __init__(self, answers: dict[tuple[str, str], Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def bodies(self, method: str, path: str) -> list[bytes]:
        """What was sent to a path."""
        return [body for m, p, body, _ in self.requests if (m, p) == (method, path)]


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        path = self.path.partition("?")[0].removeprefix("/v1")
        self.server.requests.append((self.command, path, body, dict(self.headers)))
        answer = self.server.answers.get((self.command, path))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        if answer is None:
            status, content = 404, {"error": {"message": f"There is no {path}.", "code": "not_found"}}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    do_GET = do_POST = do_DELETE = _answer


@contextmanager
def scripted(answers: dict[tuple[str, str], Any]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
