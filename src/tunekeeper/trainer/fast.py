"""Fast runs: adapters on the top third of the layers only, over activations of the rest that are computed once.

The lower layers are frozen and have no adapter, so what they make of a tree is the same at every step, in every epoch
and in every trial of a sweep. What is learned is not what a full run learns, for two thirds of the layers stay as they
are; its gradients are those of a run with adapters on these layers only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunekeeper.errors import Unsupported
from tunekeeper.models.decoder import Attention, Decoder, LlamaDecoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter
from tunekeeper.trainer.config import DpoConfig, SupervisedConfig
from tunekeeper.trainer.frozen import default_budget
from tunekeeper.trainer.loop import MICROBATCH_TOKENS, Forest, Trainer
from tunekeeper.trainer.trees import Packed, microbatches
from tunekeeper.types import Tree

GROUP_TOKENS = 2048


class TopLayers(LlamaDecoder):
    """A decoder whose adapters are on its top third, and which shares everything with the whole one."""

    def __init__(self, whole: LlamaDecoder) -> None:
        vars(self).update(vars(whole))
        self.first = first_trained(whole.shape.n_layers)

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Every linear layer of the top third."""
        names = {
            name
            for layer in self.layers[self.first :]
            for name in (*layer.qkv_names, *layer.o_names, *layer.gate_up_names, *layer.down_names)
        }
        return {name: size for name, size in super().linear_modules().items() if name in names}


def first_trained(n_layers: int) -> int:
    """The lowest layer of the top third, which has at least one."""
    return n_layers - max(1, n_layers // 3)


class FastForest(Forest):
    """A forest whose batches begin at the lowest trained layer."""

    def __init__(
        self, decoder: TopLayers, trees: Sequence[Tree], adapter: LoraAdapter | None, budget_bytes: int
    ) -> None:
        super().__init__(decoder, trees, adapter, budget_bytes // 2)
        self.top = decoder
        n_tokens = sum(self.sizes)
        self._keeps = n_tokens * decoder.shape.hidden_size * 4 <= budget_bytes // 2
        # In groups that follow the file: see FrozenPrefixes.
        groups = microbatches(self.sizes, range(len(trees)), GROUP_TOKENS)
        self._groups = {index: group for group in groups for index in group}
        self._kept: dict[int, Tensor] = {}

    def share(self, other: Forest) -> None:
        """Take over the activations too."""
        super().share(other)
        assert isinstance(other, FastForest)
        self._kept = other._kept

    def _hidden(
        self, batch: Sequence[int], packed: Packed, attention: Attention, rows: Sequence[AdapterRows]
    ) -> Tensor:
        streams = self._streams(batch)
        filler = packed.size - sum(stream.shape[0] for stream in streams)
        x_TE = torch.cat([*streams, streams[0].new_zeros(filler, streams[0].shape[1])])
        positions_T = packed.positions_T.to(self.decoder.device)
        source_N = packed.source_N.to(self.decoder.device)
        return self.top.hidden_above(self.top.first, x_TE, positions_T, attention, adapters=rows, rows_N=source_N)

    def _streams(self, batch: Sequence[int]) -> list[Tensor]:
        """What the lowest trained layer reads of each tree, (T, E) in fp32."""
        if not self._keeps:
            return self._compute(batch)
        for index in batch:
            if index not in self._kept:
                group = self._groups[index]
                self._kept.update(zip(group, self._compute(group), strict=True))
        return [self._kept[index] for index in batch]

    def _compute(self, batch: Sequence[int]) -> list[Tensor]:
        packed, attention = self._packed(batch)
        device = self.decoder.device
        with torch.no_grad():
            x_TE = self.top.stream_below(
                self.top.first, packed.tokens_T.to(device), packed.positions_T.to(device), attention
            )
        # Copies, not views: a view would keep its whole group alive, and rows that begin anywhere are slower to read.
        return [x_TE[span.start : span.ends[-1]].clone() for span in packed.spans]


class FastTrainer(Trainer):
    """A `Trainer` of the top third of the layers; see the module's docstring."""

    def __init__(
        self,
        decoder: Decoder,
        trees: Sequence[Tree],
        valid: Sequence[Tree],
        config: SupervisedConfig | DpoConfig,
        *,
        seed: int,
        invocation_tokens: tuple[int, ...] = (),
        budget_bytes: int | None = None,
        microbatch_tokens: int = MICROBATCH_TOKENS,
    ) -> None:
        if not isinstance(decoder, LlamaDecoder):
            raise Unsupported(
                "sweep.fast needs a model of the Llama family (Llama, SmolLM, Mistral, Qwen); leave it out.",
                param="sweep.fast",
            )
        top = TopLayers(decoder)
        budget_bytes = default_budget(decoder.device) if budget_bytes is None else budget_bytes
        super().__init__(
            top,
            trees,
            valid,
            config,
            seed=seed,
            invocation_tokens=invocation_tokens,
            budget_bytes=budget_bytes,
            microbatch_tokens=microbatch_tokens,
        )
        self.train = FastForest(top, trees, self.adapter, budget_bytes)
        self.valid = FastForest(top, valid, self.adapter, budget_bytes // 4) if valid else None
