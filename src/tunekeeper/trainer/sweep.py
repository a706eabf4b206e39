"""Sweeps: which trials a search comes to, how far each is trained before the losers stop, and who wins.

    sweep = read_sweep({"space": {"learning_rate_multiplier": [0.3, 1, 3]}}, method)
    points(sweep, seed)            -> the hyperparameters of each trial
    next_leg(total_steps, scores)  -> the trial to train next, and up to which step; None: all is done

Pure arithmetic, without torch: a job asks again after each measurement, and after a crash it asks with what it had
measured before. Trials run one after another on one loaded base: several adapters in one batch save memory, not time.
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from tunekeeper.errors import InvalidConfig, Unsupported
from tunekeeper.trainer.config import hyperparameters_of, validate_method
from tunekeeper.types import Json

SEARCHABLE = ("learning_rate_multiplier", "lora_rank", "n_epochs", "batch_size", "beta")
MAX_TRIALS = 64
MAX_CUTS = 3
"""Halvings at most: a first look before an eighth of a run would be at its warm-up."""
MAX_HELD_OUT = 1000
DEFAULT_SPLIT = 0.1
MOST_DRAWS = 1000
"""For each trial of a random search, before it is said that there are no more."""

_INTEGERS = ("lora_rank", "n_epochs", "batch_size")
_SEARCHES = ("grid", "random")
_STOPPING = ("halving", "none")

Score = tuple[float, ...]
"""What trials are compared by, lower is better; (inf,) for a trial that diverged."""
DIVERGED: Score = (math.inf,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `min` to `max`, both included."""

    min: float
    max: float
    scale: Literal["log", "linear"] = "log"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A checked search."""

    search: Literal["grid", "random"]
    space: Mapping[str, tuple[Any, ...] | Range]
    """What each hyperparameter may be; those that are not named are the method's, the same in every trial."""
    n_trials: int
    stopping: Literal["halving", "none"]
    fast: bool
    """Train the top third of the layers only, over activations of the rest that are computed once."""
    validation_split: float | None
    """Share of the training file that is held out to compare the trials; None: there is a validation file."""

    @property
    def metric(self) -> str:
        """What the trials are compared by: a loss with another beta is another quantity."""
        return "valid_preference_accuracy" if "beta" in self.space else "valid_loss"

    def to_wire(self) -> Json:
        """As JSON, which `read_sweep` takes."""
        space = {name: asdict(a) if isinstance(a, Range) else list(a) for name, a in self.space.items()}
        wire: Json = {"search": self.search, "space": space, "stopping": self.stopping, "fast": self.fast}
        if self.search == "random":
            wire["n_trials"] = self.n_trials
        if self.validation_split is not None:
            wire["validation_split"] = self.validation_split
        return wire


def read_sweep(given: Json, method: Json, *, validated: bool) -> Sweep:
    """Check what a client sent as `sweep`, for a checked method; `validated`: it sent a validation file.

    Raises InvalidConfig or Unsupported with the dotted parameter.
    """
    known = ("search", "space", "n_trials", "stopping", "fast", "validation_split")
    for name in given:
        if name not in known:
            raise InvalidConfig(f"sweep.{name} is unknown. Known are: {', '.join(known)}.", param=f"sweep.{name}")
    _check_method(method)
    search = _choice(given, "search", _SEARCHES)
    stopping = _choice(given, "stopping", _STOPPING)
    fast = given.get("fast", False)
    if not isinstance(fast, bool):
        raise InvalidConfig(f"sweep.fast is {fast!r}; it must be true or false.", param="sweep.fast")
    space = _space(given.get("space"), search, method)
    return Sweep(
        search=search,
        space=space,
        n_trials=_n_trials(given.get("n_trials"), search, space),
        stopping=stopping,
        fast=fast,
        validation_split=_split(given.get("validation_split"), validated=validated),
    )


def _check_method(method: Json) -> None:
    if method["type"] == "reinforcement":
        raise Unsupported(
            "A sweep compares losses on held-out examples, which reinforcement does not have; sweeps are for "
            "supervised and dpo.",
            param="sweep",
        )
    if hyperparameters_of(method).get("full_finetune"):
        raise Unsupported(
            "The trials of a sweep share one loaded base, which full_finetune would overwrite; leave it out.",
            param=f"method.{method['type']}.hyperparameters.full_finetune",
        )


def _choice(given: Json, name: str, choices: tuple[str, ...]) -> Any:
    value = given.get(name, choices[0])
    if value not in choices:
        raise InvalidConfig(
            f"sweep.{name} is {value!r}; it must be one of {', '.join(choices)}.", param=f"sweep.{name}"
        )
    return value


def _space(given: Any, search: str, method: Json) -> dict[str, tuple[Any, ...] | Range]:
    names = [name for name in SEARCHABLE if name != "beta" or method["type"] == "dpo"]
    if not isinstance(given, dict) or not given:
        raise InvalidConfig(
            f"sweep.space must name what is searched, as {{'learning_rate_multiplier': [0.3, 1, 3]}}. "
            f"It may name {', '.join(names)}.",
            param="sweep.space",
        )
    said = hyperparameters_of(method)
    for name in given:
        param = f"sweep.space.{name}"
        if name not in names:
            raise InvalidConfig(f"{param} cannot be searched. It may be: {', '.join(names)}.", param=param)
        if name in said and said[name] != "auto":
            raise InvalidConfig(f"{name} is in sweep.space and among the hyperparameters; send one.", param=param)
    return {name: _axis(name, value, search, method) for name, value in given.items()}


def _axis(name: str, value: Any, search: str, method: Json) -> tuple[Any, ...] | Range:
    param = f"sweep.space.{name}"
    if isinstance(value, list) and value:
        for item in value:
            _check_value(name, item, method)
        if len(set(value)) < len(value):
            raise InvalidConfig(f"{param} has a value twice.", param=param)
        return tuple(value)
    if isinstance(value, dict) and search == "random":
        return _range(name, value, method)
    ways = "a list of values" + (", or an object with min and max" if search == "random" else "")
    hint = " Ranges need search 'random'." if isinstance(value, dict) else ""
    raise InvalidConfig(f"{param} must be {ways}.{hint}", param=param)


def _range(name: str, value: Json, method: Json) -> Range:
    param = f"sweep.space.{name}"
    if not {"min", "max"} <= set(value) <= {"min", "max", "scale"}:
        raise InvalidConfig(f"{param} must have min and max, and may have scale.", param=param)
    for end in ("min", "max"):
        if value[end] == "auto":
            raise InvalidConfig(f"{param}.{end} must be a number.", param=f"{param}.{end}")
        _check_value(name, value[end], method)
    if value["min"] >= value["max"]:
        raise InvalidConfig(f"{param}: min must be below max.", param=param)
    scale = value.get("scale", "log")
    if scale not in ("log", "linear"):
        raise InvalidConfig(f"{param}.scale is {scale!r}; it must be log or linear.", param=f"{param}.scale")
    return Range(min=value["min"], max=value["max"], scale=scale)


def _check_value(name: str, value: Any, method: Json) -> None:
    """As a job with this one value would check it, with the place where this client wrote it."""
    try:
        if value is None or not isinstance(value, int | float | str):
            raise InvalidConfig(f"sweep.space.{name} has the value {value!r}; values are numbers.")
        validate_method(with_values(method, {name: value}))
    except InvalidConfig as error:
        place = f"method.{method['type']}.hyperparameters.{name}"
        param = f"sweep.space.{name}"
        raise InvalidConfig(error.message.replace(place, param), param=param) from error


def _n_trials(given: Any, search: str, space: Mapping[str, tuple[Any, ...] | Range]) -> int:
    n_points = math.prod(_size(name, axis) for name, axis in space.items())
    param = "sweep.n_trials"
    if search == "grid":
        if given is not None:
            raise InvalidConfig("A grid has as many trials as points; n_trials is for search 'random'.", param=param)
        if not 2 <= n_points <= MAX_TRIALS:
            raise InvalidConfig(
                f"The grid has {n_points:g} point(s); a sweep has 2 to {MAX_TRIALS} trials. "
                "Name other values, or use search 'random' with n_trials.",
                param="sweep.space",
            )
        return int(n_points)
    if not isinstance(given, int) or isinstance(given, bool) or not 2 <= given <= MAX_TRIALS:
        raise InvalidConfig(f"{param} is {given!r}; it must be a whole number from 2 to {MAX_TRIALS}.", param=param)
    if given > n_points:
        raise InvalidConfig(f"The space has {n_points:g} points, fewer than n_trials: use search 'grid'.", param=param)
    return given


def _size(name: str, axis: tuple[Any, ...] | Range) -> float:
    if isinstance(axis, Range):
        return axis.max - axis.min + 1 if name in _INTEGERS else math.inf
    return len(axis)


def _split(given: Any, *, validated: bool) -> float | None:
    param = "sweep.validation_split"
    if validated:
        if given is not None:
            raise InvalidConfig("There is a validation_file; validation_split would make another.", param=param)
        return None
    if given is None:
        return DEFAULT_SPLIT
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given <= 0.5:
        raise InvalidConfig(f"{param} is {given!r}; it must be above 0 and at most 0.5.", param=param)
    return float(given)


def with_values(method: Json, values: Json) -> Json:
    """The method with these hyperparameters in the place of what it says of them."""
    kind = method["type"]
    return {**method, kind: {**method[kind], "hyperparameters": {**hyperparameters_of(method), **values}}}


def points(sweep: Sweep, seed: int) -> list[Json]:
    """The hyperparameters of each trial, in order, no two alike; raises InvalidConfig where there are not so many.

    A grid has the last named one change first. Random search (Bergstra and Bengio 2012) draws each on its own.
    """
    if sweep.search == "grid":
        axes = [axis for axis in sweep.space.values() if isinstance(axis, tuple)]
        return [dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*axes)]
    source = random.Random(seed)
    found: list[Json] = []
    for _ in range(MOST_DRAWS * sweep.n_trials):
        point = {name: _draw(name, axis, source) for name, axis in sweep.space.items()}
        if point not in found:
            found.append(point)
        if len(found) == sweep.n_trials:
            return found
    raise InvalidConfig(
        f"sweep.space has too few different values, of four digits each, for {sweep.n_trials} trials: {len(found)} "
        "were found. Ask for fewer, or widen a range.",
        param="sweep.n_trials",
    )


def _draw(name: str, axis: tuple[Any, ...] | Range, source: random.Random) -> Any:
    if isinstance(axis, tuple):
        return source.choice(axis)
    margin = 0.5 if name in _INTEGERS else 0.0  # so that both ends are as likely as their neighbours
    low, high = axis.min - margin, axis.max + margin
    if axis.scale == "log":
        value = math.exp(source.uniform(math.log(low), math.log(high)))
    else:
        value = source.uniform(low, high)
    if name in _INTEGERS:
        return int(min(max(round(value), axis.min), axis.max))
    return min(max(float(f"{value:.4g}"), axis.min), axis.max)  # four digits: a number that people can repeat


def n_held_out(n_examples: int, share: float) -> int:
    """How many examples of a file are held out: at least one, at most MAX_HELD_OUT."""
    return max(1, min(MAX_HELD_OUT, round(share * n_examples)))


def held_out_lines(lines: Sequence[int], share: float, seed: int) -> frozenset[int]:
    """Which of a file's lines are held out."""
    return frozenset(random.Random(seed).sample(sorted(lines), n_held_out(len(lines), share)))


@dataclass(frozen=True, slots=True)
class Leg:
    """What to do next: train a trial up to a step, then measure it. Numbers from 0."""

    trial: int
    rung: int
    step: int


def rungs(n_trials: int, stopping: str) -> list[Fraction]:
    """The parts of its own run after which a trial is measured; the last is all of it."""
    cuts = min(MAX_CUTS, math.ceil(math.log2(n_trials))) if stopping == "halving" else 0
    return [Fraction(1, 2**k) for k in range(cuts, -1, -1)]


def next_leg(total_steps: Sequence[int], scores: Sequence[Sequence[Score]], stopping: str) -> Leg | None:
    """The leg that comes next, or None when the winner is known.

    `scores` are those of each trial at the rungs that it has reached. Sequential halving (Karnin et al. 2013) on the
    scores of unfinished runs, as successive halving does it (Jamieson and Talwalkar 2016): at a half, a quarter … of
    its run the better half of the trials goes on, and the rest is stopped; ties go to the trial that was named first.
    Each trial is measured at the same part of its own learning-rate schedule, not after the same number of steps.
    """
    parts = rungs(len(total_steps), stopping)
    for rung, part in enumerate(parts):
        for trial in _alive(scores, rung):
            if len(scores[trial]) <= rung:
                return Leg(trial, rung, max(1, math.ceil(part * total_steps[trial])))
    return None


def _alive(scores: Sequence[Sequence[Score]], rung: int) -> list[int]:
    """The trials that run up to a rung, when all are measured at the rungs before."""
    alive = list(range(len(scores)))
    for before in range(rung):
        ranked = sorted(alive, key=lambda trial: (scores[trial][before], trial))
        kept = ranked[: math.ceil(len(alive) / 2)]
        alive = sorted(trial for trial in kept if scores[trial][before] != DIVERGED)
    return alive


def winner(scores: Sequence[Sequence[Score]], stopping: str) -> int | None:
    """The best of the trials that were trained to their end; None if all diverged. Call it when no leg is left."""
    last = len(rungs(len(scores), stopping)) - 1
    ended = [trial for trial in _alive(scores, last) if scores[trial][last] != DIVERGED]
    return min(ended, key=lambda trial: (scores[trial][last], trial), default=None)


def planned_steps(total_steps: Sequence[int], scores: Sequence[Sequence[Score]], stopping: str) -> int:
    """Steps of the whole sweep, done ones included, if the first named of the undecided trials go on."""
    imagined: list[list[Score]] = [list(one) for one in scores]
    while (leg := next_leg(total_steps, imagined, stopping)) is not None:
        imagined[leg.trial].append((1e30, leg.trial))
    parts = rungs(len(total_steps), stopping)
    reached = [parts[len(one) - 1] for one in imagined]
    return sum(max(1, math.ceil(part * total)) for part, total in zip(reached, total_steps, strict=True))


TrialStatus = Literal["waiting", "running", "stopped", "completed", "diverged"]


def statuses(total_steps: Sequence[int], scores: Sequence[Sequence[Score]], stopping: str) -> list[TrialStatus]:
    """How each trial stands; "running" is the one whose leg is next."""
    leg = next_leg(total_steps, scores, stopping)
    last = len(rungs(len(scores), stopping)) - 1
    rung = last if leg is None else leg.rung
    alive = set(_alive(scores, rung))

    def status(trial: int) -> TrialStatus:
        if DIVERGED in scores[trial]:
            return "diverged"
        if trial not in alive:
            return "stopped"
        if len(scores[trial]) > last:
            return "completed"
        return "running" if leg is not None and leg.trial == trial else "waiting"

    return [status(trial) for trial in range(len(scores))]
