"""The embedded engine: many requests, any mix of adapters, one batch a step.

One thread owns the decoder and the cache: the engine's own, or with `in_background=False` that of whoever calls
`drain`. Each step it computes one token of every request that generates and a chunk of the prompts that wait, in one
pass without padding (continuous batching); rows with the same adapter stand together. What to compute is
`schedule.py`'s decision, attention is `cache.py`'s, the choice of tokens `sampling.py`'s.

    with Engine(decoder, tokenizer, directory, cache_tokens=65536, max_batch=32) as engine:
        engine.answer(prompt_ids, Sampling(max_tokens=64)).text          # wait for one answer
        async for piece in engine.stream(prompt_ids, Sampling()): ...    # or read it as it comes
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Protocol, Self

import torch

from tunekeeper.errors import InvalidRequest, Overloaded, TunekeeperError, Unavailable
from tunekeeper.inference.cache import KeyValueCache, StepAttention
from tunekeeper.inference.constrain import Grammars, Matcher
from tunekeeper.inference.params import Answer, FinishReason, Piece, Sampling, TokenLogprob
from tunekeeper.inference.sampling import Choice, Draw, choose, new_random
from tunekeeper.inference.schedule import NEVER, Scheduler, Step, Track, Work
from tunekeeper.inference.text import TextStream
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter

_log = logging.getLogger(__name__)

STEP_SECONDS, STREAMED_STEP_SECONDS = 1.0, 0.25
"""How long a step may take, and how long while somebody reads an answer as it is made: prompts are cut into chunks
that fit. Large chunks use the processor better: 50 tokens at once take twice the time a token that 500 take."""

FIRST_CHUNK, SMALLEST_CHUNK, LARGEST_CHUNK = 128, 32, 2048

Deliver = Callable[[Piece | Exception], None]
"""Takes the pieces of one answer; the last has a finish reason, or is the exception that ended it."""


class TokenTexts(Protocol):
    """What the engine needs of a tokenizer."""

    vocab_size: int

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        ...


@dataclass(eq=False, slots=True)
class Ticket:
    """One answer in the making; what `submit` gives, to be able to cancel it."""

    track: Track
    params: Sampling
    limit: int
    draw: Draw
    text: TextStream
    deliver: Deliver
    streamed: bool = False
    """Whether somebody reads the answer as it is made."""
    matcher: Matcher | None = None
    n_generated: int = 0
    ended_by: tuple[int, ...] = ()
    """The token that ended the turn, where one was chosen."""
    forced: set[int] = field(default_factory=set)
    """Which of the generated tokens the grammar left no choice at."""
    unreleased: deque[tuple[int, TokenLogprob]] = field(default_factory=deque)
    """Log-probabilities of tokens whose text is not given out yet, each with where its text begins."""
    cancelled: bool = False
    """Set from any thread; the engine drops the answer before its next step."""


class Engine:
    """Answers prompts with one base model and any of its adapters."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TokenTexts,
        directory: Path,
        *,
        cache_tokens: int,
        max_batch: int,
        max_waiting: int = 256,
        chunk_tokens: int | None = None,
        in_background: bool = True,
    ) -> None:
        """`directory` holds the tokenizer.json that grammars are compiled for.

        With `chunk_tokens` a step takes so many tokens of waiting prompts, however fast the machine is: what is
        then computed together depends on what was submitted together alone, and so do the last bits.

        Not `in_background`: nothing is computed but by `drain`. For a thread that computes itself in between: each
        thread that computes has helpers of its own, and where there are more than cores they sleep at every wait.
        """
        self.decoder, self.tokenizer = decoder, tokenizer
        self._scheduler = Scheduler(cache_tokens, max_batch)
        self.context = min(decoder.shape.max_positions, self._scheduler.max_tokens)
        self._cache = KeyValueCache(decoder.shape, self._scheduler.regions.total, decoder.dtype, decoder.device)
        self._grammars = Grammars(directory, vocab_size=tokenizer.vocab_size, eos_ids=tokenizer.eos_ids)
        self._eos = frozenset(tokenizer.eos_ids)
        self._max_waiting = max_waiting
        self._chunk_tokens = chunk_tokens
        self._live: list[Ticket] = []
        self._seconds_per_row: float | None = None
        self._inbox: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._closed = self._forgetting = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True) if in_background else None
        if self._thread is not None:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_live(self) -> int:
        """Answers that wait or run."""
        return len(self._live) + len(self._inbox)

    def submit(
        self,
        prompt: Sequence[int],
        params: Sampling,
        *,
        adapter: LoraAdapter | None = None,
        index: int = 0,
        streamed: bool = False,
        deliver: Deliver,
    ) -> Ticket:
        """Start an answer, the `index`-th to its request; `deliver` is called in the engine's thread.

        Where somebody reads the answer as it is made (`streamed`), no step takes long while it is.
        Raises InvalidRequest for what can never be answered, Overloaded when too many wait. With a grammar it
        may take a moment: call it outside the event loop.
        """
        ticket = self._ticket(prompt, params, adapter, index, deliver)
        ticket.streamed = streamed
        self._enqueue([ticket])
        return ticket

    def submit_together(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Sampling],
        *,
        adapter: LoraAdapter | None = None,
        deliver: Sequence[Deliver],
    ) -> list[Ticket]:
        """Start several answers, none before all are there; as `submit` otherwise."""
        asked = zip(prompts, params, deliver, strict=True)
        tickets = [self._ticket(prompt, one, adapter, 0, to) for prompt, one, to in asked]
        self._enqueue(tickets)
        return tickets

    def _enqueue(self, tickets: Sequence[Ticket]) -> None:
        with self._wake:
            if self._closed:
                raise Unavailable("The model is being unloaded; try again.")
            if self.n_live + len(tickets) > self._max_waiting + self._scheduler.max_batch:
                raise Overloaded(f"{self.n_live} requests wait already. Try again in a moment.")
            self._inbox.extend(tickets)
            self._wake.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Stop computing an answer that nobody waits for."""
        ticket.cancelled = True
        with self._wake:
            self._wake.notify()

    def answer(self, prompt: Sequence[int], params: Sampling, *, adapter: LoraAdapter | None = None) -> Answer:
        """Answer one prompt and wait for it."""
        return self.answers([prompt], params, adapters=[adapter])[0]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sampling | Sequence[Sampling],
        *,
        adapters: Sequence[LoraAdapter | None] | None = None,
    ) -> list[Answer]:
        """Answer several prompts together and wait for all."""
        each = [params] * len(prompts) if isinstance(params, Sampling) else params
        inboxes: list[queue.SimpleQueue[Piece | Exception]] = [queue.SimpleQueue() for _ in prompts]
        tickets = [
            self.submit(prompt, one, adapter=adapter, deliver=inbox.put)
            for prompt, one, adapter, inbox in zip(
                prompts, each, adapters or [None] * len(prompts), inboxes, strict=True
            )
        ]
        try:
            if self._thread is None:
                self.drain()
            return [_collect(inbox) for inbox in inboxes]
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    async def stream(
        self,
        prompt: Sequence[int],
        params: Sampling,
        *,
        adapter: LoraAdapter | None = None,
        index: int = 0,
        streamed: bool = True,
    ) -> AsyncGenerator[Piece]:
        """The answer's pieces as they come; leaving the loop early cancels it. `streamed` as in `submit`."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def deliver(item: Piece | Exception) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, item)

        def submit() -> Ticket:
            return self.submit(prompt, params, adapter=adapter, index=index, streamed=streamed, deliver=deliver)

        ticket = submit() if params.grammar is None else await asyncio.to_thread(submit)
        try:
            while True:
                item = await inbox.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self.cancel(ticket)

    def forget(self) -> None:
        """Compute every prompt anew: drop what finished answers left in the cache."""
        with self._wake:
            self._forgetting = True
            self._wake.notify()

    @torch.inference_mode()
    def drain(self) -> None:
        """Compute here until every answer has ended; only of an engine that is not in the background."""
        assert self._thread is None
        while self.n_live:
            self._take_in()
            self._step()

    def close(self) -> None:
        """Stop the thread; answers in the making end with Unavailable."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is None:
            self._take_in()
            self._stop()
        elif threading.current_thread() is not self._thread:
            self._thread.join()

    def _ticket(
        self,
        prompt: Sequence[int],
        params: Sampling,
        adapter: LoraAdapter | None,
        index: int,
        deliver: Deliver,
    ) -> Ticket:
        room = self.context - len(prompt)
        if room < 1:
            raise InvalidRequest(
                f"The messages come to {len(prompt)} tokens; the context is {self.context}. Shorten them.",
                param="messages",
                code="context_length_exceeded",
            )
        if not prompt:
            raise InvalidRequest("The prompt is empty.", param="messages")
        unknown = [token for token in params.logit_bias if not 0 <= token < self.tokenizer.vocab_size]
        if unknown:
            raise InvalidRequest(
                f"Token {unknown[0]} is not in the vocabulary of {self.tokenizer.vocab_size}.",
                param="logit_bias",
            )
        return Ticket(
            track=Track(list(prompt), adapter=adapter, adapter_from=_adapter_start(prompt, adapter)),
            params=params,
            limit=room if params.max_tokens is None else min(params.max_tokens, room),
            draw=Draw(params, new_random(params.seed, index)),
            text=TextStream(self.tokenizer.token_bytes, params.stop),
            deliver=deliver,
            matcher=None if params.grammar is None else self._grammars.matcher(params.grammar),
        )

    @torch.inference_mode()
    def _run(self) -> None:
        while self._take_in():
            self._step()
        self._stop()

    def _step(self) -> None:
        try:
            self._compute(self._scheduler.plan(self._budget()))
        except Exception as error:
            _log.exception("a step of the engine failed")
            self._fail_all(error)

    def _stop(self) -> None:
        for ticket in list(self._live):
            self._end(ticket, Unavailable("The server is stopping; try again."))

    def _take_in(self) -> bool:
        """Wait for something to do, take in what was submitted, drop what was cancelled; False: closed."""
        with self._wake:
            while not (self._inbox or self._live or self._closed or self._forgetting):
                self._wake.wait()
            new = list(self._inbox)
            self._live += new
            self._inbox.clear()
            closed = self._closed
            forgetting, self._forgetting = self._forgetting, False
        if forgetting:
            self._scheduler.forget()
        for ticket in new:
            ticket.track.owner = ticket
            self._scheduler.add(ticket.track)
        for ticket in [ticket for ticket in self._live if ticket.cancelled]:
            self._drop(ticket)
        return not closed

    def _budget(self) -> int:
        """Prompt tokens of the next step."""
        if self._chunk_tokens is not None:
            return self._chunk_tokens
        is_read = any(ticket.streamed and ticket.n_generated for ticket in self._live)
        return chunk_size(self._seconds_per_row, is_read=is_read)

    def _compute(self, step: Step) -> None:
        for item in step.copies:
            self._cache.copy(item)
        work = _in_order(step.work)
        if not work:
            return
        began = time.perf_counter()
        tokens = [token for item in work for token in _tokens(item)]
        positions = [position for item in work for position in _positions(item)]
        ends = zip(work, accumulate(item.n for item in work), strict=True)
        last = [(item.track.owner, end - 1) for item, end in ends if item.reaches_end]
        rows = torch.tensor([row for _, row in last], dtype=torch.long, device=self.decoder.device)
        hidden_NE = self.decoder.hidden(
            torch.tensor(tokens, device=self.decoder.device),
            torch.tensor(positions, device=self.decoder.device),
            StepAttention(self._cache, work),
            adapters=_adapter_rows(work),
            rows_N=rows if len(rows) < len(tokens) else None,
        )
        self._scheduler.done(step)
        if last:
            self._choose(hidden_NE, [ticket for ticket, _ in last])
        if len(tokens) >= SMALLEST_CHUNK and any(item.n > 1 for item in work):
            self._seconds_per_row = (time.perf_counter() - began) / len(tokens)

    def _choose(self, hidden_NE: torch.Tensor, tickets: Sequence[Ticket]) -> None:
        logits_NV = self.decoder.logits(hidden_NE)[:, : self.tokenizer.vocab_size]
        for ticket in tickets:
            if ticket.matcher is not None:
                ticket.draw.allowed_words = ticket.matcher.allowed()
        choices = choose(logits_NV, [ticket.draw for ticket in tickets])
        for ticket, choice in zip(tickets, choices, strict=True):
            self._advance(ticket, choice)

    def _advance(self, ticket: Ticket, choice: Choice) -> None:
        """Add the chosen token, and those that the grammar then forces; give out what is certain."""
        if choice.token is None:
            self._cache_is_spoilt_by(ticket)
            return
        reason = self._add(ticket, choice.token)
        text = "" if choice.token in self._eos else self._push(ticket, choice)
        if ticket.matcher is not None and reason is None and ticket.params.top_logprobs is None:
            for token in ticket.matcher.forced():
                ticket.forced.add(ticket.n_generated)
                reason = self._add(ticket, token)
                text += self._push(ticket, Choice(token))
                if reason is not None:
                    break
        if ticket.text.stopped:
            reason = "stop"
        self._give(ticket, text, reason)

    def _add(self, ticket: Ticket, token: int) -> FinishReason | None:
        """Take a token into the sequence; a reason if it is the last."""
        if token in self._eos:
            ticket.ended_by = (token,)
            return "stop"
        ticket.track.tokens.append(token)
        ticket.draw.counts[token] += 1
        ticket.n_generated += 1
        if ticket.matcher is not None:
            ticket.matcher.accept(token)
            if ticket.matcher.is_complete:
                return "stop"
        return "length" if ticket.n_generated >= ticket.limit else None

    def _push(self, ticket: Ticket, choice: Choice) -> str:
        assert choice.token is not None
        if ticket.params.top_logprobs is not None:
            ticket.unreleased.append((ticket.text.n_in, self._logprob(choice.token, choice)))
        return ticket.text.push(choice.token)

    def _logprob(self, token: int, choice: Choice) -> TokenLogprob:
        read = self.tokenizer.token_bytes
        top = tuple(TokenLogprob(other, read(other), logprob) for other, logprob in choice.top)
        return TokenLogprob(token, read(token), choice.logprob, top)

    def _give(self, ticket: Ticket, text: str, reason: FinishReason | None) -> None:
        if reason is not None:
            text += ticket.text.finish()
        logprobs = []
        whole = reason is not None and not ticket.text.stopped
        while ticket.unreleased and (whole or ticket.unreleased[0][0] < ticket.text.n_out):
            logprobs.append(ticket.unreleased.popleft()[1])
        piece = Piece(
            text=text,
            logprobs=tuple(logprobs),
            finish_reason=reason,
            n_cached=ticket.track.n_cached,
            n_generated=ticket.n_generated,
            tokens=() if reason is None else (*ticket.track.tokens[ticket.track.n_prompt :], *ticket.ended_by),
            forced=frozenset(ticket.forced) if reason is not None else frozenset(),
        )
        if reason is not None:
            self._end(ticket, piece)
        elif text or logprobs:
            self._deliver(ticket, piece)

    def _end(self, ticket: Ticket, last: Piece | Exception) -> None:
        self._drop(ticket)
        self._deliver(ticket, last)

    def _deliver(self, ticket: Ticket, item: Piece | Exception) -> None:
        try:
            ticket.deliver(item)
        except RuntimeError:  # its event loop is closed
            ticket.cancelled = True

    def _drop(self, ticket: Ticket, *, keep: bool = True) -> None:
        self._live.remove(ticket)
        self._scheduler.remove(ticket.track, keep=keep)

    def _cache_is_spoilt_by(self, ticket: Ticket) -> None:
        """End an answer whose logits are not numbers; leave nothing of it where others could read it."""
        region = ticket.track.region
        self._drop(ticket, keep=False)
        if region is not None:
            self._cache.clear(region)
        self._deliver(
            ticket,
            TunekeeperError(
                "The model's weights give no numbers (NaN): its training diverged. Use an earlier checkpoint."
            ),
        )

    def _fail_all(self, error: Exception) -> None:
        known = error if isinstance(error, TunekeeperError) else TunekeeperError("The engine failed on this batch.")
        for ticket in list(self._live):
            region = ticket.track.region
            self._drop(ticket, keep=False)
            if region is not None:
                self._cache.clear(region)
            self._deliver(ticket, known)
        self._scheduler.forget()


def chunk_size(seconds_per_row: float | None, *, is_read: bool) -> int:
    """Prompt tokens of a step, by what a token took last time and whether somebody reads an answer in the making."""
    if seconds_per_row is None:
        return FIRST_CHUNK
    rows = int((STREAMED_STEP_SECONDS if is_read else STEP_SECONDS) / seconds_per_row)
    return max(SMALLEST_CHUNK, min(rows, LARGEST_CHUNK))


def _collect(inbox: "queue.SimpleQueue[Piece | Exception]") -> Answer:
    pieces: list[Piece] = []
    while not pieces or pieces[-1].finish_reason is None:
        item = inbox.get()
        if isinstance(item, Exception):
            raise item
        pieces.append(item)
    return Answer(
        text="".join(piece.text for piece in pieces),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        finish_reason=pieces[-1].finish_reason or "stop",
        n_cached=pieces[-1].n_cached,
        n_generated=pieces[-1].n_generated,
        tokens=pieces[-1].tokens,
        forced=pieces[-1].forced,
    )


def _adapter_start(prompt: Sequence[int], adapter: LoraAdapter | None) -> int:
    """The first token that the adapter acts on: of its scope's, the last place where it is invoked."""
    if adapter is None:
        return NEVER
    if adapter.scope == "all":
        return 0
    wanted, n = list(adapter.invocation_tokens), len(adapter.invocation_tokens)
    places = (at for at in range(len(prompt) - n, -1, -1) if list(prompt[at : at + n]) == wanted)
    return next(places, NEVER)


def _in_order(work: Iterable[Work]) -> list[Work]:
    """Single tokens first, equal adapters together, regions ascending: as attention and LoRA want them."""
    ranks: dict[int, int] = {}

    def place(item: Work) -> tuple[bool, int, int, int, int]:
        track, region = item.track, item.track.region
        assert region is not None
        return item.n > 1, ranks.setdefault(id(track.adapter), len(ranks)), track.n_shared, region.size, region.start

    return sorted(work, key=place)


def _tokens(item: Work) -> list[int]:
    return item.track.tokens[item.track.computed : item.track.computed + item.n]


def _positions(item: Work) -> range:
    return range(item.track.computed, item.track.computed + item.n)


def _adapter_rows(work: Sequence[Work]) -> list[AdapterRows]:
    """Which rows run with which adapter; neighbours with the same one are one range."""
    ranges: list[AdapterRows] = []
    row = 0
    for item in work:
        start = row + max(0, item.track.adapter_from - item.track.computed)
        row += item.n
        if item.track.adapter is None or start >= row:
            continue
        if ranges and ranges[-1].adapter is item.track.adapter and ranges[-1].end == start:
            start = ranges.pop().start
        ranges.append(AdapterRows(item.track.adapter, start, row))
    return ranges
