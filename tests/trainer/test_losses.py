"""Losses against numbers worked by hand and against PyTorch's own."""

import math

import torch

from tunekeeper.trainer.losses import LossInputs, cross_entropy, token_logprobs


def test_two_tokens_worked_by_hand() -> None:
    # Logits (0, ln 3): p = (1/4, 3/4).
    hidden = torch.tensor([[1.0], [1.0]])
    head = torch.tensor([[0.0], [math.log(3)]])
    logprob, right = token_logprobs(hidden, head, torch.tensor([1, 0]))
    torch.testing.assert_close(logprob, torch.tensor([math.log(0.75), math.log(0.25)]))
    assert right.tolist() == [True, False]
    loss = cross_entropy(LossInputs(logprob, torch.tensor([1.0, 0.5]), torch.tensor([0, 0])), 1.5)
    torch.testing.assert_close(loss, torch.tensor(-(math.log(0.75) + 0.5 * math.log(0.25)) / 1.5))


def test_gradients_equal_those_of_torch_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 16, generator=generator, requires_grad=True)  # more than one chunk
    head = torch.randn(50, 16, generator=generator, requires_grad=True)
    target = torch.randint(50, (700,), generator=generator)
    factor = torch.rand(700, generator=generator)
    (token_logprobs(hidden, head, target)[0] * factor).sum().backward()
    ours = hidden.grad, head.grad
    hidden.grad = head.grad = None
    plain = -torch.nn.functional.cross_entropy(hidden @ head.T, target, reduction="none")
    (plain * factor).sum().backward()
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], head.grad, rtol=1e-5, atol=1e-5)
