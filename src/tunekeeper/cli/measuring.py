"""Asking models many items over the API, grading their answers, and taking the time: what `advise` measures with.

It asks POST /chat/completions, not an eval run: each item may offer tools of its own and have examples of its own in
its prompt, which an eval run, whose sampling parameters are the same for all items, cannot say.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunekeeper.errors import TunekeeperError
from tunekeeper.evals.compare import Outcome, Series
from tunekeeper.evals.default_grader import Chosen, item_of
from tunekeeper.evals.shown import with_examples
from tunekeeper.evals.signs import Record
from tunekeeper.types import Json

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.graders.build import BuiltGrader

ATTEMPTS = 4
_BUSY = frozenset({"rate_limit_exceeded", "server_error", "http_429", "http_503", "http_502"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How every model is asked: greedily, alike."""

    max_tokens: int
    stop: str | None
    """Where an answer ends, if no right answer goes on after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What came of asking, and how long it took together."""

    series: Series
    seconds: float

    @property
    def per_request(self) -> float:
        """Wall seconds an item, many at once."""
        return self.seconds / max(1, len(self.series.outcomes))


class Bench:
    """A server, a grader, and the way to ask."""

    def __init__(
        self,
        client: "Client",
        grader: "BuiltGrader",
        chosen: Chosen,
        sampling: Sampling,
        *,
        at_once: int,
        price_per_hour: float = 0.0,
    ) -> None:
        self._client, self._grader, self._chosen, self._sampling = client, grader, chosen, sampling
        self._at_once, self._price_per_hour = at_once, price_per_hour

    def warm(self, model: str) -> None:
        """Let the server load a model, so that the first answers are not slower than the others."""
        self._client.post(
            "/chat/completions",
            {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 1},
        )

    def ask(
        self,
        name: str,
        model: str,
        records: Sequence[Record],
        *,
        shown: Callable[[Record], Sequence[Record]] = lambda record: (),
        token_prices: tuple[float, float] | None = None,
    ) -> Measured:
        """Ask every record, grade every answer; what fails is an outcome without a grade.

        `token_prices` are what a million prompt and completion tokens cost; without them it is this machine's time.
        """
        asked = [(record, *with_examples(record, shown(record))) for record in records]
        began = time.perf_counter()
        with ThreadPoolExecutor(self._at_once) as pool:
            answers = list(pool.map(lambda one: self._answer(model, *one[1:]), asked))
        seconds = time.perf_counter() - began
        with ThreadPoolExecutor(self._at_once) as pool:
            outcomes = list(pool.map(self._outcome, records, answers))
        price = seconds / max(1, len(records)) * self._price_per_hour / 3600 or None
        costed = [replace(one, cost=_cost(one, token_prices) if token_prices else price) for one in outcomes]
        return Measured(series=Series(name=name, model=model, outcomes=costed), seconds=seconds)

    def _answer(self, model: str, messages: list[Any], tools: list[Any]) -> "tuple[Json, float] | TunekeeperError":
        body: Json = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "max_completion_tokens": self._sampling.max_tokens,
            **({"tools": tools} if tools else {}),
            **({"stop": self._sampling.stop} if self._sampling.stop else {}),
        }
        for attempt in range(ATTEMPTS):
            began = time.perf_counter()
            try:
                return self._client.post("/chat/completions", body), time.perf_counter() - began
            except TunekeeperError as error:
                if error.code not in _BUSY or attempt == ATTEMPTS - 1:
                    return error
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns")

    def _outcome(self, record: Record, answer: "tuple[Json, float] | TunekeeperError") -> Outcome:
        from tunekeeper.graders.rows import as_sample

        item: Json = {"question": record.question}
        blank = Outcome(key=f"line {record.line}", passed=None, item=item)
        if isinstance(answer, TunekeeperError):
            return replace(blank, error=answer.message)
        completion, seconds = answer
        sample = as_sample(_trimmed(completion))
        if sample is None:
            return replace(blank, error="the server's answer holds no message")
        usage = completion.get("usage") or {}
        grade = self._grader.grade(sample, item_of(record))
        known = replace(
            blank,
            text=_text(sample),
            seconds=seconds,
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
        if not grade.is_valid:
            return replace(known, error="; ".join(fault.message for fault in grade.faults if not fault.by_sample))
        return replace(known, passed=grade.score >= self._chosen.threshold, score=grade.score)


def _trimmed(completion: Json) -> Json:
    """The completion without spaces around its text: they are no part of an answer."""
    choices = [
        {**choice, "message": {**choice["message"], "content": (choice["message"].get("content") or "").strip()}}
        for choice in completion.get("choices") or ()
        if isinstance(choice.get("message"), dict)
    ]
    return {**completion, "choices": choices}


def _text(sample: Json) -> str:
    """The answer as people read it: a call as name(arguments)."""
    calls = [call["function"] for call in sample["output_tools"]]
    return "; ".join(f"{call['name']}({call['arguments']})" for call in calls) or str(sample["output_text"])


def _cost(outcome: Outcome, prices: tuple[float, float]) -> float | None:
    if outcome.prompt_tokens is None or outcome.completion_tokens is None:
        return None
    return (outcome.prompt_tokens * prices[0] + outcome.completion_tokens * prices[1]) / 1e6
