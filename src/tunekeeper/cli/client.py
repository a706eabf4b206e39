"""A connection to a server, and the API's errors as ours.

    with connect(options) as client:
        client.get("/models")["data"]

`connect` takes the server that was named, else the one that runs on the home directory (server.json), else it
starts one in this process for as long as the command lasts.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import httpx

from tunekeeper.cli.options import CANNOT_CONNECT, Options
from tunekeeper.errors import InvalidRequest, NotFound, TunekeeperError, Unavailable
from tunekeeper.settings import Settings
from tunekeeper.types import Json

MAX_FILE_BYTES = 512 * 1024**2
"""Larger files go up in parts, as with the official client."""
PART_BYTES = 64 * 1024**2

# Answers may take long on a slow processor; a connection that is not made in seconds never will be.
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class Client:
    """Requests to one server, in words of the API; raises TunekeeperErrors."""

    def __init__(self, base_url: str, api_key: str | None = None, *, is_temporary: bool = False) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.base_url = base_url
        self.is_temporary = is_temporary
        """Whether the server ends with the command."""
        # The path to our own machine goes through no proxy, whatever the environment says.
        trust = not _is_loopback(base_url)
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=_TIMEOUT, trust_env=trust)

    def close(self) -> None:
        """Let the connection go."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Json:
        """The JSON under a path; a query value of None is left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return self._json(self._send("GET", path, params=params))

    def post(self, path: str, body: Json | None = None) -> Json:
        """Post JSON; the answer's JSON."""
        return self._json(self._send("POST", path, json=body or {}))

    def delete(self, path: str) -> Json:
        """Delete what is under a path; the answer's JSON, {} where there is none."""
        response = self._send("DELETE", path)
        return self._json(response) if response.content else {}

    def upload(self, path: Path, purpose: str, progress: Callable[[int, int], None]) -> Json:
        """Send a file, in one piece or in parts; `progress` is told the bytes sent and those to send."""
        size = path.stat().st_size
        with path.open("rb") as file:
            if size > MAX_FILE_BYTES:
                return self._upload_parts(path.name, file, size, purpose, progress)
            sent = _Counted(file, size, progress)
            response = self._send(
                "POST",
                "/files",
                data={"purpose": purpose},
                files={"file": (path.name, sent, "application/jsonl")},
            )
        return self._json(response)

    def download(self, path: str, out: BinaryIO, **query: Any) -> None:
        """Write the bytes under a path; a query value of None is left out."""
        params = {name: value for name, value in query.items() if value is not None}
        with self._stream("GET", path, params=params) as response:
            for chunk in response.iter_bytes():
                out.write(chunk)

    def stream(self, path: str, body: Json) -> Iterator[Json]:
        """Post JSON; yield the server-sent events of the answer, without the closing [DONE]."""
        with self._stream("POST", path, json=body) as response:
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":
                    continue
                chunk: Json = json.loads(data)
                if chunk.get("error"):
                    raise _error(response.status_code, chunk)
                yield chunk

    def _upload_parts(
        self, name: str, file: BinaryIO, size: int, purpose: str, progress: Callable[[int, int], None]
    ) -> Json:
        body = {"filename": name, "purpose": purpose, "bytes": size, "mime_type": "application/jsonl"}
        upload = f"/uploads/{self.post('/uploads', body)['id']}"
        part_ids = []
        try:
            while part := file.read(PART_BYTES):
                response = self._send("POST", f"{upload}/parts", files={"data": ("part", part)})
                part_ids.append(self._json(response)["id"])
                progress(file.tell(), size)
            done: Json = self.post(f"{upload}/complete", {"part_ids": part_ids})
        except BaseException:
            self.post(f"{upload}/cancel")
            raise
        stored: Json = done["file"]
        return stored

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._connection_said():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise _error(response.status_code, _body(response))
        return response

    @contextmanager
    def _stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        with self._connection_said(), self._http.stream(method, path, **options) as response:
            if response.is_error:
                response.read()
                raise _error(response.status_code, _body(response))
            yield response

    @contextmanager
    def _connection_said(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"No answer from {self.base_url} ({error or type(error).__name__}). Is the server running "
                "(`tunekeeper serve`), and is the address right (--url, TUNEKEEPER_URL)?",
                code=CANNOT_CONNECT,
            ) from error

    def _json(self, response: httpx.Response) -> Json:
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Unavailable(
                f"What answers at {self.base_url} is no Tunekeeper: it sent no JSON object. "
                "Check the address (--url, TUNEKEEPER_URL); it mostly ends in /v1.",
                code=CANNOT_CONNECT,
            )
        return value


@contextmanager
def connect(options: Options, *, runs_jobs: bool = False) -> Iterator[Client]:
    """A client of the right server; with `runs_jobs`, one that is started here works on jobs too."""
    if options.url is not None:
        yield from _used(Client(_normal(options.url), options.api_key))
        return
    settings = options.settings
    running = running_server(settings)
    if running is not None:
        yield from _used(Client(running, options.api_key))
        return
    # Here, not above: FastAPI and SQLAlchemy are needed only where no server runs.
    from tunekeeper.api.server import background

    with background(settings, worker=runs_jobs) as base_url:
        yield from _used(Client(base_url, is_temporary=True))


def running_server(settings: Settings) -> str | None:
    """The base_url of the server that runs on the home directory, if there is one and it listens."""
    try:
        server = json.loads((settings.home / "server.json").read_text("utf-8"))
        base_url, pid = str(server["base_url"]), int(server["pid"])
        os.kill(pid, 0)
        address = urlsplit(base_url)
        socket.create_connection((address.hostname or "", address.port or 80), timeout=2.0).close()
    except PermissionError:
        return base_url  # another user's process: it lives
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base_url


def path_of(*parts: str) -> str:
    """A path of the API whose parts are ids as people write them."""
    return "".join(f"/{quote(part, safe=':/')}" for part in parts)


class _Counted:
    """A file that tells how much of it was read; httpx sends it in pieces."""

    def __init__(self, file: BinaryIO, size: int, progress: Callable[[int, int], None]) -> None:
        self._file = file
        self._size = size
        self._progress = progress

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(n)
        self._progress(self._file.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()


def _used(client: Client) -> Iterator[Client]:
    try:
        yield client
    finally:
        client.close()


def _normal(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{url!r} is no address of a server; write http://HOST:PORT/v1.", param="url")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


def _body(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


def _error(status: int, body: Mapping[str, Any]) -> TunekeeperError:
    inner = body.get("error")
    if not isinstance(inner, dict):
        inner = {"message": str(inner or f"The server answered with HTTP status {status}.")}
    kind = NotFound if status == 404 else TunekeeperError
    return kind(
        str(inner.get("message")),
        param=inner.get("param"),
        code=inner.get("code") or f"http_{status}",
        details=[detail for detail in inner.get("details") or () if isinstance(detail, dict)],
    )
