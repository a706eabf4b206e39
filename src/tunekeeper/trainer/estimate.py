"""What a run will take, before it starts: counted where it can be counted, measured where it must be measured."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from tunekeeper.models.decoder import DecoderShape
from tunekeeper.trainer.config import Config, DpoConfig
from tunekeeper.trainer.loop import MICROBATCH_TOKENS, Forest
from tunekeeper.trainer.losses import CHUNK
from tunekeeper.trainer.optimizer import AdamW
from tunekeeper.types import Json, Tree

SAMPLE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured on this machine with this model: seconds a token."""

    prefix_s_per_token: float
    """Prompts that are computed once (scope "completion"); 0 where there are none."""
    trained_s_per_token: float
    """Forward and backward pass."""
    measured_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run takes. Seconds are of this machine with nothing else running."""

    training_tokens: int
    """Tokens of the training file as the model sees it."""
    billable_tokens: int
    """training_tokens x n_epochs: what a hosted service would charge."""
    n_epochs: int
    steps: int
    est_wall_seconds: float
    peak_memory_bytes: int
    tokens_per_second: float
    truncated_examples: int = 0
    est_cost: Json | None = None

    def to_wire(self) -> Json:
        """As JSON."""
        return asdict(self)


def measure(forest: Forest, optimizer: AdamW) -> Speed:
    """Run a few trees forward and backward, without an optimizer step; takes about as long as one or two steps."""
    sample: list[int] = []
    trees = forest.trees
    for index, tree in enumerate(trees):
        if sample and sum(trees[i].size for i in sample) + tree.size > SAMPLE_TOKENS:
            break
        sample.append(index)
    prefix_tokens = 0
    prefix_s = 0.0
    if forest.frozen is not None:
        prefix_tokens = sum(forest.frozen.rest(index)[1] for index in sample)
        began = time.perf_counter()
        forest.frozen.of(sample)
        prefix_s = time.perf_counter() - began
    trained_tokens = sum(forest.sizes[index] for index in sample)
    seconds = []
    for _ in range(2):  # the first pass also warms caches and allocator
        began = time.perf_counter()
        _, logprob_N, _ = forest.logprobs(sample)
        torch.autograd.backward(logprob_N.mean())
        seconds.append(time.perf_counter() - began)
        optimizer.zero_grad()
    return Speed(
        prefix_s / max(prefix_tokens, 1),
        min(seconds) / max(trained_tokens, 1),
        prefix_tokens + trained_tokens,
    )


def estimate(
    trees: Sequence[Tree],
    valid: Sequence[Tree],
    config: Config,
    shape: DecoderShape,
    speed: Speed,
    *,
    n_active: int = 0,
    weight_bytes: int = 0,
    truncated: int = 0,
    price_per_hour: float = 0.0,
    currency: str = "USD",
    sampling_s: float = 0.0,
) -> Estimate:
    """Count tokens and steps, and turn the measured speed into seconds, money and memory.

    `sampling_s` is what sampling answers takes beside the training on them.
    """
    tokens = sum(tree.size for tree in trees)
    prefix = sum(len(tree.trunk) - n_active for tree in [*trees, *valid]) if config.adapter_scope == "completion" else 0
    trained = tokens - sum(len(t.trunk) - n_active for t in trees) if prefix else tokens
    measured = (
        sum(tree.size for tree in valid)
        if not prefix
        else sum(tree.size - len(tree.trunk) + n_active for tree in valid)
    )
    steps = config.n_epochs * -(-len(trees) // config.batch_size)
    # Pairs are read once more before the first step, under the starting model.
    # A forward pass alone is about two fifths of forward and backward; each epoch ends with the whole validation set.
    seconds = (
        prefix * speed.prefix_s_per_token
        + config.n_epochs * trained * speed.trained_s_per_token
        + 0.4 * config.n_epochs * measured * speed.trained_s_per_token
        + (0.4 * (trained + measured) * speed.trained_s_per_token if isinstance(config, DpoConfig) else 0.0)
        + sampling_s
    )
    return Estimate(
        training_tokens=tokens,
        billable_tokens=tokens * config.n_epochs,
        n_epochs=config.n_epochs,
        steps=steps,
        est_wall_seconds=round(seconds, 3),
        peak_memory_bytes=peak_memory(config, shape, trees, weight_bytes, prefix),
        tokens_per_second=round(tokens * config.n_epochs / max(seconds, 1e-9), 1),
        truncated_examples=truncated,
        est_cost={
            "amount": round(seconds / 3600 * price_per_hour, 4),
            "currency": currency,
            "basis": f"{price_per_hour} {currency} an hour of this machine",
        },
    )


def peak_memory(
    config: Config,
    shape: DecoderShape,
    trees: Sequence[Tree],
    weight_bytes: int,
    prefix_tokens: int,
) -> int:
    """Bytes: weights, what is learned with its gradient and two moments, activations of one pass, logits."""
    item = 2 if config.dtype == "bf16" else 4
    e, f, q = shape.hidden_size, shape.inner_size, shape.n_heads * shape.head_dim
    kv = shape.n_kv_heads * shape.head_dim
    per_layer = e * (e + f) + 2 * e * (q + kv) if config.full_finetune else 0
    learned = shape.n_layers * per_layer
    if not config.full_finetune:
        widths = 2 * (e + q) + 2 * (e + kv) + 3 * (e + f)
        learned = shape.n_layers * config.lora_rank * widths
    rows = min(MICROBATCH_TOKENS, max((tree.size for tree in trees), default=0) * config.batch_size)
    saved = shape.n_layers * rows * (item * (2 * q + 2 * kv + 2 * f) + 4 * 2 * e)
    logits = 2 * CHUNK * shape.vocab_size * 4
    kept = 2 * shape.n_layers * kv * prefix_tokens * item
    return int(weight_bytes + learned * 16 + saved + logits + kept)
