"""Causal attention: our backward pass of short sequences in bf16 is as near to fp32 as PyTorch's."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tunekeeper.trainer.attention import SHORT, causal


def computed(n_tokens: int, dtype: torch.dtype, *, ours: bool) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values, in fp32."""
    generator = torch.Generator().manual_seed(n_tokens)
    q, k, v, grad = (torch.randn(n_tokens, heads, 16, generator=generator) * 2 for heads in (6, 2, 2, 6))
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    if ours:
        out = causal(*leaves)
    else:
        by_heads = [leaves[0], *(x.repeat_interleave(3, dim=1) for x in leaves[1:])]
        out = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in by_heads), is_causal=True)
        out = out[0].transpose(0, 1)
    return [out.detach().float(), *(x.float() for x in torch.autograd.grad(out, leaves, grad.to(dtype)))]


@pytest.mark.parametrize("n_tokens", [1, 2, 32, 33, 167, SHORT, SHORT + 1])
def test_in_bf16_output_and_gradients_are_as_near_to_fp32_as_pytorchs(n_tokens: int) -> None:
    exact = computed(n_tokens, torch.float32, ours=False)
    ours = computed(n_tokens, torch.bfloat16, ours=True)
    theirs = computed(n_tokens, torch.bfloat16, ours=False)
    for x, ours_x, theirs_x in zip(exact, ours, theirs, strict=True):
        size = x.norm() + 1e-6
        assert (ours_x - x).norm() / size <= 1.1 * (theirs_x - x).norm() / size + 1e-4


@pytest.mark.parametrize("n_tokens", [5, SHORT + 1])
def test_in_fp32_it_is_pytorchs(n_tokens: int) -> None:
    for ours, theirs in zip(*(computed(n_tokens, torch.float32, ours=x) for x in (True, False)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_keys_much_larger_than_their_row_s_best_leave_no_trace_where_they_are_not_seen() -> None:
    q, k, v = (torch.zeros(3, 1, 4, dtype=torch.bfloat16) for _ in range(3))
    q[:, 0, 0], k[2, 0, 0], v[2] = 30, 100, 1000
    leaves = [x.requires_grad_() for x in (q, k, v)]
    causal(*leaves)[:2].sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in leaves if x.grad is not None)
    assert v.grad is not None
    assert not v.grad[2].any()
    assert v.grad[0].max() == 1.5
