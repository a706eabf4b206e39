"""From a model directory to a decoder: our own where it computes the model exactly, transformers for the rest.

A directory holds what a checkpoint on a hub holds: config.json, safetensors (one file, or several with an index),
tokenizer.json.
"""

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tunekeeper.errors import InvalidConfig, InvalidData, Unavailable
from tunekeeper.models.adapters import read_adapter
from tunekeeper.models.decoder import Decoder, LlamaConfig, LlamaDecoder, unsupported_reason
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.types import Json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compute_dtype(name: str) -> torch.dtype:
    """The dtype that a setting names; "auto" is bf16 where this machine multiplies it clearly faster than fp32."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InvalidConfig(f"dtype is {name!r}; it must be auto, fp32 or bf16.", param="dtype")
    if torch.cuda.is_available():
        return torch.bfloat16
    return torch.bfloat16 if _bf16_speedup() > 1.2 else torch.float32


def _bf16_speedup() -> float:
    # Measured, not looked up: processors without bf16 instructions multiply it eight times slower than fp32. In turns,
    # and the best of many: another process may hold the cores for some milliseconds of one dtype.
    pairs = [(torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)) for dtype in DTYPES.values()]
    times: list[list[float]] = [[], []]
    for turn in range(50):
        a, b = pairs[turn % 2]
        start = time.perf_counter()
        a @ b
        times[turn % 2].append(time.perf_counter() - start)
    fp32, bf16 = map(min, times)
    return fp32 / bf16


def read_config(directory: Path) -> Json:
    """The model's config.json; raises Unavailable when there is no model in the directory."""
    try:
        config: Json = json.loads((directory / "config.json").read_text("utf-8"))
    except OSError as error:
        raise Unavailable(
            f"There are no weights in {directory}. Pull the base model again: tunekeeper models pull.",
            param="model",
        ) from error
    except ValueError as error:
        raise InvalidData(f"{directory / 'config.json'} is not JSON: {error}.", code="invalid_model") from error
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in safetensors, one file or sharded."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise Unavailable(f"There are no safetensors weights in {directory}.", param="model")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise InvalidData(f"{file} cannot be read: {error}.", code="invalid_model") from error
    return weights


def load_decoder(directory: Path, *, dtype: str = "auto", device: str = "cpu") -> Decoder:
    """A base model's decoder, frozen; raises Unavailable, InvalidData or Unsupported."""
    config = read_config(directory)
    kind = compute_dtype(dtype)
    if unsupported_reason(config) is None:
        try:
            return LlamaDecoder(LlamaConfig.from_json(config), read_weights(directory), dtype=kind, device=device)
        except KeyError as error:
            raise InvalidData(f"The checkpoint in {directory} lacks {error}.", code="invalid_model") from error
    # Here, not above: transformers takes seconds to import, and the Llama family does not need it.
    from tunekeeper.models.foreign import load_transformers

    return load_transformers(directory, dtype=kind, device=device)


def load_adapter(directory: Path, decoder: Decoder) -> LoraAdapter:
    """An adapter's files as weights for this decoder."""
    return read_adapter(directory, decoder.linear_modules(), decoder.device)
