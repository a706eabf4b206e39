"""Losses: arithmetic on the log-probabilities of completion tokens, and how these are computed.

`token_logprobs` runs the head where a token is predicted and nowhere else. Losses take its result.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CHUNK = 512
"""Rows of logits that exist at a time: 512 x 49,152 x 4 bytes is 100 MB."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One batch as its predicted tokens; all are (N,)."""

    logprob_N: Tensor
    weight_N: Tensor
    branch_N: Tensor


def cross_entropy(inputs: LossInputs, normalizer: float) -> Tensor:
    """Weighted negative log-likelihood, divided by the summed weight of the whole optimizer step."""
    return -(inputs.logprob_N * inputs.weight_N).sum() / normalizer


def token_logprobs(
    hidden_NE: Tensor, head_VE: Tensor, target_N: Tensor, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, (N,), and whether it is the likeliest token, (N,) bool."""
    result: tuple[Tensor, Tensor] = _TokenLogprobs.apply(hidden_NE, head_VE, target_N, bias_V)  # type: ignore[no-untyped-call]
    return result


class _TokenLogprobs(torch.autograd.Function):
    """Head, log-softmax and gather in one; logits exist a chunk at a time and are never saved.

    The gradient of log p(t) with respect to its own hidden state is W[t] - sum_v p(v) W[v], whatever the loss is:
    each row needs the loss's gradient as one factor only. So it is computed in the forward pass, where the
    logits are at hand, and (N, E) is all that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NE: Tensor, head_VE: Tensor, target_N: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logprob_N = torch.empty(target_N.shape[0], dtype=torch.float32, device=hidden_NE.device)
        right_N = torch.empty(target_N.shape[0], dtype=torch.bool, device=hidden_NE.device)
        wants = ctx.needs_input_grad[0]
        slope_NE = torch.empty_like(hidden_NE) if wants else None
        for start in range(0, target_N.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            logits = F.linear(hidden_NE[rows], head_VE, bias_V)
            right_N[rows] = logits.argmax(-1) == target_N[rows]
            total = torch.logsumexp(logits, -1)
            logprob_N[rows] = logits.gather(1, target_N[rows, None])[:, 0] - total
            if slope_NE is not None:
                probabilities = logits.sub_(total[:, None]).exp_()
                slope_NE[rows] = head_VE[target_N[rows]] - probabilities @ head_VE
        ctx.save_for_backward(slope_NE, hidden_NE if ctx.needs_input_grad[1] else None, head_VE, target_N, bias_V)
        ctx.mark_non_differentiable(right_N)
        return logprob_N, right_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope_NE, hidden_NE, head_VE, target_N, bias_V = ctx.saved_tensors
        grad_N = grads[0]
        grad_hidden_NE = None if slope_NE is None else slope_NE * grad_N[:, None]
        grad_head_VE = grad_bias_V = None
        if hidden_NE is not None:
            grad_head_VE = torch.zeros_like(head_VE)
            grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
            for start in range(0, target_N.shape[0], CHUNK):
                rows = slice(start, start + CHUNK)
                pull = torch.softmax(F.linear(hidden_NE[rows], head_VE, bias_V), -1).mul_(-grad_N[rows, None])
                pull.scatter_add_(1, target_N[rows, None], grad_N[rows, None])
                grad_head_VE.addmm_(pull.T, hidden_NE[rows])
                if grad_bias_V is not None:
                    grad_bias_V += pull.sum(0)
        return grad_hidden_NE, grad_head_VE, None, grad_bias_V
