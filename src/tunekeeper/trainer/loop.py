"""The training loop: trees in, steps out. `reinforce.py` has the one for answers that are sampled on the way.

    trainer = Trainer(decoder, trees, valid, config, seed=1)
    for step in trainer.steps():
        print(step.step, step.train_loss)
        trainer.save_state(directory)      # a run that loads this state goes on bit for bit
    trainer.save_model(directory, base_id="smollm2-135m")

The loop yields after each optimizer step; whoever drives it records, saves, pauses by not asking for the next.
"""

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tunekeeper.errors import InvalidConfig
from tunekeeper.models.adapters import save_adapter
from tunekeeper.models.decoder import Attention, Decoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter, new_adapter
from tunekeeper.trainer import checkpoint
from tunekeeper.trainer.config import Config, DpoConfig, SupervisedConfig, learning_rate_at, method_of
from tunekeeper.trainer.frozen import FrozenPrefixes, default_budget
from tunekeeper.trainer.losses import (
    LossInputs,
    branch_logprobs,
    cross_entropy,
    preference,
    rewards_of_pairs,
    token_logprobs,
)
from tunekeeper.trainer.optimizer import AdamW
from tunekeeper.trainer.step import Step
from tunekeeper.trainer.trees import Packed, TreeAttention, microbatches, pack, row_multiple
from tunekeeper.types import Json, Tree

MICROBATCH_TOKENS = 2048
"""Tokens of one forward and backward pass; a batch with more is split, with the same gradient.

A megabyte of activations each, with SmolLM2-135M in fp32; half as many take an eighth longer where bf16 is fast."""

DIVERGED = "the training loss is not a number: the learning rate is too high, or the data has extreme values"
"""Why a run stops whose loss is not finite."""


@dataclass(slots=True)
class Sums:
    """Sums over a batch: of the loss over what it is the mean of, of right tokens over their weights."""

    loss: float = 0.0
    count: float = 0.0
    right: float = 0.0
    weight: float = 0.0
    details: Counter[str] = field(default_factory=Counter)

    def means(self) -> "Measured":
        """Mean loss, mean token accuracy and mean details."""
        count = max(self.count, 1e-9)
        details = {name: value / count for name, value in self.details.items()}
        return Measured(self.loss / count, self.right / self.weight if self.weight else math.nan, details)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on some examples."""

    loss: float
    accuracy: float
    details: Json


class Forest:
    """A list of trees, and how a batch of it goes through the decoder."""

    def __init__(
        self,
        decoder: Decoder,
        trees: Sequence[Tree],
        adapter: LoraAdapter | None,
        budget_bytes: int,
        temperature: float = 1.0,
    ) -> None:
        self.decoder, self.trees, self.adapter, self.temperature = decoder, trees, adapter, temperature
        self.frozen: FrozenPrefixes | None = None
        if adapter is not None and adapter.scope == "completion":
            n_active = len(adapter.invocation_tokens)
            self.frozen = FrozenPrefixes(decoder, trees, n_active, budget_bytes=budget_bytes)
        self.sizes = [self._trained_size(index) for index in range(len(trees))]

    def _trained_size(self, index: int) -> int:
        return self.frozen.rest(index)[0].size if self.frozen else self.trees[index].size

    def logprobs(self, batch: Sequence[int]) -> tuple[Packed, Tensor, Tensor]:
        """The batch packed, the log-probability of each predicted token, and whether it is the likeliest."""
        packed, attention = self._packed(batch)
        device = self.decoder.device
        rows = (AdapterRows(self.adapter, 0, packed.size),) if self.adapter else ()
        hidden_NE = self._hidden(batch, packed, attention, rows)[: packed.target_N.shape[0]]
        bias_V = self.decoder.head_bias_V
        if self.temperature != 1:  # the log-probabilities that tokens were sampled with
            hidden_NE = hidden_NE / self.temperature
            bias_V = None if bias_V is None else bias_V / self.temperature
        return packed, *token_logprobs(hidden_NE, self.decoder.head_VE, packed.target_N.to(device), bias_V)

    def _packed(self, batch: Sequence[int]) -> tuple[Packed, Attention]:
        """What is computed of a batch, and what its tokens see."""
        if self.frozen is None:
            packed = pack([self.trees[index] for index in batch], multiple=row_multiple(self.decoder))
            return packed, TreeAttention(packed.spans)
        rest = [self.frozen.rest(index) for index in batch]
        trees, offsets = [tree for tree, _ in rest], [offset for _, offset in rest]
        packed = pack(trees, offsets, multiple=row_multiple(self.decoder))
        return packed, self.frozen.attention(packed.spans, batch)

    def _hidden(
        self, batch: Sequence[int], packed: Packed, attention: Attention, rows: Sequence[AdapterRows]
    ) -> Tensor:
        """Of the rows that predict a token, in the order of these."""
        device = self.decoder.device
        return self.decoder.hidden(
            packed.tokens_T.to(device),
            packed.positions_T.to(device),
            attention,
            adapters=rows,
            rows_N=packed.source_N.to(device),
        )

    def share(self, other: "Forest") -> None:
        """Take over what another run on the same trees and the same frozen weights has computed."""
        self.frozen = other.frozen


class Learner:
    """What every method trains: an adapter or all weights, with their optimizer, and how they are kept.

    A method says in `_one_step` what a step learns from, and in `_tensors` and `_meta` what else a resume needs.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: Config,
        *,
        seed: int,
        parent: LoraAdapter | None = None,
        invocation_tokens: tuple[int, ...] = (),
        microbatch_tokens: int = MICROBATCH_TOKENS,
    ) -> None:
        self.decoder, self.seed = decoder, seed
        self._config = config
        self.microbatch_tokens = microbatch_tokens
        self.adapter = self._start(parent, invocation_tokens)
        self.parameters = self._parameters()
        self.optimizer = AdamW(self.parameters, weight_decay=config.weight_decay)
        self.steps_per_epoch = self.total_steps = 0
        self.step = 0
        self.tokens = 0
        self.stopped: str | None = None

    def _start(self, parent: LoraAdapter | None, invocation_tokens: tuple[int, ...]) -> LoraAdapter | None:
        config = self._config
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
                    param=f"{self._prefix}.target_modules",
                )
        if config.adapter_scope == "completion" and not invocation_tokens:
            raise InvalidConfig(
                "adapter_scope 'completion' needs a chat template with a generation prompt.",
                param=f"{self._prefix}.adapter_scope",
            )
        return new_adapter(
            modules,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            seed=self.seed,
            scope=config.adapter_scope,
            invocation_tokens=invocation_tokens if config.adapter_scope == "completion" else (),
            device=self.decoder.device,
        )

    def _parameters(self) -> dict[str, Tensor]:
        if self.adapter is None:
            return self.decoder.trained_parameters()
        return {
            f"{name}.{part}": tensor
            for name, pair in self.adapter.pairs.items()
            for part, tensor in (("a", pair.a_RI), ("b", pair.b_OR))
        }

    @property
    def _prefix(self) -> str:
        return f"method.{method_of(self._config)}.hyperparameters"

    def prepare(self) -> str | None:
        """Do what comes once, before the first step, and say what it was; None: there was nothing to do."""
        return None

    def steps(self) -> Iterator[Step]:
        """Train from the present step to the end, or to an early stop; yields each optimizer step."""
        self.prepare()
        while self.step < self.total_steps and self.stopped is None:
            self._check()
            yield self._one_step()

    def _check(self) -> None:
        """Raises what makes further steps useless."""

    def _one_step(self) -> Step:
        raise NotImplementedError

    def _order(self, epoch: int, n: int) -> list[int]:
        """The order in which an epoch takes its `n` examples."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order: list[int] = torch.randperm(n, generator=generator).tolist()
        return order

    def _batch(self, n: int) -> list[int]:
        """What the next step learns from, of `n` examples."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        size = self._config.batch_size
        return self._order(epoch, n)[place * size : (place + 1) * size]

    def _update(self, rate: float) -> float:
        """Step along the gradients that were gathered; returns their norm."""
        norm = self.optimizer.clip(self._config.max_grad_norm)
        if math.isfinite(norm):  # what clipping makes of an infinite gradient must not reach the weights either
            self.optimizer.step(rate)
        self.optimizer.zero_grad()
        if self.adapter is not None:
            self.adapter.forget_fused()
        return norm

    def save_state(self, directory: Path) -> None:
        """Write all that a bit-exact resume needs, atomically."""
        tensors = {f"weight.{name}": tensor for name, tensor in self.parameters.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        meta = {
            "step": self.step,
            "optimizer_steps": self.optimizer.step_count,
            "tokens": self.tokens,
            "stopped": self.stopped,
            "config": self._config.to_wire(),
            **self._meta(),
        }
        checkpoint.save(directory, {**tensors, **self._tensors()}, meta)

    def load_state(self, directory: Path) -> None:
        """Go on from a saved state; raises InvalidData when it is of another run or cannot be read."""
        tensors, meta = checkpoint.load(directory)
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(tensors[f"weight.{name}"])
        state = {name.removeprefix("optimizer."): t for name, t in tensors.items() if name.startswith("optimizer.")}
        self.optimizer.restore(state, meta["optimizer_steps"])
        self.step, self.tokens, self.stopped = meta["step"], meta["tokens"], meta["stopped"]
        self._restore(tensors, meta)

    def _tensors(self) -> dict[str, Tensor]:
        return {}

    def _meta(self) -> Json:
        return {}

    def _restore(self, tensors: Mapping[str, Tensor], meta: Json) -> None:
        pass

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


class Trainer(Learner):
    """A run on examples that are there already: supervised, or on pairs. See the module's docstring."""

    def __init__(
        self,
        decoder: Decoder,
        trees: Sequence[Tree],
        valid: Sequence[Tree],
        config: SupervisedConfig | DpoConfig,
        *,
        seed: int,
        parent: LoraAdapter | None = None,
        invocation_tokens: tuple[int, ...] = (),
        budget_bytes: int | None = None,
        microbatch_tokens: int = MICROBATCH_TOKENS,
    ) -> None:
        super().__init__(
            decoder,
            config,
            seed=seed,
            parent=parent,
            invocation_tokens=invocation_tokens,
            microbatch_tokens=microbatch_tokens,
        )
        self.config = config
        check_trunks([*trees, *valid], self.adapter, self._prefix)
        budget_bytes = default_budget(decoder.device) if budget_bytes is None else budget_bytes
        self.train = Forest(decoder, trees, self.adapter, budget_bytes)
        self.valid = Forest(decoder, valid, self.adapter, budget_bytes // 4) if valid else None
        self.steps_per_epoch = -(-len(trees) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.n_epochs
        self.best_loss: float | None = None
        self.stale = 0
        self._reference: dict[str, Tensor] = {}

    def prepare(self) -> str | None:
        """Compute the log-probabilities of all pairs under the model that the run starts from, once."""
        if not isinstance(self.config, DpoConfig) or self._reference:
            return None
        assert self.step == 0, "a resumed run has its reference in its state"
        self._reference = {name: self._reference_of(forest) for name, forest in self._forests().items()}
        n = sum(len(forest.trees) for forest in self._forests().values())
        return f"Log-probabilities of {n} pairs under the starting model computed"

    def share(self, other: "Trainer") -> None:
        """Take over what another run from the same start on the same trees has computed: none of it is learned."""
        for name, forest in self._forests().items():
            forest.share(other._forests()[name])
        self._reference = other._reference

    def measure_valid(self) -> Measured:
        """Measure the whole validation set, which must be there."""
        assert self.valid is not None, "there is nothing to measure on"
        return self._evaluate(self.valid, range(len(self.valid.trees)))

    def _forests(self) -> dict[str, Forest]:
        return {"train": self.train, **({"valid": self.valid} if self.valid else {})}

    def _reference_of(self, forest: Forest) -> Tensor:
        """Summed log-probability of each branch, (trees, 2), on the processor."""
        sums = torch.zeros(len(forest.trees), 2)
        for part in microbatches(forest.sizes, range(len(forest.trees)), self.microbatch_tokens):
            sums[part] = self._sums_of(forest, part)
        return sums

    def _sums_of(self, forest: Forest, part: Sequence[int]) -> Tensor:
        # With gradients, though none is taken: so the same kernels run as in the first step's forward pass. What they
        # keep for the backward pass goes with this call's end, before the next part's is made.
        packed, logprob_N, _ = forest.logprobs(part)
        inputs = LossInputs(logprob_N.detach().cpu(), packed.weight_N, packed.branch_N)
        return branch_logprobs(inputs, 2 * len(part)).view(-1, 2)

    def _one_step(self) -> Step:
        began = time.perf_counter()
        batch = self._batch(len(self.train.trees))
        rate = learning_rate_at(self.config, self.step + 1, self.total_steps)
        sums, norm = self.optimize(batch, rate)
        self.step += 1
        self.tokens += sum(self.train.trees[index].size for index in batch)
        train = sums.means()
        epoch_end = self.step % self.steps_per_epoch == 0
        valid, full = self._measure(epoch_end)
        self.stopped = self._why_stop(train.loss, full if full is not None else valid)
        return Step(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.steps_per_epoch,
            train_loss=train.loss,
            train_mean_token_accuracy=train.accuracy,
            learning_rate=rate,
            grad_norm=norm,
            tokens=self.tokens,
            seconds=time.perf_counter() - began,
            valid_loss=valid.loss if valid else None,
            valid_mean_token_accuracy=valid.accuracy if valid else None,
            full_valid_loss=full.loss if full else None,
            full_valid_mean_token_accuracy=full.accuracy if full else None,
            epoch_end=epoch_end or self.stopped is not None,
            stop_reason=self.stopped,
            details={
                f"{prefix}_{name}": value
                for prefix, measured in (("train", train), ("valid", valid), ("full_valid", full))
                if measured is not None
                for name, value in measured.details.items()
            },
        )

    def optimize(self, batch: Sequence[int], rate: float) -> tuple[Sums, float]:
        """One optimizer step on these trees; what was summed up on the way, and the norm of the gradient."""
        sums = Sums()
        pairs = isinstance(self.config, DpoConfig)
        normalizer = float(len(batch)) if pairs else sum(_weight(self.train.trees[index]) for index in batch)
        for part in microbatches(self.train.sizes, batch, self.microbatch_tokens):
            self._loss("train", self.train, part, normalizer, sums).backward()
        return sums, self._update(rate)

    def _loss(self, name: str, forest: Forest, part: Sequence[int], normalizer: float, sums: Sums) -> Tensor:
        """The loss of some trees, ready to differentiate; what was measured goes to `sums`."""
        packed, logprob_N, right_N = forest.logprobs(part)
        device = logprob_N.device
        inputs = LossInputs(logprob_N, packed.weight_N.to(device), packed.branch_N.to(device))
        counted_N = inputs.weight_N
        if isinstance(self.config, DpoConfig):
            reference_B = self._reference[name][list(part)].view(-1).to(device)
            inputs = replace(inputs, reference_B=reference_B)
            loss = preference(inputs, normalizer, beta=self.config.beta)
            sums.count += len(part)
            sums.details.update(_pair_details(inputs, self.config.beta))
            counted_N = counted_N * (inputs.branch_N % 2 == 0)  # accuracy is of the preferred answers
        else:
            loss = cross_entropy(inputs, normalizer)
            sums.count += float(counted_N.sum())
        sums.loss += float(loss.detach()) * normalizer
        sums.right += float((right_N * counted_N).sum())
        sums.weight += float(counted_N.sum())
        return loss

    def _measure(self, epoch_end: bool) -> tuple[Measured | None, Measured | None]:
        if self.valid is None:
            return None, None
        last = self.step == self.total_steps
        valid = full = None
        if self.step % self.config.eval_steps == 0 or last:
            n = len(self.valid.trees)
            start = (self.step // self.config.eval_steps - 1) * self.config.batch_size
            valid = self._evaluate(self.valid, sorted({(start + i) % n for i in range(self.config.batch_size)}))
        if epoch_end or last or (valid is not None and self.config.early_stopping is not None):
            full = self._evaluate(self.valid, range(len(self.valid.trees)))
        return valid, full

    def _evaluate(self, forest: Forest, indices: Sequence[int]) -> Measured:
        sums = Sums()
        with torch.no_grad():
            for part in microbatches(forest.sizes, indices, self.microbatch_tokens):
                self._loss("valid", forest, part, 1.0, sums)
        return sums.means()

    def _why_stop(self, loss: float, measured: Measured | None) -> str | None:
        if loss != loss:
            return DIVERGED
        rule = self.config.early_stopping
        if rule is None or measured is None:
            return None
        if self.best_loss is None or measured.loss < self.best_loss - rule.min_delta:
            self.best_loss, self.stale = measured.loss, 0
            return None
        self.stale += 1
        if self.stale < rule.patience:
            return None
        return f"the validation loss has not fallen below {self.best_loss:.4f} for {self.stale} evaluations"

    def _tensors(self) -> dict[str, Tensor]:
        return {f"reference.{name}": sums for name, sums in self._reference.items()}

    def _meta(self) -> Json:
        return {"best_loss": self.best_loss, "stale": self.stale}

    def _restore(self, tensors: Mapping[str, Tensor], meta: Json) -> None:
        self.best_loss, self.stale = meta["best_loss"], meta["stale"]
        self._reference = {
            name: tensors[f"reference.{name}"] for name in self._forests() if f"reference.{name}" in tensors
        }


def _pair_details(inputs: LossInputs, beta: float) -> dict[str, float]:
    """Sums over the pairs of a batch."""
    chosen_P, rejected_P = (reward_P.detach() for reward_P in rewards_of_pairs(inputs, beta))
    return {
        "reward_margin": float((chosen_P - rejected_P).sum()),
        "preference_accuracy": float((chosen_P > rejected_P).float().sum()),
        "chosen_reward": float(chosen_P.sum()),
        "rejected_reward": float(rejected_P.sum()),
    }


def _weight(tree: Tree) -> float:
    return sum(tree.trunk_weights) + sum(sum(branch.weights) for branch in tree.branches)


def check_trunks(trees: Sequence[Tree], adapter: LoraAdapter | None, prefix: str) -> None:
    """Raises InvalidConfig where an adapter of completions would find no place to begin."""
    if adapter is None or adapter.scope != "completion":
        return
    invocation = adapter.invocation_tokens
    for tree in trees:
        if len(tree.trunk) <= len(invocation) or tree.trunk[-len(invocation) :] != invocation:
            raise InvalidConfig(
                f"Line {tree.line}: adapter_scope 'completion' needs prompts that end with the generation prompt.",
                param=f"{prefix}.adapter_scope",
            )
