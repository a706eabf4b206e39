"""Adapter files, in PEFT's format: what we write, PEFT and vLLM load; what PEFT wrote, we load.

adapter_config.json          rank, alpha, target modules, base model
adapter_model.safetensors    base_model.model.<module>.lora_A.weight (R, I) and .lora_B.weight (O, R), fp32
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunekeeper.errors import InvalidData, Unsupported
from tunekeeper.models.lora import LoraAdapter, LoraPair, Scope

PREFIX = "base_model.model."


def save_adapter(adapter: LoraAdapter, directory: Path, *, base_id: str) -> None:
    """Write the two files into `directory`, which must exist; equal weights give equal bytes."""
    tensors: dict[str, Tensor] = {}
    for name, pair in adapter.pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a_RI.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b_OR.detach().float().cpu().contiguous()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_id,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": adapter.target_modules,
        "use_rslora": False,
        "use_dora": False,
    }
    layers = {int(number) for name in adapter.pairs for number in re.findall(r"\.(\d+)\.", name)[:1]}
    if layers and 0 not in layers:  # of the top layers only: PEFT would put pairs that do nothing on all
        config["layers_to_transform"] = sorted(layers)
    if adapter.scope == "completion":
        config["alora_invocation_tokens"] = list(adapter.invocation_tokens)
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        flush_to_disk(directory / name)


def read_adapter(
    directory: Path, modules: Mapping[str, tuple[int, int]], device: torch.device | str = "cpu"
) -> LoraAdapter:
    """Load an adapter for a decoder with these linear modules; raises InvalidData when it does not fit them."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidData(f"The adapter in {directory} cannot be read: {error}.", code="invalid_adapter") from error
    for option in ("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern"):
        if config.get(option):
            raise Unsupported(f"The adapter in {directory} uses {option}, which is not supported.", param=option)
    pairs: dict[str, LoraPair] = {}
    for name in modules:
        a_RI = tensors.pop(f"{PREFIX}{name}.lora_A.weight", None)
        b_OR = tensors.pop(f"{PREFIX}{name}.lora_B.weight", None)
        if a_RI is None or b_OR is None:
            continue
        if (b_OR.shape[0], a_RI.shape[1]) != modules[name]:
            raise InvalidData(
                f"The adapter in {directory} was made for another base: {name} is {modules[name]} here, "
                f"{(b_OR.shape[0], a_RI.shape[1])} there.",
                code="invalid_adapter",
            )
        pairs[name] = LoraPair(a_RI.to(device, torch.float32), b_OR.to(device, torch.float32))
    if tensors or not pairs:
        example = next(iter(tensors), "nothing")
        raise InvalidData(
            f"The adapter in {directory} was made for another base: no place for {example}.",
            code="invalid_adapter",
        )
    invocation = tuple(config.get("alora_invocation_tokens") or ())
    scope: Scope = "completion" if invocation else "all"
    return LoraAdapter(pairs, int(config["r"]), float(config["lora_alpha"]), scope, invocation)


def flush_to_disk(path: Path) -> None:
    """Have the system write a file or a directory's entries through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
