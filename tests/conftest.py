"""Fixtures that every layer's tests share: one tiny model on disk, and no road to any network hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

# Processes that tests start import our test modules too.
_paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _paths if path)

import pytest

from tiny import make_model


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a two-layer random Llama and its tokenizer; nobody writes into it."""
    return make_model(tmp_path_factory.mktemp("base") / "tiny")
