"""LoRA: the weights that a job learns, and the linear layer that runs with them.

An adapter is a pair of matrices for each adapted linear module, y = W x + scale * B (A x)  (Hu et al. 2021).
The names of the modules are those of the checkpoint on disk (`model.layers.0.self_attn.q_proj`), so that PEFT
reads what we write. Nothing here knows an architecture: a decoder says which modules it has.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Scope = Literal["all", "completion"]

FEW_ROWS = 16
"""Up to so many rows a processor adds an adapter's change in fp32, also to bf16: a product in bf16 takes longer to
prepare than these take, above all where each request of a step has an adapter of its own."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of one module's change: `a_RI` and `b_OR`, both fp32."""

    a_RI: Tensor
    b_OR: Tensor


@dataclass(eq=False)
class LoraAdapter:
    """The learned change of one model.

    `scope` says which tokens it changes: "all", or "completion": only those from the last occurrence of
    `invocation_tokens` (the generation prompt) on, so that a prompt's keys and values are those of the bare base
    and are shared with it (activated LoRA, Greenewald et al. 2025; PEFT's `alora_invocation_tokens`).
    """

    pairs: dict[str, LoraPair]
    rank: int
    alpha: float
    scope: Scope = "all"
    invocation_tokens: tuple[int, ...] = ()
    _fused: dict[tuple[tuple[str, ...], torch.dtype], tuple[Tensor, Tensor] | None] = field(
        default_factory=dict, repr=False
    )

    @property
    def scale(self) -> float:
        """The factor of the low-rank change: alpha / rank."""
        return self.alpha / self.rank

    @property
    def target_modules(self) -> list[str]:
        """The last names of the adapted modules, sorted: what PEFT calls target_modules."""
        return sorted({name.rsplit(".", 1)[-1] for name in self.pairs})

    def parameters(self) -> list[Tensor]:
        """Every learned tensor, in one fixed order."""
        return [tensor for pair in self.pairs.values() for tensor in (pair.a_RI, pair.b_OR)]

    def forget_fused(self) -> None:
        """After a change of the weights: what `fused` keeps is stale."""
        self._fused.clear()

    def fused(self, names: tuple[str, ...], widths: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """The factors of modules that share their input, for inference: A side by side, (I, R), and B block-diagonal
        with the scale, (R, O).

        One product where there were three: with the few rows of a decoding step, it is calls that cost, not numbers.
        """
        if (names, dtype) not in self._fused:
            pairs = [self.pairs.get(name) for name in names]
            kept = [pair for pair in pairs if pair is not None]
            blocks = [
                kept[0].b_OR.new_zeros(0, width) if pair is None else self.scale * pair.b_OR.detach().T
                for pair, width in zip(pairs, widths, strict=True)
                if kept
            ]
            a_IR = torch.cat([pair.a_RI.detach() for pair in kept]).T.to(dtype).contiguous() if kept else None
            self._fused[names, dtype] = None if a_IR is None else (a_IR, torch.block_diag(*blocks).to(a_IR))
        return self._fused[names, dtype]

    @torch.no_grad()
    def merged(self, weight_OI: Tensor, names: Sequence[str], widths: Sequence[int]) -> Tensor:
        """W + scale * B A, of modules that lie side by side in `weight_OI`, `widths` outputs each; a new tensor."""
        whole_OI = weight_OI.clone()
        for name, part_OI in zip(names, whole_OI.split(list(widths)), strict=True):
            pair = self.pairs.get(name)
            if pair is not None:
                part_OI.addmm_(pair.b_OR.to(part_OI.dtype), pair.a_RI.to(part_OI.dtype), alpha=self.scale)
        return whole_OI


def new_adapter(
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int,
    alpha: float,
    seed: int,
    scope: Scope = "all",
    invocation_tokens: tuple[int, ...] = (),
    device: torch.device | str = "cpu",
) -> LoraAdapter:
    """An adapter that changes nothing yet: A uniform as PEFT draws it (Kaiming, a = sqrt 5), B zero.

    `modules` maps a module's name to its (outputs, inputs). A seed draws the same numbers for every device.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, (outputs, inputs) in modules.items():
        bound = 1 / math.sqrt(inputs)
        a_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        b_OR = torch.zeros(outputs, rank, device=device)
        pairs[name] = LoraPair(a_RI.to(device).requires_grad_(), b_OR.requires_grad_())
    return LoraAdapter(pairs, rank, alpha, scope, invocation_tokens)


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Rows [start, end) of a packed batch run with this adapter; rows in no range run on the bare base."""

    adapter: LoraAdapter
    start: int
    end: int


def chosen_rows(adapters: Sequence[AdapterRows], rows_N: Tensor) -> tuple[AdapterRows, ...]:
    """The same ranges, counted among the chosen rows: these ascend, or a range holds all of them."""
    ends = torch.tensor([(rows.start, rows.end) for rows in adapters], dtype=rows_N.dtype, device=rows_N.device)
    places: list[list[int]] = torch.searchsorted(rows_N, ends.view(-1, 2)).tolist()
    return tuple(
        AdapterRows(rows.adapter, start, end)
        for rows, (start, end) in zip(adapters, places, strict=True)
        if start < end
    )


def lora_linear(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    names: tuple[str, ...],
    widths: Sequence[int],
    adapters: Sequence[AdapterRows],
) -> Tensor:
    """A linear layer made of the modules `names` side by side, `widths` outputs each, with each row's adapter."""
    if torch.is_grad_enabled() and adapters:
        return _trained(x_TI, weight_OI, bias_O, names, widths, adapters)
    y_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    for rows in adapters:
        x_NI, y_NO = x_TI[rows.start : rows.end], y_TO[rows.start : rows.end]
        is_few = x_NI.shape[0] <= FEW_ROWS and x_NI.device.type == "cpu"
        factors = rows.adapter.fused(names, widths, torch.float32 if is_few else x_NI.dtype)
        if factors is not None:
            a_IR, b_RO = factors
            if a_IR.dtype == y_NO.dtype:
                y_NO.addmm_(x_NI @ a_IR, b_RO)
            else:
                y_NO.add_(x_NI.to(a_IR.dtype) @ a_IR @ b_RO)
    return y_TO


def _trained(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    names: tuple[str, ...],
    widths: Sequence[int],
    adapters: Sequence[AdapterRows],
) -> Tensor:
    if len(adapters) != 1 or (adapters[0].start, adapters[0].end) != (0, x_TI.shape[0]):
        raise AssertionError("training runs one adapter over all rows")
    adapter = adapters[0].adapter
    pairs = [adapter.pairs.get(name) for name in names]
    kept = [(pair, width) for pair, width in zip(pairs, widths, strict=True) if pair is not None]
    if not kept:
        return torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    spans = tuple(_spans(pairs, widths))
    factors = [tensor for pair, _ in kept for tensor in (pair.a_RI, pair.b_OR)]
    result: Tensor = LoraLinear.apply(x_TI, weight_OI, bias_O, adapter.scale, spans, *factors)  # type: ignore[no-untyped-call]
    return result


def _spans(pairs: Sequence[LoraPair | None], widths: Sequence[int]) -> Iterable[tuple[int, int]]:
    start = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            yield start, start + width
        start += width


def low_rank_forward(
    y_TO: Tensor, x_TI: Tensor, scale: float, spans: Sequence[tuple[int, int]], factors: Sequence[Tensor]
) -> Tensor:
    """Add the adapter's change to `y_TO` in place; return A x, which the backward pass needs."""
    a_RI = torch.cat([a.to(x_TI.dtype) for a in factors[::2]])
    xa_TR = x_TI @ a_RI.T
    row = 0
    for (start, end), b_OR in zip(spans, factors[1::2], strict=True):
        rank = b_OR.shape[1]
        y_TO[:, start:end].addmm_(xa_TR[:, row : row + rank], b_OR.to(x_TI.dtype).T, alpha=scale)
        row += rank
    return xa_TR


def low_rank_backward(
    grad_TO: Tensor,
    x_TI: Tensor,
    xa_TR: Tensor,
    scale: float,
    spans: Sequence[tuple[int, int]],
    factors: Sequence[Tensor],
    grad_x_TI: Tensor | None,
) -> list[Tensor]:
    """Gradients of the factors, in their order; adds the adapter's part to `grad_x_TI` in place."""
    grad_xa_TR = torch.empty_like(xa_TR)
    row, grads_b = 0, []
    for (start, end), b_OR in zip(spans, factors[1::2], strict=True):
        rank = b_OR.shape[1]
        part = slice(row, row + rank)
        torch.mm(grad_TO[:, start:end], b_OR.to(grad_TO.dtype), out=grad_xa_TR[:, part])
        grads_b.append((grad_TO[:, start:end].T @ xa_TR[:, part]).mul_(scale))
        row += rank
    grad_xa_TR.mul_(scale)
    if grad_x_TI is not None:
        grad_x_TI.addmm_(grad_xa_TR, torch.cat([a.to(grad_TO.dtype) for a in factors[::2]]))
    grads_a = (grad_xa_TR.T @ x_TI).split([a.shape[0] for a in factors[::2]])
    return [grad.float() for pair in zip(grads_a, grads_b, strict=True) for grad in pair]


class LoraLinear(torch.autograd.Function):
    """Linear layer with a frozen or trained weight and a trained low-rank change; saves its input and A x only."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        scale: float,
        spans: tuple[tuple[int, int], ...],
        *factors: Tensor,
    ) -> Tensor:
        """Compute y = W x + b + scale * B A x."""
        y_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
        xa_TR = low_rank_forward(y_TO, x_TI, scale, spans, factors)
        ctx.save_for_backward(x_TI, weight_OI, xa_TR, *factors)
        ctx.scale, ctx.spans = scale, spans
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the factors."""
        x_TI, weight_OI, xa_TR, *factors = ctx.saved_tensors
        grad_TO = grads[0].contiguous()
        grad_x_TI = grad_TO @ weight_OI if ctx.needs_input_grad[0] else None
        pairs = low_rank_backward(grad_TO, x_TI, xa_TR, ctx.scale, ctx.spans, factors, grad_x_TI)
        return (grad_x_TI, None, None, None, None, *pairs)
