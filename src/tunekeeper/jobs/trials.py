"""What a sweep has found: a table of its trials as JSON and CSV, and a picture. Needs no torch.

The job's row keeps all of it: `extra["sweep"]` what was asked, `extra["trials"]` what was measured.
"""

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from tunekeeper.errors import NotFound, Unavailable
from tunekeeper.jobs.prepare import sweep_of
from tunekeeper.trainer.sweep import DIVERGED, Score, Sweep, TrialStatus, points, statuses, winner
from tunekeeper.types import Event, Job, Json

_MEASURED = ("valid_loss", "valid_mean_token_accuracy", "valid_preference_accuracy")


def scores(records: Iterable[Json], metric: str) -> list[list[Score]]:
    """What the trials are compared by, at each rung that they have reached."""
    return [[_score(measure, metric) for measure in record["measures"]] for record in records]


def _score(measure: Json, metric: str) -> Score:
    loss = measure.get("valid_loss")
    if measure.get("diverged") or loss is None:
        return DIVERGED
    return (-measure[metric], loss) if metric == "valid_preference_accuracy" else (loss,)


def report(job: Job) -> Json:
    """How the trials of a sweep stand, the best first; raises NotFound for another job."""
    sweep = sweep_of(job)
    if sweep is None:
        raise NotFound(f"The job {job.id} is no sweep: it was created without the field sweep.", param="id")
    records = job.extra.get("trials") or [{"total_steps": None, "measures": []} for _ in range(sweep.n_trials)]
    layers = job.extra.get("trained_layers")
    trials = _trials(job, sweep, records)
    best = _winner(records, sweep)
    return {
        "object": "fine_tuning.job.sweep",
        "job_id": job.id,
        "status": job.status,
        **sweep.to_wire(),
        "metric": sweep.metric,
        "trained_layers": layers,
        "note": _note(sweep, layers),
        "best_trial": None if best is None else best + 1,
        "trials": sorted(trials, key=lambda trial: _order(trial, sweep.metric)),
    }


def _trials(job: Job, sweep: Sweep, records: list[Json]) -> list[Json]:
    found = []
    named = points(sweep, job.seed)
    standing = _statuses(records, sweep)
    for number, (values, record) in enumerate(zip(named, records, strict=True)):
        status = "waiting" if standing[number] == "running" and job.status != "running" else standing[number]
        last = record["measures"][-1] if record["measures"] else {}
        found.append(
            {
                "trial": number + 1,
                "hyperparameters": values,
                "status": status,
                "step": last.get("step", 0),
                "total_steps": record["total_steps"],
                **{name: last.get(name) for name in _MEASURED},
                "trained_tokens": record.get("tokens", 0),
                "seconds": round(record.get("seconds", 0.0), 3),
                "measures": record["measures"],
            }
        )
    return found


def _winner(records: list[Json], sweep: Sweep) -> int | None:
    if "running" in _statuses(records, sweep):
        return None
    return winner(scores(records, sweep.metric), sweep.stopping)


def _statuses(records: list[Json], sweep: Sweep) -> list[TrialStatus]:
    totals = [record["total_steps"] or 1 for record in records]
    return statuses(totals, scores(records, sweep.metric), sweep.stopping)


def _order(trial: Json, metric: str) -> tuple[Any, ...]:
    ranks = {"completed": 0, "running": 1, "waiting": 1, "stopped": 2, "diverged": 3}
    measures = trial["measures"]
    score = _score(measures[-1], metric) if measures else DIVERGED
    return ranks[trial["status"]], -len(measures), score, trial["trial"]


def _note(sweep: Sweep, layers: list[int] | None) -> str:
    parts = []
    if sweep.fast:
        which = f"layers {layers[0]} to {layers[-1]}, counted from 0," if layers else "the top third of the layers"
        parts.append(
            f"Fast: only {which} have adapters, the rest is the base. The job's model is the best trial's adapter as "
            "it was trained here; for one on all layers, run a job with these hyperparameters."
        )
    if sweep.validation_split is not None:
        parts.append(
            f"There was no validation file: {sweep.validation_split:g} of the training file was held out to compare "
            "the trials, and not trained on."
        )
    return " ".join(parts)


def values_text(values: Json) -> str:
    """Hyperparameters on one line."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


def trials_csv(found: Json) -> bytes:
    """The table of a `report`, one row a trial, the best first."""
    names = list(found["space"])
    columns = ("trial", *names, "status", "step", "total_steps", *_MEASURED, "trained_tokens")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for trial in found["trials"]:
        row = {**trial, **trial["hyperparameters"]}
        writer.writerow(["" if row[column] is None else row[column] for column in columns])
    return text.getvalue().encode()


def picture(found: Json, events: Iterable[Event]) -> bytes:
    """An SVG: each trial's training loss and the validation losses that it was judged by; raises Unavailable."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("A sweep's picture needs matplotlib: pip install 'tunekeeper[demo]'.") from error
    mpl.rcParams["svg.hashsalt"] = "tunekeeper"  # equal sweeps give equal bytes
    curves: dict[int, list[tuple[int, float]]] = {}
    for event in events:
        data = event.data or {}
        if event.type == "metrics" and "train_loss" in data:
            curves.setdefault(data["trial"], []).append((data["trial_step"], data["train_loss"]))
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, trial in enumerate(found["trials"]):
        best = trial["trial"] == found["best_trial"]
        style = {"color": f"C{place % 10}", "linewidth": 2.2 if best else 1.0, "alpha": 1.0 if best else 0.6}
        label = f"{trial['trial']}: {values_text(trial['hyperparameters'])}" + (" (best)" if best else "")
        total = trial["total_steps"] or 1
        curve = sorted(curves.get(trial["trial"], ()))
        left.plot([step / total for step, _ in curve], [loss for _, loss in curve], **style)
        checks = [(m["step"] / total, m["valid_loss"]) for m in trial["measures"] if m.get("valid_loss") is not None]
        right.plot([x for x, _ in checks], [y for _, y in checks], marker="o", label=label, **style)
    for axes, title in ((left, "training loss"), (right, "validation loss")):
        axes.set(xlabel="part of the trial's run", title=title, xlim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    if len(found["trials"]) <= 16:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
