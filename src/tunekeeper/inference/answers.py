"""From a model's name to its answers: aliases, bases, adapters, checkpoints, upstreams.

A base model is loaded when it is first asked for, with one engine that serves it and all of its adapters; the
least recently used base is unloaded for the next. Neither this module's import nor a start of the API loads
torch.

    model = await answers.resolve("ft:smollm2-135m:acme::a1B2c3D4")
    async for event in answers.chat(model, request): ...      # Delta, Delta, …, Counts
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tunekeeper.datasets.render import prompt_tokens
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidRequest, ModelNotFound, Overloaded, TunekeeperError, Unavailable
from tunekeeper.inference import constrain
from tunekeeper.inference.params import Piece, Sampling, TokenLogprob
from tunekeeper.inference.pythonic import PythonicStream
from tunekeeper.inference.remote import Remote
from tunekeeper.inference.tools import CallStream, Part, Style, Words, style_of
from tunekeeper.models.process import in_passing, prepare_process
from tunekeeper.settings import Settings
from tunekeeper.types import Json, Message, Model

if TYPE_CHECKING:
    from tunekeeper.inference.engine import Engine
    from tunekeeper.models.lora import LoraAdapter

FinishReason = Literal["stop", "length", "tool_calls"]

MOST_ADAPTERS = 64
"""Adapters that one loaded base keeps in memory."""


class Models(Protocol):
    """Where models are looked up."""

    def get_model(self, model_id: str) -> Model:
        """The model under its id, or under its checkpoint's; raises ModelNotFound."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """What one of our own models is to answer."""

    messages: Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    functions: Sequence[Json] = ()
    """Definitions: name, description, parameters, strict."""
    tool_choice: Literal["none", "auto", "required"] = "auto"
    named_function: str | None = None
    """With tool_choice "required": the one that must be called."""
    parallel_tool_calls: bool = True
    json_schema: Json | None = None
    """The answer's words must be JSON that this accepts; {"type": "object"} for any object."""
    strict_schema: bool = True
    streamed: bool = False
    """Whether somebody reads the answers as they are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """The next part of the `index`-th answer; the last has a finish reason."""

    index: int
    parts: tuple[Part, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Tokens of the whole request; comes last."""

    n_prompt: int
    n_cached: int
    n_generated: int


@dataclass(frozen=True, slots=True)
class RemoteTarget:
    """A model that an upstream serves, under the upstream's name for it."""

    remote: Remote
    model: str


@dataclass(eq=False, slots=True)
class _Base:
    """A loaded base model."""

    engine: "Engine"
    tokenizer: Tokenizer
    style: Style
    adapters: "OrderedDict[str, LoraAdapter]" = field(default_factory=OrderedDict)
    n_users: int = 0


class Answers:
    """All models that this server can let answer."""

    def __init__(self, settings: Settings, store: Models) -> None:
        self._settings, self._store = settings, store
        self._remotes = [Remote(upstream) for upstream in settings.upstreams]
        self._bases: OrderedDict[str, _Base] = OrderedDict()
        self._loading = threading.Lock()

    async def resolve(self, name: str) -> Model | RemoteTarget:
        """What a request means by this name; raises ModelNotFound."""
        target = self._settings.aliases.get(name, name)
        try:
            return await asyncio.to_thread(self._store.get_model, target)
        except ModelNotFound as error:
            for remote in self._remotes:
                with suppress(TunekeeperError):
                    if any(entry["id"] == target for entry in await remote.models()):
                        return RemoteTarget(remote, target)
            says = f" (an alias of {target!r})" if target != name else ""
            raise ModelNotFound(
                f"The model {name!r}{says} does not exist. GET /models lists those that do.", param="model"
            ) from error

    async def load(self, model: Model) -> None:
        """Have the model's weights in memory before it is asked."""
        base, _ = await asyncio.to_thread(self._acquire, model)
        self._release(base)

    async def upstream_models(self) -> list[Json]:
        """The models of all upstreams; one that does not answer is passed over."""
        lists = await asyncio.gather(*(remote.models() for remote in self._remotes), return_exceptions=True)
        return [entry for entries in lists if isinstance(entries, list) for entry in entries]

    async def chat(self, model: Model, request: ChatRequest) -> AsyncGenerator[Delta | Counts]:
        """The answers of one of our own models; what makes them impossible is raised before any event."""
        base, adapter = await asyncio.to_thread(self._acquire, model)
        try:
            job = await asyncio.to_thread(_prepare, base, request)
            inbox: asyncio.Queue[Delta | _Finished | Exception] = asyncio.Queue()
            readers = [
                asyncio.create_task(_read(base.engine, adapter, job, index, inbox, streamed=request.streamed))
                for index in range(request.n)
            ]
            try:
                async for event in _merged(inbox, len(job.prompt), request.n):
                    yield event
            finally:
                for reader in readers:
                    reader.cancel()
        finally:
            self._release(base)

    def close(self) -> None:
        """Stop the engines; answers in the making end with Unavailable."""
        with self._loading:
            for base in self._bases.values():
                base.engine.close()
            self._bases.clear()

    def _acquire(self, model: Model) -> "tuple[_Base, LoraAdapter | None]":
        with self._loading:
            weights = self._store.get_model(model.base) if model.kind == "adapter" else model
            base = self._bases.get(weights.id)
            if base is None:
                self._make_room()
                base = self._bases[weights.id] = in_passing(partial(self._load, weights))
            self._bases.move_to_end(weights.id)
            adapter = self._adapter(base, model) if model.kind == "adapter" else None
            base.n_users += 1
        return base, adapter

    def _release(self, base: _Base) -> None:
        with self._loading:
            base.n_users -= 1

    def _make_room(self) -> None:
        """Unload the least recently used base that nobody uses, if there are as many as may be."""
        if len(self._bases) < self._settings.max_loaded_bases:
            return
        idle = next((name for name, base in self._bases.items() if base.n_users == 0), None)
        if idle is None:
            raise Overloaded(
                f"All {len(self._bases)} base models that may be loaded at once are answering. "
                "Try again, or raise max_loaded_bases."
            )
        self._bases.pop(idle).engine.close()

    def _load(self, model: Model) -> _Base:
        prepare_process()
        try:
            import torch

            from tunekeeper.inference.engine import Engine
            from tunekeeper.inference.packed import pack
            from tunekeeper.models.load import load_decoder
        except ImportError as error:
            raise Unavailable(f"The embedded engine needs {error.name}: pip install 'tunekeeper[train]'.") from error
        directory = self._directory(model)
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        beside = directory if (directory / "tokenizer.json").is_file() else self._tokenizer_directory(model)
        tokenizer = Tokenizer.load(beside)
        decoder = load_decoder(directory, dtype=self._settings.dtype)
        pack(decoder)
        engine = Engine(
            decoder,
            tokenizer,
            beside,
            cache_tokens=self._settings.cache_tokens,
            max_batch=self._settings.max_concurrent_requests,
            max_waiting=self._settings.max_waiting_requests,
        )
        return _Base(engine, tokenizer, call_style(tokenizer))

    def _adapter(self, base: _Base, model: Model) -> "LoraAdapter":
        from tunekeeper.models.load import load_adapter

        adapter = base.adapters.get(model.id)
        if adapter is None:
            load = partial(load_adapter, self._directory(model), base.engine.decoder)
            adapter = base.adapters[model.id] = in_passing(load)
            if len(base.adapters) > MOST_ADAPTERS:
                base.adapters.popitem(last=False)
        base.adapters.move_to_end(model.id)
        return adapter

    def _directory(self, model: Model) -> Path:
        directory = self._settings.home / model.path
        if not directory.is_dir():
            advice = "Pull it again" if model.kind == "base" else "Delete it"
            verb = "pull" if model.kind == "base" else "delete"
            raise Unavailable(
                f"The weights of {model.id!r} are not at {directory}. {advice}: tunekeeper models {verb} {model.id}",
                param="model",
            )
        return directory

    def _tokenizer_directory(self, model: Model) -> Path:
        if model.base == model.id:
            return self._directory(model)  # Tokenizer.load says what is missing
        return self._directory(self._store.get_model(model.base))


@dataclass(frozen=True, slots=True)
class _Job:
    """A request as the engine sees it."""

    prompt: Sequence[int]
    sampling: Sampling
    function_names: Sequence[str]
    style: Style
    most_calls: int

    def call_stream(self) -> CallStream | PythonicStream | None:
        """What tells calls from words; None: there are no functions."""
        if not self.function_names:
            return None
        return (PythonicStream if self.style == "pythonic" else CallStream)(self.function_names)


@dataclass(frozen=True, slots=True)
class _Finished:
    """Counts of one answer."""

    index: int
    n_cached: int
    n_generated: int


def _prepare(base: _Base, request: ChatRequest) -> _Job:
    """The prompt's tokens and the grammar: what takes a moment, outside the event loop."""
    functions = () if request.tool_choice == "none" else tuple(request.functions)
    prompt = prompt_tokens(
        base.tokenizer,
        request.messages,
        tools=[{"type": "function", "function": dict(function)} for function in functions] or None,
        parallel_tool_calls=request.parallel_tool_calls if functions else None,
    )
    return _Job(
        prompt,
        replace(request.sampling, grammar=grammar_of(request, functions, base.style)),
        [str(function["name"]) for function in functions],
        base.style,
        constrain.MOST_CALLS if request.parallel_tool_calls else 1,
    )


def call_style(tokenizer: Tokenizer) -> Style:
    """How the model writes calls, as its chat template does."""
    if not tokenizer.supports_tools:
        return "bare"
    function = {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "probe", "arguments": "{}"}}
    chat: list[Message] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    try:
        rendered = tokenizer.render_chat(chat, tools=[{"type": "function", "function": function}])
    except InvalidRequest:  # a template may want ids of its own form
        return "bare"
    return style_of(rendered, "probe")


def grammar_of(request: ChatRequest, functions: Sequence[Json], style: Style) -> str | None:
    """What the answer must match; None: the model may write what it likes."""
    several = request.parallel_tool_calls
    if functions and request.tool_choice == "required":
        named = [f for f in functions if request.named_function in (None, f["name"])]
        return constrain.tool_calls(named, style=style, several=several and request.named_function is None)
    if request.json_schema is not None:
        schema, strict = request.json_schema, request.strict_schema
        if functions:
            return constrain.calls_or_json(functions, schema, strict=strict, style=style, several=several)
        return constrain.json_schema(schema, strict=strict)
    if any(function.get("strict") for function in functions):
        return constrain.tool_calls(functions, style=style, several=several, words_too=True)
    return None


async def _read(
    engine: "Engine",
    adapter: "LoraAdapter | None",
    job: _Job,
    index: int,
    inbox: "asyncio.Queue[Delta | _Finished | Exception]",
    *,
    streamed: bool,
) -> None:
    """Turn one answer's pieces into deltas; a failure is an event too."""
    calls = job.call_stream()
    n_cached = n_generated = 0
    try:
        pieces = engine.stream(job.prompt, job.sampling, adapter=adapter, index=index, streamed=streamed)
        async for piece in pieces:
            n_cached, n_generated = piece.n_cached, piece.n_generated
            delta = _delta(piece, calls, job.most_calls, index)
            inbox.put_nowait(delta)
            if delta.finish_reason is not None and piece.finish_reason is None:
                await pieces.aclose()
                break
    except Exception as error:
        inbox.put_nowait(error)
    else:
        inbox.put_nowait(_Finished(index, n_cached, n_generated))


def _delta(piece: Piece, calls: CallStream | PythonicStream | None, most_calls: int, index: int) -> Delta:
    if calls is None:
        words = (Words(piece.text),) if piece.text else ()
        return Delta(index=index, parts=words, logprobs=piece.logprobs, finish_reason=piece.finish_reason)
    parts = calls.push(piece.text)
    if piece.finish_reason is not None:
        parts += calls.finish()
    reason: FinishReason | None = piece.finish_reason
    if reason == "stop" and calls.n_calls:
        reason = "tool_calls"
    if calls.n_calls > most_calls or (calls.n_calls == most_calls and calls.is_between_calls):
        parts = [part for part in parts if isinstance(part, Words) or part.index < most_calls]
        reason = "tool_calls"
    return Delta(index=index, parts=tuple(parts), logprobs=piece.logprobs, finish_reason=reason)


async def _merged(
    inbox: "asyncio.Queue[Delta | _Finished | Exception]", n_prompt: int, n: int
) -> AsyncGenerator[Delta | Counts]:
    finished: dict[int, _Finished] = {}
    while len(finished) < n:
        event = await inbox.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, _Finished):
            finished[event.index] = event
        else:
            yield event
    n_generated = sum(each.n_generated for each in finished.values())
    yield Counts(n_prompt=n_prompt, n_cached=finished[0].n_cached, n_generated=n_generated)
