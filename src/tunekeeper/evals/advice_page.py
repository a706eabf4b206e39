"""Advice as Markdown and as one HTML page that fetches nothing, with the learning curve drawn."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunekeeper.evals.advice import Advice, Row
from tunekeeper.evals.report import cell, clean
from tunekeeper.evals.report import to_markdown as comparison_markdown

TEMPLATE = Path(__file__).with_name("advice.html.jinja")
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 240, 46, 30


def headings(advice: Advice) -> tuple[str, ...]:
    """Of the columns of `cells`."""
    measure = "MEAN SCORE" if advice.graded else "RIGHT"
    cost = (f"COST OF 1,000, {advice.currency}",) if _has_cost(advice) else ()
    return ("", measure, "95 % INTERVAL", "ITEMS", "ERRORS", "PROMPT TOKENS", "LATENCY, S", "MACHINE S", *cost)


def cells(row: Row, advice: Advice) -> tuple[str, ...]:
    """A row of the table, as text."""
    found, scale = row.quality, 1 if advice.graded else 100
    unit, digits = ("", 2) if advice.graded else (" %", 1)
    value = "–" if found is None else f"{scale * found.value:.{digits}f}{unit}"
    span = "–"
    if found is not None and math.isfinite(found.low):
        span = f"{scale * found.low:.{digits}f} to {scale * found.high:.{digits}f}{unit}"
    cost = (_number(row.cost_of_1000),) if _has_cost(advice) else ()
    return (
        row.name,
        value,
        span,
        f"{row.n:,}",
        f"{row.errors:,}",
        "–" if row.prompt_tokens is None else f"{row.prompt_tokens:,.0f}",
        _number(row.latency_s),
        _number(row.machine_s),
        *cost,
    )


def to_markdown(advice: Advice, *, title: str) -> str:
    """The advice, and below it the comparison item by item."""
    lines = [f"# {cell(title)}", "", f"**{cell(advice.text, 2000)}**", ""]
    if advice.rows:
        heads = headings(advice)
        lines += [_markdown_row(heads), _markdown_row(["---"] + ["--:"] * (len(heads) - 1))]
        lines += [_markdown_row([cell(text) for text in cells(row, advice)]) for row in advice.rows]
        lines += ["", "Latency is of one request among many at once; machine seconds are what each took of the whole."]
    lines += ["", *(f"- {cell(remark.text, 2000)}" for remark in advice.remarks if remark.level != "stop"), ""]
    if advice.curve is not None:
        lines += [_markdown_row(["examples", "measured"]), _markdown_row(["--:", "--:"])]
        lines += [_markdown_row([f"{point.n:,}", f"{point.value:.3f}"]) for point in advice.curve.points]
        lines += [
            _markdown_row([f"{f.n:,}", f"{f.value:.3f} foretold ({f.low:.3f} to {f.high:.3f})"])
            for f in advice.curve.forecasts
        ]
    lines += ["", f"Graded by {cell(advice.grader, 2000)}." if advice.grader else ""]
    lines += [f"- left out: {cell(cut, 2000)}" for cut in advice.cuts]
    text = "\n".join(lines).rstrip() + "\n"
    if advice.comparison is None:
        return text
    return f"{text}\n{comparison_markdown(advice.comparison, title='Item by item').replace('# ', '## ', 1)}"


def to_html(advice: Advice, *, title: str) -> str:
    """The advice as a page; the comparison is a page of its own beside it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["clean"] = clean
    page: str = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        title=title,
        advice=advice,
        headings=headings(advice),
        rows=[cells(row, advice) for row in advice.rows],
        plot=_plot(advice),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )
    return page


def _plot(advice: Advice) -> Any:
    """The learning curve in the coordinates of the picture; None where there is no curve to draw."""
    curve = advice.curve
    if curve is None or len(curve.points) < 2:
        return None
    sizes = [*(point.n for point in curve.points), *(forecast.n for forecast in curve.forecasts)]
    low, high = math.log(min(sizes)), math.log(max(sizes))

    def x(n: int) -> float:
        return LEFT + 12 + (WIDTH - LEFT - 60) * (math.log(n) - low) / (high - low)

    def y(value: float) -> float:
        return 10 + (HEIGHT - BOTTOM - 10) * (1 - value)

    return {
        "points": [(x(p.n), y(p.value), f"{p.n:,}", f"{p.value:.2f}") for p in curve.points],
        "forecasts": [(x(f.n), y(f.value), y(f.low), y(f.high), f"{f.n:,}", f"{f.value:.2f}") for f in curve.forecasts],
        "ticks": [(y(tick / 4), f"{tick / 4:.2f}") for tick in range(5)],
    }


def _has_cost(advice: Advice) -> bool:
    return any(row.cost_of_1000 is not None for row in advice.rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _markdown_row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
