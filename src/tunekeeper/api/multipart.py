"""Multipart bodies, taken in with constant memory: the file's bytes go to the blob store while they arrive.

Nothing of a body that is cut off, too large or malformed stays behind.

    async with receive_form(request, file_field="file", fields=…, blobs=…, max_bytes=…) as form:
        form.fields["purpose"]
        sha256, size = await form.store()
"""

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tunekeeper.errors import InvalidRequest, TooLarge
from tunekeeper.storage.blobs import PIECE_BYTES, BlobWriter, DirectoryBlobs

_MAX_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 32
_MAX_NAME_CHARS = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Form:
    """What a multipart body held: text fields and exactly one file."""

    def __init__(self, *, file_field: str, fields: Collection[str], writer: BlobWriter, max_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._file_field = file_field
        self._known = fields
        self._writer = writer
        self._max_bytes = max_bytes
        self._has_file = False
        self._ended = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[str, bytes] = {}
        self._name = ""
        self._text: bytearray | None = None

    async def store(self) -> tuple[str, int]:
        """Keep the file; return (sha256 in hex, size in bytes)."""
        return await run_sync(self._writer.commit)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._writer.size

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that fills this form."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def finish(self) -> None:
        """Check that the body was whole and had its file; raises InvalidRequest."""
        if not self._ended:
            raise InvalidRequest(
                "The multipart body ends before its closing boundary: it was cut off. Send it again.",
                code="truncated_body",
            )
        if not self._has_file:
            raise InvalidRequest(
                f"Missing required parameter: '{self._file_field}', a file in multipart/form-data.",
                param=self._file_field,
                code="missing_required_parameter",
            )

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > _MAX_FIELD_BYTES:
            raise InvalidRequest("A header in the multipart body is too long.", code="malformed_body")

    def _on_header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = _decoded(options.get(b"name", b""))
        if self._name == self._file_field:
            self._begin_file(options.get(b"filename"))
        elif self._name not in self._known:
            raise InvalidRequest(
                f"Unknown parameter: '{self._name}'. Remove it: it would have no effect.",
                param=self._name or None,
                code="unknown_parameter",
            )
        elif self._name in self.fields or len(self.fields) >= _MAX_FIELDS:
            raise InvalidRequest(f"'{self._name}' was sent twice.", param=self._name)
        else:
            self._text = bytearray()

    def _begin_file(self, filename: bytes | None) -> None:
        if filename is None:
            raise InvalidRequest(
                f"'{self._name}' must be sent as a file, with a filename, not as text.",
                param=self._name,
                code="invalid_type",
            )
        if self._has_file:
            raise InvalidRequest(f"'{self._name}' was sent twice; one request takes one file.", param=self._name)
        self._has_file = True
        self._text = None
        # Some clients send a whole path; only its last part is the file's name.
        name = _CONTROL.sub("", _decoded(filename)).replace("\\", "/").rstrip("/").rpartition("/")[2]
        self.filename = name[-_MAX_NAME_CHARS:] or "upload"

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._text is not None:
            self._text += data[start:end]
            if len(self._text) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"'{self._name}' is longer than {_MAX_FIELD_BYTES} bytes.", param=self._name)
            return
        if self._writer.size + end - start > self._max_bytes:
            raise TooLarge(
                f"The file is larger than {self._max_bytes:,} bytes, the most that is taken here. "
                "Files of up to 8 GB go through /uploads, in parts; the limits are settings of the server.",
                param=self._name,
            )
        self._writer.write(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        if self._text is None:
            return
        try:
            self.fields[self._name] = self._text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"'{self._name}' is not valid UTF-8.", param=self._name) from error

    def _on_end(self) -> None:
        self._ended = True


@asynccontextmanager
async def receive_form(
    request: Request, *, file_field: str, fields: Collection[str], blobs: DirectoryBlobs, max_bytes: int
) -> AsyncIterator[Form]:
    """Take in the request's body; yields the whole form, whose file is kept only if `store` is called."""
    boundary = _boundary(request)
    writer = await run_sync(blobs.writer)
    try:
        form = Form(file_field=file_field, fields=fields, writer=writer, max_bytes=max_bytes)
        parser = form.parser(boundary)
        async for piece in _pieces(request):
            await run_sync(_feed, parser, piece)
        form.finish()
        yield form
    finally:
        # Not in a thread: a cancelled request would not wait for it.
        writer.abort()


def _feed(parser: MultipartParser, piece: bytes) -> None:
    try:
        parser.write(piece)
    except FormParserError as error:
        raise InvalidRequest(f"The multipart body is malformed: {error}", code="malformed_body") from error


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte: a thread is entered for each, and that has a cost."""
    piece = bytearray()
    async for chunk in request.stream():
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind.lower() != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise InvalidRequest(
            "Send the file as multipart/form-data, with a boundary in content-type; "
            "the official client's files.create does.",
            code="invalid_content_type",
        )
    return boundary


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
