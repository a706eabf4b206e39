"""Eval runs, worked off in threads of the server's process: sampled in parallel, graded meanwhile, stored as they end.

    runner = EvalRunner(store, blobs, settings)
    runner.start(lambda: AnswersSampler(answers, loop))     # goes on with what an earlier server left
    runner.wake()                                           # after a run was added
    runner.stop()

One run at a time, oldest first, so that its latencies are its own and the engine's batch is full of it. An item is
stored in the transaction that adds it up in the run's tally; a line whose item is stored is never worked on again.
So a server that is killed at any moment loses nothing but the answers that were being made, and makes those again.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tunekeeper.errors import (
    InvalidState,
    ModelNotFound,
    ModelRetired,
    NotFound,
    Overloaded,
    TunekeeperError,
    Unavailable,
)
from tunekeeper.graders.build import BuiltGrader, SamplerAndEmbedder, build_here
from tunekeeper.graders.rows import as_sample
from tunekeeper.graders.spec import Spec, parse
from tunekeeper.jobs.eval_data import (
    DataSource,
    Jsonl,
    Line,
    StoredSource,
    data_source,
    frozen_lines,
    model_of,
    request_of,
    sampling_of,
    threshold_of,
)
from tunekeeper.ports import Blobs
from tunekeeper.settings import Settings
from tunekeeper.storage.store import Store
from tunekeeper.types import Eval, EvalItem, EvalItemStatus, EvalRun, EvalRunStatus, Grade, Json, new_id

_log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a model that is busy or away is asked."""
MOST_FAILURES = 10
"""Items in a row that a model may leave unanswered before its run fails."""
AHEAD = 8
"""Items under way for each that is sampled: graders may fall that far behind."""
POLL_S = 0.2
STOP_S = 10.0

ENDED: frozenset[EvalRunStatus] = frozenset({"completed", "canceled", "failed"})
UNENDED: tuple[EvalRunStatus, ...] = ("queued", "in_progress")

_USAGE = ("invocation_count", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
_NOT_SAMPLED: Json = {"temperature": None, "top_p": None, "seed": None, "max_completion_tokens": None}
_COUNTS: Mapping[EvalItemStatus, str] = {"pass": "passed", "fail": "failed", "error": "errored"}


class EvalSampler(SamplerAndEmbedder, Protocol):
    """A sampler that can be told to begin and to end."""

    def load(self, model: str) -> None:
        """Have the model ready to answer; raises ModelNotFound for one that cannot."""
        ...

    def stop(self) -> None:
        """End what is being answered; those who wait get CancelledError."""
        ...


class EvalRunner:
    """Works the runs of a store off."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings, *, pause_s: float = 0.5) -> None:
        self._store, self._blobs, self._settings, self._pause_s = store, blobs, settings, pause_s
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._current: tuple[str, _Shift] | None = None
        self._thread: threading.Thread | None = None

    def start(self, open_sampler: Callable[[], EvalSampler]) -> None:
        """Begin, with what has not ended first."""
        self._stopping.clear()
        self._work.set()
        self._thread = threading.Thread(target=self._go, args=(open_sampler,), name="evals", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for a run soon."""
        self._work.set()

    def stop(self) -> None:
        """End; a run that is under way goes on when a runner starts on this store again."""
        self._stopping.set()
        self._work.set()
        self._halt()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def cancel(self, run_id: str) -> EvalRun:
        """End a run for good, and keep what it has; raises InvalidState for one that has ended."""
        run = self._store.move_eval_run(run_id, "canceled", from_=UNENDED, finished_at=self._store.now())
        self._halt(run_id)
        return run

    def delete(self, run_id: str) -> EvalRun:
        """Forget a run and its items; one under way is ended first."""
        with suppress(InvalidState):
            self.cancel(run_id)
        return self._store.delete_eval_run(run_id)

    def delete_eval(self, eval_id: str) -> list[EvalRun]:
        """Forget an eval, its runs and their items; a run under way is ended first. Returns the runs."""
        runs = self._store.delete_eval(eval_id)
        for run in runs:
            self._halt(run.id)
        return runs

    def check(self, specs: Sequence[Spec], sampler: EvalSampler) -> None:
        """Raise what keeps graders from being built here."""
        for grader in self._built(specs, sampler):
            grader.close()

    def _halt(self, run_id: str | None = None) -> None:
        with self._lock:
            if self._current is not None and run_id in (None, self._current[0]):
                self._current[1].halt()

    def _go(self, open_sampler: Callable[[], EvalSampler]) -> None:
        while not self._stopping.is_set():
            self._work.clear()
            try:
                run = self._store.next_eval_run()
                if run is not None:
                    self._do(run, open_sampler)
                    continue
            except Exception:
                _log.exception("the eval runs could not be gone on with; trying again")
                self._stopping.wait(self._pause_s)
                continue
            self._work.wait()

    def _do(self, run: EvalRun, open_sampler: Callable[[], EvalSampler]) -> None:
        """Work one run off, and say how it ended."""
        try:
            self._store.move_eval_run(run.id, "in_progress", from_=UNENDED)
            self._work_off(run, self._store.get_eval(run.eval_id), open_sampler)
            if len(self._store.eval_item_numbers(run.id)) == run.total:
                self._end(run, "completed")
        except (InvalidState, NotFound) as error:
            if not isinstance(error, ModelNotFound) and self._is_over(run):
                return  # canceled or deleted meanwhile
            self._fail(run, error)
        except TunekeeperError as error:
            self._fail(run, error)
        except Exception:
            if not self._stopping.is_set():
                _log.exception("the eval run %s failed", run.id)
                self._fail(run, TunekeeperError("The server failed on this run; its log says more."))

    def _work_off(self, run: EvalRun, eval_: Eval, open_sampler: Callable[[], EvalSampler]) -> None:
        with ExitStack() as stack:
            sampler = open_sampler()
            stack.callback(sampler.stop)
            meter = _Meter(sampler)
            specs = [parse(spec) for spec in eval_.testing_criteria]
            graders = self._built(specs, meter)
            for grader in graders:
                stack.callback(grader.close)
            source = _source_of(run)
            if model_of(source):
                with suppress(TunekeeperError):  # its first answers will say, and be asked for again
                    sampler.load(model_of(source))
            data = stack.enter_context(self._blobs.open(run.sha256))
            done = self._store.eval_item_numbers(run.id)
            shift = _Shift(
                run,
                source,
                (line for line in frozen_lines(data) if line.number not in done),
                sampler,
                _Bench(specs, graders, meter),
                concurrency=self._settings.eval_concurrency or self._settings.max_concurrent_requests,
                pause_s=self._pause_s,
                now=self._store.now,
            )
            with self._lock:
                self._current = (run.id, shift)
            try:
                if self._stopping.is_set() or self._is_over(run):
                    return
                self._store_all(run, shift)
            finally:
                shift.halt()
                with self._lock:
                    self._current = None

    def _store_all(self, run: EvalRun, shift: "_Shift") -> None:
        since = time.monotonic()
        for items in shift.play():
            now = time.monotonic()
            if not self._store.add_eval_items(run.id, items, tallied, seconds=now - since):
                return  # canceled or deleted
            since = now

    def _built(self, specs: Sequence[Spec], sampler: "EvalSampler | _Meter") -> list[BuiltGrader]:
        built: list[BuiltGrader] = []
        try:
            for n, spec in enumerate(specs):
                built.append(build_here(spec, self._settings, sampler, param=f"testing_criteria[{n}]"))
        except BaseException:
            for grader in built:
                grader.close()
            raise
        return built

    def _is_over(self, run: EvalRun) -> bool:
        try:
            return self._store.get_eval_run(run.id).status in ENDED
        except NotFound:
            return True

    def _fail(self, run: EvalRun, error: TunekeeperError) -> None:
        self._end(run, "failed", error={"code": error.code, "message": error.message})

    def _end(self, run: EvalRun, status: EvalRunStatus, **changes: Any) -> None:
        with suppress(InvalidState, NotFound):  # canceled or deleted meanwhile
            self._store.move_eval_run(run.id, status, from_=("in_progress",), finished_at=self._store.now(), **changes)


def tallied(tally: Json, item: EvalItem) -> Json:
    """A run's tally with one more item."""
    name = _COUNTS[item.status]
    criteria = list(tally.get("criteria") or [{}] * len(item.results))
    for n, result in enumerate(item.results):
        outcome = "errored" if result.get("error") else "passed" if result["passed"] else "failed"
        criteria[n] = {**criteria[n], outcome: criteria[n].get(outcome, 0) + 1}
    usage = _added(tally.get("usage", {}), item.usage)
    return {**tally, name: tally.get(name, 0) + 1, "criteria": criteria, "usage": usage}


@dataclass(frozen=True, slots=True)
class _Sampled:
    """An item that can be graded, or what went wrong."""

    line: Line
    sample: Json | None
    """As graders see it."""
    shown: Json
    """As an output item shows it."""
    usage: Json = field(default_factory=dict)
    latency_s: float | None = None
    error: Json | None = None


class _Bench:
    """The graders of an eval, and what passes them."""

    def __init__(self, specs: Sequence[Spec], graders: Sequence[BuiltGrader], meter: "_Meter") -> None:
        self._rows = [(spec, grader, threshold_of(spec)) for spec, grader in zip(specs, graders, strict=True)]
        self._meter = meter

    def grade(self, sample: Json, item: Json) -> tuple[list[Json], Json]:
        """The result of each criterion, and the tokens that the judges took."""
        self._meter.begin()
        results = [_result(spec, grader.grade(sample, item), threshold) for spec, grader, threshold in self._rows]
        return results, self._meter.taken()


class _Shift:
    """The work on one run: threads that sample, threads that grade, and `play`, which yields what is to be stored."""

    def __init__(
        self,
        run: EvalRun,
        source: DataSource,
        lines: Iterator[Line],
        sampler: EvalSampler,
        bench: _Bench,
        *,
        concurrency: int,
        pause_s: float,
        now: Callable[[], int],
    ) -> None:
        self._run, self._source, self._lines, self._sampler, self._bench = run, source, lines, sampler, bench
        self._pause_s, self._now = pause_s, now
        self._shown = sampling_of(source)
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._halted = threading.Event()
        self._room = threading.Semaphore(AHEAD * concurrency)
        self._done: queue.SimpleQueue[EvalItem | None] = queue.SimpleQueue()
        """Finished items; None: one thread has no more lines, or all is to end."""
        self._taken = 0
        self._failures = 0
        self._fault: Exception | None = None

    def halt(self) -> None:
        """End soon; nothing more is yielded."""
        self._halted.set()
        self._sampler.stop()
        self._done.put(None)

    def play(self) -> Iterator[list[EvalItem]]:
        """Items as they are finished, several where they came at once; raises what fails the whole run."""
        sampling = self._concurrency if model_of(self._source) else 1
        delivered = 0
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="eval-grader")
        for _ in range(sampling):
            threading.Thread(target=self._sample_all, args=(pool,), name="eval-sampler", daemon=True).start()
        try:
            while sampling or delivered < self._taken:
                ready = [self._done.get()]
                with suppress(queue.Empty):
                    while True:
                        ready.append(self._done.get_nowait())
                if self._fault is not None:
                    raise self._fault
                if self._halted.is_set():
                    return
                items = [item for item in ready if item is not None]
                sampling -= len(ready) - len(items)
                delivered += len(items)
                if items:
                    yield items
                    self._room.release(len(items))
        finally:
            self._halted.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _sample_all(self, pool: ThreadPoolExecutor) -> None:
        try:
            while (line := self._next_line()) is not None:
                sampled = self._sampled(line)
                if self._halted.is_set():
                    return
                pool.submit(self._grade, sampled)
        except CancelledError:
            return  # halted
        except Exception as error:
            if not self._halted.is_set():
                self._fail(error)
            return
        self._done.put(None)

    def _next_line(self) -> Line | None:
        while not self._room.acquire(timeout=POLL_S):
            if self._halted.is_set():
                return None
        with self._lock:
            line = next(self._lines, None)
            self._taken += line is not None
            return line

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._fault = self._fault or error
        self.halt()

    def _sampled(self, line: Line) -> _Sampled:
        if isinstance(self._source, Jsonl) or not self._source.model:
            return self._given(line)
        messages: Sequence[Json] = ()
        try:
            body = request_of(self._source, line.item)
            messages = body["messages"]
            answer, latency_s = self._answer(body)
        except (ModelNotFound, ModelRetired):
            raise  # nobody will answer the others either
        except (TunekeeperError, TimeoutError) as error:
            self._note_failure(error)
            said = {"code": getattr(error, "code", "timeout"), "message": str(error) or "No answer came in time."}
            shown = {**_shown(messages, {"model": self._source.model}, self._shown), "error": said}
            return _Sampled(line, None, shown, error=said)
        self._failures = 0
        model, used = str(answer.get("model") or self._source.model), _used(answer.get("usage"))
        sample = as_sample(answer)
        shown = _shown(messages, {**(sample or {}), "model": model}, self._shown, used)
        error_ = None if sample is not None else {"code": "no_sample", "message": "The answer has no message."}
        return _Sampled(line, sample, {**shown, "error": error_}, {model: used}, latency_s, error_)

    def _given(self, line: Line) -> _Sampled:
        """The sample that came with the item, and what is known of how it was made."""
        sample = (None if line.sample is None else as_sample(line.sample)) or {}
        origin = line.sample if isinstance(line.sample, dict) else {}
        latency_s = origin.get("latency_seconds")
        messages = line.item.get("input") if isinstance(self._source.source, StoredSource) else ()
        return _Sampled(
            line,
            sample,
            _shown(messages or (), {**sample, "model": origin.get("model")}, _NOT_SAMPLED, _used(origin.get("usage"))),
            latency_s=latency_s if isinstance(latency_s, int | float) else None,
        )

    def _answer(self, body: Json) -> tuple[Json, float]:
        """The model's answer and the seconds that it took; one that is busy or away is asked again."""
        for attempt in range(ATTEMPTS):
            began = time.perf_counter()
            try:
                return self._sampler.complete(body), time.perf_counter() - began
            except (Overloaded, Unavailable, ModelNotFound):
                # An upstream that is away for a moment lists no models either.
                if attempt == ATTEMPTS - 1 or self._halted.wait(self._pause_s * 2**attempt):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _note_failure(self, error: Exception) -> None:
        """Fail the run when the model has not answered for many items in a row."""
        if not isinstance(error, Overloaded | Unavailable):
            return
        with self._lock:
            self._failures += 1
            if self._failures < MOST_FAILURES:
                return
        raise Unavailable(
            f"The model answered none of {MOST_FAILURES} items in a row, each asked {ATTEMPTS} times: {error}"
        ) from error

    def _grade(self, sampled: _Sampled) -> None:
        try:
            line = sampled.line
            results, judged = ([], {}) if sampled.sample is None else self._bench.grade(sampled.sample, line.item)
            self._done.put(
                EvalItem(
                    id=new_id("outputitem_", 32),
                    run_id=self._run.id,
                    eval_id=self._run.eval_id,
                    created_at=self._now(),
                    datasource_item_id=line.number,
                    status=_status(sampled.error, results),
                    datasource_item=line.item,
                    results=results,
                    sample=sampled.shown,
                    usage=_added(sampled.usage, judged),
                    latency_s=sampled.latency_s,
                )
            )
        except Exception as error:
            self._fail(error)


class _Meter:
    """A sampler that notes, a thread for itself, the tokens that judges took."""

    def __init__(self, sampler: EvalSampler) -> None:
        self._sampler = sampler
        self._noted = threading.local()

    def begin(self) -> None:
        """Count from 0 in this thread."""
        self._noted.usage = {}

    def taken(self) -> Json:
        """What was counted since, by model."""
        usage: Json = self._noted.usage
        return usage

    def check(self, body: Json) -> None:
        """Raises what the sampler raises."""
        self._sampler.check(body)

    def complete(self, body: Json) -> Json:
        """The sampler's answer."""
        try:
            answer = self._sampler.complete(body)
        except CancelledError:
            raise TunekeeperError("The run was ended.") from None
        if hasattr(self._noted, "usage"):
            used = {str(answer.get("model") or body["model"]): _used(answer.get("usage"))}
            self._noted.usage = _added(self._noted.usage, used)
        return answer

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The sampler's vectors."""
        return self._sampler.embed(texts)


def _source_of(run: EvalRun) -> DataSource:
    """The run's data source; the lines of one that came with its content are in the blob."""
    asked = run.data_source
    if asked["source"]["type"] == "file_content":
        asked = {**asked, "source": {"type": "file_content", "content": [{"item": {}}]}}
    return data_source(asked)


def graded(spec: Spec, grade: Grade) -> tuple[Json, EvalItemStatus]:
    """What one criterion says of an item, and the item's status where it is the only one."""
    result = _result(spec, grade, threshold_of(spec))
    return result, _status(None, [result])


def _result(spec: Spec, grade: Grade, threshold: float) -> Json:
    """What one criterion says of an item."""
    known: Json = {
        key: value for key, value in (("details", grade.details), ("scores", dict(grade.sub_scores))) if value
    }
    if grade.faults:
        known["faults"] = [asdict(fault) for fault in grade.faults]
    result: Json = {
        "name": spec.name,
        "type": spec.type,
        "score": grade.score,
        "passed": grade.is_valid and grade.score >= threshold,
        "sample": known or None,
    }
    if not grade.is_valid:
        fault = next(fault for fault in grade.faults if not fault.by_sample)
        result["error"] = {"code": fault.kind, "message": fault.message}
    return result


def _status(error: Json | None, results: Sequence[Json]) -> EvalItemStatus:
    if error is not None or any("error" in result for result in results):
        return "error"
    return "pass" if all(result["passed"] for result in results) else "fail"


def _shown(messages: Sequence[Json], sample: Json, sampling: Json, usage: Json | None = None) -> Json:
    """A sample as an output item shows it."""
    choices = sample.get("choices") or []
    return {
        "input": [{**message, "content": _text_of(message.get("content"))} for message in messages],
        "output": [choice["message"] for choice in choices],
        "finish_reason": (choices[0].get("finish_reason") if choices else None) or "",
        "model": sample.get("model") or "",
        "usage": {key: (usage or {}).get(key, 0) for key in _USAGE if key != "invocation_count"},
        "error": None,
        **sampling,
    }


def _text_of(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    return "\n".join(part["text"] if part.get("type") == "text" else f"[{part.get('type')}]" for part in content)


def _used(usage: Any) -> Json:
    """One invocation's tokens, from what a chat completion says of them."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = {key: usage.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    known = {**counts, "cached_tokens": cached}
    return {"invocation_count": 1, **{key: value if isinstance(value, int) else 0 for key, value in known.items()}}


def _added(*usages: Json) -> Json:
    """Tokens by model, of several."""
    total: Json = {}
    for usage in usages:
        for model, used in usage.items():
            before = total.get(model, {})
            total[model] = {key: before.get(key, 0) + used.get(key, 0) for key in _USAGE}
    return total
