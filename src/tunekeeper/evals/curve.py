"""How much more data would help: a power law through a few sizes of training data, with its uncertainty.

The share of wrong answers falls, over a wide range, as a power of the number of examples (Hestness et al. 2017).
Three sizes give a slope; drawing the held-out items again and again (a paired bootstrap) gives how sure it is.
What is not in the interval: the luck of a training run, and that the law may bend where nobody has measured.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

DRAWS = 1000
FEWEST_SIZES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """The scores of the same items, in the same order, of a model that was trained on n examples."""

    n: int
    scores: Sequence[float]
    """0 to 1 each."""

    @property
    def value(self) -> float:
        """Mean score."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What so many examples would give, with its 90 % interval."""

    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The measured sizes and what they foretell."""

    points: tuple[Point, ...]
    forecasts: tuple[Forecast, ...]
    """Empty where it cannot be told."""
    text: str


def learning_curve(points: Sequence[Point], *, unit: str = "%") -> Curve:
    """Fit the law and extrapolate to twice and four times the data, or say why not."""
    points = tuple(sorted(points, key=lambda point: point.n))
    if len(points) < FEWEST_SIZES:
        return Curve(
            points=points,
            forecasts=(),
            text=f"cannot tell: {len(points)} size{'s' if len(points) != 1 else ''} of training data measured, "
            f"{FEWEST_SIZES} are needed",
        )
    n_items = len(points[0].scores)
    if points[-1].value == 1:
        text = f"all {n_items} items are right with {points[-1].n:,} examples; more would show on harder items only"
        return Curve(points=points, forecasts=(), text=text)
    if not all(0 <= score <= 1 for point in points for score in point.scores):
        return Curve(points=points, forecasts=(), text="cannot tell: there are scores outside of 0 to 1")
    rng = random.Random(0)
    fits = []
    for _ in range(DRAWS):
        drawn = rng.choices(range(n_items), k=n_items)
        fits.append(_fit([(point.n, math.fsum(point.scores[i] for i in drawn), n_items) for point in points]))
    slopes = sorted(slope for _, slope in fits)
    low, high = _span(slopes)
    if low <= 0:
        return Curve(
            points=points,
            forecasts=(),
            text="cannot tell: the scores do not clearly rise with the number of examples on these "
            f"{n_items} items (slope {low:.2f} to {high:.2f})",
        )
    intercept, slope = _fit([(point.n, math.fsum(point.scores), n_items) for point in points])
    forecasts = tuple(_forecast(factor * points[-1].n, intercept, slope, fits) for factor in (2, 4))
    scale = 100 if unit == "%" else 1
    twice = forecasts[0]
    return Curve(
        points=points,
        forecasts=forecasts,
        text=f"twice as many examples ({twice.n:,}) would give about {scale * twice.value:.3g}{_unit(unit)} "
        f"({scale * twice.low:.3g} to {scale * twice.high:.3g}{_unit(unit)}), by the slope of these "
        f"{len(points)} sizes, if it goes on so",
    )


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _fit(sizes: Sequence[tuple[int, float, int]]) -> tuple[float, float]:
    """Intercept and slope of log(wrong) = intercept - slope * log(n), by least squares.

    A half is added to the wrong, so that the logarithm of none is not needed.
    """
    xs = [math.log(n) for n, _, _ in sizes]
    ys = [math.log((n_items - right + 0.5) / (n_items + 1)) for _, right, n_items in sizes]
    x, y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    slope = -math.fsum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / math.fsum((a - x) ** 2 for a in xs)
    return y + slope * x, slope


def _forecast(n: int, intercept: float, slope: float, fits: Sequence[tuple[float, float]]) -> Forecast:
    drawn = sorted(_at(n, *fit) for fit in fits)
    low, high = _span(drawn)
    return Forecast(n=n, value=_at(n, intercept, slope), low=low, high=high)


def _at(n: int, intercept: float, slope: float) -> float:
    return max(0.0, 1 - math.exp(intercept - slope * math.log(n)))


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The 5th and 95th of a hundred of sorted values."""
    cut = len(values) // 20
    return values[cut], values[-1 - cut]
