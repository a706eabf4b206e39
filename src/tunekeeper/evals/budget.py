"""What fits into the minutes that are given: how many items, which prompts to try, which sizes to train on.

Seconds in, a plan out. What is cut first is what says least: prompts to choose from, then the sizes of the
learning curve, then held-out items, and the training data last. A plan says what it cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

MARGIN = 0.8
"""Share of the time that is planned with; estimates are only that."""
JOB_S = 12.0
"""What a job takes beside its training: it starts, loads the model, saves it."""
FEWEST_ITEMS = 40
FEWEST_EXAMPLES = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What things take, as measured just now."""

    answer_s: float
    """An answer without examples in the prompt, many at once."""
    longer: Mapping[int, float]
    """By how much a prompt with k examples takes longer."""
    training_s: float
    """The job on all training lines."""
    larger: bool = False
    """Whether a larger model is asked too; taken to cost three times an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be measured."""

    n_held_out: int
    n_choosing: int
    """Items on which the best examples in the prompt are chosen."""
    ks: tuple[int, ...]
    fractions: tuple[float, ...]
    """Sizes of the learning curve beside the whole."""
    n_training: int
    seconds: float
    """What all of it will take; more than was given where nothing fits."""
    cuts: tuple[str, ...] = ()


def plan(costs: Costs, *, seconds: float, n_held_out: int, n_training: int, fractions: Sequence[float]) -> Plan:
    """The fullest plan that fits into the seconds; where none does, the leanest one.

    Its cuts do not name items and lines: those numbers say themselves.
    """
    seconds *= MARGIN
    whole = Plan(
        n_held_out=n_held_out,
        n_choosing=min(24, n_training // 3),
        ks=tuple(costs.longer),
        fractions=tuple(fractions),
        n_training=n_training,
        seconds=0.0,
    )
    chosen, fewest = whole, min(FEWEST_EXAMPLES, n_training)
    for leaner in (
        {},
        {"n_choosing": min(12, whole.n_choosing)},
        {"fractions": tuple(fraction / 2 for fraction in fractions)},
        {"ks": whole.ks[:2], "n_choosing": min(8, whole.n_choosing)},
        {"n_held_out": min(n_held_out, 50)},
        {"fractions": ()},
        {"n_held_out": min(n_held_out, FEWEST_ITEMS), "ks": whole.ks[:1]},
    ):
        chosen = replace(chosen, **leaner)
        needed = _seconds(chosen, costs, n_training)
        if needed <= seconds:
            return replace(chosen, seconds=needed, cuts=tuple(_cuts(whole, chosen)))
    for ks in (chosen.ks, ()):
        chosen = replace(chosen, ks=ks, n_training=0)
        n_fitting = int(n_training * (seconds - _seconds(chosen, costs, n_training)) / max(costs.training_s, 1e-9))
        if n_fitting >= fewest:
            break
    chosen = replace(chosen, n_training=max(fewest, min(n_fitting, n_training)))
    needed = _seconds(chosen, costs, n_training)
    return replace(chosen, seconds=needed, cuts=tuple(_cuts(whole, chosen)))


def fitting(costs: Costs, *, seconds: float, n_held_out: int, n_training: int) -> int:
    """How many of the training lines a single job and its answers still have time for."""
    rest = MARGIN * seconds - JOB_S - 1.2 * n_held_out * costs.answer_s
    return max(0, min(n_training, int(n_training * rest / max(costs.training_s, 1e-9))))


def _seconds(plan: Plan, costs: Costs, n_training: int) -> float:
    asked = plan.n_held_out * costs.answer_s
    choosing = 2 * plan.n_choosing * costs.answer_s * sum(costs.longer[k] for k in plan.ks)
    few_shot = asked * max((costs.longer[k] for k in plan.ks), default=0.0)
    sizes = (1.0, *plan.fractions)
    training = sum(JOB_S + size * plan.n_training / n_training * costs.training_s for size in sizes)
    return choosing + few_shot + training + 1.2 * len(sizes) * asked + (3 * asked if costs.larger else 0.0)


def _cuts(whole: Plan, chosen: Plan) -> list[str]:
    found = []
    if chosen.ks and chosen.n_choosing < whole.n_choosing:
        found.append(f"examples for the prompt are chosen on {chosen.n_choosing} items instead of {whole.n_choosing}")
    if not chosen.ks:
        found.append("no examples in the prompt are tried")
    elif chosen.ks != whole.ks:
        sizes = " and ".join(map(str, chosen.ks))
        found.append(f"only prompts with {sizes} example{'s' if chosen.ks != (1,) else ''} are tried")
    if not chosen.fractions and whole.fractions:
        found.append("there is no learning curve")
    elif chosen.fractions != whole.fractions:
        found.append("the learning curve has smaller sizes")
    return found
