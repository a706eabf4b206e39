"""Stored completions as lines of data files: to learn from ("chat"), or to judge ("eval").

    chat    {"messages": [what was asked …, the answer], "tools": […]}
    eval    {"item": {"input": [what was asked …], "completion_id": …, "metadata": {…}}, "sample": {"output_text": …}}

What a format cannot carry is left out by name and counted, never bent into shape: see `LEFT_OUT`. Of several
choices the first is taken.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunekeeper.datasets.formats import Line, parse
from tunekeeper.graders.template import sample_of
from tunekeeper.storage.blobs import BlobWriter
from tunekeeper.types import Json, Message, StoredCompletion

Format = Literal["chat", "eval"]

LEFT_OUT: Mapping[str, str] = {
    "no_answer": "The answer holds no message that says anything.",
    "cut_off": "The answer was cut off at its greatest length (finish_reason length).",
    "content_filter": "The answer was cut by a content filter.",
    "refusal": "The model refused to answer.",
    "image": "A message has an image.",
    "audio": "A message has audio.",
    "file": "A message has a file.",
    "unsupported_content": "A message has content that is neither text nor a refusal.",
    "unsupported_tool": "A tool is no function.",
    "invalid_example": "The conversation is no example that could be learned from.",
}
"""Why a completion is not in a file, by code."""

MAX_LISTED = 100
"""Left-out completions that are listed one by one; all are counted."""

_PIECE_BYTES = 256 * 1024
_MESSAGE_KEYS = (
    "role",
    "content",
    "name",
    "refusal",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
)
_REQUEST_KEYS = ("tools", "functions", "parallel_tool_calls")
_PARTS = {"image_url": "image", "input_image": "image", "input_audio": "audio", "audio": "audio", "file": "file"}
_CUT = {"length": "cut_off", "content_filter": "content_filter"}


class LeftOut(Exception):
    """A completion that is not used; `code` is one of `LEFT_OUT`, or one that the detail explains."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.reason = f"{LEFT_OUT.get(code, '')} {detail}".strip()


@dataclass(slots=True)
class Exported:
    """What came of an export."""

    lines: int = 0
    choices_left_out: int = 0
    """Answers beside the first to the same request."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Completions by code."""
    listed: list[Json] = field(default_factory=list)
    """The first of them: id, code, message."""


def chat_line(completion: StoredCompletion) -> Json:
    """The conversation with its answer as an example for supervised tuning; raises LeftOut."""
    answer = _answer(completion)
    messages = [_plain(message) for message in completion.request.get("messages", [])]
    line: Json = {"messages": [*messages, answer]}
    line.update({key: completion.request[key] for key in _REQUEST_KEYS if completion.request.get(key) is not None})
    for fault in parse(Line(1, line)).faults:
        if fault.level == "error":
            code = "unsupported_tool" if fault.code == "bad_tool" else "invalid_example"
            raise LeftOut(code, fault.message.removeprefix("Line 1: "))
    return line


def eval_line(completion: StoredCompletion) -> Json:
    """What was asked as the item, the answer as the sample that graders see; raises LeftOut."""
    answer = _answer(completion)
    choice = completion.response["choices"][0]
    request = completion.request
    item: Json = {
        "input": [_plain(message) for message in request.get("messages", [])],
        "completion_id": completion.id,
        "model": completion.model,
        "created": completion.created,
        "metadata": completion.metadata,
    }
    item.update({key: request[key] for key in (*_REQUEST_KEYS, "response_format") if request.get(key) is not None})
    content = answer.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    sample = sample_of(
        content,
        tool_calls=answer.get("tool_calls") or _as_calls(answer.get("function_call")),
        finish_reason=choice.get("finish_reason") or "stop",
        model=completion.model,
    )
    return {"item": item, "sample": sample}


LINES: Mapping[Format, Callable[[StoredCompletion], Json]] = {"chat": chat_line, "eval": eval_line}


def export(completions: Iterable[StoredCompletion], writer: BlobWriter, format_: Format) -> Exported:
    """Write each completion's line; the same completions give the same bytes."""
    exported, make_line, waiting = Exported(), LINES[format_], bytearray()
    for completion in completions:
        try:
            line = make_line(completion)
            data = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8")
        except UnicodeEncodeError:
            left = LeftOut("invalid_example", "A text has half of a surrogate pair.")
        except LeftOut as why:
            left = why
        else:
            waiting += data
            if len(waiting) >= _PIECE_BYTES:
                writer.write(waiting)
                waiting.clear()
            exported.lines += 1
            exported.choices_left_out += len(completion.response["choices"]) - 1
            continue
        exported.left_out[left.code] += 1
        if len(exported.listed) < MAX_LISTED:
            exported.listed.append({"id": completion.id, "code": left.code, "message": left.reason})
    writer.write(waiting)
    return exported


def _answer(completion: StoredCompletion) -> Message:
    """The first choice's message, if it is one to learn from or to judge."""
    choices = completion.response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise LeftOut("no_answer")
    assert isinstance(choice, dict)
    if (why := _CUT.get(str(choice.get("finish_reason")))) is not None:
        raise LeftOut(why)
    if message.get("refusal"):
        raise LeftOut("refusal")
    if message.get("audio"):
        raise LeftOut("audio")
    answer = _plain({**message, "role": "assistant"})
    if not (answer.get("content") or answer.get("tool_calls") or answer.get("function_call")):
        raise LeftOut("no_answer")
    return answer


def _plain(message: Any) -> Message:
    """The message without what only a response or a client's library adds to it."""
    if not isinstance(message, dict):
        raise LeftOut("invalid_example", "A message is no object.")
    if message.get("audio"):
        raise LeftOut("audio")
    plain = {key: message[key] for key in _MESSAGE_KEYS if message.get(key) is not None}
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_plain_call(call) for call in plain["tool_calls"]]
        if not plain["tool_calls"]:
            del plain["tool_calls"]
    if not isinstance(plain.get("content"), str | list | None):
        raise LeftOut("unsupported_content")
    if isinstance(plain.get("content"), list):
        for part in plain["content"]:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                raise LeftOut(_PARTS.get(str(kind), "unsupported_content"))
    return plain


def _as_calls(function_call: Any) -> list[Json] | None:
    return None if function_call is None else [{"type": "function", "function": function_call}]


def _plain_call(call: Any) -> Any:
    """A call without what the official client adds when it parses it."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = {key: call["function"][key] for key in ("name", "arguments") if key in call["function"]}
    return {"id": call.get("id"), "type": call.get("type", "function"), "function": function}
