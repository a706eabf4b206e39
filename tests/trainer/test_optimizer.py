"""Our AdamW is torch's."""

import torch

from tunekeeper.trainer.optimizer import AdamW


def test_every_step_equals_that_of_torch_with_clipping() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=generator), torch.randn(7, generator=generator)]
    ours = {str(i): t.clone().requires_grad_() for i, t in enumerate(start)}
    theirs = [t.clone().requires_grad_() for t in start]
    mine = AdamW(ours, weight_decay=0.01)
    reference = torch.optim.AdamW(theirs, lr=1.0, weight_decay=0.01)
    for step in range(5):
        gradients = [torch.randn(t.shape, generator=generator) * 3 for t in start]
        for (a, b), gradient in zip(zip(ours.values(), theirs, strict=True), gradients, strict=True):
            a.grad, b.grad = gradient.clone(), gradient.clone()
        rate = 0.1 / (step + 1)
        norm = mine.clip(1.0)
        torch.testing.assert_close(torch.tensor(norm), torch.nn.utils.clip_grad_norm_(theirs, 1.0))
        mine.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        for a, b in zip(ours.values(), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
