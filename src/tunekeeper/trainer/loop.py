"""The training loop: trees in, steps out.

    trainer = Trainer(decoder, trees, valid, config, seed=1)
    for step in trainer.steps():
        print(step.step, step.train_loss)
        trainer.save_state(directory)      # a run that loads this state goes on bit for bit
    trainer.save_model(directory, base_id="smollm2-135m")

The loop yields after each optimizer step; whoever drives it records, saves, pauses by not asking for the next.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tunekeeper.errors import InvalidConfig
from tunekeeper.models.adapters import save_adapter
from tunekeeper.models.decoder import Attention, Decoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter, new_adapter
from tunekeeper.trainer import checkpoint
from tunekeeper.trainer.config import SupervisedConfig, learning_rate_at
from tunekeeper.trainer.frozen import FrozenPrefixes, default_budget
from tunekeeper.trainer.losses import LossInputs, cross_entropy, token_logprobs
from tunekeeper.trainer.optimizer import AdamW
from tunekeeper.trainer.step import Step
from tunekeeper.trainer.trees import Packed, TreeAttention, microbatches, pack
from tunekeeper.types import Tree

MICROBATCH_TOKENS = 2048
"""Tokens of one forward and backward pass; a batch with more is split, with the same gradient."""


@dataclass(slots=True)
class Sums:
    """Sums over predicted tokens."""

    loss: float = 0.0
    right: float = 0.0
    weight: float = 0.0

    def add(self, packed: Packed, logprob_N: Tensor, right_N: Tensor) -> None:
        """Take in a batch."""
        weight_N = packed.weight_N.to(logprob_N.device)
        self.loss -= float((logprob_N.detach() * weight_N).sum())
        self.right += float((right_N * weight_N).sum())
        self.weight += float(packed.weight_N.sum())

    def means(self) -> tuple[float, float]:
        """Mean loss and mean token accuracy."""
        return self.loss / max(self.weight, 1e-9), self.right / max(self.weight, 1e-9)


class _Forest:
    """A list of trees, and how a batch of it goes through the decoder."""

    def __init__(self, decoder: Decoder, trees: Sequence[Tree], adapter: LoraAdapter | None, budget_bytes: int) -> None:
        self.decoder, self.trees, self.adapter = decoder, trees, adapter
        self.frozen: FrozenPrefixes | None = None
        if adapter is not None and adapter.scope == "completion":
            n_active = len(adapter.invocation_tokens)
            self.frozen = FrozenPrefixes(decoder, trees, n_active, budget_bytes=budget_bytes)
        self.sizes = [self._trained_size(index) for index in range(len(trees))]

    def _trained_size(self, index: int) -> int:
        return self.frozen.rest(index)[0].size if self.frozen else self.trees[index].size

    def logprobs(self, batch: Sequence[int]) -> tuple[Packed, Tensor, Tensor]:
        attention: Attention
        if self.frozen:
            rest = [self.frozen.rest(index) for index in batch]
            packed = pack([tree for tree, _ in rest], [offset for _, offset in rest])
            attention = self.frozen.attention(packed.spans, batch)
        else:
            packed = pack([self.trees[index] for index in batch])
            attention = TreeAttention(packed.spans)
        device = self.decoder.device
        rows = (AdapterRows(self.adapter, 0, packed.size),) if self.adapter else ()
        hidden_TE = self.decoder.hidden(
            packed.tokens_T.to(device), packed.positions_T.to(device), attention, adapters=rows
        )
        source_N, target_N = packed.source_N.to(device), packed.target_N.to(device)
        return packed, *token_logprobs(hidden_TE[source_N], self.decoder.head_VE, target_N, self.decoder.head_bias_V)


class Trainer:
    """One supervised run. See the module's docstring."""

    def __init__(
        self,
        decoder: Decoder,
        trees: Sequence[Tree],
        valid: Sequence[Tree],
        config: SupervisedConfig,
        *,
        seed: int,
        parent: LoraAdapter | None = None,
        invocation_tokens: tuple[int, ...] = (),
        budget_bytes: int | None = None,
        microbatch_tokens: int = MICROBATCH_TOKENS,
    ) -> None:
        self.decoder, self.config, self.seed = decoder, config, seed
        self.microbatch_tokens = microbatch_tokens
        self.adapter = self._start(parent, invocation_tokens)
        self.parameters = self._parameters()
        _check_trunks([*trees, *valid], self.adapter)
        budget_bytes = default_budget() if budget_bytes is None else budget_bytes
        self.train = _Forest(decoder, trees, self.adapter, budget_bytes)
        self.valid = _Forest(decoder, valid, self.adapter, budget_bytes // 4) if valid else None
        self.optimizer = AdamW(self.parameters, weight_decay=config.weight_decay)
        self.steps_per_epoch = -(-len(trees) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.n_epochs
        self.step = 0
        self.tokens = 0
        self.stopped: str | None = None
        self.best_loss: float | None = None
        self.stale = 0

    def _start(self, parent: LoraAdapter | None, invocation_tokens: tuple[int, ...]) -> LoraAdapter | None:
        config = self.config
        if config.full_finetune:
            return None
        if parent is not None:
            for tensor in parent.parameters():
                tensor.requires_grad_()
            return parent
        modules = self.decoder.linear_modules()
        if config.target_modules != ("all-linear",):
            wanted = set(config.target_modules)
            modules = {name: size for name, size in modules.items() if name.rsplit(".", 1)[-1] in wanted}
            missing = wanted - {name.rsplit(".", 1)[-1] for name in modules}
            if missing:
                known = sorted({name.rsplit(".", 1)[-1] for name in self.decoder.linear_modules()})
                raise InvalidConfig(
                    f"This model has no linear layer {sorted(missing)[0]!r}; it has {', '.join(known)}.",
                    param="method.supervised.hyperparameters.target_modules",
                )
        if config.adapter_scope == "completion" and not invocation_tokens:
            raise InvalidConfig(
                "adapter_scope 'completion' needs a chat template with a generation prompt.",
                param="method.supervised.hyperparameters.adapter_scope",
            )
        return new_adapter(
            modules,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            seed=self.seed,
            scope=config.adapter_scope,
            invocation_tokens=invocation_tokens if config.adapter_scope == "completion" else (),
        )

    def _parameters(self) -> dict[str, Tensor]:
        if self.adapter is None:
            return self.decoder.trained_parameters()
        return {
            f"{name}.{part}": tensor
            for name, pair in self.adapter.pairs.items()
            for part, tensor in (("a", pair.a_RI), ("b", pair.b_OR))
        }

    def steps(self) -> Iterator[Step]:
        """Train from the present step to the end, or to an early stop; yields each optimizer step."""
        while self.step < self.total_steps and self.stopped is None:
            yield self._one_step()

    def _one_step(self) -> Step:
        began = time.perf_counter()
        epoch, place = divmod(self.step, self.steps_per_epoch)
        batch = self._order(epoch)[place * self.config.batch_size : (place + 1) * self.config.batch_size]
        rate = learning_rate_at(self.config, self.step + 1, self.total_steps)
        sums, norm = self.optimize(batch, rate)
        self.step += 1
        self.tokens += sum(self.train.trees[index].size for index in batch)
        loss, accuracy = sums.means()
        epoch_end = place + 1 == self.steps_per_epoch
        valid, full = self._measure(epoch_end)
        self.stopped = self._why_stop(loss, full if full is not None else valid)
        return Step(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.steps_per_epoch,
            train_loss=loss,
            train_mean_token_accuracy=accuracy,
            learning_rate=rate,
            grad_norm=norm,
            tokens=self.tokens,
            seconds=time.perf_counter() - began,
            valid_loss=valid[0] if valid else None,
            valid_mean_token_accuracy=valid[1] if valid else None,
            full_valid_loss=full[0] if full else None,
            full_valid_mean_token_accuracy=full[1] if full else None,
            epoch_end=epoch_end or self.stopped is not None,
            stop_reason=self.stopped,
        )

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order: list[int] = torch.randperm(len(self.train.trees), generator=generator).tolist()
        return order

    def optimize(self, batch: Sequence[int], rate: float) -> tuple[Sums, float]:
        """One optimizer step on these trees; what was summed up on the way, and the norm of the gradient."""
        sums = Sums()
        weight = sum(_weight(self.train.trees[index]) for index in batch)
        for part in microbatches(self.train.sizes, batch, self.microbatch_tokens):
            packed, logprob_N, right_N = self.train.logprobs(part)
            weight_N = packed.weight_N.to(logprob_N.device)
            cross_entropy(LossInputs(logprob_N, weight_N, packed.branch_N), weight).backward()
            sums.add(packed, logprob_N, right_N)
        norm = self.optimizer.clip(self.config.max_grad_norm)
        if norm == norm:  # a gradient that is not a number must not reach the weights
            self.optimizer.step(rate)
        self.optimizer.zero_grad()
        if self.adapter is not None:
            self.adapter.forget_fused()
        return sums, norm

    def _measure(self, epoch_end: bool) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        if self.valid is None:
            return None, None
        last = self.step == self.total_steps
        valid = full = None
        if self.step % self.config.eval_steps == 0 or last:
            n = len(self.valid.trees)
            start = (self.step // self.config.eval_steps - 1) * self.config.batch_size
            valid = self._evaluate(sorted({(start + i) % n for i in range(self.config.batch_size)}))
        if epoch_end or last or (valid is not None and self.config.early_stopping is not None):
            full = self._evaluate(range(len(self.valid.trees)))
        return valid, full

    def _evaluate(self, indices: Sequence[int]) -> tuple[float, float]:
        assert self.valid is not None
        sums = Sums()
        with torch.no_grad():
            for part in microbatches(self.valid.sizes, indices, self.microbatch_tokens):
                sums.add(*self.valid.logprobs(part))
        return sums.means()

    def _why_stop(self, loss: float, measured: tuple[float, float] | None) -> str | None:
        if loss != loss:
            return "the training loss is not a number: the learning rate is too high, or the data has extreme values"
        rule = self.config.early_stopping
        if rule is None or measured is None:
            return None
        if self.best_loss is None or measured[0] < self.best_loss - rule.min_delta:
            self.best_loss, self.stale = measured[0], 0
            return None
        self.stale += 1
        if self.stale < rule.patience:
            return None
        return f"the validation loss has not fallen below {self.best_loss:.4f} for {self.stale} evaluations"

    def save_state(self, directory: Path) -> None:
        """Write all that a bit-exact resume needs, atomically."""
        tensors = {f"weight.{name}": tensor for name, tensor in self.parameters.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        meta = {
            "step": self.step,
            "optimizer_steps": self.optimizer.step_count,
            "tokens": self.tokens,
            "stopped": self.stopped,
            "best_loss": self.best_loss,
            "stale": self.stale,
            "config": self.config.to_wire(),
        }
        checkpoint.save(directory, tensors, meta)

    def load_state(self, directory: Path) -> None:
        """Go on from a saved state; raises InvalidData when it is of another run or cannot be read."""
        tensors, meta = checkpoint.load(directory)
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(tensors[f"weight.{name}"])
        state = {name.removeprefix("optimizer."): t for name, t in tensors.items() if name.startswith("optimizer.")}
        self.optimizer.restore(state, meta["optimizer_steps"])
        self.step, self.tokens, self.stopped = meta["step"], meta["tokens"], meta["stopped"]
        self.best_loss, self.stale = meta["best_loss"], meta["stale"]

    def save_model(self, directory: Path, *, base_id: str, base_directory: Path | None = None) -> None:
        """Write what serving loads: the adapter in PEFT's format, or all weights after full fine-tuning, atomically.

        Full weights need `base_directory`, whose config and tokenizer go with them.
        """

        def write(fresh: Path) -> None:
            if self.adapter is not None:
                save_adapter(self.adapter, fresh, base_id=base_id)
                return
            assert base_directory is not None, "full weights need the base's config and tokenizer"
            for file in base_directory.iterdir():
                if file.suffix in {".json", ".jinja", ".model", ".txt"} and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, fresh / file.name)
            save_file(self.decoder.checkpoint(), fresh / "model.safetensors", metadata={"format": "pt"})

        checkpoint.write_directory(directory, write)


def _weight(tree: Tree) -> float:
    return sum(tree.trunk_weights) + sum(sum(branch.weights) for branch in tree.branches)


def _check_trunks(trees: Sequence[Tree], adapter: LoraAdapter | None) -> None:
    if adapter is None or adapter.scope != "completion":
        return
    invocation = adapter.invocation_tokens
    for tree in trees:
        if len(tree.trunk) <= len(invocation) or tree.trunk[-len(invocation) :] != invocation:
            raise InvalidConfig(
                f"Line {tree.line}: adapter_scope 'completion' needs prompts that end with the generation prompt.",
                param="method.supervised.hyperparameters.adapter_scope",
            )
