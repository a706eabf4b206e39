"""A forest of trees, packed end to end in one row, and the attention that keeps them apart.

    tokens    p p p p a a a b b | p p c c c | …
    position  0 1 2 3 4 5 6 4 5 | 0 1 2 3 4 | …       each branch continues its trunk's positions
    sees      trunk: itself; branch: its trunk and itself; never a sibling, never another tree

No tree is padded; the row as a whole is filled up where that makes its products faster: `row_multiple`.

Shapes: T packed tokens, N predicted tokens (those with a loss weight), H heads, K key-value heads, D head size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tunekeeper.models.decoder import Decoder
from tunekeeper.trainer.attention import SHORT, ShortAttention, is_fast
from tunekeeper.types import Tree

ROW_MULTIPLE = 64
"""Filling a batch of 1,300 rows up costs 2 % of its products; making the code for them anew, 7 % of a step."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where one tree lies in the row: trunk in [start, ends[0]), branch i in [ends[i], ends[i+1])."""

    start: int
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of trees. `source_N` are the rows whose next token is predicted, `target_N` those tokens.

    Where it was filled up, rows that belong to no tree come last, and `source_N` repeats its last row.
    """

    tokens_T: Tensor
    positions_T: Tensor
    spans: tuple[Span, ...]
    source_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    branch_N: Tensor
    """Index of the branch that a predicted token belongs to, counted over the batch."""

    @property
    def size(self) -> int:
        """Tokens that the forward pass computes."""
        return int(self.tokens_T.shape[0])


def pack(trees: Sequence[Tree], offsets: Sequence[int] = (), *, multiple: int = 1) -> Packed:
    """Lay trees end to end; tokens with loss weight 0 are not predicted.

    `offsets` are the positions at which the trees begin (0 where empty): a tree may continue a prefix whose keys
    and values are known already. Tokens, and rows that predict, are filled up to a multiple of `multiple`.
    """
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    predicted: list[tuple[int, int, float, int]] = []
    branches = 0
    for tree, offset in zip(trees, offsets or [0] * len(trees), strict=True):
        start, fork = len(tokens), offset + len(tree.trunk)
        tokens += tree.trunk
        positions += range(offset, fork)
        ends = [len(tokens)]
        for place, weight in enumerate(tree.trunk_weights):
            if weight and place:
                predicted.append((start + place - 1, tree.trunk[place], weight, branches))
        for grown in tree.branches:
            first = len(tokens)
            tokens += grown.tokens
            positions += range(fork, fork + len(grown.tokens))
            ends.append(len(tokens))
            for place, (token, weight) in enumerate(zip(grown.tokens, grown.weights, strict=True)):
                source = first + place - 1 if place else ends[0] - 1
                if weight and source >= start:
                    predicted.append((source, token, weight, branches))
            branches += 1
        spans.append(Span(start, tuple(ends)))
    filler = [0] * (-len(tokens) % multiple)
    sources = [row for row, _, _, _ in predicted]
    return Packed(
        torch.tensor(tokens + filler),
        torch.tensor(positions + filler),
        tuple(spans),
        torch.tensor(sources + sources[-1:] * (-len(sources) % multiple), dtype=torch.long),
        torch.tensor([token for _, token, _, _ in predicted], dtype=torch.long),
        torch.tensor([weight for _, _, weight, _ in predicted], dtype=torch.float32),
        torch.tensor([branch for _, _, _, branch in predicted], dtype=torch.long),
    )


def row_multiple(decoder: Decoder) -> int:
    """What the rows of a batch are filled up to: `ROW_MULTIPLE` where a processor multiplies bf16, else 1.

    oneDNN makes code for each shape of such a product, some milliseconds and half a megabyte each, and keeps it for
    the next of that shape. With batches of any length a step would make all of its products anew.
    """
    return ROW_MULTIPLE if decoder.device.type == "cpu" and decoder.dtype == torch.bfloat16 else 1


class TreeAttention:
    """Attention within the trees of one batch; an `Attention` for the decoder."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans
        self._sizes = [span.ends[-1] - span.start for span in spans]
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._long = [n for n, size in enumerate(self._sizes) if size > SHORT]
        short = [n for n, size in enumerate(self._sizes) if size <= SHORT]
        masks = [self._sizes[n] if is_sequence(spans[n]) else tree_mask(spans[n]) for n in short]
        self._short = (
            ShortAttention([spans[n].start for n in short], masks) if any(self._sizes[n] for n in short) else None
        )

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Attend within each tree; return (T, H, D)."""
        together = self._short(q_THD, k_TKD, v_TKD) if self._short is not None and is_fast(q_THD) else None
        if together is not None and not self._long:
            return together
        *rows, filler = _split(self._sizes, q_THD, k_TKD, v_TKD)
        if together is None:
            seen = [part for n, (q, k, v) in enumerate(rows) for part in self._tree(n, q, k, v)]
            return torch.cat([*seen, torch.zeros_like(filler[0])])
        parts = [[part] for (part,) in _split(self._sizes, together)]
        for n in self._long:
            parts[n] = list(self._tree(n, *rows[n]))
        return torch.cat([part for tree in parts for part in tree])

    def _tree(self, n: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Iterator[Tensor]:
        span = self.spans[n]
        if is_sequence(span):
            yield causal(q_THD, k_TKD, v_TKD)
            return
        trunk = span.ends[0] - span.start
        groups = q_THD.shape[1] // k_TKD.shape[1]
        if (n, groups) not in self._masks:
            seen = tree_mask(span)[trunk:].to(q_THD.device)
            self._masks[n, groups] = additive_mask(seen, groups, q_THD.dtype)
        yield causal(q_THD[:trunk], k_TKD[:trunk], v_TKD[:trunk])
        yield masked(q_THD[trunk:], k_TKD, v_TKD, self._masks[n, groups])


class PrefixAttention:
    """Attention of trees that continue prefixes: each row sees its tree's whole prefix, and its tree as always.

    `prefixes` holds a tensor (L, 2, S, K, D) of keys and values for each tree; gradients do not flow into it.
    """

    def __init__(self, spans: Sequence[Span], prefixes: Sequence[Tensor]) -> None:
        self.spans, self.prefixes = spans, prefixes
        self._sizes = [span.ends[-1] - span.start for span in spans]
        self._masks: dict[int, list[Tensor]] = {}

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Attend within each tree and its prefix; return (T, H, D)."""
        groups = q_THD.shape[1] // k_TKD.shape[1]
        if groups not in self._masks:
            self._masks[groups] = [additive_mask(seen, groups, q_THD.dtype) for seen in self._seen(q_THD.device)]
        parts = []
        *rows, filler = _split(self._sizes, q_THD, k_TKD, v_TKD)
        for (q, k, v), prefix, mask in zip(rows, self.prefixes, self._masks[groups], strict=True):
            keys, values = torch.cat([prefix[layer, 0], k]), torch.cat([prefix[layer, 1], v])
            parts.append(masked(q, keys, values, mask))
        return torch.cat([*parts, torch.zeros_like(filler[0])])

    def _seen(self, device: torch.device) -> Iterator[Tensor]:
        for span, size, prefix in zip(self.spans, self._sizes, self.prefixes, strict=True):
            yield torch.cat([torch.ones(size, prefix.shape[2], dtype=torch.bool), tree_mask(span)], 1).to(device)


def _split(sizes: Sequence[int], *rows: Tensor) -> list[tuple[Tensor, ...]]:
    """The rows of each tree, and those of none, which come last.

    Not slices: the gradient of a split is one concatenation, that of each slice a whole row of zeros.
    """
    rest = rows[0].shape[0] - sum(sizes)
    return list(zip(*(x.split([*sizes, rest]) for x in rows), strict=True))


class Recorder:
    """An attention that also keeps the keys and values of each tree, as (L, 2, S, K, D) a tree."""

    def __init__(self, attention: TreeAttention | PrefixAttention) -> None:
        self.attention = attention
        self._layers: list[Tensor] = []

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Attend as the inner attention does."""
        self._layers.append(torch.stack([k_TKD, v_TKD]))
        return self.attention(layer, q_THD, k_TKD, v_TKD)

    def prefixes(self) -> list[Tensor]:
        """Keys and values of each tree of the batch."""
        return [
            torch.stack([layer[:, span.start : span.ends[-1]] for layer in self._layers])
            for span in self.attention.spans
        ]


def is_sequence(span: Span) -> bool:
    """Whether the whole tree is one causal sequence: one branch continues its trunk."""
    return len(span.ends) <= 2


def causal(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    """Plain causal attention of one sequence, (T, H, D)."""
    if not q_THD.shape[0]:
        return q_THD
    groups = q_THD.shape[1] // k_TKD.shape[1]
    repeated = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (k_TKD, v_TKD))
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, *repeated))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)


def tree_mask(span: Span) -> Tensor:
    """What a tree's rows see of the tree, (rows, rows), True where seen: trunk causal, branches apart."""
    size = span.ends[-1] - span.start
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    for first, last in pairwise(end - span.start for end in span.ends):
        seen[last:, first:last] = False
    return seen


def additive_mask(seen_TS: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """The mask that `masked` takes, (groups * T, S): 0 where a row sees a key, minus infinity elsewhere."""
    mask = torch.zeros(seen_TS.shape, dtype=dtype, device=seen_TS.device).masked_fill_(~seen_TS, float("-inf"))
    return mask.repeat(groups, 1)


def masked(q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, mask_RS: Tensor) -> Tensor:
    """Attention of T rows over S keys under an `additive_mask`, (T, H, D).

    The query heads of a group become further rows of one head, so that keys and values are not repeated.
    """
    rows, heads, size = q_THD.shape
    kv_heads = k_SKD.shape[1]
    groups = heads // kv_heads
    q_KRD = q_THD.view(rows, kv_heads, groups, size).permute(1, 2, 0, 3).reshape(kv_heads, groups * rows, size)
    out_KRD = F.scaled_dot_product_attention(
        q_KRD[None], k_SKD.transpose(0, 1)[None], v_SKD.transpose(0, 1)[None], attn_mask=mask_RS
    )[0]
    return out_KRD.view(kv_heads, groups, rows, size).permute(2, 0, 1, 3).reshape(rows, heads, size)


def microbatches(sizes: Sequence[int], batch: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split a batch so that none of its parts has more than `max_tokens`, unless one tree alone has."""
    parts: list[list[int]] = []
    room = 0
    for index in batch:
        if not parts or sizes[index] > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(index)
        room -= sizes[index]
    return parts
