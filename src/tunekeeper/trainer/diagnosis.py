"""What the curves of a run say, in plain words: pure arithmetic on its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tunekeeper.trainer.step import Step


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the curves say. `step` is where it begins."""

    level: Literal["info", "warn"]
    code: Literal["over_fitting", "under_fitting", "diverging", "data_exhausted", "not_learning", "healthy"]
    step: int
    message: str


def diagnose(history: Sequence[Step]) -> list[Finding]:
    """Findings of a run so far, worst first; nothing is said of fewer than 8 steps."""
    if len(history) < 8:
        return []
    if (diverging := _diverging(history)) is not None:
        return [diverging]
    found = [
        finding for check in (_over_fitting, _exhausted, _not_learning, _under_fitting) if (finding := check(history))
    ]
    if not found:
        last = history[-1]
        found = [Finding("info", "healthy", last.step, f"The curves look healthy at step {last.step}.")]
    return found


def _window(history: Sequence[Step]) -> int:
    return max(2, len(history) // 10)


def _diverging(history: Sequence[Step]) -> Finding | None:
    for step in history:
        if step.train_loss != step.train_loss or step.grad_norm != step.grad_norm:
            return Finding(
                "warn", "diverging", step.step,
                f"Diverging: the loss is not a number since step {step.step}. Lower learning_rate_multiplier.",
            )  # fmt: skip
    width = _window(history)
    means = [fmean(s.train_loss for s in history[i : i + width]) for i in range(0, len(history) - width + 1, width)]
    low = min(range(len(means)), key=means.__getitem__)
    if low + 1 < len(means) and means[-1] > 1.5 * means[low] + 0.1:
        since = history[min(len(history) - 1, (low + 1) * width)].step
        return Finding(
            "warn", "diverging", since,
            f"Diverging: the training loss rises since step {since} (from {means[low]:.3f} to {means[-1]:.3f}). "
            "Lower learning_rate_multiplier.",
        )  # fmt: skip
    return None


def _validation(history: Sequence[Step]) -> list[tuple[int, float]]:
    # Of the whole validation file: `valid_loss` is of other examples each time, and cannot be compared with itself.
    return [(s.step, s.full_valid_loss) for s in history if s.full_valid_loss is not None]


def _over_fitting(history: Sequence[Step]) -> Finding | None:
    curve = _validation(history)
    if len(curve) < 2:
        return None
    best_step, best = min(curve, key=lambda point: point[1])
    last_step, last = curve[-1]
    falling = history[-1].train_loss < fmean(s.train_loss for s in history if s.step <= best_step)
    if best_step == last_step or last < 1.03 * best + 0.005 or not falling:
        return None
    return Finding(
        "warn", "over_fitting", best_step,
        f"Over-fitting since step {best_step}: the validation loss rose from {best:.3f} to {last:.3f} while the "
        "training loss fell. Use the checkpoint nearest that step, fewer epochs, or more data.",
    )  # fmt: skip


def _exhausted(history: Sequence[Step]) -> Finding | None:
    tail = history[-_window(history) :]
    if fmean(s.train_loss for s in tail) > 0.01:
        return None
    first = next(s.step for s in history if s.train_loss <= 0.01)
    return Finding(
        "info", "data_exhausted", first,
        f"Data exhausted: the training loss is below 0.01 since step {first}; further epochs only memorise. "
        "More varied examples would help more than more epochs.",
    )  # fmt: skip


def _not_learning(history: Sequence[Step]) -> Finding | None:
    width = _window(history)
    first, last = (fmean(s.train_loss for s in part) for part in (history[:width], history[-width:]))
    if last < 0.98 * first:
        return None
    return Finding(
        "warn", "not_learning", history[-1].step,
        f"Under-fitting: after {len(history)} steps the training loss is {last:.3f}, as it was at the start "
        f"({first:.3f}). Raise learning_rate_multiplier, or check that prompts and answers belong together.",
    )  # fmt: skip


def _under_fitting(history: Sequence[Step]) -> Finding | None:
    curve = _validation(history)
    if len(curve) < 2 or history[-1].step < history[-1].total_steps:
        return None
    before, last = curve[-2][1], curve[-1][1]
    if last > 0.95 * before or last > min(loss for _, loss in curve):
        return None
    return Finding(
        "info", "under_fitting", history[-1].step,
        f"Under-fitting: the validation loss was still falling at the end ({before:.3f} to {last:.3f}). "
        "More epochs would probably help.",
    )  # fmt: skip
