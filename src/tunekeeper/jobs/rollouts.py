"""Where answers are sampled and graded while a job trains: the embedded engine beside the graders.

The engine runs on the trainer's own decoder and adapter, so an answer comes from the very weights that learn from
it. Each answer is graded as soon as it is complete, in a thread of its own, while the others are still sampled.

What one call samples depends on the weights and the seeds alone: the cache is emptied before it, all answers start
together, and prompts are computed in chunks of one size. So a run that is resumed samples what it sampled before.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from tunekeeper.datasets.formats import ProblemExample
from tunekeeper.datasets.tokenizer import Tokenizer, text_of
from tunekeeper.graders.build import build_here
from tunekeeper.graders.spec import Grader, parse, parts_of
from tunekeeper.graders.template import sample_of
from tunekeeper.inference.answers import Answers, ChatRequest, call_style, grammar_of
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.params import Piece, Sampling
from tunekeeper.inference.pythonic import PythonicStream
from tunekeeper.inference.sampler import in_background
from tunekeeper.inference.tools import Arguments, CallBegins, CallStream, Words
from tunekeeper.jobs.prepare import Data, Desk
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.trainer.config import ReinforcementConfig
from tunekeeper.trainer.rollouts import Ask, Judge, Rollout
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import Job, Json, Tree

GRADING_THREADS = 8
PROMPT_CHUNK = 512
"""Prompt tokens of one step of the engine."""

_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A problem of the validation file, and an answer to it."""

    problem: ProblemExample
    n_prompt: int
    """Tokens."""
    rollout: Rollout


class EnginePlayer:
    """Plays the problems of a training and of a validation file; a `Player` for the trainer."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        grader: Grader,
        judges: Sequence[Judge],
        config: ReinforcementConfig,
        training: Data,
        held_out: Data,
        *,
        response_format: Json | None = None,
    ) -> None:
        self.judges = judges
        self._engine, self._tokenizer, self._grader, self._config = engine, tokenizer, grader, config
        self._files = {False: training, True: held_out}
        self._response_format = response_format or {}
        self._style = call_style(tokenizer)
        self._pool = ThreadPoolExecutor(GRADING_THREADS, thread_name_prefix="grader")
        self.evaluated: list[Evaluated] = []
        """What came of the last evaluation: the first answer to each problem of the validation file."""

    def play(self, asks: Sequence[Ask], adapter: LoraAdapter | None, *, valid: bool) -> list[Rollout]:
        """The answers in the order of `asks`, each with its grade; raises what the engine raises."""
        data = self._files[valid]
        self._engine.forget()  # what is cached was computed by other weights
        inboxes = [_Inbox(self._pool, self._judged(data.problems[ask.problem])) for ask in asks]
        self._engine.submit_together(
            [data.trees[ask.problem].trunk for ask in asks],
            [self._sampling(data, ask) for ask in asks],
            adapter=adapter,
            deliver=[inbox.take for inbox in inboxes],
        )
        rollouts = [inbox.wait() for inbox in inboxes]
        if valid:
            self.evaluated = [
                Evaluated(data.problems[ask.problem], len(data.trees[ask.problem].trunk), rollout)
                for ask, rollout in zip(asks, rollouts, strict=True)
                if ask.index == 0
            ]
        return rollouts

    def prompt_of(self, problem: int, *, valid: bool) -> tuple[int, str]:
        """The problem's line and its last message."""
        example = self._files[valid].problems[problem]
        return example.line, text_of(example.messages[-1].get("content"))

    def close(self) -> None:
        """End the threads that grade."""
        self._pool.shutdown(cancel_futures=True)

    def _sampling(self, data: Data, ask: Ask) -> Sampling:
        room = self._config.max_seq_len - len(data.trees[ask.problem].trunk)
        return Sampling(
            max_tokens=min(self._config.max_completion_tokens, room),
            temperature=self._config.temperature,
            seed=ask.seed,
            grammar=self._grammar(data.problems[ask.problem]),
        )

    def _grammar(self, problem: ProblemExample) -> str | None:
        asked = self._response_format
        functions = _functions(problem)
        schema: Json | None = {"type": "object"} if asked.get("type") == "json_object" else None
        inner = asked.get("json_schema", {})
        request = ChatRequest(
            messages=problem.messages,
            functions=functions,
            parallel_tool_calls=problem.parallel_tool_calls is not False,
            json_schema=inner.get("schema", schema),
            strict_schema=inner.get("strict", True),
        )
        return grammar_of(request, functions, self._style)

    def _judged(self, problem: ProblemExample) -> Callable[[str, Piece], Rollout]:
        item = {**problem.item, "messages": list(problem.messages)}
        names = [str(function["name"]) for function in _functions(problem)]

        def judge(text: str, last: Piece) -> Rollout:
            words, calls = self._parted(text, names) if names else (text, [])
            reason = "tool_calls" if calls else last.finish_reason or "stop"
            sample = sample_of(words, tool_calls=calls, finish_reason=reason)
            thought = text.partition(_THOUGHT_ENDS)[0] if _THOUGHT_ENDS in text else ""
            return Rollout(
                tokens=last.tokens,
                weights=tuple(0.0 if n in last.forced else 1.0 for n in range(len(last.tokens))),
                text=text,
                grade=self._grader.grade(sample, item),
                is_cut=last.finish_reason == "length",
                reasoning_tokens=len(self._tokenizer.encode(thought, continues=True)) if thought else 0,
            )

        return judge

    def _parted(self, text: str, names: Sequence[str]) -> tuple[str, list[Json]]:
        """The words of an answer, and its calls as a chat completion has them."""
        stream = PythonicStream(names) if self._style == "pythonic" else CallStream(names)
        words = ""
        calls: list[Json] = []
        for part in [*stream.push(text), *stream.finish()]:
            if isinstance(part, Words):
                words += part.text
            elif isinstance(part, CallBegins):
                function = {"name": part.name, "arguments": ""}
                calls.append({"id": f"call_{part.index}", "type": "function", "function": function})
            elif isinstance(part, Arguments):
                calls[part.index]["function"]["arguments"] += part.text
        return words, calls


@dataclass(eq=False)
class _Inbox:
    """Gathers one answer's pieces, in the engine's thread, and hands the whole to a thread that grades."""

    pool: ThreadPoolExecutor
    judge: Callable[[str, Piece], Rollout]
    text: str = ""
    grading: "Future[Rollout] | None" = None
    fault: Exception | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, item: Piece | Exception) -> None:
        if isinstance(item, Exception):
            self.fault = item
        else:
            self.text += item.text
            if item.finish_reason is None:
                return
            self.grading = self.pool.submit(self.judge, self.text, item)
        self.over.set()

    def wait(self) -> Rollout:
        self.over.wait()
        if self.fault is not None:
            raise self.fault
        assert self.grading is not None
        return self.grading.result()


def _functions(problem: ProblemExample) -> list[Json]:
    return [tool["function"] for tool in problem.tools or ()]


@contextmanager
def open_player(
    job: Job, desk: Desk, config: ReinforcementConfig, decoder: Decoder, training: Data, held_out: Data
) -> Iterator[EnginePlayer]:
    """The player of a job's problems, with its engine and graders; raises where a grader cannot be built."""
    settings, body = desk.settings, job.method["reinforcement"]
    spec = parse(body["grader"], param="method.reinforcement.grader")
    with ExitStack() as stack:
        judge = stack.enter_context(
            in_background(Answers(settings, desk.store), embedding_model=settings.embedding_model)
        )
        grader = build_here(spec, settings, judge, param="method.reinforcement.grader")
        stack.callback(grader.close)
        engine = stack.enter_context(open_engine(job, desk, decoder))
        judges = [
            Judge(key, part.name, part.type, getattr(part, "model", None)) for key, part in parts_of(spec).items()
        ]
        player = EnginePlayer(
            engine,
            desk.tokenizer(job),
            grader,
            judges,
            config,
            training,
            held_out,
            response_format=body.get("response_format"),
        )
        stack.callback(player.close)
        yield player


@contextmanager
def open_engine(job: Job, desk: Desk, decoder: Decoder) -> Iterator[Engine]:
    """An engine on a decoder that is being trained."""
    machine = job.extra["machine"]
    packed = pack([Tree((0,), ())])
    with torch.no_grad():  # tables that the decoder makes on first use must not be the engine's, which cannot learn
        tokens_T, positions_T = packed.tokens_T.to(decoder.device), packed.positions_T.to(decoder.device)
        decoder.hidden(tokens_T, positions_T, TreeAttention(packed.spans))
    with Engine(
        decoder,
        desk.tokenizer(job),
        desk.base_directory(job),
        cache_tokens=machine["cache_tokens"],
        max_batch=machine["max_batch"],
        max_waiting=1 << 30,
        chunk_tokens=PROMPT_CHUNK,
    ) as engine:
        yield engine
