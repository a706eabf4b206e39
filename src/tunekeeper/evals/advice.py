"""Should one tune at all? From what was measured to a verdict, and to advice in plain words with its figures.

    >>> advice = advise(Measures(base=base, few_shot=few_shot, tuned=tuned, …))
    >>> advice.verdict, advice.text
    ('tune', 'tune: better by 21 to 38 points than 3 short examples in the prompt')

The verdict is one of four: tune; do not tune, for the base or a prompt does it, or tuning brings nothing; not ready,
and what is missing; cannot tell, and how many items it takes. Tuning is held against the best that the untouched
base does with any of the measured prompts, never against the bare base only.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunekeeper.evals.compare import SCORE, Comparison, Measure, Outcome, Series, compare
from tunekeeper.evals.curve import Curve
from tunekeeper.evals.signs import FEWEST_HELD_OUT, MUCH_CONTRADICTED, Contradictions, Remark
from tunekeeper.evals.statistics import Difference, Interval, items_needed, mean, share
from tunekeeper.types import Json

GOOD_ENOUGH = 0.9
"""Share of what can be reached from which on a base needs no tuning, if its interval comes near to all of it."""
NEARLY_ALL, SURELY = 0.95, 0.75
"""What the upper and the lower end of its interval must reach for that."""
SMALL_GAIN = 0.02
"""A gain that is certainly smaller is none."""
MOST_ERRORS = 0.2
DAY_S = 86_400

Verdict = Literal["tune", "do_not_tune", "not_ready", "cannot_tell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What machines and requests cost; 0: not known."""

    per_hour: float = 0.0
    """Of the machine that runs our models."""
    currency: str = "USD"
    requests_per_day: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What was measured; None: it was not."""

    method: str
    """supervised, dpo or reinforcement: what the file is made for."""
    n_training: int
    base: Series | None = None
    few_shot: Series | None = None
    tuned: Series | None = None
    larger: Series | None = None
    untuned_because: str = "nothing was trained"
    graded: bool = False
    """Whether mean scores decide, not shares that pass; scores are from 0 to 1."""
    is_absolute: bool = True
    """Whether quality says how well the task is done; of pairs it only says which output an answer is closer to."""
    ceiling: float = 1.0
    """What a model can reach at best; see Contradictions."""
    majority: float | None = None
    curve: Curve | None = None
    machine_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of this machine a request takes, many at once, by the name of the series."""
    training_s: float | None = None
    prices: Prices = Prices()
    remarks: tuple[Remark, ...] = ()
    """What the data shows by itself."""
    checkable: bool = False
    """Whether a program says what is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to do the task."""

    name: str
    model: str
    n: int
    errors: int
    quality: Interval | None
    """Share that passes, or mean score."""
    prompt_tokens: float | None
    latency_s: float | None
    cost_of_1000: float | None
    machine_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The verdict, and everything that speaks for or beside it."""

    verdict: Verdict
    text: str
    rows: tuple[Row, ...]
    remarks: tuple[Remark, ...]
    comparison: Comparison | None
    """All series against the bare base; None with fewer than two."""
    curve: Curve | None
    graded: bool
    currency: str
    cuts: tuple[str, ...] = ()
    """What was left out to keep to the time."""
    grader: str = ""
    """How answers were graded, and why so."""


def advise(measures: Measures, *, cuts: Sequence[str] = (), grader: str = "") -> Advice:
    """Judge what was measured."""
    series = [s for s in (measures.base, measures.few_shot, measures.tuned, measures.larger) if s is not None]
    verdict, text = _verdict(measures)
    remarks = [
        *measures.remarks,
        _method(measures),
        *_quality(measures),
        *_economy(measures),
        *_more_data(measures),
    ]
    order = {"stop": 0, "warn": 1, "hint": 2, "info": 3}
    return Advice(
        verdict=verdict,
        text=text,
        rows=tuple(_row(one, measures) for one in series),
        remarks=tuple(sorted(remarks, key=lambda remark: order[remark.level])),
        comparison=compare(series, currency=measures.prices.currency) if len(series) > 1 else None,
        curve=measures.curve,
        graded=measures.graded,
        currency=measures.prices.currency,
        cuts=tuple(cuts),
        grader=grader,
    )


def already_does(series: Series | None, *, graded: bool, ceiling: float = 1.0) -> bool:
    """Whether there is hardly anything left to gain: most is right, surely so, and perhaps nearly all."""
    if series is None or _failed(series) > MOST_ERRORS:
        return False
    found = quality(series, graded=graded)
    if found is None or found.value < GOOD_ENOUGH * ceiling:
        return False
    return found.high >= NEARLY_ALL * ceiling and (found.low >= SURELY * ceiling or math.isinf(found.low))


def quality(series: Series, *, graded: bool) -> Interval | None:
    """Share that passes, or the mean score, with its 95 % interval; None where nothing was answered."""
    answered = [outcome for outcome in series.outcomes if outcome.passed is not None]
    if not answered:
        return None
    if graded:
        return mean([outcome.score or 0.0 for outcome in answered])
    return share(sum(bool(outcome.passed) for outcome in answered), len(answered))


def readiness(
    *, n_training: int, n_held_out: int, found: Contradictions, free_text: bool, min_examples: int
) -> list[Remark]:
    """What stands in the way before anything is measured: contradictions, and too few examples of either kind.

    Several answers to one prompt contradict each other unless the answers are free texts, which may differ.
    """
    remarks = []
    contradicted = found.lines / found.n if found.n else 0.0
    if found.lines:
        much = contradicted > MUCH_CONTRADICTED and not free_text
        lines = ", ".join(map(str, found.first[:5]))
        remarks.append(
            Remark(
                "contradictory_answers",
                level="stop" if much else "warn",
                text=f"{found.lines:,} of {found.n:,} lines ({contradicted:.0%}) answer a prompt otherwise than "
                f"another line does, first lines {lines}: no model can have more than {found.ceiling:.0%} of them "
                "right. Keep one answer to each prompt, or put into the prompt what tells the cases apart.",
                figures={"lines": found.lines, "ceiling": round(found.ceiling, 4)},
            )
        )
    if n_training < min_examples or n_held_out < FEWEST_HELD_OUT:
        remarks.append(
            Remark(
                "too_few_examples",
                level="stop",
                text=f"There are {n_training:,} training lines and {n_held_out:,} held-out items; at least "
                f"{min_examples} and {FEWEST_HELD_OUT} are needed to train and to see whether it helped. Some 50 "
                "examples show a first effect, a few hundred a reliable one.",
                figures={"training": n_training, "held_out": n_held_out},
            )
        )
    elif n_held_out < 3 * FEWEST_HELD_OUT:
        seen = math.ceil(100 * (1.96 * math.sqrt(0.5 / n_held_out)))
        remarks.append(
            Remark(
                "small_baseline",
                level="warn",
                text=f"Only {n_held_out} held-out items: a difference below some {seen} points can hardly be seen. "
                "Hold out 100 or more.",
                figures={"held_out": n_held_out, "visible_points": seen},
            )
        )
    return remarks


def to_json(advice: Advice) -> Json:
    """The advice without its comparison, as JSON; a bound that is not known is null."""
    curve = advice.curve
    return {
        "object": "advice",
        "verdict": advice.verdict,
        "text": advice.text,
        "grader": advice.grader,
        "measure": "mean score" if advice.graded else "pass rate",
        "currency": advice.currency,
        "rows": [{**dataclasses.asdict(row), "quality": _interval(row.quality)} for row in advice.rows],
        "remarks": [{**dataclasses.asdict(remark), "figures": dict(remark.figures)} for remark in advice.remarks],
        "learning_curve": None
        if curve is None
        else {
            "text": curve.text,
            "points": [{"n": point.n, "value": point.value} for point in curve.points],
            "forecasts": [dataclasses.asdict(forecast) for forecast in curve.forecasts],
        },
        "cuts": list(advice.cuts),
    }


def _interval(found: Interval | None) -> Json | None:
    if found is None:
        return None
    return {key: value if math.isfinite(value) else None for key, value in found._asdict().items()}


def _verdict(m: Measures) -> tuple[Verdict, str]:
    if stops := [remark.text for remark in m.remarks if remark.level == "stop"]:
        return "not_ready", f"not ready: {' '.join(stops)}"
    if m.base is None:
        return "cannot_tell", f"cannot tell: {m.untuned_because}"
    if (failed := _failed(m.base)) > MOST_ERRORS:
        first = next(outcome.error for outcome in m.base.outcomes if outcome.passed is None)
        return (
            "cannot_tell",
            f"cannot tell: {failed:.0%} of the base's answers failed, so there is no baseline: {first}",
        )
    best = _best_prompt(m)
    done = m.is_absolute and already_does(best, graded=m.graded, ceiling=m.ceiling)
    if m.tuned is None:
        if done:
            return "do_not_tune", f"do not tune: {best.name} already does it, {_said(best, m)}"
        return "cannot_tell", f"cannot tell: {m.untuned_because}"
    if (failed := _failed(m.tuned)) > MOST_ERRORS:
        return "cannot_tell", f"cannot tell: {failed:.0%} of the tuned model's answers failed"
    decided = _deciding(m, best, m.tuned)
    verdict, difference = decided.verdict, decided.difference
    if verdict.kind == "better":
        return "tune", f"tune: {verdict.text} than {best.name}"
    if done:
        return "do_not_tune", f"do not tune: {best.name} already does it, {_said(best, m)}"
    if verdict.kind == "worse":
        return "do_not_tune", f"do not tune on this data: it makes the answers {verdict.text} than {best.name}"
    if best is m.few_shot and verdict.is_not_worse and (saved := _tokens_saved(m)) > 0:
        return "tune", f"tune: {verdict.text} than {best.name}, with {saved:.0%} fewer prompt tokens"
    if difference is None:
        return "cannot_tell", verdict.text
    if difference.high < SMALL_GAIN:
        gain = f"less than {100 * difference.high:.2g} points" if difference.high > 0 else "nothing"
        return "do_not_tune", f"do not tune: it brings {gain} over {best.name}"
    return "cannot_tell", _items_text(difference)


def _items_text(difference: Difference) -> str:
    """How many items would show a gain such as the one that was seen."""
    needed = items_needed(difference) if difference.value > 0 else None
    have = f"(you have {difference.n:,})"
    if needed is None:
        return (
            f"cannot tell: tuning gained nothing on these items, and may still gain on others; more are needed {have}"
        )
    return f"cannot tell: {max(needed, difference.n + 1):,} held-out items needed {have}"


def _best_prompt(m: Measures) -> Series:
    assert m.base is not None
    tried = [one for one in (m.base, m.few_shot) if one is not None and _failed(one) <= MOST_ERRORS]
    return max(tried, key=lambda one: found.value if (found := quality(one, graded=m.graded)) else -math.inf)


def _deciding(m: Measures, before: Series, after: Series) -> Measure:
    measures = compare([before, after], score_margin=SMALL_GAIN).pairs[0].measures
    scores = [measure for measure in measures if measure.name == SCORE]
    return scores[0] if m.graded and scores else measures[0]


def _failed(series: Series) -> float:
    return sum(outcome.passed is None for outcome in series.outcomes) / max(1, len(series.outcomes))


def _tokens_saved(m: Measures) -> float:
    if m.few_shot is None or m.tuned is None:
        return 0.0
    before, after = (_mean([o.prompt_tokens for o in one.outcomes]) for one in (m.few_shot, m.tuned))
    return 1 - after / before if before and after else 0.0


def _said(series: Series, m: Measures) -> str:
    found = quality(series, graded=m.graded)
    return "" if found is None else figure(found, graded=m.graded)


def figure(found: Interval, *, graded: bool) -> str:
    """A quality with its interval, for people."""
    if graded:
        return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def _row(series: Series, m: Measures) -> Row:
    cost = _mean([outcome.cost for outcome in series.outcomes])
    return Row(
        name=series.name,
        model=series.model,
        n=len(series.outcomes),
        errors=sum(outcome.passed is None for outcome in series.outcomes),
        quality=quality(series, graded=m.graded),
        prompt_tokens=_mean([outcome.prompt_tokens for outcome in series.outcomes]),
        latency_s=_mean([outcome.seconds for outcome in series.outcomes]),
        cost_of_1000=None if cost is None else 1000 * cost,
        machine_s=m.machine_s.get(series.name),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _method(m: Measures) -> Remark:
    """Which method the data is for, and what else it could be used for."""
    why = {
        "supervised": "The lines have answers, so supervised fine-tuning (SFT) learns them directly",
        "dpo": "The lines are pairs of a better and a worse output, so preference tuning (DPO) learns what sets them "
        "apart",
        "reinforcement": "The lines are problems with a grader, so reinforcement (RFT) learns from the answers that "
        "score",
    }[m.method]
    passed = quality(m.base, graded=False) if m.base else None
    if m.method == "reinforcement" and passed is not None and passed.value == 0:
        return Remark(
            "method",
            level="warn",
            text=f"{why}; but the base is never right, so there is nothing to reinforce: first SFT on some solved "
            "problems, then RFT.",
            figures={"method": m.method, "base": 0.0},
        )
    more = ""
    if m.method == "supervised" and m.checkable and passed is not None and 0.05 <= passed.value < GOOD_ENOUGH:
        more = (
            f"; a program says what is right and the base is right in {passed.value:.0%}, so RFT on top of it, or "
            "instead where answers are costly, is possible"
        )
    return Remark("method", level="info", text=f"{why}{more}.", figures={"method": m.method})


def _quality(m: Measures) -> list[Remark]:
    """What the level of quality itself tells."""
    if m.base is None:
        return []
    found = []
    tuned = quality(m.tuned, graded=m.graded) if m.tuned else None
    if m.majority is not None and not m.graded:
        beaten = tuned if tuned is not None else quality(m.base, graded=False)
        assert beaten is not None or m.tuned is None
        if beaten is not None and beaten.low <= m.majority:
            found.append(
                Remark(
                    "no_better_than_one_label",
                    level="warn",
                    text=f"Always the most frequent label is right in {m.majority:.0%} of the held-out items, and "
                    f"{'the tuned model' if tuned else 'the base'} is not clearly above "
                    f"it ({figure(beaten, graded=False)}). Add examples of the rare labels before you believe an "
                    "accuracy.",
                    figures={"majority": round(m.majority, 4)},
                )
            )
    if tuned is not None and tuned.high < 0.5 and not m.graded:
        found.append(
            Remark(
                "still_mostly_wrong",
                level="warn",
                text=f"Even tuned, most answers are wrong: {figure(tuned, graded=False)}. More or better data, or "
                "a larger base, before this is used for anything.",
                figures={"value": round(tuned.value, 4)},
            )
        )
    if m.tuned is not None and m.larger is not None:
        measure = _deciding(m, m.larger, m.tuned)
        found.append(
            Remark(
                "against_larger",
                level="info",
                text=f"Tuned against {m.larger.model}: {measure.verdict.text}.",
                figures={"verdict": measure.verdict.kind},
            )
        )
    return found


def _economy(m: Measures) -> list[Remark]:
    """What tuning and hosting cost, and from which volume on they are worth it."""
    found: list[Remark] = []
    prices = m.prices
    if m.tuned is None or m.training_s is None:
        return found
    training = m.training_s * prices.per_hour / 3600
    hosting = 24 * prices.per_hour
    money = (
        f", {_money(training, prices)}; a day of this machine costs {_money(hosting, prices)}"
        if prices.per_hour
        else ""
    )
    found.append(
        Remark(
            "training_cost",
            level="info",
            text=f"Training on {m.n_training:,} examples took {m.training_s:,.0f} s of this machine{money}."
            + ("" if prices.per_hour else " Set price_per_hour to see costs in money."),
            figures={"seconds": round(m.training_s, 1), "cost": training or None, "hosting_a_day": hosting or None},
        )
    )
    mine = m.machine_s.get(m.tuned.name)
    theirs = m.machine_s.get(m.few_shot.name) if m.few_shot else None
    if mine is not None and theirs is not None:
        found.append(_against_prompt(m, mine, theirs))
    per_request = _mean([outcome.cost for outcome in m.larger.outcomes]) if m.larger else None
    if m.larger is not None and per_request and prices.per_hour and mine:
        found.append(_against_upstream(m, per_request, hosting, training, DAY_S / mine))
    elif m.larger is not None:
        found.append(
            Remark(
                "no_prices",
                level="info",
                text="At which volume tuning pays against the larger model cannot be said without prices: give "
                "--input-price and --output-price, and price_per_hour of this machine.",
            )
        )
    return found


def _against_prompt(m: Measures, mine: float, theirs: float) -> Remark:
    assert m.training_s is not None
    if theirs <= mine:
        text = (
            f"A request takes this machine {mine:.3g} s tuned and {theirs:.3g} s with examples in the prompt: in time "
            "tuning saves nothing."
        )
        return Remark("pays_against_prompt", level="info", text=text, figures={"requests": None})
    requests = math.ceil(round(m.training_s / (theirs - mine), 6))
    days = ""
    if m.prices.requests_per_day:
        days = f", {requests / m.prices.requests_per_day:.2g} days at {m.prices.requests_per_day:,} a day"
    return Remark(
        "pays_against_prompt",
        level="info",
        text=f"A request takes this machine {mine:.3g} s tuned and {theirs:.3g} s with examples in the prompt, so the "
        f"training is paid back after {requests:,} requests{days}.",
        figures={"requests": requests, "seconds_saved": round(theirs - mine, 5)},
    )


def _against_upstream(m: Measures, per_request: float, hosting: float, training: float, capacity: float) -> Remark:
    """A machine that runs all day against a price for each request."""
    needed = math.ceil(hosting / per_request)
    figures: dict[str, float | int | str | None] = {"requests_a_day": needed, "capacity_a_day": math.floor(capacity)}
    if needed > capacity:
        text = (
            f"Against the larger model this machine would pay from {needed:,} requests a day on, but it answers only "
            f"{capacity:,.0f}: at these prices it does not pay, if it runs all day."
        )
        return Remark("pays_against_larger", level="info", text=text, figures=figures)
    text = f"Against the larger model the machine pays from {needed:,} requests a day on, if it runs all day"
    if (n := m.prices.requests_per_day) is not None:
        machines = max(1, math.ceil(n / capacity))
        saved = n * per_request - machines * hosting
        figures |= {"saved_a_day": round(saved, 4)}
        many = f" on {machines} machines" if machines > 1 else ""
        text += f"; your {n:,} a day{many} " + (
            f"save {_money(saved, m.prices)} a day, and the training is paid back in {training / saved:.2g} days"
            if saved > 0
            else f"cost {_money(-saved, m.prices)} a day more than the larger model"
        )
    return Remark("pays_against_larger", level="info", text=f"{text}.", figures=figures)


def _more_data(m: Measures) -> list[Remark]:
    if m.curve is None:
        return []
    forecasts = {f"at_{forecast.n}": round(forecast.value, 4) for forecast in m.curve.forecasts}
    return [Remark("more_data", level="info", text=f"More data: {m.curve.text}.", figures=forecasts)]


def _money(amount: float, prices: Prices) -> str:
    return f"{amount:,.2f} {prices.currency}" if amount >= 0.1 else f"{amount:.2g} {prices.currency}"


def right(series: Series) -> list[bool]:
    """Which items passed, in order; one that failed did not."""
    return [bool(outcome.passed) for outcome in series.outcomes]


def scores(outcomes: Sequence[Outcome], *, graded: bool) -> list[float]:
    """0 to 1 an item, in order; one that failed is 0."""
    return [(o.score or 0.0 if graded else float(bool(o.passed))) if o.passed is not None else 0.0 for o in outcomes]
