"""AdamW (Loshchilov and Hutter 2019), on tensors in fp32, with a state that is three plain dictionaries' worth.

Our own, for one reason: making torch.optim.AdamW imports torch's compiler, two seconds at the start of every
training process. A test holds it to torch's, number by number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class AdamW:
    """Decoupled weight decay, bias-corrected moments; betas 0.9 and 0.999."""

    def __init__(self, parameters: Mapping[str, Tensor], *, weight_decay: float, eps: float = 1e-8) -> None:
        self.parameters, self.weight_decay, self.eps = dict(parameters), weight_decay, eps
        self.step_count = 0
        self.mean = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.square = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient."""
        self.step_count += 1
        correction1 = 1 - 0.9**self.step_count
        correction2 = 1 - 0.999**self.step_count
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            mean, square = self.mean[name], self.square[name]
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            spread = square.sqrt().div_(correction2**0.5).add_(self.eps)
            if self.weight_decay:
                parameter.mul_(1 - learning_rate * self.weight_decay)
            parameter.addcdiv_(mean.to(parameter.dtype), spread.to(parameter.dtype), value=-learning_rate / correction1)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to a joint norm of at most `max_norm`; return the norm that they had."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])))
        if norm > max_norm:
            for gradient in gradients:
                gradient.mul_(max_norm / (norm + 1e-6))
        return norm

    def state(self) -> dict[str, Tensor]:
        """The moments, by name; `step_count` is kept beside them."""
        moments = {f"mean.{name}": tensor for name, tensor in self.mean.items()}
        return moments | {f"square.{name}": tensor for name, tensor in self.square.items()}

    def restore(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Go on from a saved state."""
        self.step_count = step_count
        for name in self.parameters:
            self.mean[name].copy_(state[f"mean.{name}"])
            self.square[name].copy_(state[f"square.{name}"])
