"""Decoders: packed tokens in, hidden states out. The embedded engine and the trainer run on the same one.

A batch is one row of T tokens without padding. What a token may see is not the decoder's business: it hands each
layer's queries, keys and values to an `Attention`, which knows the trees of a training batch or the caches of
running requests.

`LlamaDecoder` is our own, for the Llama family (Llama, SmolLM, Mistral, Qwen2, Qwen3): queries, keys and values in
one product, gate and up in one product, fp32 residual stream, norms and head, and a backward pass that saves
little. `models/foreign.py` runs every other causal model through transformers, with the same `Attention`.

Shapes: T tokens, E hidden size, H heads, K key-value heads, D head size, F inner size of the MLP, N rows, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tunekeeper.errors import Unsupported
from tunekeeper.models.lora import AdapterRows, chosen_rows, lora_linear, low_rank_backward, low_rank_forward
from tunekeeper.types import Json


class Attention(Protocol):
    """What the tokens of a batch see; the rotary embedding is applied already."""

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Attend with scale 1/sqrt(D); return (T, H, D)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """The sizes that caches and estimates need."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    inner_size: int
    vocab_size: int
    max_positions: int


class Decoder(Protocol):
    """A causal language model without its sampling."""

    shape: DecoderShape
    dtype: torch.dtype
    """Of the base weights, and of the keys and values."""
    device: torch.device

    def hidden(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        *,
        adapters: Sequence[AdapterRows] = (),
        rows_N: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm of the rows that are asked for, or of all: (N, E) in fp32.

        Attention aside, the last layer is computed for these only. A row may be asked for more than once; where
        an adapter acts on some rows only, they ascend.
        """
        ...

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Logits, (N, V) in fp32."""
        ...

    @property
    def head_VE(self) -> Tensor:
        """The head's weight, fp32."""
        ...

    @property
    def head_bias_V(self) -> Tensor | None:
        """The head's bias, where it has one."""
        ...

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Every linear layer that an adapter may change: name -> (outputs, inputs). The head is none of them."""
        ...

    def trained_parameters(self) -> dict[str, Tensor]:
        """The weights of full fine-tuning, by a stable name; asking for them makes them require gradients."""
        ...

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights under the names of the checkpoint on disk."""
        ...


LLAMA_FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
    """What `config.json` says of a Llama-family model."""

    shape: DecoderShape
    norm_eps: float
    rope_theta: float
    rope_scaling: Json | None
    tied_head: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Read a checkpoint's config; raises Unsupported for what our decoder does not compute exactly."""
        reason = unsupported_reason(config)
        if reason:
            raise Unsupported(f"The own decoder cannot run this model: {reason}.", param="model")
        rope = config.get("rope_parameters") or {}
        scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
        heads = int(config["num_attention_heads"])
        return cls(
            shape=DecoderShape(
                n_layers=int(config["num_hidden_layers"]),
                n_heads=heads,
                n_kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
                hidden_size=int(config["hidden_size"]),
                inner_size=int(config["intermediate_size"]),
                vocab_size=int(config["vocab_size"]),
                max_positions=int(config.get("max_position_embeddings", 2048)),
            ),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            rope_scaling=scaling,
            tied_head=bool(config.get("tie_word_embeddings", False)),
        )


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Why our own decoder does not run this config, or None if it does."""
    if config.get("model_type") not in LLAMA_FAMILY:
        return f"model_type is {config.get('model_type')!r}"
    if config.get("hidden_act", "silu") not in {"silu", "swish"}:
        return f"hidden_act is {config['hidden_act']!r}"
    if config.get("mlp_bias"):
        return "it has biases in the MLP"
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", config.get("model_type") == "mistral"):
        return f"it attends in a sliding window of {window} tokens"
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in {"default", "linear", "llama3"}:
        return f"its rotary embedding is scaled by {kind!r}"
    return None


@dataclass(slots=True)
class _Layer:
    norm1_E: Tensor
    qkv_OE: Tensor
    qkv_bias_O: Tensor | None
    q_norm_D: Tensor | None
    k_norm_D: Tensor | None
    o_EO: Tensor
    o_bias_E: Tensor | None
    norm2_E: Tensor
    gate_up_FE: Tensor
    down_EF: Tensor
    qkv_names: tuple[str, ...]
    o_names: tuple[str, ...]
    gate_up_names: tuple[str, ...]
    down_names: tuple[str, ...]


class LlamaDecoder:
    """The Llama family, packed; see the module's docstring."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        self.config, self.shape, self.dtype, self.device = config, config.shape, dtype, torch.device(device)

        def take(name: str, kind: torch.dtype = dtype) -> Tensor:
            # A copy: one view of a mapped file keeps all of its pages, those of what lies side by side below too.
            return weights[name].to(self.device, kind, copy=True)

        def side_by_side(prefix: str, names: Sequence[str], suffix: str) -> Tensor:
            return torch.cat([weights[f"{prefix}.{name}.{suffix}"].to(self.device, dtype) for name in names])

        self.embedding_VE = take("model.embed_tokens.weight", torch.float32)
        self._head_VE = self.embedding_VE if config.tied_head else take("lm_head.weight", torch.float32)
        self.final_norm_E = take("model.norm.weight", torch.float32)
        self.layers: list[_Layer] = []
        for index in range(self.shape.n_layers):
            at, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
            biased = f"{at}.q_proj.bias" in weights
            normed = f"{at}.q_norm.weight" in weights
            self.layers.append(
                _Layer(
                    norm1_E=take(f"model.layers.{index}.input_layernorm.weight", torch.float32),
                    qkv_OE=side_by_side(at, ("q_proj", "k_proj", "v_proj"), "weight"),
                    qkv_bias_O=side_by_side(at, ("q_proj", "k_proj", "v_proj"), "bias") if biased else None,
                    q_norm_D=take(f"{at}.q_norm.weight", torch.float32) if normed else None,
                    k_norm_D=take(f"{at}.k_norm.weight", torch.float32) if normed else None,
                    o_EO=take(f"{at}.o_proj.weight"),
                    o_bias_E=take(f"{at}.o_proj.bias") if f"{at}.o_proj.bias" in weights else None,
                    norm2_E=take(f"model.layers.{index}.post_attention_layernorm.weight", torch.float32),
                    gate_up_FE=side_by_side(mlp, ("gate_proj", "up_proj"), "weight"),
                    down_EF=take(f"{mlp}.down_proj.weight"),
                    qkv_names=(f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj"),
                    o_names=(f"{at}.o_proj",),
                    gate_up_names=(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
                    down_names=(f"{mlp}.down_proj",),
                )
            )
        s = self.shape
        self.qkv_widths = (s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim, s.n_kv_heads * s.head_dim)
        self._frequencies_D = rotary_frequencies(config).to(self.device)
        self._cos = self._sin = torch.empty(0)

    @property
    def head_VE(self) -> Tensor:
        """The head's weight, fp32."""
        return self._head_VE

    @property
    def head_bias_V(self) -> Tensor | None:
        """None: the Llama family's head has no bias."""
        return None

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Every linear layer but the head: name -> (outputs, inputs)."""
        e, f = self.shape.hidden_size, self.shape.inner_size
        q, kv, _ = self.qkv_widths
        modules: dict[str, tuple[int, int]] = {}
        for layer in self.layers:
            modules |= dict(zip(layer.qkv_names, ((q, e), (kv, e), (kv, e)), strict=True))
            modules[layer.o_names[0]] = (e, q)
            modules |= dict.fromkeys(layer.gate_up_names, (f, e))
            modules[layer.down_names[0]] = (e, f)
        return modules

    def hidden(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        *,
        adapters: Sequence[AdapterRows] = (),
        rows_N: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm of the rows that are asked for, or of all: (N, E) in fp32."""
        x_TE = F.embedding(tokens_T, self.embedding_VE)
        return self.hidden_above(0, x_TE, positions_T, attention, adapters=adapters, rows_N=rows_N)

    def stream_below(self, layer: int, tokens_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
        """The residual stream that a layer reads, without adapters, (T, E) in fp32."""
        x_TE = F.embedding(tokens_T, self.embedding_VE)
        cos_T1D, sin_T1D = self._rotary(positions_T)
        for index in range(layer):
            x_TE = self._layer(index, x_TE, cos_T1D, sin_T1D, attention, ())
        return x_TE

    def hidden_above(
        self,
        layer: int,
        x_TE: Tensor,
        positions_T: Tensor,
        attention: Attention,
        *,
        adapters: Sequence[AdapterRows] = (),
        rows_N: Tensor | None = None,
    ) -> Tensor:
        """`hidden` from the residual stream that a layer reads."""
        cos_T1D, sin_T1D = self._rotary(positions_T)
        last = self.shape.n_layers - 1
        for index in range(layer, last):
            x_TE = self._layer(index, x_TE, cos_T1D, sin_T1D, attention, adapters)
        x_TE = self._layer(last, x_TE, cos_T1D, sin_T1D, attention, adapters, rows_N)
        return rms_norm(x_TE, self.final_norm_E, self.config.norm_eps, torch.float32)

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Logits, (N, V) in fp32."""
        return F.linear(hidden_NE, self._head_VE)

    def _layer(
        self,
        index: int,
        x_TE: Tensor,
        cos_T1D: Tensor,
        sin_T1D: Tensor,
        attention: Attention,
        adapters: Sequence[AdapterRows],
        rows_N: Tensor | None = None,
    ) -> Tensor:
        layer, s, eps = self.layers[index], self.shape, self.config.norm_eps
        normed_TE = rms_norm(x_TE, layer.norm1_E, eps, self.dtype)
        qkv_TO = lora_linear(normed_TE, layer.qkv_OE, layer.qkv_bias_O, layer.qkv_names, self.qkv_widths, adapters)
        heads = qkv_TO.view(-1, s.n_heads + 2 * s.n_kv_heads, s.head_dim)
        both_THD, v_TKD = heads.split([s.n_heads + s.n_kv_heads, s.n_kv_heads], dim=1)
        if layer.q_norm_D is not None and layer.k_norm_D is not None:
            q_THD, k_TKD = both_THD.split([s.n_heads, s.n_kv_heads], dim=1)
            normed = rms_norm(q_THD, layer.q_norm_D, eps, self.dtype), rms_norm(k_TKD, layer.k_norm_D, eps, self.dtype)
            both_THD = torch.cat(normed, dim=1)
        q_THD, k_TKD = rotate(both_THD, cos_T1D, sin_T1D).split([s.n_heads, s.n_kv_heads], dim=1)
        seen_TO = attention(index, q_THD, k_TKD, v_TKD).reshape(x_TE.shape[0], -1)
        if rows_N is not None:
            x_TE, seen_TO = x_TE.index_select(0, rows_N), seen_TO.index_select(0, rows_N)
            adapters = chosen_rows(adapters, rows_N)
        x_TE = x_TE + lora_linear(seen_TO, layer.o_EO, layer.o_bias_E, layer.o_names, (s.hidden_size,), adapters)
        return self._mlp(layer, x_TE, adapters)

    def _mlp(self, layer: _Layer, x_TE: Tensor, adapters: Sequence[AdapterRows]) -> Tensor:
        s = self.shape
        if torch.is_grad_enabled() and adapters and not layer.down_EF.requires_grad:
            return _adapted_mlp(layer, x_TE, adapters[0], s, self.config.norm_eps, self.dtype)
        normed_TE = rms_norm(x_TE, layer.norm2_E, self.config.norm_eps, self.dtype)
        gate_up_TF = lora_linear(
            normed_TE, layer.gate_up_FE, None, layer.gate_up_names, (s.inner_size, s.inner_size), adapters
        )
        gate_TF, up_TF = gate_up_TF.split(s.inner_size, dim=-1)
        inner_TF = F.silu(gate_TF) * up_TF
        return x_TE + lora_linear(inner_TF, layer.down_EF, None, layer.down_names, (s.hidden_size,), adapters)

    def _rotary(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        # A table, not a computation a call: a decode step has one token a request and runs thousands of times.
        if self._cos.shape[0] < self.shape.max_positions:
            angles = torch.arange(self.shape.max_positions, device=self.device)[:, None] * self._frequencies_D
            angles = torch.cat([angles, angles], dim=-1)
            self._cos, self._sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return self._cos[positions_T][:, None], self._sin[positions_T][:, None]

    def trained_parameters(self) -> dict[str, Tensor]:
        """Every weight (fused as we compute with them), made to require gradients."""
        found = {"embedding": self.embedding_VE, "final_norm": self.final_norm_E}
        if not self.config.tied_head:
            found["head"] = self._head_VE
        for index, layer in enumerate(self.layers):
            for name in (
                "norm1_E",
                "qkv_OE",
                "qkv_bias_O",
                "q_norm_D",
                "k_norm_D",
                "o_EO",
                "o_bias_E",
                "norm2_E",
            ):
                if getattr(layer, name) is not None:
                    found[f"layers.{index}.{name}"] = getattr(layer, name)
            found[f"layers.{index}.gate_up_FE"] = layer.gate_up_FE
            found[f"layers.{index}.down_EF"] = layer.down_EF
        for tensor in found.values():
            tensor.requires_grad_()
        return found

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights under the names of the checkpoint on disk."""
        names = {"model.embed_tokens.weight": self.embedding_VE, "model.norm.weight": self.final_norm_E}
        if not self.config.tied_head:
            names["lm_head.weight"] = self._head_VE
        inner = (self.shape.inner_size, self.shape.inner_size)
        for index, layer in enumerate(self.layers):
            stem = f"model.layers.{index}"
            names[f"{stem}.input_layernorm.weight"] = layer.norm1_E
            names[f"{stem}.post_attention_layernorm.weight"] = layer.norm2_E
            names[f"{layer.o_names[0]}.weight"] = layer.o_EO
            names[f"{layer.down_names[0]}.weight"] = layer.down_EF
            for module, part in zip(layer.qkv_names, layer.qkv_OE.split(self.qkv_widths), strict=True):
                names[f"{module}.weight"] = part
            for module, part in zip(layer.gate_up_names, layer.gate_up_FE.split(inner), strict=True):
                names[f"{module}.weight"] = part
            if layer.qkv_bias_O is not None:
                for module, part in zip(layer.qkv_names, layer.qkv_bias_O.split(self.qkv_widths), strict=True):
                    names[f"{module}.bias"] = part
            if layer.o_bias_E is not None:
                names[f"{layer.o_names[0]}.bias"] = layer.o_bias_E
            if layer.q_norm_D is not None and layer.k_norm_D is not None:
                names[f"{stem}.self_attn.q_norm.weight"] = layer.q_norm_D
                names[f"{stem}.self_attn.k_norm.weight"] = layer.k_norm_D
        return {name: tensor.detach().contiguous() for name, tensor in names.items()}


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Angle of each pair of dimensions at position 1, (D/2,); scaled as Llama 3.1 or linearly where asked."""
    size = config.shape.head_dim
    frequencies = 1.0 / (config.rope_theta ** (torch.arange(0, size, 2).float() / size))
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", scaling.get("type")) if scaling else "default"
    if scaling is None or kind == "default":
        return frequencies
    factor = float(scaling["factor"])
    if kind == "linear":
        return frequencies / factor
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    waves = 2 * math.pi / frequencies
    smooth = ((scaling["original_max_position_embeddings"] / waves - low) / (high - low)).clamp(0, 1)
    blended: Tensor = (1 - smooth) * frequencies / factor + smooth * frequencies
    return blended


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Root-mean-square norm over the last axis, computed in fp32, given as `dtype` (Zhang and Sennrich 2019)."""
    if torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad:
        normed: Tensor = _Norm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(dtype)


class _Norm(torch.autograd.Function):
    """RMS norm with a frozen weight; saves its input, which the residual stream holds anyway, and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        return norm_backward(grads[0], x, weight, rstd), None, None, None


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """Gradient of an RMS norm's input."""
    scaled = grad.float() * weight
    shared = (scaled * x).mean(-1, keepdim=True).mul_(rstd.square())
    return scaled.sub_(x * shared).mul_(rstd).to(x.dtype)


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotary position embedding, the two halves of a head as pairs (Su et al. 2021, in the layout of Llama)."""
    if torch.is_grad_enabled() and x_THD.requires_grad:
        turned: Tensor = _Rotate.apply(x_THD, cos_T1D, sin_T1D)  # type: ignore[no-untyped-call]
        return turned
    return _turn(x_THD, cos_T1D, sin_T1D)


def _turn(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    half = x_THD.shape[-1] // 2
    turned = x_THD * cos_T1D
    turned[..., :half].addcmul_(x_THD[..., half:], sin_T1D[..., :half], value=-1)
    turned[..., half:].addcmul_(x_THD[..., :half], sin_T1D[..., half:])
    return turned


class _Rotate(torch.autograd.Function):
    """Rotation; its gradient is the rotation back, so that nothing is saved but the tables."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1D, sin_T1D)
        return _turn(x_THD, cos_T1D, sin_T1D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _turn(grads[0], cos_T1D, -sin_T1D), None, None


def _adapted_mlp(
    layer: _Layer, x_TE: Tensor, rows: AdapterRows, shape: DecoderShape, eps: float, dtype: torch.dtype
) -> Tensor:
    adapter = rows.adapter
    ups = [(name, i) for i, name in enumerate(layer.gate_up_names) if name in adapter.pairs]
    downs = [name for name in layer.down_names if name in adapter.pairs]
    factors = [t for name, _ in ups for t in (adapter.pairs[name].a_RI, adapter.pairs[name].b_OR)]
    factors += [t for name in downs for t in (adapter.pairs[name].a_RI, adapter.pairs[name].b_OR)]
    spans = tuple((i * shape.inner_size, (i + 1) * shape.inner_size) for _, i in ups)
    y_TE: Tensor = _AdaptedMlp.apply(  # type: ignore[no-untyped-call]
        x_TE, layer.norm2_E, layer.gate_up_FE, layer.down_EF, eps, dtype, adapter.scale, spans, *factors
    )
    return y_TE


class _AdaptedMlp(torch.autograd.Function):
    """x + down(silu(gate(norm x)) * up(norm x)) with adapters, as one function.

    Saves x and the joint product of gate and up; the norm's output and the inner product are computed again in the
    backward pass, which costs two element-wise passes and saves about a third of a layer's memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TE: Tensor,
        norm_E: Tensor,
        gate_up_FE: Tensor,
        down_EF: Tensor,
        eps: float,
        dtype: torch.dtype,
        scale: float,
        spans: tuple[tuple[int, int], ...],
        *factors: Tensor,
    ) -> Tensor:
        n_up = 2 * len(spans)
        rstd = torch.rsqrt(x_TE.float().square().mean(-1, keepdim=True) + eps)
        normed_TE = (x_TE * rstd).mul_(norm_E).to(dtype)
        gate_up_TF = F.linear(normed_TE, gate_up_FE)
        xa_up = low_rank_forward(gate_up_TF, normed_TE, scale, spans, factors[:n_up]) if n_up else x_TE.new_empty(0)
        gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
        inner_TF = F.silu(gate_TF).mul_(up_TF)
        y_TE = F.linear(inner_TF, down_EF)
        whole = ((0, y_TE.shape[1]),)
        downs = factors[n_up:]
        xa_down = low_rank_forward(y_TE, inner_TF, scale, whole, downs) if downs else x_TE.new_empty(0)
        ctx.save_for_backward(x_TE, norm_E, gate_up_FE, down_EF, rstd, gate_up_TF, xa_up, xa_down, *factors)
        ctx.scale, ctx.spans, ctx.dtype = scale, spans, dtype
        return y_TE.to(x_TE.dtype).add_(x_TE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TE, norm_E, gate_up_FE, down_EF, rstd, gate_up_TF, xa_up, xa_down, *factors = ctx.saved_tensors
        n_up = 2 * len(ctx.spans)
        grad_TE = grads[0].to(ctx.dtype).contiguous()
        gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
        active_TF = F.silu(gate_TF)
        grad_inner_TF = grad_TE @ down_EF
        downs: list[Tensor] = []
        if factors[n_up:]:
            whole = ((0, grad_TE.shape[1]),)
            inner_TF = active_TF * up_TF
            downs = low_rank_backward(grad_TE, inner_TF, xa_down, ctx.scale, whole, factors[n_up:], grad_inner_TF)
        grad_gate_up_TF = torch.empty_like(gate_up_TF)
        inner_size = gate_TF.shape[1]
        torch.mul(grad_inner_TF, active_TF, out=grad_gate_up_TF[:, inner_size:])
        grad_gate_TF = grad_gate_up_TF[:, :inner_size]
        torch.ops.aten.silu_backward.grad_input(grad_inner_TF.mul_(up_TF), gate_TF, grad_input=grad_gate_TF)
        grad_normed_TE = grad_gate_up_TF @ gate_up_FE
        ups: list[Tensor] = []
        if n_up:
            normed_TE = (x_TE * rstd).mul_(norm_E).to(ctx.dtype)
            ups = low_rank_backward(
                grad_gate_up_TF, normed_TE, xa_up, ctx.scale, ctx.spans, factors[:n_up], grad_normed_TE
            )
        grad_x_TE = norm_backward(grad_normed_TE, x_TE, norm_E, rstd).add_(grads[0])
        return (grad_x_TE, None, None, None, None, None, None, None, *ups, *downs)
