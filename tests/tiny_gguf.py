"""A GGUF file of a few kilobytes, written by the `gguf` package itself, as llama.cpp's converter writes them.

`write_gguf(path, weights)` takes weights under the names of transformers, so that a test can ask whether the
conversion gives them back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tiny import _byte_pairs

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 32, 64, 2, 4, 2, 8

_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and the merges as a GGUF file spells them."""
    vocab, merges = _byte_pairs()
    return list(vocab), [" ".join(merge) for merge in merges]


def random_weights(*, seed: int = 0, qwen3: bool = False, bias: bool = False, tied: bool = True) -> dict[str, Any]:
    """Weights of a two-layer model under the names of transformers."""
    random = np.random.default_rng(seed)
    vocab_size = len(vocabulary()[0])
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head.weight"] = (vocab_size, HIDDEN)
    kv = KV_HEADS * HEAD_DIM
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        shapes |= {
            f"{layer}input_layernorm.weight": (HIDDEN,),
            f"{layer}post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}self_attn.k_proj.weight": (kv, HIDDEN),
            f"{layer}self_attn.v_proj.weight": (kv, HIDDEN),
            f"{layer}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{layer}mlp.up_proj.weight": (INNER, HIDDEN),
            f"{layer}mlp.down_proj.weight": (HIDDEN, INNER),
        }
        if bias:
            shapes |= {f"{layer}self_attn.{p}_proj.bias": (HIDDEN if p == "q" else kv,) for p in "qkv"}
        if qwen3:
            shapes |= {f"{layer}self_attn.{p}_norm.weight": (HEAD_DIM,) for p in "qk"}
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    weights: Mapping[str, Any],
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    rope_theta: float = 10000.0,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    chat_template: str | None = None,
    tensors: Mapping[str, Any] | None = None,
    metadata: Mapping[str, int | float | str] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write the file: matrices quantised as `kind`, `metadata` and `tensors` added, `without` left out."""
    tokens, merges = vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_string("general.license", "apache-2.0")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(rope_theta)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, value in (metadata or {}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(name, value)
    for name, weight in weights.items():
        if name not in without:
            _add_tensor(writer, name, weight, architecture, kind)
    for name, weight in (tensors or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(weight: Any, n_heads: int) -> Any:
    """The rows of a head as llama.cpp wants them: the two halves interleaved."""
    return (
        weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, weight: Any, architecture: str, kind: gguf.GGMLQuantizationType
) -> None:
    stem, _, suffix = name.rpartition(".")
    if architecture == "llama" and stem.endswith("q_proj"):
        weight = permuted(weight, HEADS)
    if architecture == "llama" and stem.endswith("k_proj"):
        weight = permuted(weight, KV_HEADS)
    if stem in _TOP:
        new = _TOP[stem]
    else:
        _, _, layer, part = stem.split(".", 3)
        new = f"blk.{layer}.{_PARTS[part]}"
    if weight.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
        writer.add_tensor(f"{new}.{suffix}", gguf.quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor(f"{new}.{suffix}", weight)
