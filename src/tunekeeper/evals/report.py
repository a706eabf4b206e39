"""A comparison as JSON, as Markdown, and as one HTML page that fetches nothing.

Answers and items are strangers' text: whatever stands in them, they stay text, and long ones are cut (not in the JSON).
The plots of the page are SVG whose marks stand at per cents, so they are as wide as the screen; those of the Markdown
are characters.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunekeeper.evals.compare import USAGE, Comparison, Flip, Measure, Outcome, Pair, Summary, UsageChange, figure
from tunekeeper.evals.statistics import Interval
from tunekeeper.types import Json

FLIPS_ON_PAGE = 25
FLIPS_IN_MARKDOWN = 8
LEFT_OUT_SHOWN = 20
CHARACTERS_ON_PAGE = 1200
CHARACTERS_IN_MARKDOWN = 240
CHARACTERS_OF_PLOT = 41
CHARACTERS_OF_LABEL = 32

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, among them those that turn the direction of what follows, and halves of characters."""
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&#]|:(?=//))")


def to_json(comparison: Comparison) -> Json:
    """Everything, as JSON; a bound that is not known is null."""
    plain: Json = _plain(comparison)
    return {"object": "eval.comparison", **plain}


def to_markdown(comparison: Comparison, *, title: str = "Comparison") -> str:
    """A report for a pull request or a terminal: verdicts, tables, plots of characters, the first flipped items."""
    environment = _environment(markdown=True)
    page: str = environment.get_template("report.md.jinja").render(**_view(comparison, title))
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def to_html(comparison: Comparison, *, title: str = "Comparison") -> str:
    """One page that stands by itself: verdicts, plots, tables, the flipped items side by side."""
    page: str = _environment(markdown=False).get_template("page.html.jinja").render(**_view(comparison, title))
    return page


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        properties = [name for name, of in vars(type(value)).items() if isinstance(of, property)]
        names = [*(field.name for field in dataclasses.fields(value)), *properties]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Interval):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# What both templates show --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a plot: where its marks stand, from 0 to 100, and what is said beside it."""

    label: str
    low: float
    middle: float
    high: float
    text: str
    tone: str = ""
    """The kind of the verdict, for the colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """Rows on one axis."""

    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None = None
    """Where no difference stands."""
    margin: float | None = None
    """Where "worse by the margin" stands."""


def _view(comparison: Comparison, title: str) -> Json:
    return {
        "title": title,
        "comparison": comparison,
        "confidence": f"{100 * (1 - comparison.alpha):g} %",
        "usage_names": [name for name in USAGE if any(name in one.usage for one in comparison.series)],
        "quality": _quality(comparison.series),
        "differences": _differences(
            [pair.measures[0] for pair in comparison.pairs], [p.after for p in comparison.pairs]
        ),
        "usage_plots": _usage_plots(comparison),
        "slices": _slices,
        "lost": lambda pair: [flip for flip in pair.flips if not flip.won],
        "won": lambda pair: [flip for flip in pair.flips if flip.won],
        "usage_label": lambda name: name + (f", {comparison.currency}" if name.startswith("cost") else ""),
        "flips_on_page": FLIPS_ON_PAGE,
        "flips_in_markdown": FLIPS_IN_MARKDOWN,
        "left_out_shown": LEFT_OUT_SHOWN,
    }


def _quality(series: Sequence[Summary]) -> Plot:
    rows = [
        Row(
            label=one.name,
            low=100 * one.passed.low,
            middle=100 * one.passed.value,
            high=100 * one.passed.high,
            text=f"{100 * one.passed.value:.1f} %",
        )
        for one in series
        if one.passed
    ]
    return Plot(rows=tuple(rows), ticks=tuple((float(tick), f"{tick} %") for tick in range(0, 101, 25)))


def _differences(measures: Sequence[Measure], labels: Sequence[str]) -> Plot:
    """Differences of shares on one axis around 0."""
    seen = [(label, m, m.difference) for label, m in zip(labels, measures, strict=True) if m.difference]
    bounds = [abs(bound) for _, _, d in seen for bound in (d.low, d.high, d.margin or 0.0)]
    step = _step(max([0.01, *bounds]))
    reach = step * math.ceil(max([0.01, *bounds]) / step - 1e-9)

    def place(value: float) -> float:
        return 50 + 50 * value / reach

    rows = [
        Row(
            label=label,
            low=place(d.low),
            middle=place(d.value),
            high=place(d.high),
            text=f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})",
            tone=m.verdict.kind,
        )
        for label, m, d in seen
    ]
    marks = [step * n for n in range(-round(reach / step), round(reach / step) + 1)]
    margin = next((place(-d.margin) for _, _, d in seen if d.margin), None)
    return Plot(
        rows=tuple(rows),
        ticks=tuple((place(mark), f"{100 * mark:+.3g}" if mark else "0") for mark in marks),
        zero=50.0,
        margin=margin,
    )


def _step(reach: float) -> float:
    """A round step that makes two to four of the reach."""
    power = 10.0 ** math.floor(math.log10(reach))
    return next(step * power for step in (0.5, 1.0, 2.5, 5.0) if reach / (step * power) <= 4)


def _slices(pair: Pair) -> Plot:
    named = [m for m in pair.slices if m.slice]
    return _differences(named, [f"{m.slice[0]}: {m.slice[1]}" for m in named if m.slice])


def _usage_plots(comparison: Comparison) -> list[tuple[str, Plot]]:
    plots = []
    for name in USAGE:
        told = [(one.name, one.usage[name]) for one in comparison.series if name in one.usage]
        most = max((usage.mean for _, usage in told), default=0.0)
        if most > 0:
            rows = [
                Row(label=label, low=0.0, middle=100 * usage.mean / most, high=100.0, text=figure(usage.mean))
                for label, usage in told
            ]
            plots.append((name, Plot(rows=tuple(rows), ticks=())))
    return plots


# Words ---------------------------------------------------------------------------------------------------------------


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + figure(value)


def items(count: int) -> str:
    """So many items, in words."""
    return f"{count:,} item" + ("" if count == 1 else "s")


def estimate(measure: Measure, value: Interval | None) -> str:
    """A share in per cent, a score as it is; without a value, a dash."""
    if value is None:
        return "–"
    return f"{100 * value.value:.1f} %" if measure.is_share else figure(value.value)


def within(value: Interval | None, unit: float = 100) -> str:
    """The bounds of an interval."""
    if value is None or not math.isfinite(value.low):
        return "–"
    return f"{unit * value.low:.1f} to {unit * value.high:.1f}"


def difference(measure: Measure) -> str:
    """The difference with its interval."""
    d = measure.difference
    if d is None:
        return "–"
    if measure.is_share:
        return f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f}) points"
    return _signed(d.value) + (f" ({_signed(d.low)} to {_signed(d.high)})" if math.isfinite(d.low) else "")


def change(usage: UsageChange) -> str:
    """The mean difference of what an answer takes, with its interval."""
    d = usage.difference
    return _signed(d.value) + (f" ({_signed(d.low)} to {_signed(d.high)})" if math.isfinite(d.low) else "")


def chance(p: float) -> str:
    """A p value in two digits."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def question(flip: Flip) -> str:
    """What was asked: the last message of the user, else the item as JSON."""
    return _question(flip.before)


def _question(outcome: Outcome) -> str:
    item = outcome.item
    for key in ("messages", "input", "prompt", "question"):
        asked = item.get(key)
        if isinstance(asked, str) and asked:
            return asked
        if isinstance(asked, list):
            texts = [m["content"] for m in asked if isinstance(m, dict) and isinstance(m.get("content"), str)]
            if texts:
                return str(texts[-1])
    return json.dumps(item, ensure_ascii=False, default=str) if item else outcome.key


def clean(text: str, limit: int) -> str:
    """Text without what cannot be shown, cut at the limit, where it says how much was cut."""
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} characters more)"


def cell(text: str, limit: int = CHARACTERS_IN_MARKDOWN) -> str:
    """Text for a cell of a Markdown table: one line, with nothing in it that Markdown or HTML would read."""
    lines = [" ".join(line.split()) for line in clean(text, limit).split("\n")]
    return _MARKDOWN.sub(r"\\\1", " ↵ ".join(line for line in lines if line)) or "(empty)"


def characters(plot: Plot) -> str:
    """The plot in characters, for a fenced block: one line a row."""
    width = max((len(_label(row.label)) for row in plot.rows), default=0)
    lines = [f"{_label(row.label):<{width}}  {_line(plot, row)}  {row.text}" for row in plot.rows]
    return "\n".join(lines)


def _label(text: str) -> str:
    text = " ".join(clean(text, len(text)).replace("`", "'").split()) or "(empty)"
    return text if len(text) <= CHARACTERS_OF_LABEL else f"{text[: CHARACTERS_OF_LABEL - 1]}…"


def _line(plot: Plot, row: Row) -> str:
    def place(value: float) -> int:
        return round(min(100.0, max(0.0, value)) / 100 * (CHARACTERS_OF_PLOT - 1))

    marks = ["·"] * CHARACTERS_OF_PLOT
    marks[place(row.low) : place(row.high) + 1] = "─" * (place(row.high) - place(row.low) + 1)
    if plot.zero is not None:
        marks[place(plot.zero)] = "│"
    marks[place(row.middle)] = "●"
    return "".join(marks)


@cache
def _environment(*, markdown: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=not markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "within": within,
        "difference": difference,
        "change": change,
        "chance": chance,
        "items": items,
        "question": question,
        "cell": cell,
        "characters": characters,
        "clean": lambda text, limit=CHARACTERS_ON_PAGE: clean(text, limit),
    }
    environment.globals |= {"estimate": estimate}
    return environment
