"""From logits to tokens.

Rows that want nothing but the most likely token share one argmax. Every other row goes the whole way:
penalties and bias, what the grammar allows, temperature, top-p, and one number from the request's own random
stream. That number is looked up in the cumulated probabilities in the order of the vocabulary, so that a row
that differs in its last bits (another batch adds in another order) still gives the same token, but for one
chance in about a million.

Shapes: N rows, V vocabulary.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tunekeeper.inference.params import Sampling

NUCLEUS_AT_FIRST = 256
"""Most likely tokens that top-p looks at before it sorts the whole vocabulary."""


@dataclass(slots=True)
class Draw:
    """What one sequence needs to choose its next token."""

    params: Sampling
    random: random.Random
    counts: Counter[int] = field(default_factory=Counter)
    """How often each token was generated, for the penalties."""
    allowed_words: "np.ndarray[tuple[int, ...], np.dtype[np.int32]] | None" = None
    """What the grammar allows next, one bit a token."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token, None where the logits are not numbers; log-probabilities if they were asked for."""

    token: int | None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def new_random(seed: int | None, index: int) -> random.Random:
    """The random stream of the `index`-th answer to a request."""
    return random.Random() if seed is None else random.Random(f"{seed}/{index}")


def choose(logits_NV: Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """The next token of each row."""
    plain = [n for n, draw in enumerate(draws) if draw.params.is_plain]
    choices: dict[int, Choice] = {}
    if plain:
        rows_PV = logits_NV if len(plain) == len(draws) else logits_NV[plain]
        choices = {n: Choice(token) for n, token in zip(plain, _most_likely(rows_PV), strict=True)}
    return [choices.get(n) or _choose_one(logits_NV[n], draw) for n, draw in enumerate(draws)]


def _most_likely(logits_NV: Tensor) -> list[int | None]:
    if logits_NV.device.type == "cpu":
        # numpy's argmax is vectorised; torch's takes ten times as long on a processor.
        values = logits_NV.numpy()
        best = values.argmax(-1)
        finite = np.isfinite(values[np.arange(len(best)), best])
        return [int(token) if ok else None for token, ok in zip(best, finite, strict=True)]
    top, best_N = logits_NV.max(-1)
    return [token if ok else None for token, ok in zip(best_N.tolist(), top.isfinite().tolist(), strict=True)]


def _choose_one(logits_V: Tensor, draw: Draw) -> Choice:
    params = draw.params
    if _most_likely(logits_V[None])[0] is None:
        return Choice(None)
    token = _pick(_shaped(logits_V, draw), params, draw.random)
    if params.top_logprobs is None:
        return Choice(token)
    logprobs_V = logits_V.log_softmax(-1)
    top = logprobs_V.topk(min(params.top_logprobs, logprobs_V.shape[0]))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Choice(token, logprobs_V[token].item(), tuple(pairs))


def _shaped(logits_V: Tensor, draw: Draw) -> Tensor:
    """The logits after penalties, bias and grammar; the given ones are left as they are."""
    params = draw.params
    changes = dict(params.logit_bias)
    if params.presence_penalty or params.frequency_penalty:
        for token, count in draw.counts.items():
            penalty = params.presence_penalty + count * params.frequency_penalty
            changes[token] = changes.get(token, 0.0) - penalty
    if changes:
        logits_V = logits_V.clone()
        index = torch.tensor(list(changes), device=logits_V.device)
        logits_V[index] += torch.tensor(list(changes.values()), device=logits_V.device)
    if draw.allowed_words is not None:
        bits = np.unpackbits(draw.allowed_words.view(np.uint8), bitorder="little")[: logits_V.shape[0]]
        forbidden_V = torch.from_numpy(bits == 0).to(logits_V.device)
        logits_V = logits_V.masked_fill(forbidden_V, float("-inf"))
    return logits_V


def _pick(logits_V: Tensor, params: Sampling, source: random.Random) -> int:
    if params.is_greedy:
        return int(logits_V.argmax())
    scaled_V = logits_V - logits_V.max()
    if params.temperature != 1:
        scaled_V /= params.temperature
    weights_V = scaled_V.exp_().double()
    if params.top_p < 1:
        weights_V = _nucleus(weights_V, params.top_p)
    cumulated_V = weights_V.cumsum(0)
    at = source.random() * cumulated_V[-1]
    # On the right: a token of weight zero has no width and is never found, unless the sum was rounded up to its end.
    found = int(torch.searchsorted(cumulated_V, at, right=True))
    return found if found < len(weights_V) else int(weights_V.nonzero()[-1])


def _nucleus(weights_V: Tensor, top_p: float) -> Tensor:
    """The weights with all but the most likely tokens, which together reach `top_p`, set to zero."""
    wanted = top_p * weights_V.sum()
    for size in (min(NUCLEUS_AT_FIRST, weights_V.shape[0]), weights_V.shape[0]):
        top = weights_V.topk(size)
        before = top.values.cumsum(0) - top.values
        n_kept = int((before < wanted).sum())
        if n_kept < size or size == weights_V.shape[0]:
            break
    kept_V = torch.zeros_like(weights_V)
    kept = top.indices[: max(n_kept, 1)]
    kept_V[kept] = weights_V[kept]
    return kept_V
