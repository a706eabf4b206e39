"""What a caller asks of the engine and what comes back, as plain values; no torch here.

A request is a prompt of token ids with `Sampling`; the answer is a stream of `Piece`s, the last of which has
a finish reason and the counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]

GREEDY_BELOW = 1e-4
"""Temperatures under this choose the most likely token: dividing by them would only overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen, and when to stop. The defaults are those of the API."""

    max_tokens: int | None = None
    """Most tokens to generate; None: until the context is full."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """Same seed, same prompt, same model: same answer, whatever else runs."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """Report log-probabilities, with so many alternatives; None: none."""
    grammar: str | None = None
    """A grammar of `inference.constrain` that the text must match."""

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_p == 0

    @property
    def is_plain(self) -> bool:
        """Whether the logits decide as they are: greedy, and nothing changes or reports them."""
        return (
            self.is_greedy
            and self.top_logprobs is None
            and self.grammar is None
            and not (self.logit_bias or self.presence_penalty or self.frequency_penalty)
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability under the model, before temperature, penalties and bias."""

    token: int
    bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The next part of an answer; text never ends within a character or a possible stop string."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    n_cached: int = 0
    """Prompt tokens that were not computed again."""
    n_generated: int = 0
    """Tokens up to here, without the one that ends a turn."""
    tokens: tuple[int, ...] = ()
    """With the finish reason: every token of the answer, the one that ended the turn included if it was chosen."""
    forced: frozenset[int] = frozenset()
    """Places in `tokens` that the grammar left no choice at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole answer: all its pieces together."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    n_cached: int
    n_generated: int
    tokens: tuple[int, ...] = ()
    forced: frozenset[int] = frozenset()
