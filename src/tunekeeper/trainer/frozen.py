"""Prompts that the adapter does not act on: their keys and values, computed once on the frozen base.

With the scope "completion" a prompt's keys and values are the same at every step and in every epoch. They are
computed on first use and kept while they fit `budget_bytes`; what is trained are the rows after the prompt.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from tunekeeper.models.decoder import Decoder
from tunekeeper.trainer.trees import Packed, PrefixAttention, Recorder, Span, TreeAttention, pack, row_multiple
from tunekeeper.types import Tree

GROUP_TOKENS = 2048
MIN_ROOT = 8
"""A beginning that all prompts share is computed once, if it has at least so many tokens."""


class FrozenPrefixes:
    """The prefixes of a fixed list of trees: all of the trunk but the `n_active` last tokens."""

    def __init__(self, decoder: Decoder, trees: Sequence[Tree], n_active: int, *, budget_bytes: int) -> None:
        self.decoder, self.trees, self.n_active = decoder, trees, n_active
        shape = decoder.shape
        self.n_root = _shared_tokens([tree.trunk[:-n_active] for tree in trees])
        item_bytes = torch.empty(0, dtype=decoder.dtype).element_size()
        per_token = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * item_bytes
        total = sum(len(tree.trunk) - n_active - self.n_root for tree in trees)
        self.keeps = per_token * total <= budget_bytes
        # Groups follow the file, not the batch: a product's last bit depends on its neighbours in the row, and a
        # resumed run, which meets the trees in another order, must find the same bits.
        self._groups = self._group()
        self._kept: dict[int, Tensor] = {}
        self._root: Tensor | None = None

    def _group(self) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        group: list[int] = []
        room = 0
        for index, tree in enumerate(self.trees):
            size = len(tree.trunk) - self.n_root
            if size > room:
                group, room = [], GROUP_TOKENS
            group.append(index)
            groups[index] = group
            room -= size
        return groups

    def of(self, batch: Sequence[int]) -> list[Tensor]:
        """Keys and values of each tree's prefix, (L, 2, S, K, D)."""
        if not self.keeps:
            return self._whole(self._compute(batch))
        for index in batch:
            if index not in self._kept:
                group = self._groups[index]
                self._kept.update(zip(group, self._compute(group), strict=True))
        return self._whole([self._kept[index] for index in batch])

    def _whole(self, own: Sequence[Tensor]) -> list[Tensor]:
        if not self.n_root:
            return list(own)
        root = self._root_prefix()
        return [torch.cat([root, prefix], dim=2) for prefix in own]

    def _root_prefix(self) -> Tensor:
        if self._root is None:
            packed = pack([Tree(self.trees[0].trunk[: self.n_root], ())])
            (self._root,) = self._record(packed, TreeAttention(packed.spans))
        return self._root

    def _compute(self, batch: Sequence[int]) -> list[Tensor]:
        own = [Tree(self.trees[index].trunk[self.n_root : -self.n_active], ()) for index in batch]
        packed = pack(own, [self.n_root] * len(own), multiple=row_multiple(self.decoder))
        if not self.n_root:
            return self._record(packed, TreeAttention(packed.spans))
        return self._record(packed, PrefixAttention(packed.spans, [self._root_prefix()] * len(own)))

    def _record(self, packed: Packed, attention: TreeAttention | PrefixAttention) -> list[Tensor]:
        recorder = Recorder(attention)
        device = self.decoder.device
        none = torch.empty(0, dtype=torch.long, device=device)
        with torch.no_grad():
            self.decoder.hidden(packed.tokens_T.to(device), packed.positions_T.to(device), recorder, rows_N=none)
        return recorder.prefixes()

    def rest(self, index: int) -> tuple[Tree, int]:
        """What is trained of a tree, and the position that it begins at."""
        tree = self.trees[index]
        return Tree(tree.trunk[-self.n_active :], tree.branches, (), tree.line), len(tree.trunk) - self.n_active

    def attention(self, spans: Sequence[Span], batch: Sequence[int]) -> PrefixAttention:
        """Attention for a packed batch of `rest` trees."""
        return PrefixAttention(spans, self.of(batch))


def default_budget(device: torch.device) -> int:
    """A third of the memory of where the decoder is, in bytes: the same number in every run on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 3
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3


def _shared_tokens(prefixes: Sequence[tuple[int, ...]]) -> int:
    """Length of the beginning that all share, leaving each at least one token of its own; 0 if it is short."""
    if len(prefixes) < 2:
        return 0
    first, last = min(prefixes), max(prefixes)  # in sorted order, what these two share all share
    limit = min(len(prefix) for prefix in prefixes) - 1
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, limit)
    return shared if shared >= MIN_ROOT else 0
