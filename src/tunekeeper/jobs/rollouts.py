"""Where answers are sampled and graded while a job trains: a sampler beside the graders.

The embedded engine runs on the trainer's own decoder and adapter, so an answer comes from the very weights that
learn from it; or a vLLM loads the adapter at every step (`inference.vllm`). Each answer is graded as soon as it is
complete, in a thread of its own, while the others are still sampled.

An answer is an episode: where it calls functions that have a server, the servers are asked, and the model goes on
with what they say. All episodes take a turn together, so that what one call samples depends on the weights, the
seeds and the servers alone: the cache is emptied before it, all answers start together, and prompts are computed in
chunks of one size. So a run that is resumed samples what it sampled before.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Protocol

import torch

from tunekeeper.datasets.formats import ProblemExample
from tunekeeper.datasets.render import reply_tokens
from tunekeeper.datasets.tokenizer import Tokenizer, text_of
from tunekeeper.errors import InvalidRequest, UpstreamFailed
from tunekeeper.graders.build import build_here
from tunekeeper.graders.spec import Grader, parse, parts_of
from tunekeeper.graders.template import Ungradable, sample_of
from tunekeeper.inference.answers import Answers, ChatRequest, call_style, grammar_of
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.packed import merge, packed_view, unmerge
from tunekeeper.inference.params import Piece, Sampling
from tunekeeper.inference.pythonic import PythonicStream
from tunekeeper.inference.sampler import in_background
from tunekeeper.inference.tools import Arguments, CallBegins, CallStream, Words
from tunekeeper.inference.vllm import VllmSampler
from tunekeeper.jobs.executor import job_directory
from tunekeeper.jobs.prepare import Data, Desk
from tunekeeper.jobs.submit import base_under
from tunekeeper.jobs.tool_servers import AUTO_EPISODE_STEPS, ToolServers, call_id, read_tools
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.trainer.config import ReinforcementConfig, hyperparameters_of
from tunekeeper.trainer.rollouts import Ask, Judge, Rollout, seed_of
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import Grade, Job, Json, Message, Tree

GRADING_THREADS = 8
PROMPT_CHUNK = 512
"""Prompt tokens of one step of the engine."""

_THOUGHT_ENDS = "</think>"

Deliver = Callable[[Piece | Exception], None]


class TokenSampler(Protocol):
    """Where answers come from."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        ...

    def begin(self, adapter: LoraAdapter | None) -> None:
        """Answer from these weights from now on."""
        ...

    def ask(self, prompts: Sequence[Sequence[int]], params: Sequence[Sampling], deliver: Sequence[Deliver]) -> None:
        """Start the answers; each comes in pieces, or as the error that it came to."""
        ...

    def end(self) -> None:
        """All answers have come: let go of what `begin` made."""
        ...


class EngineSampler:
    """The embedded engine, on the decoder that is being trained, or on a `packed_view` of it; not in the background."""

    def __init__(self, engine: Engine, trained: Decoder) -> None:
        self._engine, self._trained = engine, trained
        self._adapter: LoraAdapter | None = None
        self._merged: LoraAdapter | None = None

    @property
    def context(self) -> int:
        """The engine's, which its cache may limit."""
        return self._engine.context

    def begin(self, adapter: LoraAdapter | None) -> None:
        """Answer from these weights, and from nothing that others have left; nothing may be under way."""
        self._engine.forget()
        is_merged = adapter is not None and merge(self._engine.decoder, self._trained, adapter)
        self._merged, self._adapter = (adapter, None) if is_merged else (None, adapter)

    def ask(self, prompts: Sequence[Sequence[int]], params: Sequence[Sampling], deliver: Sequence[Deliver]) -> None:
        """Compute the answers together, in this thread."""
        self._engine.submit_together(prompts, params, adapter=self._adapter, deliver=deliver)
        self._engine.drain()

    def end(self) -> None:
        """Leave the merged weights' memory to the training step."""
        if self._merged is not None:
            unmerge(self._engine.decoder, self._trained, self._merged)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A problem of the validation file, and an answer to it."""

    problem: ProblemExample
    n_prompt: int
    """Tokens."""
    rollout: Rollout


class ProblemPlayer:
    """Plays the problems of a training and of a validation file; a `Player` for the trainer."""

    def __init__(
        self,
        sampler: TokenSampler,
        tokenizer: Tokenizer,
        grader: Grader,
        judges: Sequence[Judge],
        config: ReinforcementConfig,
        training: Data,
        held_out: Data,
        *,
        response_format: Json | None = None,
        servers: ToolServers | None = None,
        max_episode_steps: int = AUTO_EPISODE_STEPS,
    ) -> None:
        """`servers` run the calls of an answer; after `max_episode_steps` turns it ends, whatever it calls."""
        self.judges, self.sampler = judges, sampler
        self._tokenizer, self._grader, self._config = tokenizer, grader, config
        self._files = {False: training, True: held_out}
        self._response_format = response_format or {}
        self._style = call_style(tokenizer)
        self._servers, self._max_steps = servers or ToolServers(), max_episode_steps
        self._pool = ThreadPoolExecutor(GRADING_THREADS, thread_name_prefix="grader")
        self.evaluated: list[Evaluated] = []
        """What came of the last evaluation: the first answer to each problem of the validation file."""

    def play(self, asks: Sequence[Ask], adapter: LoraAdapter | None, *, valid: bool) -> list[Rollout]:
        """The answers in the order of `asks`, each with its grade; raises what the sampler raises."""
        data = self._files[valid]
        self.sampler.begin(adapter)
        episodes = [_Episode(ask, data.problems[ask.problem], data.trees[ask.problem].trunk) for ask in asks]
        unended = episodes
        while unended:
            inboxes = [_Inbox(self._pool, episode, self._take) for episode in unended]
            self.sampler.ask(
                [episode.prompt for episode in unended],
                [self._sampling(episode) for episode in unended],
                [inbox.take for inbox in inboxes],
            )
            for inbox in inboxes:
                inbox.wait()
            unended = [episode for episode in unended if episode.rollout is None]
        self.sampler.end()
        rollouts = [episode.ended() for episode in episodes]
        if valid:
            self.evaluated = [
                Evaluated(episode.problem, len(data.trees[ask.problem].trunk), rollout)
                for ask, episode, rollout in zip(asks, episodes, rollouts, strict=True)
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

    def _sampling(self, episode: "_Episode") -> Sampling:
        return Sampling(
            max_tokens=self._room(episode),
            temperature=self._config.temperature,
            seed=episode.seed,
            grammar=self._grammar(episode.problem),
        )

    def _room(self, episode: "_Episode") -> int:
        """Tokens that the next turn may have."""
        left = self._config.max_completion_tokens - episode.n_sampled
        return min(left, self._longest - len(episode.prompt))

    @property
    def _longest(self) -> int:
        return min(self._config.max_seq_len, self.sampler.context)

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

    def _take(self, episode: "_Episode", text: str, last: Piece) -> None:
        """Take a turn of the model: let the servers answer its calls, or end the episode with a grade."""
        names = [str(function["name"]) for function in _functions(episode.problem)]
        words, calls = self._parted(text, names) if names else (text, [])
        for n, call in enumerate(calls):
            call["id"] = call_id(seed_of(episode.seed, n))
        episode.add_turn(text, words, calls, last, self._thought_tokens(text))
        goes_on = self._servers.serves(calls) and last.finish_reason == "stop" and episode.n_turns < self._max_steps
        if not goes_on or self._room(episode) <= 0:
            self._end(episode, words, calls, last, is_cut=last.finish_reason == "length" or goes_on)
            return
        try:
            outputs = [self._servers.output(call, f"trace_{episode.ask.seed:012x}") for call in calls]
            replies = [
                {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": output}
                for call, output in zip(calls, outputs, strict=True)
            ]
            episode.add_replies(replies, self._tokenizer)
            if self._room(episode) <= 0:
                raise Ungradable(
                    "truncated_observation_error",
                    f"With what the tools said, the answer does not fit into {self._longest} tokens, the lesser of "
                    "max_seq_len and the engine's cache_tokens.",
                )
        except (Ungradable, InvalidRequest) as fault:  # the latter: the chat template cannot write what was sampled
            grade = (fault if isinstance(fault, Ungradable) else Ungradable("other_error", fault.message)).grade()
            faults = tuple(replace(each, grader="tools") for each in grade.faults)
            episode.end(replace(grade, faults=faults), is_cut=False)

    def _end(self, episode: "_Episode", words: str, calls: list[Json], last: Piece, *, is_cut: bool) -> None:
        reason = "tool_calls" if calls else last.finish_reason or "stop"
        sample = {**sample_of(words, tool_calls=calls, finish_reason=reason), "output_messages": episode.messages}
        item = {**episode.problem.item, "messages": list(episode.problem.messages)}
        episode.end(self._grader.grade(sample, item), is_cut=is_cut)

    def _thought_tokens(self, text: str) -> int:
        thought = text.partition(_THOUGHT_ENDS)[0] if _THOUGHT_ENDS in text else ""
        return len(self._tokenizer.encode(thought, continues=True)) if thought else 0

    def _parted(self, text: str, names: Sequence[str]) -> tuple[str, list[Json]]:
        """The words of an answer, and its calls as a chat completion has them, but for their ids."""
        stream = PythonicStream(names) if self._style == "pythonic" else CallStream(names)
        words = ""
        calls: list[Json] = []
        for part in [*stream.push(text), *stream.finish()]:
            if isinstance(part, Words):
                words += part.text
            elif isinstance(part, CallBegins):
                function = {"name": part.name, "arguments": ""}
                calls.append({"type": "function", "function": function})
            elif isinstance(part, Arguments):
                calls[part.index]["function"]["arguments"] += part.text
        return words, calls


@dataclass(eq=False)
class _Episode:
    """An answer on its way: what was sampled, and what servers said in between."""

    ask: Ask
    problem: ProblemExample
    trunk: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    """Of the answer so far."""
    weights: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    """Of the answer so far: the model's, and those of tools."""
    text: str = ""
    """The answer so far, for people."""
    n_turns: int = 0
    n_sampled: int = 0
    reasoning_tokens: int = 0
    rollout: Rollout | None = None
    """Once it has ended."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Tokens that the next turn goes on from."""
        return (*self.trunk, *self.tokens)

    @property
    def seed(self) -> int:
        """Of the next turn; the first turn's is the answer's own."""
        return seed_of(self.ask.seed, "turn", self.n_turns) if self.n_turns else self.ask.seed

    def add_turn(self, text: str, words: str, calls: list[Json], last: Piece, reasoning_tokens: int) -> None:
        """Add what the model wrote."""
        self.tokens += last.tokens
        self.weights += (0.0 if n in last.forced else 1.0 for n in range(len(last.tokens)))
        self.logprobs += (one.logprob for one in last.logprobs)
        self.messages.append({"role": "assistant", "content": words, **({"tool_calls": calls} if calls else {})})
        self.text += text
        self.n_turns += 1
        self.n_sampled += len(last.tokens)
        self.reasoning_tokens += reasoning_tokens

    def add_replies(self, replies: list[Message], tokenizer: Tokenizer) -> None:
        """Add what servers said; it is read and not learned."""
        before = [*self.problem.messages, *self.messages]
        between = reply_tokens(
            tokenizer,
            before,
            replies,
            tools=self.problem.tools,
            parallel_tool_calls=self.problem.parallel_tool_calls,
        )
        if tokenizer.eos_ids and self.tokens[-1] not in tokenizer.eos_ids:  # a grammar ended the turn
            between = [tokenizer.eos_ids[0], *between]
        self.tokens += between
        self.weights += [0.0] * len(between)
        if self.logprobs:
            self.logprobs += [0.0] * len(between)
        self.messages += replies
        self.text += "".join(f"\n[{reply['name']}] {reply['content']}\n" for reply in replies)

    def end(self, grade: Grade, *, is_cut: bool) -> None:
        """Make the rollout."""
        self.rollout = Rollout(
            tokens=tuple(self.tokens),
            weights=tuple(self.weights),
            text=self.text,
            grade=grade,
            is_cut=is_cut,
            reasoning_tokens=self.reasoning_tokens,
            logprobs=tuple(self.logprobs),
            n_read=len(self.tokens) - self.n_sampled,
            messages=tuple(self.messages) if self.n_turns > 1 else (),
        )

    def ended(self) -> Rollout:
        """The rollout of an episode that has ended."""
        assert self.rollout is not None
        return self.rollout


@dataclass(eq=False)
class _Inbox:
    """Gathers one turn's pieces, in the sampler's thread, and hands the whole to a thread that grades."""

    pool: ThreadPoolExecutor
    episode: _Episode
    done: Callable[[_Episode, str, Piece], None]
    text: str = ""
    grading: "Future[None] | None" = None
    fault: Exception | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, item: Piece | Exception) -> None:
        if isinstance(item, Exception):
            self.fault = item
        else:
            self.text += item.text
            if item.finish_reason is None:
                return
            try:
                self.grading = self.pool.submit(self.done, self.episode, self.text, item)
            except RuntimeError as error:  # no thread can be started; who waits must know
                self.fault = error
        self.over.set()

    def wait(self) -> None:
        self.over.wait()
        if self.fault is not None:
            raise self.fault
        assert self.grading is not None
        self.grading.result()


def _functions(problem: ProblemExample) -> list[Json]:
    return [tool["function"] for tool in problem.tools or ()]


@contextmanager
def open_player(
    job: Job, desk: Desk, config: ReinforcementConfig, decoder: Decoder, training: Data, held_out: Data
) -> Iterator[ProblemPlayer]:
    """The player of a job's problems, with its sampler and graders; raises where a grader cannot be built."""
    settings, body = desk.settings, job.method["reinforcement"]
    spec = parse(body["grader"], param="method.reinforcement.grader")
    with ExitStack() as stack:
        judge = stack.enter_context(
            in_background(Answers(settings, desk.store), embedding_model=settings.embedding_model)
        )
        grader = build_here(spec, settings, judge, param="method.reinforcement.grader")
        stack.callback(grader.close)
        servers = ToolServers(read_tools(body.get("tools", ()), settings.endpoint_hosts))
        stack.callback(servers.close)
        judges = [
            Judge(key, part.name, part.type, getattr(part, "model", None)) for key, part in parts_of(spec).items()
        ]
        player = ProblemPlayer(
            stack.enter_context(open_sampler(job, desk, decoder)),
            desk.tokenizer(job),
            grader,
            judges,
            config,
            training,
            held_out,
            response_format=body.get("response_format"),
            servers=servers,
            max_episode_steps=body.get("max_episode_steps", AUTO_EPISODE_STEPS),
        )
        stack.callback(player.close)
        yield player


@contextmanager
def open_sampler(job: Job, desk: Desk, decoder: Decoder) -> Iterator[TokenSampler]:
    """Where the job's answers are sampled: what was settled when it started."""
    name = job.extra["machine"].get("sampler")
    if name is None:
        with open_engine(job, desk, decoder) as engine:
            yield EngineSampler(engine, decoder)
        return
    upstream = next((each for each in desk.settings.upstreams if each.name == name), None)
    if upstream is None:
        raise UpstreamFailed(
            f"This job's answers were sampled by the upstream {name!r}, which tunekeeper.toml no longer has. Put it "
            "back, and resume the job."
        )
    base = base_under(desk.store.get_model(job.model), desk.store)
    directory = job_directory(desk.settings.home, job.id) / "rollouts"
    home = PurePosixPath(upstream.home or desk.settings.home)
    sampler = VllmSampler(
        upstream,
        desk.tokenizer(job),
        desk.base_directory(job),
        base_id=base.id,
        directory=directory,
        there=home / directory.relative_to(desk.settings.home),
    )
    try:
        yield sampler
    finally:
        sampler.close()


@contextmanager
def open_engine(job: Job, desk: Desk, decoder: Decoder) -> Iterator[Engine]:
    """An engine on a decoder that is being trained."""
    machine = job.extra["machine"]
    packed = pack([Tree((0,), ())])
    with torch.no_grad():  # tables that the decoder makes on first use must not be the engine's, which cannot learn
        tokens_T, positions_T = packed.tokens_T.to(decoder.device), packed.positions_T.to(decoder.device)
        decoder.hidden(tokens_T, positions_T, TreeAttention(packed.spans))
    full = bool(hyperparameters_of(job.method).get("full_finetune"))
    with Engine(
        decoder if full else packed_view(decoder),
        desk.tokenizer(job),
        desk.base_directory(job),
        cache_tokens=machine["cache_tokens"],
        max_batch=machine["max_batch"],
        max_waiting=1 << 30,
        chunk_tokens=PROMPT_CHUNK,
        in_background=False,
    ) as engine:
        yield engine
