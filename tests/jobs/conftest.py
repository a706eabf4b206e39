"""A desk with a tiny base; and runs in this process leave torch's threads as they were."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobshop import open_desk
from tunekeeper.jobs.prepare import Desk


@pytest.fixture
def desk(tmp_path: Path, tiny_base: Path) -> Iterator[Desk]:
    desk = open_desk(tmp_path / "home", tiny_base)
    yield desk
    desk.store.close()


@pytest.fixture
def threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
