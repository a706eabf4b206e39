"""Keys and values of all that runs, and the attention of one step over them.

One buffer for keys and one for values, (layer, key-value head, token slot, head size); who owns which slots
is `regions.py`'s business. Sequences that generate attend in one call for each run of equally spaced regions:
a strided view of the buffer is their keys, without copying any. A chunk of a prompt is one call of its own.

Sequences that begin alike read that beginning once, in one call for all of them; what follows each reads for itself,
and the two are weighed by their log-sum-exp (Juravsky et al. 2024, "Hydragen").

Shapes: T rows of the step, B sequences of a run, L tokens seen, H heads, K key-value heads, G = H/K, D head
size.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tunekeeper.inference.regions import Region
from tunekeeper.inference.schedule import Copy, Track, Work, even_runs
from tunekeeper.models.decoder import DecoderShape


class KeyValueCache:
    """The buffers."""

    def __init__(self, shape: DecoderShape, n_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.n_tokens = shape, n_tokens
        size = (shape.n_layers, shape.n_kv_heads, n_tokens, shape.head_dim)
        self.keys, self.values = _zeros(size, dtype, device), _zeros(size, dtype, device)

    def copy(self, item: Copy) -> None:
        """Copy a prefix from one region to another."""
        source = slice(item.source.start, item.source.start + item.n)
        target = slice(item.target.start, item.target.start + item.n)
        for buffer in (self.keys, self.values):
            buffer[:, :, target] = buffer[:, :, source]

    def clear(self, region: Region) -> None:
        """Write zeros over a region, so that no NaN is left to be read through a mask."""
        for buffer in (self.keys, self.values):
            buffer[:, :, region.start : region.start + region.size] = 0


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # The system's own zeroed pages take memory once they are used; torch writes them at once. Small pages: a running
    # sequence uses a little of each layer's and head's part, and large ones (numpy's) held fifty times as much.
    pages = mmap.mmap(-1, math.prod(size) * dtype.itemsize)
    with suppress(AttributeError, OSError):  # not on every system, nor in every kernel
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(size)


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows [start, end) of the step: one token each of sequences in equally spaced regions."""

    start: int
    end: int
    first_slot: int
    distance: int
    n_shared: int
    """Tokens at the beginning that are another call's business."""
    n_seen: int
    """Tokens from there on."""
    mask: Tensor | None
    """(B, 1, G, L), added to the scores; None: all see equally much."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows [start, end) of the step: consecutive tokens of one sequence."""

    start: int
    end: int
    first_slot: int
    n_seen: int
    mask: Tensor | None
    """(T, L), added to the scores; None: causal from the start."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """Rows of sequences that begin alike, and where that beginning lies."""

    rows: Tensor
    first_slot: int
    n_seen: int


class StepAttention:
    """The attention of one step: writes the new keys and values, then lets every row see its own sequence.

    `work` is in the order of the rows; single tokens are best put first and sorted by region.
    """

    def __init__(self, cache: KeyValueCache, work: Sequence[Work]) -> None:
        self.cache = cache
        shape = cache.shape
        self._groups = shape.n_heads // shape.n_kv_heads
        slots: list[int] = []
        for item in work:
            first = _region(item.track).start + item.track.computed
            slots.extend(range(first, first + item.n))
        self._slots_T = torch.tensor(slots, device=cache.keys.device)
        n_single = next((i for i, item in enumerate(work) if item.n > 1), len(work))
        self._shared = self._plan_shared(work[:n_single])
        self._runs = self._plan_runs(work[:n_single])
        self._chunks = self._plan_chunks(work[n_single:], n_single)

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Attend with scale 1/sqrt(D); return (T, H, D)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(1, self._slots_T, k_TKD.transpose(0, 1))
        values.index_copy_(1, self._slots_T, v_TKD.transpose(0, 1))
        if len(self._runs) == 1 and not self._chunks and not self._shared:
            return self._attend_run(self._runs[0], q_THD, keys, values)[0]
        runs = [self._attend_run(run, q_THD[run.start : run.end], keys, values) for run in self._runs]
        parts = [self._with_shared(runs, q_THD, keys, values)] if self._shared else [seen for seen, _ in runs]
        parts += [self._attend_chunk(chunk, q_THD[chunk.start : chunk.end], keys, values) for chunk in self._chunks]
        return torch.cat(parts)

    def _attend_run(self, run: _Run, q_BHD: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What each row sees of its own, and with `_shared` the log-sum-exp of its scores, (B, H)."""
        shape, n = self.cache.shape, run.end - run.start
        size = (n, shape.n_kv_heads, run.n_seen, shape.head_dim)
        stride = (run.distance * shape.head_dim, self.cache.n_tokens * shape.head_dim, shape.head_dim, 1)
        at = keys.storage_offset() + (run.first_slot + run.n_shared) * shape.head_dim
        q_BKGD = q_BHD.reshape(n, shape.n_kv_heads, self._groups, shape.head_dim)
        own = keys.as_strided(size, stride, at), values.as_strided(size, stride, at)
        if self._shared:
            seen, weight = _weighed(q_BKGD, *own, run.mask)
        else:
            seen, weight = F.scaled_dot_product_attention(q_BKGD, *own, attn_mask=run.mask), q_BHD.new_empty(0)
        return seen.reshape(n, shape.n_heads, shape.head_dim), weight.reshape(n, -1)

    def _with_shared(
        self, runs: Sequence[tuple[Tensor, Tensor]], q_THD: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """What the rows see of their own and of the beginnings that they share."""
        shape = self.cache.shape
        seen_THD, own_TH = (torch.cat(parts) for parts in zip(*runs, strict=True))
        for shared in self._shared:
            n = shared.rows.shape[0]
            slots = slice(shared.first_slot, shared.first_slot + shared.n_seen)
            q_BKGD = q_THD[shared.rows].view(n, shape.n_kv_heads, self._groups, shape.head_dim)
            q_KRD = q_BKGD.transpose(0, 1).reshape(shape.n_kv_heads, -1, shape.head_dim)
            seen_KRD, weight_KR = (x[0] for x in _weighed(q_KRD[None], keys[None, :, slots], values[None, :, slots]))
            first_BHD = seen_KRD.unflatten(1, (n, -1)).transpose(0, 1).reshape(n, shape.n_heads, shape.head_dim)
            weight_BH = weight_KR.unflatten(1, (n, -1)).transpose(0, 1).reshape(n, shape.n_heads)
            share_BH1 = (weight_BH - own_TH[shared.rows]).sigmoid_()[..., None].to(first_BHD.dtype)
            seen_THD[shared.rows] = torch.lerp(seen_THD[shared.rows], first_BHD, share_BH1)
        return seen_THD

    def _attend_chunk(self, chunk: _Chunk, q_THD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        slots = slice(chunk.first_slot, chunk.first_slot + chunk.n_seen)
        seen = F.scaled_dot_product_attention(
            q_THD.transpose(0, 1)[None],
            keys[None, :, slots],
            values[None, :, slots],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=True,
        )
        return seen[0].transpose(0, 1)

    def _plan_shared(self, work: Sequence[Work]) -> list[_Shared]:
        if self.cache.keys.device.type != "cpu":
            return []  # the log-sum-exp comes from the processor's kernel
        rows: dict[Track, list[int]] = {}
        for row, item in enumerate(work):
            if item.track.leader is not None:
                rows.setdefault(item.track.leader, []).append(row)
        return [_Shared(torch.tensor(at), _region(leader).start, leader.n_shared) for leader, at in rows.items()]

    def _plan_runs(self, work: Sequence[Work]) -> list[_Run]:
        regions = [_region(item.track) for item in work]
        shared = [item.track.n_shared if self._shared else 0 for item in work]
        runs = []
        for start, end in even_runs(regions, shared):
            n_shared = shared[start]
            seen = [item.track.computed + 1 - n_shared for item in work[start:end]]
            distance = regions[start + 1].start - regions[start].start if end - start > 1 else 0
            mask = self._length_mask(seen)
            runs.append(_Run(start, end, regions[start].start, distance, n_shared, max(seen), mask))
        return runs

    def _plan_chunks(self, work: Sequence[Work], start: int) -> list[_Chunk]:
        chunks = []
        for item in work:
            before = item.track.computed
            mask = None if before == 0 else self._causal_mask(item.n, before)
            chunks.append(_Chunk(start, start + item.n, _region(item.track).start, before + item.n, mask))
            start += item.n
        return chunks

    def _length_mask(self, seen: Sequence[int]) -> Tensor | None:
        longest = max(seen)
        if min(seen) == longest:
            return None
        buffer = self.cache.keys
        seen_B1 = torch.tensor(seen, device=buffer.device)[:, None]
        hidden_BL = torch.arange(longest, device=buffer.device) >= seen_B1
        mask_BL = torch.zeros(hidden_BL.shape, dtype=buffer.dtype, device=buffer.device)
        mask_BL.masked_fill_(hidden_BL, float("-inf"))
        return mask_BL[:, None, None].expand(-1, 1, self._groups, -1)

    def _causal_mask(self, n: int, before: int) -> Tensor:
        buffer = self.cache.keys
        mask_TL = torch.full((n, before + n), float("-inf"), dtype=buffer.dtype, device=buffer.device)
        return mask_TL.triu_(before + 1)


def _weighed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention, and the log-sum-exp of each row's scores."""
    seen, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
    return seen, weight


def _region(track: Track) -> Region:
    if track.region is None:
        raise AssertionError("work is planned only for tracks that have a region")
    return track.region
