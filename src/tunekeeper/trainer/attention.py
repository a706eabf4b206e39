"""Attention within short trees as a processor does it fastest in bf16: those of about one length together.

The forward pass is PyTorch's, the backward pass is plain products, which take half the time of PyTorch's and less. The
query heads of a group share their keys and values.

Shapes: T tokens, H heads, K key-value heads, D head size; of a group B trees, filled up to S tokens each, and
R = S * H/K: the rows of a key-value head's query heads, one after another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

SHORT = 640
"""Tokens up to which plain products are faster; the scores of all pairs exist at once, in fp32."""

FILLED_TO = 32
"""Trees are filled up to a multiple of this many tokens, so that several are of one length, and few shapes
occur: see `trees.row_multiple`."""

PAIRS_TOGETHER = 150_000
"""Pairs of tokens whose scores exist at once for each head; the scores of more do not fit into the cores' caches."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Trees of one filled length: which row each of their B * S places reads, and which places are none's."""

    rows: Tensor
    """(B * S); a filler reads its tree's last row."""
    is_filler_BS: Tensor
    mask_B1SS: Tensor | None
    """Minus infinity where a token does not see another, else 0; None: each sees itself and those before it."""
    places: slice
    """Where the group lies when all groups lie end to end."""

    def by_heads(self, x_TXD: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
        """The group's rows as one matrix for each key-value head of each tree, (B * K, S * X/K, D)."""
        x = x_TXD.index_select(0, self.rows).view(*self.is_filler_BS.shape, kv_heads, -1, x_TXD.shape[2])
        x = x.permute(0, 2, 3, 1, 4).to(dtype, memory_format=torch.contiguous_format, copy=True)
        return x.view(x.shape[0] * kv_heads, -1, x.shape[4])

    def hide_(self, p_XRS: Tensor) -> Tensor:
        """Set to zero, in place, what is not seen."""
        size, length = self.is_filler_BS.shape
        p_BHSS = p_XRS.view(size, -1, length, length)
        if self.mask_B1SS is None:
            p_BHSS.tril_()
        else:
            p_BHSS.masked_fill_(self.mask_B1SS < 0, 0)
        return p_XRS

    def put(self, to_PXD: Tensor, part: Tensor) -> None:
        """Write such matrices to the group's places."""
        (size, length), (heads, head_dim) = self.is_filler_BS.shape, to_PXD.shape[1:]
        to = to_PXD[self.places].view(size, length, heads, head_dim)
        to.copy_(part.view(size, heads, length, head_dim).transpose(1, 2))


@dataclass(frozen=True, slots=True)
class _Groups:
    """All trees, in groups; and where each row's place is, that of a row of no tree behind all others."""

    groups: tuple[_Group, ...]
    places_T: Tensor

    def new_places(self, like_TXD: Tensor) -> Tensor:
        """Room for what the groups put, (P + 1, X, D); the last place is zero."""
        n_places = self.groups[-1].places.stop
        places_PXD = like_TXD.new_empty(n_places + 1, *like_TXD.shape[1:])
        places_PXD[n_places] = 0
        return places_PXD

    def rows(self, places_PXD: Tensor) -> Tensor:
        """What was put, in the order of the rows, (T, X, D)."""
        return places_PXD.index_select(0, self.places_T)


class ShortAttention:
    """Attention within trees that lie end to end; rows of no tree give zeros."""

    def __init__(self, starts: Sequence[int], masks: Sequence[Tensor | int]) -> None:
        """Of each tree its first row, and what its tokens see, (S, S), or how many they are where that is causal."""
        self._starts, self._masks = starts, masks
        self._groups: _Groups | None = None

    def __call__(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Attend with scale 1/sqrt(D); return (T, H, D)."""
        self._groups = self._groups or _grouped(self._starts, self._masks, q_THD.shape[0])
        attended: Tensor = _Short.apply(q_THD, k_TKD, v_TKD, self._groups)  # type: ignore[no-untyped-call]
        return attended


def is_fast(q_THD: Tensor) -> bool:
    """Whether `ShortAttention` is the faster one for short trees: where a processor learns in bf16."""
    learns = torch.is_grad_enabled() and q_THD.requires_grad
    return learns and q_THD.device.type == "cpu" and q_THD.dtype == torch.bfloat16


def _grouped(starts: Sequence[int], masks: Sequence[Tensor | int], n_rows: int) -> _Groups:
    """The trees by their filled length, in groups of which no head has more than `PAIRS_TOGETHER`."""
    sizes = [mask if isinstance(mask, int) else len(mask) for mask in masks]

    def kind(n: int) -> tuple[int, bool]:
        return sizes[n] + -sizes[n] % FILLED_TO, isinstance(masks[n], int)

    groups: list[_Group] = []
    places_T, n_places = torch.full((n_rows,), -1), 0
    for (length, is_causal), found in groupby(sorted((n for n, size in enumerate(sizes) if size), key=kind), key=kind):
        members, most = list(found), max(1, PAIRS_TOGETHER // length**2)
        for first in range(0, len(members), most):
            chosen = members[first : first + most]
            place_S, size_B1 = torch.arange(length), torch.tensor([[sizes[n]] for n in chosen])
            rows = (torch.tensor([[starts[n]] for n in chosen]) + torch.minimum(place_S, size_B1 - 1)).flatten()
            is_filler_BS = place_S >= size_B1
            places = torch.arange(n_places, n_places + len(rows))
            kept = ~is_filler_BS.flatten()
            places_T[rows[kept]] = places[kept]
            mask = None if is_causal else _additive([masks[n] for n in chosen], length)
            groups.append(_Group(rows, is_filler_BS, mask, slice(n_places, n_places + len(rows))))
            n_places += len(rows)
    places_T[places_T < 0] = n_places
    return _Groups(tuple(groups), places_T)


def _additive(masks: Sequence[Tensor | int], length: int) -> Tensor:
    """Fillers see everything, so that no row sees nothing."""
    mask_B1SS = torch.zeros(len(masks), 1, length, length, dtype=torch.bfloat16)
    for mask_1SS, seen_SS in zip(mask_B1SS, masks, strict=True):
        assert isinstance(seen_SS, Tensor)
        mask_1SS[0, : len(seen_SS)] = float("-inf")
        mask_1SS[0, : len(seen_SS), : len(seen_SS)].masked_fill_(seen_SS, 0)
    return mask_B1SS


class _Short(torch.autograd.Function):
    """The probabilities are computed again from the kept log-sum-exp (FlashAttention, Dao et al. 2022, section 3.1).

    Scores and their gradients are fp32, as in PyTorch's own. A filler is not seen; in the backward pass its
    log-sum-exp is infinite, so that nothing comes from it.
    """

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, groups: _Groups) -> Tensor:
        heads, kv_heads, head_dim = q_THD.shape[1], k_TKD.shape[1], q_THD.shape[2]
        places_PHD = groups.new_places(q_THD)
        saved: list[Tensor] = []
        for group in groups.groups:
            size, length = group.is_filler_BS.shape
            q, k, v = (group.by_heads(x, kv_heads, x.dtype) for x in (q_THD, k_TKD, v_TKD))
            repeated = (x.view(size, kv_heads, 1, length, -1).expand(-1, -1, heads // kv_heads, -1, -1) for x in (k, v))
            q_BHSD, k_BHSD, v_BHSD = (x.reshape(size, heads, length, head_dim) for x in (q, *repeated))
            out_BHSD, lse_BHS = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q_BHSD, k_BHSD, v_BHSD, 0.0, group.mask_B1SS is None, attn_mask=group.mask_B1SS
            )
            group.put(places_PHD, out_BHSD)
            less_BHS = lse_BHS.neg().masked_fill_(group.is_filler_BS[:, None], float("-inf"))
            saved += (q, k, v, less_BHS.reshape(size * kv_heads, -1, 1))
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.scale = groups, head_dim**-0.5
        return groups.rows(places_PHD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        groups, scale, saved = ctx.groups, ctx.scale, iter(ctx.saved_tensors)
        found: list[Tensor] = []
        for group, (q, k, v, less) in zip(groups.groups, zip(*[saved] * 4, strict=True), strict=True):
            kv_heads = q.shape[0] // group.is_filler_BS.shape[0]
            found = found or [groups.new_places(x) for x in (grads[0], *[grads[0][:, :kv_heads]] * 2)]
            grad = group.by_heads(grads[0], kv_heads, torch.float32)
            q, k, v = q.float(), k.float(), v.float()
            with _products_on_bf16():
                scores, grad_p = q @ k.mT, grad @ v.mT
                p = group.hide_(torch.add(less, scores, alpha=scale, out=scores).exp_())
                grad_scores = grad_p.mul_(p)
                grad_scores = grad_scores.addcmul_(p, grad_scores.sum(-1, keepdim=True), value=-1)
                parts = (grad_scores @ k).mul_(scale), (grad_scores.mT @ q).mul_(scale), p.mT @ grad
            for places_PXD, part in zip(found, parts, strict=True):
                group.put(places_PXD, part)
        return (*(groups.rows(places_PXD) for places_PXD in found), None)


@contextmanager
def _products_on_bf16() -> Iterator[None]:
    """Let products of fp32 matrices round these to bf16 first, on the processor's units for bf16.

    What comes from bf16 loses nothing by it; the rest is rounded as it would be to be multiplied in bf16. But the sums
    stay fp32, which those of bf16 matrices do not.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
