"""The oracle of the trainer's tests: one sequence a row, full logits, ordinary torch, differentiable throughout."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor

from tunekeeper.models.decoder import Decoder
from tunekeeper.models.load import read_config
from tunekeeper.models.lora import LoraAdapter, new_adapter
from tunekeeper.types import Branch


def drawn_adapter(decoder: Decoder, seed: int = 3) -> LoraAdapter:
    """An adapter that changes something: fresh ones have B = 0."""
    adapter = new_adapter(decoder.linear_modules(), rank=4, alpha=8.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in adapter.pairs.values():
            pair.b_OR.normal_(0, 0.1, generator=generator)
    return adapter


def factors_of(adapter: LoraAdapter) -> dict[str, Tensor]:
    """Copies of the adapter's factors to differentiate by."""
    return {
        f"{name}.{part}": tensor.detach().clone().requires_grad_()
        for name, pair in adapter.pairs.items()
        for part, tensor in (("a", pair.a_RI), ("b", pair.b_OR))
    }


def merged(weights: Mapping[str, Tensor], adapter: LoraAdapter) -> dict[str, Tensor]:
    """A checkpoint's weights with the adapter's change added."""
    changes = {f"{name}.weight": adapter.scale * pair.b_OR @ pair.a_RI for name, pair in adapter.pairs.items()}
    return dict(weights) | {name: weights[name] + change.detach() for name, change in changes.items()}


def naive_logprobs(
    base: Path,
    factors: dict[str, Tensor],
    scale: float,
    trunk: tuple[int, ...],
    branch: Branch,
    temperature: float = 1.0,
) -> Tensor:
    """Weighted log-probability of each token of a branch, (tokens,), through weights with the change added."""
    weights = load_file(base / "model.safetensors")
    names = {name.rpartition(".")[0] for name in factors}
    changed = {f"{n}.weight": weights[f"{n}.weight"] + scale * factors[f"{n}.b"] @ factors[f"{n}.a"] for n in names}
    logits = plain_llama(base, weights | changed)(torch.tensor(trunk + branch.tokens))[len(trunk) - 1 : -1]
    logprobs = -F.cross_entropy(logits / temperature, torch.tensor(branch.tokens), reduction="none")
    return logprobs * torch.tensor(branch.weights)


def check_gradients(adapter: LoraAdapter, factors: dict[str, Tensor]) -> None:
    """Within 1e-4 relative, tensor by tensor."""
    for name, pair in adapter.pairs.items():
        for part, ours in (("a", pair.a_RI.grad), ("b", pair.b_OR.grad)):
            theirs = factors[f"{name}.{part}"].grad
            assert ours is not None
            assert theirs is not None
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name


def plain_llama(base: Path, weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The model written out in a few lines of ordinary torch, differentiable in every weight."""
    said = read_config(base)
    heads, kv, size = said["num_attention_heads"], said["num_key_value_heads"], said["head_dim"]
    eps, theta = said["rms_norm_eps"], said["rope_theta"]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weights[name]

    def turn(x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[0])[:, None] / theta ** (torch.arange(0, size, 2) / size)
        cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def run(ids: Tensor) -> Tensor:
        x = weights["model.embed_tokens.weight"][ids]
        for n in range(said["num_hidden_layers"]):
            at = f"model.layers.{n}"
            y = norm(x, f"{at}.input_layernorm.weight")
            q, k, v = (y @ weights[f"{at}.self_attn.{p}_proj.weight"].T for p in "qkv")
            q, k = turn(q.view(-1, heads, size)), turn(k.view(-1, kv, size))
            k, v = (z.view(-1, kv, size).repeat_interleave(heads // kv, 1) for z in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf"))
            seen = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(ids), -1)
            x = x + seen @ weights[f"{at}.self_attn.o_proj.weight"].T
            y = norm(x, f"{at}.post_attention_layernorm.weight")
            gate, up = (y @ weights[f"{at}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
            x = x + (F.silu(gate) * up) @ weights[f"{at}.mlp.down_proj.weight"].T
        return norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T

    return run
