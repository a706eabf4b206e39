"""What a run needs to go on as if nothing had happened: weights, optimizer, position, and what was measured.

Random state needs no file: the order of an epoch is drawn from (seed, epoch), and nothing else is random.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunekeeper.errors import InvalidData
from tunekeeper.models.adapters import flush_to_disk


def write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new directory that appears whole or not at all, in the place of what was there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = directory.with_name(f".{directory.name}.new")
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        write(fresh)
        for file in fresh.iterdir():
            flush_to_disk(file)
        flush_to_disk(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.rename(directory, old)
    os.rename(fresh, directory)
    flush_to_disk(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_directory(directory: Path) -> None:
    """After a crash between the two renames of `write_directory`: put back the one that was there."""
    old = directory.with_name(f".{directory.name}.old")
    if old.exists() and not directory.exists():
        os.rename(old, directory)


def save(directory: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a state atomically."""

    def write(fresh: Path) -> None:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            fresh / "state.safetensors",
        )
        (fresh / "meta.json").write_text(json.dumps(meta) + "\n", "utf-8")

    write_directory(directory, write)


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state; raises InvalidData when it cannot be read."""
    recover_directory(directory)
    try:
        return load_file(directory / "state.safetensors"), json.loads((directory / "meta.json").read_text("utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidData(
            f"The saved state in {directory} cannot be read: {error}.", code="invalid_state_file"
        ) from error
