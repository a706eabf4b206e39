"""Causal attention of one sequence; the query heads of a group share their keys and values.

PyTorch's, but for the backward pass of short sequences in bf16 on a processor, where that one takes two to three times
as long as plain products do.

Shapes: T tokens, H heads, K key-value heads, D head size, R = T * H/K: the rows of a group's heads, one after another.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SHORT = 384
"""Tokens up to which plain products are faster; the scores of all pairs exist at once, in fp32."""

FILLED_TO = 32
"""The backward pass takes a multiple of this many tokens, so that few shapes occur: see `trees.row_multiple`."""


def causal(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    """Plain causal attention of one sequence, (T, H, D)."""
    if not q_THD.shape[0]:
        return q_THD
    learns = torch.is_grad_enabled() and q_THD.requires_grad
    if learns and q_THD.device.type == "cpu" and q_THD.dtype == torch.bfloat16 and q_THD.shape[0] <= SHORT:
        attended: Tensor = _ShortCausal.apply(q_THD, k_TKD, v_TKD)  # type: ignore[no-untyped-call]
        return attended
    q, k, v = _by_heads(q_THD, k_TKD, v_TKD)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)


class _ShortCausal(torch.autograd.Function):
    """The probabilities are computed again from the kept log-sum-exp (FlashAttention, Dao et al. 2022, section 3.1).

    Scores and their gradients are fp32, as in PyTorch's own; what they are multiplied with then is bf16.
    """

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        q, k, v = _by_heads(q_THD, k_TKD, v_TKD)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        out_THD: Tensor = out[0].transpose(0, 1)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, lse[0])
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, out_THD, lse_HT = ctx.saved_tensors
        heads, n, dtype, scale = q_THD.shape[1], q_THD.shape[0], q_THD.dtype, q_THD.shape[2] ** -0.5
        kv_heads, filler = k_TKD.shape[1], -n % FILLED_TO
        q_KRD, grad_KRD = _grouped(q_THD, kv_heads, filler), _grouped(grads[0], kv_heads, filler)
        k_KTD, v_KTD = _grouped(k_TKD, kv_heads, filler), _grouped(v_TKD, kv_heads, filler)
        lse_KR1 = F.pad(lse_HT, (0, filler)).reshape(kv_heads, -1, 1)
        p_KRT = torch.baddbmm(lse_KR1, q_KRD.float(), k_KTD.float().mT, beta=-1, alpha=scale).exp_()
        p_KRT.view(heads, n + filler, -1).tril_()
        shared_HT = (grads[0].float() * out_THD).sum(-1).T
        shared_KR1 = F.pad(shared_HT, (0, filler)).reshape(kv_heads, -1, 1)
        grad_s_KRT = torch.baddbmm(shared_KR1, grad_KRD.float(), v_KTD.float().mT, beta=-1, alpha=1).mul_(p_KRT)
        grad_s_KRT, p_KRT = grad_s_KRT.mul_(scale).to(dtype), p_KRT.to(dtype)
        return (
            torch.bmm(grad_s_KRT, k_KTD).view(heads, n + filler, -1)[:, :n].transpose(0, 1),
            torch.bmm(grad_s_KRT.mT, q_KRD)[:, :n].transpose(0, 1),
            torch.bmm(p_KRT.mT, grad_KRD)[:, :n].transpose(0, 1),
        )


def _by_heads(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> list[Tensor]:
    groups = q_THD.shape[1] // k_TKD.shape[1]
    repeated = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (k_TKD, v_TKD))
    return [x.transpose(0, 1)[None] for x in (q_THD, *repeated)]


def _grouped(x_THD: Tensor, kv_heads: int, filler: int) -> Tensor:
    return F.pad(x_THD.transpose(0, 1), (0, 0, 0, filler)).reshape(kv_heads, -1, x_THD.shape[2])
