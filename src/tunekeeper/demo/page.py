"""The demo's page: one HTML file with the table, the loss curve and answers side by side. Nothing is fetched."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from tunekeeper.demo.measure import AT_ONCE, Score
from tunekeeper.types import Json

N_EXAMPLES = 12
TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(directory: Path, *, job: Json, events: Sequence[Json], scores: Sequence[Score]) -> Path:
    """Write index.html into the directory; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    metrics = [event["data"] for event in events if event.get("type") == "metrics"]
    words = ("fitting", "Diverging", "healthy", "exhausted")
    remarks = [event["message"] for event in events if any(word in event["message"] for word in words)]
    page = (
        Environment(autoescape=True)
        .from_string(TEMPLATE.read_text("utf-8"))
        .render(
            job=job,
            seconds=(job.get("finished_at") or 0) - job["created_at"],
            n=len(scores[0].answers),
            at_once=AT_ONCE,
            scores=scores,
            bars=_png(lambda axes: _draw_bars(axes, scores)),
            curve=_png(lambda axes: _draw_curve(axes, metrics)),
            remarks=remarks,
            pairs=list(zip(scores[0].answers, scores[-1].answers, strict=True))[:N_EXAMPLES],
        )
    )
    path = directory / "index.html"
    path.write_text(page, "utf-8")
    return path


def _png(draw: Any) -> str:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.6, 3.4), dpi=160)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw_bars(axes: Any, scores: Sequence[Score]) -> None:
    names = [score.name.replace(", ", ",\n").replace("examples in the prompt", "examples") for score in scores]
    heights = [100 * score.accuracy for score in scores]
    spans = [[100 * (s.accuracy - s.interval[0]) for s in scores], [100 * (s.interval[1] - s.accuracy) for s in scores]]
    axes.bar(names, heights, yerr=spans, color=["#b8c4d0", "#b8c4d0", "#2463a6"], capsize=5, width=0.6)
    for place, score in enumerate(scores):
        axes.annotate(
            f"{heights[place]:.0f} %", (place, 100 * score.interval[1]), ha="center", va="bottom",
            xytext=(0, 4), textcoords="offset points",
        )  # fmt: skip
    axes.set_ylabel("exact match, %")
    axes.set_ylim(0, 100)


def _draw_curve(axes: Any, metrics: Sequence[Json]) -> None:
    steps = [row["step"] for row in metrics]
    losses = [row["train_loss"] for row in metrics]
    axes.plot(steps, losses, color="#b8c4d0", linewidth=1, label="training, each step")
    width = max(1, len(losses) // 20)
    smooth = [
        sum(losses[max(0, i - width) : i + 1]) / len(losses[max(0, i - width) : i + 1]) for i in range(len(losses))
    ]
    axes.plot(steps, smooth, color="#2463a6", linewidth=1.8, label="training, smoothed")
    full = [(row["step"], row["full_valid_loss"]) for row in metrics if row.get("full_valid_loss") is not None]
    if full:
        axes.plot(*zip(*full, strict=True), "o-", color="#c8641e", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
