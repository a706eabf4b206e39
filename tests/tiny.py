"""A whole model in a few kilobytes, made on the fly: what tests load where people load SmolLM2.

`make_tokenizer(directory)` writes a byte-level BPE with ChatML's special tokens, a chat template that knows
tools, and the config of a two-layer Llama; `make_model(directory)` adds random weights.
"""

import json
import math
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Their ids are 0, 1 and 2, as in SmolLM2; a turn ends with the last."""

_FREQUENT = (
    "the and ing er in on re at en or you is to it of that for user assistant system tool name city weather "
    "paris tokyo answer question hello true false null type function arguments content role"
)

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Call a function by writing <tool_call>{"name": ..., "arguments": {...}}</tool_call>.\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if not loop.first or message.content %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role == 'user' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def make_tokenizer(directory: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write the tokenizer, the chat template and config.json; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab, merges = _byte_pairs()
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        },
    )
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    _write_json(directory / "config.json", _llama_config(tokenizer.get_vocab_size()))
    if chat_template is not None:
        (directory / "chat_template.jinja").write_text(chat_template, "utf-8")
    return directory


def make_model(directory: Path, seed: int = 0, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write what `make_tokenizer` writes, and random fp32 weights; return the directory."""
    import torch
    from safetensors.torch import save_file

    make_tokenizer(directory, chat_template=chat_template)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * (0.8 / math.sqrt(columns))

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(hidden, generator=generator)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    state = {"model.embed_tokens.weight": weight(config["vocab_size"], hidden), "model.norm.weight": norm()}
    for n in range(config["num_hidden_layers"]):
        state[f"model.layers.{n}.input_layernorm.weight"] = norm()
        state[f"model.layers.{n}.post_attention_layernorm.weight"] = norm()
        for name, (rows, columns) in shapes.items():
            state[f"model.layers.{n}.{name}.weight"] = weight(rows, columns)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Special tokens, the 256 bytes, then merges that spell the frequent words, bare and after a space."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: dict[tuple[str, str], None] = {}
    for word in _FREQUENT.split():
        for spelled in (word, "Ġ" + word):
            for end in range(1, len(spelled)):
                merges.setdefault((spelled[:end], spelled[end]))
    pieces += dict.fromkeys(left + right for left, right in merges)
    return {piece: n for n, piece in enumerate(pieces)}, list(merges)


def _llama_config(vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
