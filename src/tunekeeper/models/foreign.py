"""Every causal model outside the Llama family, through transformers, with the same packed attention and adapters.

The model's own layers run; only its attention is ours: transformers lets an attention implementation be registered,
and each layer then hands over its queries, keys and values. Adapted linear layers are replaced by ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunekeeper.errors import InvalidData, Unavailable, Unsupported
from tunekeeper.models.decoder import Attention, DecoderShape
from tunekeeper.models.lora import AdapterRows, lora_linear

IMPLEMENTATION = "tunekeeper_packed"


def load_transformers(directory: Path, *, dtype: torch.dtype, device: str) -> "TransformersDecoder":
    """A decoder that runs the transformers model in the directory; raises Unavailable without the package."""
    try:
        import transformers
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as error:
        raise Unavailable(
            "This model is outside the Llama family and needs transformers: pip install 'tunekeeper[transformers]'."
        ) from error
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _packed_attention)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=IMPLEMENTATION, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidData(f"transformers cannot load {directory}: {error}", code="invalid_model") from error
    return TransformersDecoder(model.to(device).eval(), dtype)


class _Running:
    """What the layers of one forward pass need beside their input."""

    attention: Attention | None = None
    adapters: Sequence[AdapterRows] = ()


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    running: _Running = module._tunekeeper  # type: ignore[assignment]
    if running.attention is None:
        raise AssertionError("the model is run through TransformersDecoder.hidden only")
    scale = options.get("scaling")
    natural = query.shape[-1] ** -0.5
    if scale is not None and abs(scale - natural) > 1e-6 * natural:
        query = query * (scale / natural)
    if options.get("softcap") or options.get("sliding_window"):
        raise Unsupported("Models with sliding-window or soft-capped attention are not supported.", param="model")
    index: int = module.layer_idx  # type: ignore[assignment]
    seen = running.attention(index, *(x[0].transpose(0, 1) for x in (query, key, value)))
    return seen[None], None


class _AdaptedLinear(nn.Module):
    """A linear layer in the place of the model's own, with the adapters of the running pass."""

    def __init__(self, name: str, weight_OI: Tensor, bias: Tensor | None, running: _Running) -> None:
        super().__init__()
        self.name, self.weight, self.bias, self.running = name, weight_OI, bias, running

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (…, I)."""
        flat = x.reshape(-1, x.shape[-1])
        width = (self.weight.shape[0],)
        y = lora_linear(flat, self.weight, self.bias, (self.name,), width, self.running.adapters)
        return y.reshape(*x.shape[:-1], width[0])


class TransformersDecoder:
    """A transformers model behind our Decoder; residual stream and norms are in the model's own dtype."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        self.model, self.dtype, self.device = model, dtype, model.device
        self.shape = DecoderShape(
            n_layers=config.num_hidden_layers,
            n_heads=heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden_size=config.hidden_size,
            inner_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
        )
        self._running = _Running()
        self._linears: dict[str, _AdaptedLinear] = {}
        self._transposed: set[str] = set()
        head = model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            if hasattr(module, "layer_idx"):
                module._tunekeeper = self._running
            if module is not head:
                self._adapt(name, module)

    def _adapt(self, name: str, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            weight, bias = module.weight, module.bias
        elif type(module).__name__ == "Conv1D":  # GPT-2 keeps its linear layers transposed
            weight = nn.Parameter(module.weight.T.contiguous(), requires_grad=False)  # type: ignore[operator]
            bias = module.bias  # type: ignore[assignment]
            self._transposed.add(name)
        else:
            return
        parent, _, last = name.rpartition(".")
        linear = _AdaptedLinear(name, weight, bias, self._running)
        setattr(self.model.get_submodule(parent), last, linear)
        self._linears[name] = linear

    @property
    def head_VE(self) -> Tensor:
        """The head's weight, fp32."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight.float()

    @property
    def head_bias_V(self) -> Tensor | None:
        """The head's bias, where it has one."""
        bias: Tensor | None = getattr(self.model.get_output_embeddings(), "bias", None)
        return None if bias is None else bias.float()

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Every linear layer but the head: name -> (outputs, inputs)."""
        return {name: (linear.weight.shape[0], linear.weight.shape[1]) for name, linear in self._linears.items()}

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
        self._running.attention, self._running.adapters = attention, adapters
        try:
            body = self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model.base_model
            output = body(input_ids=tokens_T[None], position_ids=positions_T[None], use_cache=False)
        finally:
            self._running.attention, self._running.adapters = None, ()
        states: Tensor = output.last_hidden_state[0]
        return (states if rows_N is None else states.index_select(0, rows_N)).float()

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Logits, (N, V) in fp32."""
        head = self.model.get_output_embeddings()
        logits: Tensor = head(hidden_NE.to(self.dtype)).float()
        return logits

    def trained_parameters(self) -> dict[str, Tensor]:
        """Every weight by its name, made to require gradients."""
        found = dict(self.model.named_parameters())
        for tensor in found.values():
            tensor.requires_grad_()
        return found

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights under the names of the checkpoint on disk."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        weights = {}
        for name, tensor in self.model.state_dict().items():
            if name in tied and self.model.config.tie_word_embeddings:
                continue
            stem = name.rpartition(".")[0]
            swap = stem in self._transposed and name.endswith(".weight")
            weights[name] = (tensor.T if swap else tensor).detach().contiguous()
        return weights
