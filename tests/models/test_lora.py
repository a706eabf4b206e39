"""The linear layer with adapters, as it answers: each row with its own, in either precision, however few rows."""

import pytest
import torch
from torch import Tensor

from tunekeeper.models.lora import FEW_ROWS, AdapterRows, LoraAdapter, lora_linear, new_adapter

NAMES, WIDTHS, INPUTS = ("q", "k", "v"), (24, 8, 8), 32


def adapter(seed: int, *modules: str) -> LoraAdapter:
    """Of these modules alone, and it changes something."""
    shapes = {name: (width, INPUTS) for name, width in zip(NAMES, WIDTHS, strict=True) if name in modules}
    made = new_adapter(shapes, rank=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for pair in made.pairs.values():
        pair.b_OR.data.normal_(generator=generator)
    return made


def expected(x_TI: Tensor, weight_OI: Tensor, adapters: list[AdapterRows]) -> Tensor:
    """Row by row with the merged weight, in fp32."""
    of_row = {row: rows.adapter for rows in adapters for row in range(rows.start, rows.end)}
    whole = [of_row[n].merged(weight_OI, NAMES, WIDTHS) if n in of_row else weight_OI for n in range(len(x_TI))]
    return torch.stack([weight @ x for weight, x in zip(whole, x_TI, strict=True)])


@pytest.mark.parametrize("n", [1, FEW_ROWS, FEW_ROWS + 1, 3 * FEW_ROWS])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_each_row_runs_with_its_adapter_and_the_rest_without(n: int, dtype: torch.dtype, error: float) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(sum(WIDTHS), INPUTS, generator=generator).to(dtype)
    x = torch.randn(2 * n + 3, INPUTS, generator=generator).to(dtype)
    adapters = [AdapterRows(adapter(1, *NAMES), 1, n + 1), AdapterRows(adapter(2, "q", "v"), n + 1, 2 * n + 1)]
    with torch.inference_mode():
        got = lora_linear(x, weight, None, NAMES, WIDTHS, adapters)
    wanted = expected(x.float(), weight.float(), adapters)
    assert got.dtype == dtype
    assert (got.float() - wanted).norm() <= error * wanted.norm()


@pytest.mark.parametrize("n", [FEW_ROWS, FEW_ROWS + 1])
def test_after_a_change_of_the_weights_nothing_of_the_old_ones_is_left(n: int) -> None:
    rows = [AdapterRows(adapter(1, "q"), 0, n)]
    weight, x = torch.zeros(sum(WIDTHS), INPUTS).bfloat16(), torch.ones(n, INPUTS).bfloat16()
    with torch.inference_mode():
        before = lora_linear(x, weight, None, NAMES, WIDTHS, rows)
    rows[0].adapter.pairs["q"].b_OR.data.mul_(-1)
    rows[0].adapter.forget_fused()
    with torch.inference_mode():
        assert torch.equal(lora_linear(x, weight, None, NAMES, WIDTHS, rows), -before)
    assert before.any()
