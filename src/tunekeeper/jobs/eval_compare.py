"""Eval runs side by side: the stored items of each become a series, and `evals.compare` says what differs.

    comparison = compare_runs(store, ["evalrun_…", "evalrun_…"], price_per_hour=2.0)

Items are paired by their place in the data and what they are, so runs over the same data may belong to two evals.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from tunekeeper.errors import InvalidRequest, InvalidState
from tunekeeper.evals.compare import MARGIN, Comparison, CriterionResult, Outcome, Series, compare, item_key
from tunekeeper.jobs.evals import UNENDED
from tunekeeper.storage.store import Store
from tunekeeper.types import EvalItem, EvalRun, Json

MOST_RUNS = 20
_PAGE = 500


def compare_runs(
    store: Store,
    run_ids: Sequence[str],
    *,
    baseline: str | None = None,
    margin: float | None = MARGIN,
    slices: Sequence[str] = (),
    price_per_hour: float = 0.0,
    currency: str = "USD",
) -> Comparison:
    """Compare runs with the one that `baseline` names (by id, name or model; None: the first).

    Items are sliced by their `metadata`, and by the fields that `slices` names. Raises NotFound, InvalidState for a
    run that is still under way, and InvalidRequest.
    """
    if len(run_ids) > MOST_RUNS:
        raise InvalidRequest(f"At most {MOST_RUNS} runs are compared at once; there are {len(run_ids)}.", param="runs")
    if len(set(run_ids)) < len(run_ids):
        raise InvalidRequest("A run is named twice.", param="runs")
    runs = [store.get_eval_run(run_id) for run_id in run_ids]
    for run in runs:
        if run.status in UNENDED:
            raise InvalidState(f"The run {run.id} is {run.status}. Wait for it, or cancel it.", param="runs")
    names = _names(runs)
    series = [
        Series(
            name=name,
            model=run.model,
            outcomes=[outcome_of(item, run, slices, price_per_hour) for item in _items(store, run)],
        )
        for name, run in zip(names, runs, strict=True)
    ]
    chosen = None if baseline is None else _baseline(baseline, runs, names)
    return compare(series, baseline=chosen, margin=margin, currency=currency)


def outcome_of(item: EvalItem, run: EvalRun, slices: Sequence[str] = (), price_per_hour: float = 0.0) -> Outcome:
    """What came of an item, in the words of a comparison."""
    sample, usage = item.sample, item.sample.get("usage") or {}
    metadata = item.datasource_item.get("metadata")
    fields = {**(metadata if isinstance(metadata, dict) else {}), **_named(item.datasource_item, slices)}
    has_usage = bool(usage.get("total_tokens"))
    error = sample.get("error") or next((result["error"] for result in item.results if "error" in result), None)
    return Outcome(
        key=item_key(item.datasource_item_id, item.datasource_item),
        passed=None if item.status == "error" else item.status == "pass",
        criteria={
            result["name"]: CriterionResult(score=result["score"], passed=result["passed"])
            for result in item.results
            if "error" not in result
        },
        slices={key: value for key, value in fields.items() if isinstance(value, str)},
        prompt_tokens=usage.get("prompt_tokens") if has_usage else None,
        completion_tokens=usage.get("completion_tokens") if has_usage else None,
        seconds=item.latency_s,
        cost=_cost(run, price_per_hour),
        text="\n".join(_text(message) for message in sample.get("output") or ()),
        item=item.datasource_item,
        error=error["message"] if error else "",
    )


def _cost(run: EvalRun, price_per_hour: float) -> float | None:
    """An item's part of what the machine cost while the run was worked on."""
    done: int = sum(run.tally.get(name, 0) for name in ("passed", "failed", "errored"))
    if not (price_per_hour and run.model and done):
        return None
    seconds: float = run.tally.get("seconds", 0.0)
    return price_per_hour * seconds / 3600 / done


def _text(message: Json) -> str:
    calls = [call.get("function", {}) for call in message.get("tool_calls") or ()]
    said = [str(message["content"])] if message.get("content") else []
    return "\n".join([*said, *(f"{call.get('name')}({call.get('arguments')})" for call in calls)])


def _named(item: Json, names: Sequence[str]) -> Json:
    found = ((name, item.get(name)) for name in names)
    return {name: value if isinstance(value, str) else str(value) for name, value in found if value is not None}


def _names(runs: Sequence[EvalRun]) -> list[str]:
    """A name for each run, and for none the same."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else f"{run.name} ({run.id[-6:]})" for run in runs]


def _baseline(wanted: str, runs: Sequence[EvalRun], names: Sequence[str]) -> str:
    for name, run in zip(names, runs, strict=True):
        if wanted in (run.id, name, run.name, run.model):
            return name
    raise InvalidRequest(f"{wanted!r} is none of the runs: {', '.join(names)}.", param="baseline")


def _items(store: Store, run: EvalRun) -> Iterator[EvalItem]:
    after: str | None = None
    while True:
        page = store.list_eval_items(run.id, after, _PAGE)
        yield from page.data
        if not page.has_more:
            return
        after = page.data[-1].id
