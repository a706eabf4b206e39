"""What the pure middle needs from outside, as Protocols. Tests bring fakes of these; nothing is patched."""

from typing import BinaryIO, Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...


class Blobs(Protocol):
    """Bytes under the SHA-256 of their content; what is there never changes."""

    def put(self, stream: BinaryIO) -> tuple[str, int]:
        """Store the stream to its end; return (sha256 in hex, size in bytes)."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """Open the bytes for reading; raises NotFound."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove the bytes, if they are there."""
        ...
