"""A desk with a tiny base; and runs in this process leave torch's threads as they were."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobshop import open_desk
from tunekeeper.jobs.prepare import Desk

if TYPE_CHECKING:
    from tunekeeper.models.decoder import Decoder


@pytest.fixture
def desk(tmp_path: Path, tiny_base: Path) -> Iterator[Desk]:
    desk = open_desk(tmp_path / "home", tiny_base)
    yield desk
    desk.store.close()


@pytest.fixture(scope="module")
def decoder(tiny_base: Path) -> "Decoder":
    """The tiny base with the tables that training needs, as `open_engine` leaves one to the engine."""
    import torch

    from tunekeeper.models.load import load_decoder
    from tunekeeper.trainer.loop import Forest
    from tunekeeper.types import Branch, Tree

    decoder = load_decoder(tiny_base, dtype="fp32")
    with torch.no_grad():
        Forest(decoder, [Tree((1, 2), (Branch((3,), (1.0,)),))], None, 0).logprobs([0])
    return decoder


@pytest.fixture
def threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
