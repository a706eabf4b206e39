"""Losses: arithmetic on the log-probabilities of completion tokens, and how these are computed.

`token_logprobs` runs the head where a token is predicted and nowhere else. A loss takes its result and the sum to
divide by, which is the whole optimizer step's, so that a step computed in parts has the same gradient:

    loss(LossInputs(logprob_N, weight_N, branch_N, …), normalizer) -> what to differentiate

    cross_entropy     every target token                         divided by their summed weight
    preference        pairs of branches, against a reference      divided by the number of pairs
    policy_gradient   sampled branches with their advantages     divided by the answers, and by a constant

Shapes: N predicted tokens, B branches of the batch, P pairs, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CHUNK = 512
"""Rows of logits that exist at a time: 512 x 49,152 x 4 bytes is 100 MB."""

MOST_IMPORTANCE = 2.0
"""Weight of a token that is far likelier here than where it was sampled."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One batch as its predicted tokens, and what is known of its branches."""

    logprob_N: Tensor
    weight_N: Tensor
    branch_N: Tensor
    reference_B: Tensor | None = None
    """Summed log-probability of each branch under the model that the run started from."""
    advantage_B: Tensor | None = None
    """How much better each branch was than the others of its group: `advantages`."""


Loss = Callable[[LossInputs, float], Tensor]


def cross_entropy(inputs: LossInputs, normalizer: float) -> Tensor:
    """Weighted negative log-likelihood, divided by the summed weight of the whole optimizer step."""
    return -(inputs.logprob_N * inputs.weight_N).sum() / normalizer


def preference(inputs: LossInputs, normalizer: float, *, beta: float) -> Tensor:
    """Make the first branch of each pair likelier than the second, relative to the reference.

    Rafailov et al. 2023, equation 7, with the sums over tokens that it has; divided by the number of pairs.
    """
    chosen_P, rejected_P = rewards_of_pairs(inputs, beta)
    return -F.logsigmoid(chosen_P - rejected_P).sum() / normalizer


def rewards_of_pairs(inputs: LossInputs, beta: float) -> tuple[Tensor, Tensor]:
    """The implicit rewards of the preferred and of the other branches: beta times how much likelier they became."""
    assert inputs.reference_B is not None
    gained_B = branch_logprobs(inputs, inputs.reference_B.shape[0]) - inputs.reference_B
    return beta * gained_B[0::2], beta * gained_B[1::2]


def policy_gradient(inputs: LossInputs, normalizer: float) -> Tensor:
    """Make answers likelier by how much better they were than the other answers to the same problem.

    The plain policy gradient, on answers that the present weights sampled, so that there is no ratio to clip. It
    is GRPO (Shao et al. 2024) without what biases it (Dr. GRPO, Liu et al. 2025): advantages are not divided by
    the group's deviation, which would weigh problems that are nearly always or nearly never solved most; nor
    tokens by their answer's length, which would favour long wrong answers. `normalizer` is the number of the
    step's answers times a constant.
    """
    assert inputs.advantage_B is not None
    advantage_N = inputs.advantage_B[inputs.branch_N]
    return -(advantage_N * inputs.logprob_N * inputs.weight_N).sum() / normalizer


def importance(logprob_N: Tensor, sampled_N: Tensor) -> Tensor:
    """How much likelier each token is here than where it was sampled, at most `MOST_IMPORTANCE`; (N,), no gradient.

    What another program sampled from the same weights comes from a slightly different distribution. Weighting each
    token's gradient so corrects it; the bound keeps the variance down (truncated importance sampling, Ionides 2008;
    for samplers beside trainers: Yao et al. 2025).
    """
    return (logprob_N.detach() - sampled_N).exp().clamp(max=MOST_IMPORTANCE)


def advantages(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Each reward minus the mean of the others of its group; 0 for a branch that is alone.

    Leaving the answer itself out of its baseline (Kool et al. 2019; RLOO, Ahmadian et al. 2024) is what makes the
    gradient that of the expected reward, unscaled. Equal rewards give exactly 0.
    """
    n_groups = int(group_B.max()) + 1 if group_B.numel() else 0
    advantage_B = torch.zeros_like(reward_B)
    for group in range(n_groups):
        members = (group_B == group).nonzero()[:, 0]
        reward = reward_B[members]
        if len(members) > 1 and bool((reward != reward[0]).any()):
            advantage_B[members] = (reward - reward.mean()) * (len(members) / (len(members) - 1))
    return advantage_B


def branch_logprobs(inputs: LossInputs, n_branches: int) -> Tensor:
    """The summed log-probability of each branch, weighted, (B,)."""
    weighted_N = inputs.logprob_N * inputs.weight_N
    return weighted_N.new_zeros(n_branches).index_add(0, inputs.branch_N, weighted_N)


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
            most = logits.amax(-1, keepdim=True)
            own = logits.gather(1, target_N[rows, None])
            right_N[rows] = (own >= most)[:, 0]
            # In place and once: another tensor of this size is 100 MB, and exponents are what takes the time.
            exponents = logits.sub_(most).exp_()
            total = exponents.sum(-1, keepdim=True)
            logprob_N[rows] = (own - most - total.log())[:, 0]
            if slope_NE is not None:
                slope_NE[rows] = head_VE[target_N[rows]] - (exponents @ head_VE).div_(total)
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
