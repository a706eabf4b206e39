"""From the stored traffic of a large model to a job that tunes a small one, and to the page that shows both.

    found = choose(store.iter_completions(recipe.filter), recipe, student, sinks)

An example is a chat whose last answer is learned; the assistant's earlier turns are read, not learned. Which side an
example is on depends on its prompt and the seed alone, so that the same prompt stays on its side when traffic grows.
A held-out line is an eval's line, with the teacher's stored answer as its sample: the teacher is never asked again.
What cannot be used is left out by name and counted: `LEFT_OUT` here and in `jobs.export`.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from tunekeeper.datasets.formats import ChatExample, Line, parse
from tunekeeper.datasets.quality import Comparison as Repeats
from tunekeeper.datasets.quality import prompt_and_answer
from tunekeeper.datasets.scrub import scrub
from tunekeeper.datasets.tokenizer import Tokenizer, text_of
from tunekeeper.datasets.validate import check
from tunekeeper.errors import InvalidState
from tunekeeper.evals.compare import Comparison, Outcome, Series, compare
from tunekeeper.evals.default_grader import default_grader, item_of
from tunekeeper.evals.signs import Record
from tunekeeper.jobs.eval_compare import outcome_of
from tunekeeper.jobs.export import MAX_LISTED, LeftOut, chat_line
from tunekeeper.jobs.submit import base_under, context_of, find_trainable, read_config
from tunekeeper.settings import Settings
from tunekeeper.storage.store import Store
from tunekeeper.types import CompletionFilter, EvalItem, Job, Json, StoredCompletion

LEFT_OUT: Mapping[str, str] = {
    "not_passed": "It did not pass the eval run.",
    "duplicate": "An earlier completion has the same prompt and answer.",
    "student_template": "The student's chat template cannot write it.",
    "too_long": "It is longer than the student takes.",
    "not_scrubbed": "Something sensitive would have stayed in it.",
}
"""Why a completion is not learned from, beside what no training file can carry."""

Side = Literal["train", "held_out"]
Role = Literal["teacher", "student", "before"]

LEAST_ANSWER = 64
"""Tokens that the student may always write."""

_NAMES: Mapping[Role, str] = {"teacher": "teacher", "student": "student", "before": "student before"}
_CODES = {"bad_tool": "unsupported_tool", "template_refused": "student_template"}
_DROPPED_WARNINGS = {"example_too_long": "too_long"}
_SENSITIVE = {"possible_secret": "not_scrubbed", "personal_data": "not_scrubbed"}
_PAGE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What the teacher's tokens cost, a million, in the server's currency."""

    input: float
    output: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How examples are chosen: the same recipe over more traffic keeps what it chose, and adds to it."""

    filter: CompletionFilter
    seed: int
    eval_run_id: str | None = None
    """Only what passed this run."""
    min_score: float | None = None
    """With an eval run: what every grader must have given, instead of a pass."""
    scrub: bool = False
    dedupe: bool = True
    held_out_fraction: float = 0.1
    pin: bool = False
    grader: list[Json] | None = None
    """Graders of the held-out items; None: agreement with the teacher's answer."""
    teacher_price: Prices | None = None

    def to_json(self) -> Json:
        """As a job keeps it."""
        kept = asdict(self)
        return {**kept, "filter": {name: value for name, value in kept["filter"].items() if value not in (None, {})}}

    @classmethod
    def from_json(cls, kept: Json) -> "Recipe":
        """What `to_json` gave."""
        prices = kept["teacher_price"]
        return cls(
            **{
                **kept,
                "filter": CompletionFilter(**kept["filter"]),
                "teacher_price": None if prices is None else Prices(**prices),
            }
        )


@dataclass(frozen=True, slots=True)
class Student:
    """What an example must fit."""

    tokenizer: Tokenizer
    max_tokens: int


class Sink(Protocol):
    """Where lines go."""

    def write(self, data: bytes) -> None:
        """Add bytes."""


@dataclass(frozen=True, slots=True)
class Sinks:
    """The three files."""

    train: Sink
    held_out: Sink
    provenance: Sink


@dataclass(slots=True)
class Found:
    """What came of a choice."""

    completions: int = 0
    """That fit the filter."""
    lines: Counter[str] = field(default_factory=Counter)
    """By side."""
    contradictions: int = 0
    """Lines that answer an earlier line's prompt otherwise; they stay."""
    choices_left_out: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    listed: list[Json] = field(default_factory=list)
    """The first that were left out, without duplicates: id, code, message."""
    scrubbed: Counter[str] = field(default_factory=Counter)
    """Places that were replaced, by kind."""
    teachers: Counter[str] = field(default_factory=Counter)
    longest_answer: int | None = None
    """Tokens of the teacher's longest held-out answer, as the teacher counts."""
    records: list[Record] = field(default_factory=list)
    """The held-out lines, for the choice of a grader."""
    used: list[str] = field(default_factory=list)
    """Ids."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When this machine was answering: from, to, in Unix seconds."""

    @property
    def busy_s(self) -> float | None:
        """Seconds of this machine an answer of its own took, those that several shared divided among them."""
        total, until = 0.0, 0.0
        for start, end in sorted(self.spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total / len(self.spans) if self.spans else None

    def counts(self) -> Json:
        """The figures."""
        return {
            "completions": self.completions,
            "train": self.lines["train"],
            "held_out": self.lines["held_out"],
            "contradictions": self.contradictions,
            "choices_left_out": self.choices_left_out,
            "left_out": dict(self.left_out.most_common()),
            "left_out_completions": self.listed,
            "scrubbed": dict(self.scrubbed.most_common()),
            "teachers": dict(self.teachers.most_common()),
        }

    def text(self) -> str:
        """The figures in a sentence or two."""
        said = [
            f"{self.completions:,} stored completions: {self.lines['train']:,} to learn from, "
            f"{self.lines['held_out']:,} held out."
        ]
        if self.left_out:
            said.append("Left out: " + ", ".join(f"{n:,} {code}" for code, n in self.left_out.most_common()) + ".")
        if self.contradictions:
            said.append(f"{self.contradictions:,} answer an earlier prompt otherwise.")
        if self.scrubbed:
            said.append("Replaced: " + ", ".join(f"{n:,} {kind}" for kind, n in self.scrubbed.most_common()) + ".")
        return " ".join(said)


def student_of(name: str, hyperparameters: Json, store: Store, settings: Settings) -> Student:
    """What the student takes; raises what `find_trainable` raises."""
    directory = settings.home / base_under(find_trainable(name, store, settings), store).path
    context, asked = context_of(read_config(directory)), hyperparameters.get("max_seq_len")
    return Student(Tokenizer.load(directory), min(context, asked) if isinstance(asked, int) else context)


def choose(
    completions: Iterable[StoredCompletion],
    recipe: Recipe,
    student: Student,
    sinks: Sinks,
    *,
    passed: Collection[str] | None = None,
) -> Found:
    """Write the lines, one completion after the other; the same completions and recipe give the same bytes.

    `passed`: the ids that passed the recipe's eval run.
    """
    found, repeats = Found(), Repeats()
    for completion in completions:
        found.completions += 1
        try:
            if passed is not None and completion.id not in passed:
                raise LeftOut("not_passed", LEFT_OUT["not_passed"])
            line, metadata, scrubbed = _line(completion, recipe, student)
            example = parse(Line(found.completions, line)).example
            assert isinstance(example, ChatExample)
            faults = {fault.code for fault in repeats.add(example)}
            if recipe.dedupe and "duplicate_example" in faults:
                raise LeftOut("duplicate", LEFT_OUT["duplicate"])
        except LeftOut as why:
            found.left_out[why.code] += 1
            if len(found.listed) < MAX_LISTED and why.code != "duplicate":
                found.listed.append({"id": completion.id, "code": why.code, "message": why.reason})
            continue
        found.scrubbed += scrubbed
        found.contradictions += "contradictory_answers" in faults
        found.choices_left_out += len(completion.response["choices"]) - 1
        found.teachers[completion.model] += 1
        found.used.append(completion.id)
        if completion.source == "own" and completion.latency_s is not None:
            found.spans.append((completion.created, completion.created + completion.latency_s))
        _write(completion, line, metadata, example, recipe, sinks, found)
    return found


def passed_ids(run_id: str, min_score: float | None, store: Store) -> set[str]:
    """The stored completions that passed an eval run; raises NotFound, and InvalidState before the run has ended."""
    run = store.get_eval_run(run_id)
    if run.status in ("queued", "in_progress"):
        raise InvalidState(f"The run {run_id} is {run.status}. Wait for it, or cancel it.", param="eval_run_id")
    return {
        str(item.datasource_item.get("completion_id") or item.datasource_item.get("id"))
        for item in items_of(run_id, store)
        if _has_passed(item, min_score)
    }


def items_of(run_id: str, store: Store) -> Iterator[EvalItem]:
    """What came of every item of a run."""
    after: str | None = None
    while True:
        page = store.list_eval_items(run_id, after, _PAGE)
        yield from page.data
        if not page.has_more:
            return
        after = page.data[-1].id


def graders_of(recipe: Recipe, found: Found) -> Json:
    """The graders of the held-out items, and why these: those of the recipe, or what fits the teacher's answers."""
    if recipe.grader is not None:
        return {"specs": recipe.grader, "agreement": False, "why": "the grader that was given"}
    chosen = default_grader(found.records)
    assert chosen is not None, "a held-out line has an answer"
    # A string_check is right or wrong, and takes no threshold.
    threshold = {} if chosen.spec["type"] == "string_check" else {"pass_threshold": chosen.threshold}
    return {"specs": [{**chosen.spec, **threshold}], "agreement": True, "why": chosen.why}


def data_sources(job: Job) -> dict[Role, Json]:
    """The data sources of the three eval runs over the held-out file."""
    distill = job.extra["distill"]
    source = {"type": "file_id", "id": distill["files"]["held_out"]}
    asked: Json = {
        "type": "completions",
        "source": source,
        "input_messages": {"type": "item_reference", "item_reference": "item.messages"},
        "sampling_params": {"temperature": 0.0, "max_completion_tokens": distill["max_completion_tokens"]},
    }
    return {
        "teacher": {"type": "jsonl", "source": source},
        "student": {**asked, "model": job.fine_tuned_model},
        "before": {**asked, "model": job.model},
    }


def compared(job: Job, store: Store, settings: Settings) -> Comparison:
    """The student, and what it was before, against the teacher; raises InvalidState before all runs have ended."""
    distill = job.extra["distill"]
    recipe, evaluation = Recipe.from_json(distill["recipe"]), distill.get("evaluation")
    if evaluation is None:
        raise InvalidState(
            f"The student of {job.id} is not evaluated yet: POST /fine_tuning/distill/{job.id}/evaluate.", param="id"
        )
    series = []
    for role, run_id in evaluation["runs"].items():
        run = store.get_eval_run(run_id)
        if run.status in ("queued", "in_progress"):
            raise InvalidState(f"The run {run.id} ({role}) is {run.status}. Wait for it.", param="id")
        outcomes = [outcome_of(item, run, (), settings.price_per_hour) for item in items_of(run_id, store)]
        if role == "teacher":
            own_cost = settings.price_per_hour / 3600 * (distill["busy_seconds"] or 0.0)
            outcomes = [costed(one, recipe.teacher_price, own_cost) for one in outcomes]
        series.append(Series(name=_NAMES[role], model=run.model or _teachers(distill), outcomes=outcomes))
    comparison = compare(series, currency=settings.currency)
    return replace(comparison, notes=(*_notes(job, recipe, settings), *comparison.notes))


def _line(completion: StoredCompletion, recipe: Recipe, student: Student) -> tuple[Json, dict[str, str], Counter[str]]:
    """The example, the metadata that goes with it, and what was scrubbed; raises LeftOut."""
    line = chat_line(completion)
    answer = line["messages"][-1]
    if not (text_of(answer.get("content")).strip() or answer.get("tool_calls") or answer.get("function_call")):
        raise LeftOut("no_answer")
    # What was said before is not this model's to answer for, and is stored as an answer of its own where it was.
    earlier = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in line["messages"][:-1]]
    line = {**line, "messages": [*earlier, answer], "metadata": dict(completion.metadata)}
    scrubbed: Counter[str] = Counter()
    if recipe.scrub:
        line, scrubbed = scrub(line)
    metadata = line.pop("metadata")
    drops = _DROPPED_WARNINGS | (_SENSITIVE if recipe.scrub else {})
    try:
        data = _bytes(line)
    except UnicodeEncodeError:
        raise LeftOut("invalid_example", "A text has half of a surrogate pair.") from None
    report = check(io.BytesIO(data), tokenizer=student.tokenizer, max_tokens=student.max_tokens, min_examples=1)
    # What is too long may have no answer left, which is an error of the file; its length is the reason all the same.
    for fault in sorted(report.faults, key=lambda fault: fault.code not in drops):
        if fault.code in drops or fault.level == "error":
            code = drops.get(fault.code) or _CODES.get(fault.code, "invalid_example")
            raise LeftOut(code, fault.message.removeprefix("Line 1: "))
    return line, metadata, scrubbed


def _write(
    completion: StoredCompletion,
    line: Json,
    metadata: dict[str, str],
    example: ChatExample,
    recipe: Recipe,
    sinks: Sinks,
    found: Found,
) -> None:
    side = _side(example, recipe)
    if side == "held_out":
        record = _record(example, line)
        found.records.append(record)
        data = _bytes(_held_out(completion, record, metadata))
        n_tokens = (completion.response.get("usage") or {}).get("completion_tokens")
        found.longest_answer = max(found.longest_answer or 0, n_tokens or 0) or None
    else:
        data = _bytes(line)
    found.lines[side] += 1
    origin = {
        "file": side,
        "line": found.lines[side],
        "sha256": hashlib.sha256(data.rstrip(b"\n")).hexdigest(),
        "completion_id": completion.id,
        "request_id": completion.request_id,
        "model": completion.model,
        "source": completion.source,
        "created": completion.created,
    }
    getattr(sinks, side).write(data)
    sinks.provenance.write(_bytes(origin))


def _side(example: ChatExample, recipe: Recipe) -> Side:
    prompt, _ = prompt_and_answer(example)
    digest = hashlib.sha256(f"{recipe.seed}:{prompt}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < recipe.held_out_fraction * 2**64 else "train"


def _record(example: ChatExample, line: Json) -> Record:
    plain = [{key: part for key, part in message.items() if key != "weight"} for message in example.messages]
    return Record(
        line=example.line, messages=tuple(plain[:-1]), answer=plain[-1], value=line, tools=tuple(example.tools or ())
    )


def _held_out(completion: StoredCompletion, record: Record, metadata: dict[str, str]) -> Json:
    """A line of an eval: what is asked again, what the graders compare with, and what the teacher said."""
    request, choice = completion.request, completion.response["choices"][0]
    item = {
        **item_of(record),
        "metadata": metadata,
        "completion_id": completion.id,
        "source": completion.source,
        **({"tools": list(record.tools)} if record.tools else {}),
        **({"response_format": request["response_format"]} if request.get("response_format") else {}),
    }
    message = {"content": None, **record.answer}
    said = {"index": 0, "message": message, "finish_reason": choice.get("finish_reason") or "stop"}
    sample = {
        "choices": [said],
        "model": completion.model,
        "usage": completion.response.get("usage"),
        "latency_seconds": completion.latency_s,
    }
    return {"item": item, "sample": {name: value for name, value in sample.items() if value is not None}}


def _has_passed(item: EvalItem, min_score: float | None) -> bool:
    if min_score is None or item.status == "error":
        return item.status == "pass"
    return all(result["score"] >= min_score for result in item.results)


def costed(outcome: Outcome, prices: Prices | None, own_cost: float) -> Outcome:
    """The teacher's answer with its cost: that of its tokens, or `own_cost` where this machine gave it."""
    cost: float | None = None
    if prices is not None and outcome.prompt_tokens is not None and outcome.completion_tokens is not None:
        cost = (outcome.prompt_tokens * prices.input + outcome.completion_tokens * prices.output) / 1e6
    elif prices is None and outcome.item.get("source") == "own":
        cost = own_cost or None
    return replace(outcome, cost=cost)


def _teachers(distill: Json) -> str:
    teachers = distill["counts"]["teachers"]
    return next(iter(teachers)) if len(teachers) == 1 else f"{len(teachers)} models"


def _notes(job: Job, recipe: Recipe, settings: Settings) -> Iterator[str]:
    """What a reader of the page must know."""
    distill = job.extra["distill"]
    yield f"Chosen from {distill['summary']}"
    grader = distill["evaluation"]["grader"]
    if grader["agreement"]:
        yield (
            "The reference is the teacher's own stored answer, so the teacher is right by construction, and the "
            f"others' figures say how often they agree with it. The grader: {grader['why']}."
        )
    yield (
        "The teacher's latency is that of the recorded requests. The student's is that of an eval run, which asks "
        "several items at once."
    )
    if recipe.teacher_price is not None:
        prices = recipe.teacher_price
        yield (
            f"The teacher's cost is its tokens' at {prices.input:g} and {prices.output:g} {settings.currency} "
            "a million (prompt, answer)."
        )
    if settings.price_per_hour:
        seconds = float(job.extra.get("seconds", 0.0))
        yield (
            f"This machine's time is counted at {settings.price_per_hour:g} {settings.currency} an hour, and divided "
            "among the answers that it gave at once, as if it had done nothing else meanwhile; tuning the "
            f"student took {seconds / 60:.1f} minutes, {settings.price_per_hour * seconds / 3600:.2g} "
            f"{settings.currency}."
        )


def _bytes(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8")
