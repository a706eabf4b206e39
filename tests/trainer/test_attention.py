"""Attention within short trees in bf16: the output and the gradients are as near to fp32 as PyTorch's."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tunekeeper.trainer import attention
from tunekeeper.trainer.attention import SHORT, is_fast
from tunekeeper.trainer.trees import Span, TreeAttention, tree_mask

HEADS, KV_HEADS = 6, 2


def spans(*trees: Sequence[int]) -> list[Span]:
    """Trees end to end: of each the trunk's length and those of the branches."""
    found, start = [], 0
    for tree in trees:
        ends = [start + sum(tree[: n + 1]) for n in range(len(tree))]
        found.append(Span(start, tuple(ends)))
        start = ends[-1]
    return found


def naive(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, trees: Sequence[Span]) -> Tensor:
    """One call of PyTorch's attention over all rows, with the whole mask."""
    n = q_THD.shape[0]
    seen = torch.eye(n, dtype=torch.bool)
    for span in trees:
        seen[span.start : span.ends[-1], span.start : span.ends[-1]] = tree_mask(span)
    repeated = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k_TKD, v_TKD))
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, *repeated))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)[0].transpose(0, 1)


def computed(
    trees: Sequence[Span], dtype: torch.dtype, *, ours: bool, n_filler: int = 0, seed: int = 0
) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values, in fp32, without the filler."""
    n = trees[-1].ends[-1] + n_filler
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = (torch.randn(n, h, 16, generator=generator) * 2 for h in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    grad[n - n_filler :] = 0
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    assert is_fast(leaves[0]) == (dtype == torch.bfloat16)
    out = TreeAttention(trees)(0, *leaves) if ours else naive(*leaves, trees)
    gradients = torch.autograd.grad(out, leaves, grad.to(dtype))
    return [x.detach().float()[: n - n_filler] for x in (out, *gradients)]


FORESTS = {
    "two": spans([2]),
    "a whole filled length": spans([32]),
    "one more": spans([33]),
    "one branch continues its trunk": spans([20, 147]),
    "different lengths": spans([5], [40, 3], [1], [38], [100], [64]),
    "branches": spans([30, 20, 25]),
    "a branch without trunk, and one without tokens": spans([0, 9, 7], [6, 0, 5]),
    "sequences and trees of a length": spans([50], [20, 20, 10], [30, 19], [10, 8, 8, 8, 8, 8], [49]),
    "the longest": spans([SHORT]),
    "a long one between short ones": spans([40], [SHORT - 50, 30, 30], [20, 10, 10]),
}


@pytest.mark.parametrize("trees", FORESTS.values(), ids=FORESTS)
@pytest.mark.parametrize("n_filler", [0, 7])
def test_in_bf16_output_and_gradients_are_as_near_to_fp32_as_pytorchs(trees: list[Span], n_filler: int) -> None:
    # Several draws: of a few numbers the one rounds better, then the other.
    draws = range(8 if trees[-1].ends[-1] < 100 else 1)
    exact, ours, theirs = (
        [
            torch.cat(x)
            for x in zip(*(computed(trees, dtype, ours=own, n_filler=n_filler, seed=s) for s in draws), strict=True)
        ]
        for dtype, own in ((torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False))
    )
    for x, ours_x, theirs_x in zip(exact, ours, theirs, strict=True):
        assert (ours_x - x).norm() <= 1.1 * (theirs_x - x).norm() + 1e-4 * x.norm()


@pytest.mark.parametrize("trees", FORESTS.values(), ids=FORESTS)
def test_in_fp32_it_is_pytorchs(trees: list[Span]) -> None:
    for ours, theirs in zip(*(computed(trees, torch.float32, ours=x) for x in (True, False)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_a_token_alone_learns_nothing_about_where_to_look() -> None:
    _, q, k, _ = computed(spans([1]), torch.bfloat16, ours=True)
    assert max(q.abs().max(), k.abs().max()) < 0.01


def test_rows_of_no_tree_give_zeros_and_learn_nothing() -> None:
    leaves = [torch.randn(9, h, 16, dtype=torch.bfloat16, requires_grad=True) for h in (HEADS, KV_HEADS, KV_HEADS)]
    out = TreeAttention(spans([4], [2]))(0, *leaves)
    assert not out[6:].any()
    out.sum().backward()
    assert all(x.grad is not None and x.grad[:6].any() and not x.grad[6:].any() for x in leaves)


def test_keys_much_larger_than_their_row_s_best_leave_no_trace_where_they_are_not_seen() -> None:
    q, k, v = (torch.zeros(3, 1, 4, dtype=torch.bfloat16) for _ in range(3))
    q[:, 0, 0], k[2, 0, 0], v[2] = 30, 100, 1000
    leaves = [x.requires_grad_() for x in (q, k, v)]
    TreeAttention(spans([3]))(0, *leaves)[:2].sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in leaves if x.grad is not None)
    assert v.grad is not None
    assert not v.grad[2].any()
    assert v.grad[0].max() == 1.5


def test_groups_of_many_trees_are_divided_and_the_precision_of_products_stays_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    trees = spans(*[[100]] * 20)
    groups = attention._grouped([span.start for span in trees], [100] * 20, 2003).groups
    assert [group.is_filler_BS.shape for group in groups] == [(9, 128), (9, 128), (2, 128)]
    computed(trees, torch.bfloat16, ours=True)
    assert torch.get_float32_matmul_precision() == before
