"""Tokens to text as they come: whole characters only, and nothing that may turn out to be a stop string.

    text = TextStream(tokenizer.token_bytes, stop=("END",))
    text.push(token)        # -> the text that is now certain
    text.finish()           # -> what was held back

Bytes that are no UTF-8 become replacement characters.
"""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Text of one answer, given out piece by piece; `stopped` once a stop string was met."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._stop = [text for text in stop if text]
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        self.n_in = 0
        """Characters that the tokens so far came to."""
        self.n_out = 0
        """Characters that were given out."""

    def push(self, token: int) -> str:
        """Add a token; return the text that nothing can change any more."""
        return self._release(self._utf8.decode(self._token_bytes(token)), final=False)

    def finish(self) -> str:
        """No more tokens: return the rest."""
        return self._release(self._utf8.decode(b"", True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self.n_in += len(text)
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._give(min(found))
        keep = 0 if final else max((possible_start(self._held, stop) for stop in self._stop), default=0)
        return self._give(len(self._held) - keep)

    def _give(self, n: int) -> str:
        out, self._held = self._held[:n], self._held[n:]
        self.n_out += n
        return out


def possible_start(text: str, wanted: str) -> int:
    """How many characters at the end of `text` may be the beginning of `wanted`."""
    for size in range(min(len(text), len(wanted) - 1), 0, -1):
        if text.endswith(wanted[:size]):
            return size
    return 0
