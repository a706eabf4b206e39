"""An answer's events in the form of the API: a `chat.completion`, or the chunks of a stream."""

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from tunekeeper.inference.answers import Counts, Delta
from tunekeeper.inference.params import TokenLogprob
from tunekeeper.inference.request import ChatBody
from tunekeeper.inference.tools import Arguments, CallBegins, Part, Words
from tunekeeper.types import Json, new_id

T = TypeVar("T")


class Completion:
    """Writes one request's events in the API's form."""

    def __init__(self, body: ChatBody, model: str, created: int) -> None:
        self._body = body
        self._head: Json = {
            "id": new_id("chatcmpl-"),
            "created": created,
            "model": model,
            "system_fingerprint": f"fp_{hashlib.sha256(model.encode()).hexdigest()[:10]}",
            "service_tier": "default",
        }
        self._begun: set[int] = set()

    async def whole(self, events: AsyncGenerator[Delta | Counts]) -> Json:
        """The response with all choices."""
        choices = [Choice(index, self._body) for index in range(self._body.n or 1)]
        usage: Json = {}
        async for event in events:
            if isinstance(event, Counts):
                usage = _usage(event)
            else:
                choices[event.index].add(event)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice.wire() for choice in choices],
            "usage": usage,
        }

    async def chunks(self, first: Delta | Counts, rest: AsyncGenerator[Delta | Counts]) -> AsyncGenerator[str]:
        """The data of each chunk of the stream."""
        with_usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        async with aclosing(chained(first, rest)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    for choice in self._deltas(event):
                        yield self._chunk([choice], {"usage": None} if with_usage else {})
                elif with_usage:
                    yield self._chunk([], {"usage": _usage(event)})

    def _chunk(self, choices: list[Json], extra: Json) -> str:
        return json.dumps(
            {**self._head, "object": "chat.completion.chunk", "choices": choices, **extra}, ensure_ascii=False
        )

    def _deltas(self, event: Delta) -> list[Json]:
        """The chunks of one event: the role first, the reason to stop in one of its own at the end."""
        found = []
        if event.index not in self._begun:
            self._begun.add(event.index)
            found.append(self._choice(event.index, {"role": "assistant", "content": "", "refusal": None}))
        delta = _stream_delta(event.parts, uses_functions=self._body.uses_functions)
        if delta or event.logprobs:
            found.append({**self._choice(event.index, delta), "logprobs": self._logprobs(event.logprobs)})
        if event.finish_reason is not None:
            reason = _reason(event.finish_reason, uses_functions=self._body.uses_functions)
            found.append({**self._choice(event.index, {}), "finish_reason": reason})
        return found

    def _choice(self, index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> Json | None:
        return _logprobs(logprobs) if self._body.logprobs else None


class Choice:
    """One whole answer, collected from its deltas."""

    def __init__(self, index: int, body: ChatBody) -> None:
        self._index, self._body = index, body
        self._text = ""
        self._calls: list[Json] = []
        self._logprobs: list[TokenLogprob] = []
        self._reason = "stop"

    def add(self, event: Delta) -> None:
        """Take the next delta in."""
        self._logprobs += event.logprobs
        self._reason = event.finish_reason or self._reason
        for part in event.parts:
            if isinstance(part, Words):
                self._text += part.text
            elif isinstance(part, CallBegins):
                self._calls.append(_call_head(part))
            else:
                self._calls[part.index]["function"]["arguments"] += part.text

    def wire(self) -> Json:
        """The choice as the API shows it."""
        message: Json = {"role": "assistant", "content": self._text, "refusal": None, "annotations": []}
        if self._calls:
            message["content"] = self._text or None
            if self._body.uses_functions:
                message["function_call"] = self._calls[0]["function"]
            else:
                message["tool_calls"] = self._calls
        return {
            "index": self._index,
            "message": message,
            "logprobs": _logprobs(tuple(self._logprobs)) if self._body.logprobs else None,
            "finish_reason": _reason(self._reason, uses_functions=self._body.uses_functions),
        }


def _call_head(part: CallBegins) -> Json:
    return {
        "id": new_id("call_"),
        "type": "function",
        "function": {"name": part.name, "arguments": ""},
    }


def _stream_delta(parts: tuple[Part, ...], *, uses_functions: bool) -> Json:
    """Parts as a chunk's delta; of one call there is one entry, its name only where it begins."""
    text, calls = "", dict[int, Json]()
    for part in parts:
        if isinstance(part, Words):
            text += part.text
        elif isinstance(part, CallBegins):
            calls[part.index] = {"index": part.index, **_call_head(part)}
        elif isinstance(part, Arguments):
            call = calls.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
            call["function"]["arguments"] += part.text
    delta: Json = {"content": text} if text else {}
    if calls and uses_functions:
        delta["function_call"] = next(iter(calls.values()))["function"]
    elif calls:
        delta["tool_calls"] = list(calls.values())
    return delta


def _reason(reason: str, *, uses_functions: bool) -> str:
    return "function_call" if uses_functions and reason == "tool_calls" else reason


def _logprobs(logprobs: tuple[TokenLogprob, ...]) -> Json:
    content = [{**_token(each), "top_logprobs": [_token(other) for other in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _token(each: TokenLogprob) -> Json:
    try:
        text = each.bytes.decode()
    except UnicodeDecodeError:  # a part of a character, written as OpenAI does
        text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in each.bytes)
    # JSON knows no infinity; OpenAI writes this for what cannot come.
    return {"token": text, "logprob": max(each.logprob, -9999.0), "bytes": list(each.bytes)}


def _usage(counts: Counts) -> Json:
    return {
        "prompt_tokens": counts.n_prompt,
        "completion_tokens": counts.n_generated,
        "total_tokens": counts.n_prompt + counts.n_generated,
        "prompt_tokens_details": {"cached_tokens": counts.n_cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def chained(first: T, rest: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The first event, then the rest; closes the rest."""
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event
