"""A GGUF file turned into a model directory as the rest of the world writes them.

`convert(path, directory)` writes config.json, model.safetensors (fp32), the tokenizer, the chat template
and generation_config.json. Llama (with SmolLM and Mistral), Qwen2 and Qwen3 are known; anything else is
refused by name, for a model that is converted wrongly still answers, only worse.

`read(path)` is our own reader of the container: the one in the `gguf` package makes an array of each string
of the vocabulary, which takes longer than all of the rest together. Dequantising is left to that package.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tunekeeper.errors import DiskFull, InvalidRequest, Unavailable, Unsupported
from tunekeeper.models import gguf_tokenizer
from tunekeeper.types import Json

CHATML_TEMPLATE = Path(__file__).with_name("chatml_tools.jinja")
"""Our ChatML template that knows tools; it takes the place of a ChatML template that does not."""

CHATML_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What that template says to a model when nobody else does."""

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Type numbers of metadata values, in the order of the format's specification; 8 is a string, 9 an array.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor's bytes lie; `shape` is as numpy and torch write it, rows first."""

    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Gguf:
    """A GGUF file's metadata, and its tensors by name; the data stays in the file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        """The family of the model, as llama.cpp names it."""
        return str(self.metadata.get("general.architecture", "none"))

    def number(self, name: str, default: float | None = None) -> Any:
        """The number under `<architecture>.<name>`; raises when it is missing and has no default."""
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise InvalidRequest(f"{self.path} has no {self.architecture}.{name}; the file is incomplete.")
        if isinstance(value, list):
            raise Unsupported(f"{self.path} has another {name} for each layer, which we do not support.")
        return value

    def load(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor's numbers, dequantised to fp32."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        try:
            kind = GGMLQuantizationType(tensor.type)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            *rows, columns = tensor.shape
            row_bytes = columns // block * block_bytes
            raw = np.memmap(self.path, np.uint8, "r", offset=tensor.offset, shape=(*rows, row_bytes))
            return np.asarray(dequantize(raw, kind), dtype=np.float32).reshape(tensor.shape)
        except NotImplementedError as error:
            raise Unsupported(
                f"{self.path}: {name} is quantised as {kind.name}, which cannot be read back. "
                "Use a file in F16, Q8_0 or one of the Q4 to Q6 kinds."
            ) from error
        except ValueError as error:
            raise InvalidRequest(f"{self.path}: the data of {name} is not whole; fetch the file again.") from error


def read(path: Path) -> Gguf:
    """Read a GGUF file's metadata and the places of its tensors."""
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except FileNotFoundError as error:
        raise InvalidRequest(f"There is no file {path}.") from error
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise InvalidRequest(f"{path} is cut short or damaged: {error}. Fetch the file again.") from error


def convert(path: Path, directory: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Json:
    """Write the model into the empty `directory`; return what is known of it: licence, context window, size.

    `progress` is told the bytes of weights written and those to write.
    """
    _require_gguf_package()
    source = read(path)
    config, tensors = _config(source), _tensors(source)
    n_bytes = sum(4 * source.tensors[name].size for name in tensors.values())
    if (free := _free_bytes(directory)) < n_bytes:
        raise DiskFull(f"{directory} has {free:,} bytes free; the model needs {n_bytes:,}. Free some space.")
    _write_weights(source, config, tensors, directory / "model.safetensors", progress)
    special = gguf_tokenizer.write(source.metadata, directory, context_window=config["max_position_embeddings"])
    _write_json(directory / "config.json", config | special)
    _write_json(directory / "generation_config.json", special)
    template = _chat_template(source.metadata.get("tokenizer.chat_template"))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, "utf-8")
    return _info(source, config)


def _require_gguf_package() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise Unavailable("Converting a model needs the package gguf: pip install 'tunekeeper[train]'.") from error


def _read(path: Path, file: BinaryIO) -> Gguf:
    magic, version = struct.unpack("<4sI", file.read(8))
    if magic != b"GGUF":
        raise InvalidRequest(f"{path} is not a GGUF file.")
    if version not in (2, 3):
        raise Unsupported(f"{path} is of GGUF version {version}, or big-endian; we read versions 2 and 3.")
    n_tensors, n_values = struct.unpack("<QQ", file.read(16))
    metadata = {}
    for _ in range(n_values):
        name = _string(file)
        metadata[name] = _value(file, _scalar(file, "<I"))
    places = {}
    for _ in range(n_tensors):
        name, n_dimensions = _string(file), _scalar(file, "<I")
        if n_dimensions > 8:
            raise ValueError(f"{name} has {n_dimensions} dimensions")
        shape = struct.unpack(f"<{n_dimensions}Q", file.read(8 * n_dimensions))[::-1]
        places[name] = (shape, _scalar(file, "<I"), _scalar(file, "<Q"))
    alignment = int(metadata.get("general.alignment") or 32)
    data_start = math.ceil(file.tell() / alignment) * alignment
    tensors = {name: Tensor(shape, kind, data_start + offset) for name, (shape, kind, offset) in places.items()}
    return Gguf(path, metadata, tensors)


def _scalar(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    length = _scalar(file, "<Q")
    data = file.read(length) if length < 2**26 else b""
    if len(data) != length:
        raise ValueError("a text ends too early")
    return data.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind in _SCALARS:
        return _scalar(file, _SCALARS[kind])
    if kind != _ARRAY:
        raise ValueError(f"a value is of the unknown type {kind}")
    inner, length = _scalar(file, "<I"), _scalar(file, "<Q")
    if inner == _ARRAY:
        raise ValueError("an array holds arrays")
    return [_value(file, inner) for _ in range(length)]


def _config(source: Gguf) -> Json:
    architecture = source.architecture
    if architecture not in _ARCHITECTURES:
        raise Unsupported(
            f"{source.path} is of the architecture {architecture!r}; we convert {', '.join(_ARCHITECTURES)}. "
            "Take the model's own directory (config.json and safetensors) with `tunekeeper models add`."
        )
    _refuse_variants(source)
    n_heads, hidden = source.number("attention.head_count"), source.number("embedding_length")
    config: Json = {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": source.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": source.number("feed_forward_length"),
        "num_hidden_layers": source.number("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": source.number("attention.head_count_kv", n_heads),
        "head_dim": _head_dim(source),
        "hidden_act": "silu",
        "max_position_embeddings": source.number("context_length"),
        "rms_norm_eps": _shortest(source.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(source.number("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    if architecture != "qwen2":  # Qwen2 always has a bias on q, k and v, and its config has no word for it.
        config["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in source.tensors
    scaling = _rope_scaling(source, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _head_dim(source: Gguf) -> int:
    per_head = source.number("embedding_length") // source.number("attention.head_count")
    head_dim = int(source.number("attention.key_length", source.number("rope.dimension_count", per_head)))
    if source.number("rope.dimension_count", head_dim) != head_dim:
        raise Unsupported(f"{source.path} rotates only a part of each head, which we do not support.")
    return head_dim


def _refuse_variants(source: Gguf) -> None:
    if source.number("expert_count", 0):
        raise Unsupported(f"{source.path} is a mixture of experts, which we do not support.")
    if source.number("attention.sliding_window", 0):
        raise Unsupported(f"{source.path} attends through a sliding window, which we do not support.")
    if "token_embd.weight" not in source.tensors:
        raise InvalidRequest(f"{source.path} has no token_embd.weight: it holds no language model, or only a part.")
    if source.metadata.get("split.count", 1) > 1:
        raise Unsupported(f"{source.path} is one of several parts; join them with `llama-gguf-split --merge`.")


def _rope_scaling(source: Gguf, config: Json) -> Json | None:
    if "rope_freqs.weight" in source.tensors:
        return _llama3_scaling(source, config)
    kind = source.metadata.get(f"{source.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise Unsupported(f"{source.path} scales its positions by {kind!r}; we know linear and yarn.")
    scaling: Json = {"rope_type": kind, "factor": _shortest(source.number("rope.scaling.factor"))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = source.number("rope.scaling.original_context_length")
    return scaling


def _llama3_scaling(source: Gguf, config: Json) -> Json:
    """Llama 3.1 and later: the file has only the divisor of each frequency, which gives the rule away."""
    divisors = source.load("rope_freqs.weight")
    scaling = {
        "rope_type": "llama3",
        "factor": _shortest(float(divisors.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(divisors, _llama3_divisors(config["rope_theta"], config["head_dim"], scaling), rtol=1e-4):
        raise Unsupported(f"{source.path} scales its positions in a way that we do not know.")
    return scaling


def _llama3_divisors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1 - smooth) / factor + smooth))


def _shortest(value: float) -> float:
    """1e-05 where fp32 in the file reads back as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensors(source: Gguf) -> dict[str, str]:
    """Each tensor's name in the safetensors file -> its name here; raises when one is missing or unknown."""
    names = {}
    for name in source.tensors:
        if name != "rope_freqs.weight":  # a part of the config there
            names[_new_name(source, name)] = name
    expected = {"model.embed_tokens.weight", "model.norm.weight"}
    parts = [part for part in _LAYER_NAMES.values() if not part.endswith(("q_norm", "k_norm"))]
    for layer in range(source.number("block_count")):
        expected |= {f"model.layers.{layer}.{part}.weight" for part in parts}
    missing = sorted(expected - names.keys())
    if missing:
        raise InvalidRequest(f"{source.path} has no {missing[0]} ({len(missing)} tensors are missing); fetch it again.")
    return dict(sorted(names.items()))


def _new_name(source: Gguf, name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if suffix in ("weight", "bias"):
        if stem in _TOP_NAMES:
            return f"{_TOP_NAMES[stem]}.{suffix}"
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if match and match[2] in _LAYER_NAMES:
            return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{suffix}"
    raise Unsupported(
        f"{source.path} has a tensor {name!r}, which no model of {source.architecture!r} that we know has."
    )


def _write_weights(
    source: Gguf,
    config: Json,
    tensors: Mapping[str, str],
    path: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Tensor by tensor, so that a model larger than the memory can be converted."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, old in tensors.items():
        start, end = end, end + 4 * source.tensors[old].size
        header[name] = {"dtype": "F32", "shape": source.tensors[old].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in _weights(source, config, tensors.values()):
            file.write(np.ascontiguousarray(weight, dtype="<f4").data)
            done += weight.nbytes
            progress(done, end)
        file.flush()
        os.fsync(file.fileno())


def _weights(source: Gguf, config: Json, names: Iterable[str]) -> Iterator[npt.NDArray[np.float32]]:
    n_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name in names:
        weight = source.load(name)
        part = name.split(".")[-2]
        if source.architecture == "llama" and part in n_heads:
            weight = _unpermuted(weight, n_heads[part])
        yield weight


def _unpermuted(weight: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp pairs neighbouring rows of a head for the rotation; everyone else pairs its two halves."""
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _chat_template(template: str | None) -> str | None:
    """The model's own; where that is ChatML without tools, ours, with the model's own default system text."""
    if not template or "<|im_start|>" not in template or "tools" in template:
        return template
    own = re.search(r"<\|im_start\|>system(?:\\n|\n)([^{}<']+)<\|im_end\|>", template)
    system = own[1] if own else "You are a helpful assistant."
    return CHATML_TEMPLATE.read_text("utf-8").replace(CHATML_SYSTEM, system)


def _info(source: Gguf, config: Json) -> Json:
    info = {
        "name": source.metadata.get("general.name"),
        "architecture": source.architecture,
        "parameters": sum(tensor.size for name, tensor in source.tensors.items() if name != "rope_freqs.weight"),
        "context_window": config["max_position_embeddings"],
        "license": source.metadata.get("general.license"),
        "languages": source.metadata.get("general.languages"),
    }
    return {name: value for name, value in info.items() if value is not None}


def _free_bytes(directory: Path) -> int:
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
