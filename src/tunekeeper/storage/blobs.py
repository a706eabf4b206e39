"""Bytes in a directory, each under the SHA-256 of its content: blobs/ab/abcdef….

What has a name here is whole and lasts: bytes are written to blobs/tmp, hashed on the way, synced, and only
then renamed. The same content twice is stored once; who may delete it is the store's to say
(`delete_blob_if_unused`).

    with blobs.writer() as writer:
        writer.write(b"…")
        sha256, size = writer.commit()
"""

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from tunekeeper.errors import DiskFull, NotFound

PIECE_BYTES = 1024**2
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobWriter:
    """A blob on its way in; leaving the context without `commit` removes what was written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with _naming_full_disk():
            fd, name = tempfile.mkstemp(dir=root / "tmp")
        self._temp: Path | None = Path(name)
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes; raises DiskFull."""
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        with _naming_full_disk():
            while view:  # unbuffered, so that a full disk is met here and not at some later close
                view = view[self._file.write(view) :]

    def fileno(self) -> int:
        """The descriptor that is written to."""
        return self._file.fileno()

    def commit(self) -> tuple[str, int]:
        """Give the bytes their name; return (sha256 in hex, size in bytes)."""
        assert self._temp is not None, "a blob is committed once"
        sha256 = self._hash.hexdigest()
        path = _path(self._root, sha256)
        with _naming_full_disk():
            os.fsync(self.fileno())
            self._file.close()
            path.parent.mkdir(exist_ok=True)
            # Over an equal blob too: it costs nothing, and makes the blob as young as its newest use.
            os.replace(self._temp, path)
            self._temp = None
            _sync_directory(path.parent)
            _sync_directory(self._root)
        return sha256, self.size

    def abort(self) -> None:
        """Remove what was written, unless it was committed."""
        self._file.close()
        if self._temp is not None:
            self._temp.unlink(missing_ok=True)
            self._temp = None


class DirectoryBlobs:
    """`ports.Blobs` in a directory; several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "tmp").mkdir(parents=True, exist_ok=True)

    def writer(self) -> BlobWriter:
        """Start a blob whose bytes arrive piece by piece."""
        return BlobWriter(self._root)

    def put(self, stream: BinaryIO) -> tuple[str, int]:
        """Store the stream to its end; return (sha256 in hex, size in bytes)."""
        with self.writer() as writer:
            while piece := stream.read(PIECE_BYTES):
                writer.write(piece)
            return writer.commit()

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would lie."""
        return _path(self._root, sha256)

    def exists(self, sha256: str) -> bool:
        """Whether the bytes are here."""
        return self.path(sha256).exists()

    def open(self, sha256: str) -> BinaryIO:
        """Open the bytes for reading; raises NotFound."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"The bytes with SHA-256 {sha256} are not in {self._root}.") from error

    def delete(self, sha256: str) -> None:
        """Remove the bytes, if they are there."""
        self.path(sha256).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what interrupted writers left; only when nobody writes, so at the server's start."""
        for temp in (self._root / "tmp").iterdir():
            temp.unlink(missing_ok=True)

    def orphans(self, used: Collection[str], *, older_than_s: float = 3600.0) -> Iterator[str]:
        """The blobs that are not in `used`: a process died between storing bytes and noting whose they are.

        Young ones are left alone, because theirs may be about to be noted.
        """
        latest = time.time() - older_than_s
        for path in self._root.glob("??/*"):
            if path.name not in used and _SHA256.fullmatch(path.name) and path.stat().st_mtime < latest:
                yield path.name


def _path(root: Path, sha256: str) -> Path:
    assert _SHA256.fullmatch(sha256), "a blob's name is a SHA-256 in hex"
    return root / sha256[:2] / sha256


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _naming_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                "The disk is full, so the file was not stored; what was stored before is not harmed. "
                "Free some space in the home directory, then send it again."
            ) from error
        raise
