"""`tunekeeper advise`: should one tune at all? It measures, and says so in plain words with the figures.

The base with and without examples in its prompt, a model tuned here and now, a larger model where one is named: all
on the same held-out items, within the minutes that are given. What can be said without training is said first.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekeeper.cli.options import Options, options_of
from tunekeeper.errors import InvalidRequest, NotFound, TunekeeperError

if TYPE_CHECKING:
    from tunekeeper.cli.advise_data import Task
    from tunekeeper.cli.client import Client
    from tunekeeper.cli.measuring import Bench, Measured
    from tunekeeper.evals.advice import Advice
    from tunekeeper.evals.budget import Costs
    from tunekeeper.evals.compare import Series
    from tunekeeper.evals.signs import Record, Remark
    from tunekeeper.types import Json

AT_ONCE = 32
KS = (1, 3, 5)
FRACTIONS = (0.25, 0.5)
MOST_HELD_OUT = 200
FIRST_ITEMS = 32
"""So many are asked to see how fast the machine answers."""
SHORTEST_JOB_S = 30.0
BASE, TUNED, LARGER = "base, zero-shot", "tuned", "larger"
LONG_PROMPTS = 3
"""Prompts so many times longer than the answers."""
BYTES_A_TOKEN = 2.0
"""Fewer than usual: an answer that is cut off would be wrong for no reason of its own."""


def advise(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Training file (JSONL).")],
    model: Annotated[str, typer.Option(help="The base model that would be tuned.")],
    held_out: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Items to measure on; else a part of DATA.")
    ] = None,
    held_out_share: Annotated[float, typer.Option(min=0.05, max=0.5, help="The part of DATA that is held out.")] = 0.2,
    larger: Annotated[str | None, typer.Option(metavar="MODEL", help="A larger model to measure beside.")] = None,
    grader: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file with a grader; else one that fits the answers."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="What may be spent; what does not fit is left out.")] = 15.0,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Write Markdown, HTML and JSON here.")] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1, help="Your volume, for what tuning saves.")] = None,
    input_price: Annotated[
        float | None, typer.Option(min=0.0, help="Of the larger model: a million prompt tokens.")
    ] = None,
    output_price: Annotated[
        float | None, typer.Option(min=0.0, help="Of the larger model: a million completion tokens.")
    ] = None,
    hyperparameter: Annotated[
        list[str] | None,
        typer.Option("--hyperparameter", "-H", metavar="NAME=VALUE", help="Of the training; may be repeated."),
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="Train even where the base does the task already.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the split and the training.")] = 1,
) -> None:
    """Say whether tuning is worth it on this data.

    Measures the base, examples in the prompt, a tuned model and a larger one on held-out items: quality, tokens,
    latency, cost. The tuned model stays on the server.
    """
    from tunekeeper.cli.advise_data import read_task
    from tunekeeper.cli.client import connect
    from tunekeeper.cli.measuring import Bench
    from tunekeeper.cli.output import show
    from tunekeeper.cli.tune import named_hyperparameters
    from tunekeeper.evals.advice import Prices, to_json

    options = options_of(context)
    settings = options.settings
    asked = _Asked(
        model=model,
        larger=larger,
        deadline=time.monotonic() + 60 * minutes,
        hyperparameters=named_hyperparameters(None, None, None, None, hyperparameter),
        always=always,
        seed=seed,
        token_prices=None
        if input_price is None and output_price is None
        else (input_price or 0.0, output_price or 0.0),
        prices=Prices(per_hour=settings.price_per_hour, currency=settings.currency, requests_per_day=requests_per_day),
    )
    task = read_task(options, data, held_out, held_out_share, grader, seed)
    if task.stops:
        advice = _early(task, asked)
    else:
        from tunekeeper.cli.grade import ClientSampler
        from tunekeeper.graders.build import build

        assert task.chosen is not None
        with connect(options, runs_jobs=True) as client, ExitStack() as opened:
            built = build(task.chosen.spec, sampler=ClientSampler(client))
            opened.callback(built.close)
            bench = Bench(
                client,
                built,
                task.chosen,
                _sampling(task),
                at_once=min(AT_ONCE, settings.max_concurrent_requests),
                price_per_hour=settings.price_per_hour,
            )
            advice = _Trial(options, client, bench, task, asked).run()
    if out is not None:
        _write(out, advice, data.name)
    show(options, to_json(advice), lambda: _text_of(advice, out))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What the command line says."""

    model: str
    larger: str | None
    deadline: float
    """Of the monotonic clock."""
    hyperparameters: "Json"
    always: bool
    seed: int
    token_prices: tuple[float, float] | None
    prices: Any

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()


def _sampling(task: "Task") -> Any:
    """Room for the longest answers; a line break ends an answer where no right one has any."""
    from tunekeeper.cli.measuring import Sampling

    answers = [record.reference for record in (*task.training, *task.held_out)]
    sizes = sorted(len(answer.encode()) for answer in answers)
    longest = sizes[min(len(sizes) - 1, int(0.99 * len(sizes)))] if any(answers) else 1024
    one_line = any(answers) and not any("\n" in answer for answer in answers) and task.method != "reinforcement"
    return Sampling(max_tokens=min(2048, 16 + int(longest / BYTES_A_TOKEN)), stop="\n" if one_line else None)


def _quicker(task: "Task", hyperparameters: "Json") -> "Json":
    """With prompts that are much longer than the answers, an adapter that leaves prompts to the base: it trains in a
    fraction of the time."""
    asked = sum(len(record.prompt) for record in task.training)
    answered = sum(len(record.text) for record in task.training)
    named = {"adapter_scope", "full_finetune", "prompt_loss_weight"} & set(hyperparameters)
    if task.method != "supervised" or named or asked < LONG_PROMPTS * answered:
        return hyperparameters
    return {**hyperparameters, "adapter_scope": "completion"}


def _scope_remark() -> "Remark":
    from tunekeeper.evals.signs import Remark

    return Remark(
        "adapter_scope",
        level="info",
        text="The prompts are long and the answers short, so the model is tuned with adapter_scope completion, which "
        "takes a fraction of the time; -H adapter_scope=all measures the other way.",
    )


def _early(task: "Task", asked: _Asked) -> "Advice":
    """What is said without asking any model."""
    from tunekeeper.evals.advice import Measures, advise

    return advise(
        Measures(method=task.method, n_training=len(task.training), remarks=tuple(task.remarks), prices=asked.prices),
        grader=_why(task),
    )


def _why(task: "Task") -> str:
    return "" if task.chosen is None else f"{task.chosen.spec.get('name', task.chosen.kind)}: {task.chosen.why}"


class _Trial:
    """One run of everything that is measured, in the order in which it can end early."""

    def __init__(self, options: Options, client: "Client", bench: "Bench", task: "Task", asked: _Asked) -> None:
        from tunekeeper.evals.signs import majority

        assert task.chosen is not None
        self._options, self._client, self._bench, self._asked = options, client, bench, asked
        self._task, self._chosen = task, task.chosen
        self._training, self._held_out = task.training, task.held_out[:MOST_HELD_OUT]
        self._hyperparameters = _quicker(task, asked.hyperparameters)
        self._cuts: list[str] = []
        self._machine_s: dict[str, float] = {}
        self._measured: dict[str, Any] = {
            "is_absolute": task.chosen.kind != "pair",
            "method": task.method,
            "graded": task.chosen.graded,
            "ceiling": task.ceiling,
            "majority": majority(task.training, task.held_out),
            "prices": asked.prices,
            "checkable": task.chosen.kind in ("calls", "json", "label", "short text"),
        }

    def run(self) -> "Advice":
        """Measure until the verdict is clear or the time is over."""
        from tunekeeper.evals.budget import FEWEST_EXAMPLES, fitting, plan

        self._note(
            f"{len(self._training):,} training lines, {len(self._task.held_out):,} held out. "
            f"Answers are graded by {_why(self._task)}."
        )
        base = self._base()
        found: dict[str, Any] = {"base": base.series}
        if self._suffices(base.series):
            return self._advice(**found, untuned_because="the base does it already")
        failed = [outcome for outcome in base.series.outcomes if outcome.passed is None]
        if 2 * len(failed) > len(base.series.outcomes):
            return self._advice(**found, untuned_because=f"the base did not answer: {failed[0].error}")
        estimated = self._estimate()
        chosen = plan(
            self._costs(base, estimated),
            seconds=self._asked.left_s,
            n_held_out=len(base.series.outcomes),
            n_training=len(self._training),
            fractions=FRACTIONS,
        )
        self._cuts += chosen.cuts
        self._training = self._training[: chosen.n_training]
        self._held_out = self._held_out[: chosen.n_held_out]
        found["base"] = base_series = replace(base.series, outcomes=base.series.outcomes[: chosen.n_held_out])
        found["few_shot"] = few_shot = self._few_shot(chosen.ks, chosen.n_choosing) if chosen.ks else None
        if self._suffices(few_shot):
            return self._advice(**found, untuned_because="examples in the prompt do it already")
        if self._asked.larger is not None:
            found["larger"] = self._ask(LARGER, self._asked.larger, token_prices=self._asked.token_prices).series
        # What came before took its own time: the training lines are counted out again.
        n_fitting = fitting(
            self._costs(base, estimated),
            seconds=self._asked.left_s,
            n_held_out=chosen.n_held_out,
            n_training=len(self._task.training),
        )
        if n_fitting < min(FEWEST_EXAMPLES, len(self._task.training)):
            because = f"there is time left to train on {n_fitting} lines only; give more --minutes"
            return self._advice(**found, untuned_because=because)
        self._training = self._task.training[:n_fitting]
        try:
            tuned, seconds, losses = self._tuned(1.0, keep=True)
        except TunekeeperError as error:  # what was measured so far is worth saying
            return self._advice(**found, untuned_because=f"the training failed: {error.message}")
        found |= {"tuned": tuned, "training_s": seconds}
        remarks = self._after(base_series, few_shot, tuned, losses)
        found["curve"] = self._curve(tuned, chosen.fractions, seconds)
        return self._advice(**found, remarks=(*self._task.remarks, *remarks))

    def _suffices(self, series: "Series | None") -> bool:
        """Whether there is nothing left to train for."""
        from tunekeeper.evals.advice import already_does

        if self._asked.always or not self._measured["is_absolute"]:
            return False
        return already_does(series, graded=self._chosen.graded, ceiling=self._task.ceiling)

    def _advice(self, **found: Any) -> "Advice":
        from tunekeeper.evals.advice import Measures, advise

        values: dict[str, Any] = {"remarks": tuple(self._task.remarks), **self._measured, **found}
        measures = Measures(**values, n_training=len(self._training), machine_s=self._machine_s)
        sizes = (
            ("training lines are used", self._training, self._task.training),
            ("held-out items are asked", self._held_out, self._task.held_out),
        )
        fewer = [f"{len(used):,} of {len(all_):,} {what}" for what, used, all_ in sizes if len(used) < len(all_)]
        return advise(measures, cuts=[*fewer, *self._cuts], grader=_why(self._task))

    def _base(self) -> "Measured":
        """The base on the held-out items; a few first, so that the others are no more than there is time for."""
        from tunekeeper.cli.measuring import Measured
        from tunekeeper.evals.signs import FEWEST_HELD_OUT

        self._bench.warm(self._asked.model)
        first = self._bench.ask(BASE, self._asked.model, self._held_out[:FIRST_ITEMS])
        room = int(0.15 * self._asked.left_s / max(first.per_request, 1e-6))
        more = self._held_out[FIRST_ITEMS : max(FIRST_ITEMS, room, FEWEST_HELD_OUT)]
        if len(self._held_out) > FIRST_ITEMS + len(more):
            self._held_out = self._held_out[: FIRST_ITEMS + len(more)]
        rest = self._bench.ask(BASE, self._asked.model, more)
        outcomes = [*first.series.outcomes, *rest.series.outcomes]
        whole = Measured(
            series=replace(first.series, outcomes=outcomes), seconds=first.seconds + (rest.seconds if more else 0.0)
        )
        self._say(whole)
        return whole

    def _estimate(self) -> float:
        """Seconds of the job on all training lines, measured by the server; raises what the job would fail with."""
        body = self._body(self._training)
        try:
            found = self._client.post("/fine_tuning/jobs/estimate", body)
        except TunekeeperError:
            if self._hyperparameters == self._asked.hyperparameters:
                raise
            self._hyperparameters = self._asked.hyperparameters  # what we chose ourselves is not to be had here
            return self._estimate()
        finally:
            self._forget_file(body)
        seconds = float(found["est_wall_seconds"])
        self._note(f"Training on {len(self._training):,} lines is estimated at {seconds:,.0f} s.")
        if self._hyperparameters != self._asked.hyperparameters:
            self._task.remarks.append(_scope_remark())
        return seconds

    def _costs(self, base: "Measured", estimated: float) -> "Costs":
        from tunekeeper.evals.budget import Costs

        asked = max(1, sum(len(record.prompt) for record in self._task.training))
        answered = sum(len(record.text) for record in self._task.training)
        return Costs(
            answer_s=base.per_request,
            # What is written takes as long as before; what is read grows with each example.
            longer={k: 1 + 0.7 * k * (asked + answered) / asked for k in KS},
            training_s=estimated,
            larger=self._asked.larger is not None,
        )

    def _few_shot(self, ks: Sequence[int], n_choosing: int) -> Any:
        """The base with the examples in its prompt that did best on a part of the training lines."""
        from tunekeeper.evals.advice import MOST_ERRORS, quality
        from tunekeeper.evals.shown import CHOICES

        known = [record for record in self._training if record.reference]
        choosing, pool = known[-n_choosing:], known[:-n_choosing]
        if not pool:
            self._cuts.append("the lines have no answers that a prompt could show, so few-shot was not measured")
            return None
        tried: list[tuple[float, float, str, int]] = []
        for kind, make in CHOICES.items():
            choose = make(pool)
            for k in ks:
                series = self._bench.ask(kind, self._asked.model, choosing, shown=partial(_shown, choose, k)).series
                errors = sum(outcome.passed is None for outcome in series.outcomes)
                found = quality(series, graded=self._chosen.graded)
                if found is None or errors > MOST_ERRORS * len(series.outcomes):
                    self._note(f"  {_name(kind, k)}: {errors} of {len(choosing)} requests failed")
                    continue
                tokens = sum(outcome.prompt_tokens or 0 for outcome in series.outcomes) / len(choosing)
                tried.append((-found.value, tokens, kind, k))
                self._note(f"  {_name(kind, k)}: {found.value:.2f} on {len(choosing)} training lines, to choose by")
        if not tried:
            self._cuts.append("no examples fit into the prompt, so few-shot was not measured")
            return None
        _, _, kind, k = min(tried)
        choose = CHOICES[kind](known)
        return self._ask(_name(kind, k), self._asked.model, shown=partial(_shown, choose, k)).series

    def _tuned(self, fraction: float, *, keep: bool) -> tuple[Any, float, list[float]]:
        """Train on a fraction, and ask the model; the series, the seconds of training, the training losses."""
        from tunekeeper.cli.client import path_of
        from tunekeeper.cli.watch import events_since, follow

        n = max(1, int(fraction * len(self._training)))
        body = self._body(self._training[:n])
        hyperparameters = body["method"][self._task.method]["hyperparameters"]
        # A job that would take all of the time is paused before, and its last checkpoint is asked.
        limit = max(SHORTEST_JOB_S, self._asked.left_s - 2 * self._machine_s[BASE] * len(self._held_out))
        hyperparameters.setdefault("max_wall_seconds", round(limit, 1))
        self._note(f"Training on {n:,} lines.")
        began = time.perf_counter()
        job = self._client.post("/fine_tuning/jobs", {**body, "seed": self._asked.seed, "suffix": "advise"})
        job = follow(self._options, self._client, job["id"])
        seconds = time.perf_counter() - began
        path = path_of("fine_tuning", "jobs", job["id"])
        events = events_since(self._client, path, None)
        model = job["fine_tuned_model"] or self._last_checkpoint(path, job)
        name = TUNED if keep else f"tuned on {n:,}"
        measured = self._ask(name, model)
        if not keep:
            self._forget_models(path, job)
            self._forget_file(body)
        losses = [event["data"].get("train_loss") for event in events if event["type"] == "metrics" and event["data"]]
        return measured.series, seconds, [loss for loss in losses if loss is not None]

    def _last_checkpoint(self, path: str, job: "Json") -> str:
        """The newest model of a job that did not end; raises what the job failed with."""
        from tunekeeper.cli.watch import report_end

        found = self._client.get(f"{path}/checkpoints", limit=1)["data"]
        if job["status"] != "paused" or not found:
            if job["status"] == "failed":
                report_end(self._options, job)
            raise TunekeeperError(f"{job['id']} is {job['status']}, and left no model that could be asked.")
        self._client.post(f"{path}/cancel")
        step, total = found[0]["step_number"], job.get("total_steps")
        self._cuts.append(f"training was stopped at its time limit; the model of step {step} of {total} was asked")
        return str(found[0]["fine_tuned_model_checkpoint"])

    def _curve(self, tuned: Any, fractions: Sequence[float], full_s: float) -> Any:
        """The sizes of the learning curve for which there is still time."""
        from tunekeeper.evals.advice import scores
        from tunekeeper.evals.curve import Point, learning_curve

        graded = self._chosen.graded
        points = [Point(n=len(self._training), scores=scores(tuned.outcomes, graded=graded))]
        asking = self._machine_s[TUNED] * len(self._held_out)
        for fraction in sorted(fractions, reverse=True):
            n = int(fraction * len(self._training))
            if n < self._options.settings.min_examples:
                self._cuts.append(f"the learning curve has no size of {n} lines: a job needs more")
            elif fraction * full_s + asking > self._asked.left_s:
                self._cuts.append(f"there was no time left to train on {n:,} lines for the learning curve")
            else:
                n_cuts = len(self._cuts)
                try:
                    series, _, _ = self._tuned(fraction, keep=False)
                except TunekeeperError as error:
                    self._cuts.append(f"the training on {n:,} lines failed: {error.message}")
                    break
                if len(self._cuts) == n_cuts:  # one that was stopped says nothing of its size
                    points.append(Point(n=n, scores=scores(series.outcomes, graded=graded)))
        return learning_curve(points, unit="" if graded else "%")

    def _after(self, base: Any, few_shot: Any, tuned: Any, losses: Sequence[float]) -> "list[Remark]":
        """What the answers tell of the data: facts that no prompt holds, and answers outside the passages."""
        from tunekeeper.evals.advice import right
        from tunekeeper.evals.signs import Remark, has_passages, is_within, missing_knowledge

        found = []
        fell = len(losses) > 1 and losses[-1] < 0.8 * losses[0]
        if not has_passages([*self._training, *self._held_out]):
            found.append(missing_knowledge(self._training, self._held_out, right(tuned), loss_fell=fell))
            return [remark for remark in found if remark is not None]
        shares: dict[str, float | int | str | None] = {}
        for series in filter(None, (base, few_shot, tuned)):
            answered = [(r, o) for r, o in zip(self._held_out, series.outcomes, strict=True) if o.passed is not None]
            shares[series.name] = sum(is_within(r, o.text) for r, o in answered) / max(1, len(answered))
        said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        text = f"Answers that stay within their passages (all numbers and most words stand there): {said}."
        return [Remark("within_passages", level="info", text=text, figures=shares)]

    def _ask(self, name: str, model: str, **how: Any) -> "Measured":
        self._bench.warm(model)
        measured = self._bench.ask(name, model, self._held_out, **how)
        self._say(measured)
        return measured

    def _say(self, measured: "Measured") -> None:
        from tunekeeper.evals.advice import figure, quality

        series = measured.series
        if series.name != LARGER:
            self._machine_s[series.name] = measured.per_request
        found = quality(series, graded=self._chosen.graded)
        value = "no answer" if found is None else figure(found, graded=self._chosen.graded)
        self._note(f"{series.name}: {value} of {len(series.outcomes)} items in {measured.seconds:.0f} s")

    def _body(self, records: "Sequence[Record]") -> "Json":
        """A job on these lines; sends them."""
        from tunekeeper.cli.tune import send

        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "advise.jsonl"
            lines = sorted(records, key=lambda record: record.line)
            path.write_text("".join(json.dumps(r.value, ensure_ascii=False) + "\n" for r in lines), "utf-8")
            file = send(self._options, self._client, str(path))
        inner: Json = {"hyperparameters": dict(self._hyperparameters)}
        if self._task.method == "reinforcement":
            inner["grader"] = self._chosen.spec
        return {
            "model": self._asked.model,
            "training_file": file,
            "method": {"type": self._task.method, self._task.method: inner},
        }

    def _forget_models(self, path: str, job: "Json") -> None:
        """Delete what a job made."""
        from tunekeeper.cli.client import path_of

        checkpoints = self._client.get(f"{path}/checkpoints", limit=1000)["data"]
        for name in (*(each["fine_tuned_model_checkpoint"] for each in checkpoints), job["fine_tuned_model"]):
            with suppress(NotFound):
                self._client.delete(path_of("models", name or "none"))

    def _forget_file(self, body: "Json") -> None:
        from tunekeeper.cli.client import path_of

        self._client.delete(path_of("files", body["training_file"]))

    def _note(self, text: str) -> None:
        from tunekeeper.cli.output import note

        if not self._options.as_json:
            note(text)


def _shown(choose: "Callable[[Record, int], list[Record]]", k: int, record: "Record") -> "list[Record]":
    return choose(record, k)


def _name(kind: str, k: int) -> str:
    return f"few-shot, {k} {kind}"


def _text_of(advice: "Advice", out: Path | None) -> str:
    """For a terminal: the table, the verdict, then what speaks for it."""
    from tunekeeper.cli.output import table
    from tunekeeper.evals.advice_page import cells, headings

    blocks = []
    if advice.rows:
        blocks.append(table(headings(advice), [cells(row, advice) for row in advice.rows], empty=""))
    blocks.append(advice.text[:1].upper() + advice.text[1:] + ("" if advice.text.endswith(".") else "."))
    words = {"warn": "! ", "hint": "? ", "info": "- "}
    blocks.append(
        "\n".join(f"{words[remark.level]}{remark.text}" for remark in advice.remarks if remark.level != "stop")
    )
    if advice.grader:
        blocks.append(f"Graded by {advice.grader}.")
    if advice.cuts:
        blocks.append("To keep to the time: " + "; ".join(advice.cuts) + ".")
    if out is not None:
        blocks.append(f"Written: {out / 'advice.html'}")
    return "\n\n".join(block for block in blocks if block)


def _write(out: Path, advice: "Advice", name: str) -> None:
    from tunekeeper.evals.advice import to_json
    from tunekeeper.evals.advice_page import to_html, to_markdown
    from tunekeeper.evals.report import to_html as comparison_html

    title = f"Should {name} be tuned on?"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "advice.json").write_text(json.dumps(to_json(advice), indent=2, ensure_ascii=False) + "\n", "utf-8")
        (out / "advice.md").write_text(to_markdown(advice, title=title), "utf-8")
        (out / "advice.html").write_text(to_html(advice, title=title), "utf-8")
        if advice.comparison is not None:
            (out / "comparison.html").write_text(comparison_html(advice.comparison, title=title), "utf-8")
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written: {error.strerror}.", param="out") from error
