"""What the pure middle needs from outside, as Protocols. Tests bring fakes of these; nothing is patched."""

from collections.abc import Sequence
from typing import BinaryIO, Protocol

from tunekeeper.types import Json


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


class Sampler(Protocol):
    """A model that answers: our own, an upstream's, a fake. Safe to call from many threads at once."""

    def check(self, body: Json) -> None:
        """Raises what can be known of a request before it is asked: ModelNotFound, InvalidRequest, Unsupported."""
        ...

    def complete(self, body: Json) -> Json:
        """Answer a request of POST /chat/completions in its form, not streamed; raises TunekeeperError."""
        ...


class Embedder(Protocol):
    """A model that turns texts into vectors. Safe to call from many threads at once."""

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector a text, all of one length; raises TunekeeperError."""
        ...
