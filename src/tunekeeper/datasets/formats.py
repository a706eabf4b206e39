"""A line of JSONL to an example: what a file may hold, and what is wrong with a line that does not fit.

Shape only: keys, types, roles. Whether an example makes sense is `validate.py`'s question. Bad data is data:
a fault comes out where an example would have.

    supervised      {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
                    {"prompt": "Hi ->", "completion": " Hello"}
    dpo             {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
    reinforcement   {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": 4}
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NoReturn

from tunekeeper.errors import InvalidData, Unsupported
from tunekeeper.types import Json, Message

MAX_LINE_BYTES = 16 * 1024**2
"""No example is so long; a line over it is refused without being held in memory."""

MAX_DEPTH = 100
"""Nesting that no real example has; below it nothing that walks a value runs out of stack."""

Level = Literal["error", "warn"]
FileRole = Literal["training", "validation"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "refusal", "reasoning_content"}
)
_CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
_COMPLETION_KEYS = frozenset({"prompt", "completion"})
_OUTPUTS = ("preferred_output", "non_preferred_output")
_PAIR_KEYS = frozenset({"input", *_OUTPUTS})
_INPUT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line, and what to do about it; line 0 is the file as a whole."""

    line: int
    pointer: str
    """JSON pointer into the line's object; empty: the line itself."""
    code: str
    level: Level
    message: str
    file: FileRole = "training"

    def to_json(self) -> Json:
        """The fault as reports and error details show it."""
        return {
            "file": self.file,
            "line": self.line,
            "pointer": self.pointer,
            "code": self.code,
            "level": self.level,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One line that holds a JSON object."""

    number: int
    value: Json


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation to learn from, in today's form: what came with `functions` has `tools`."""

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Json, ...] | None = None
    parallel_tool_calls: bool | None = None

    def is_trained(self, index: int) -> bool:
        """Whether the message at this index is learned: the assistant's, unless its weight is 0."""
        message = self.messages[index]
        return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)


@dataclass(frozen=True, slots=True)
class CompletionExample:
    """A text and how it goes on, for models that take no messages."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """A chat with two ways in which it may go on: the better one, and the other."""

    line: int
    messages: tuple[Message, ...]
    preferred: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Json, ...] | None = None
    parallel_tool_calls: bool | None = None

    def chats(self) -> tuple[ChatExample, ChatExample]:
        """The preferred and the other chat as wholes, of which only the outputs are learned."""
        silent = tuple({**m, "weight": 0} if m["role"] == "assistant" else m for m in self.messages)
        preferred, rejected = (
            ChatExample(self.line, silent + output, self.tools, self.parallel_tool_calls)
            for output in (self.preferred, self.rejected)
        )
        return preferred, rejected


@dataclass(frozen=True, slots=True)
class ProblemExample:
    """A chat that the model is to answer, and what its grader knows about the answer."""

    line: int
    messages: tuple[Message, ...]
    item: Json
    """The line's other keys."""
    tools: tuple[Json, ...] | None = None
    parallel_tool_calls: bool | None = None


Example = ChatExample | CompletionExample | PreferenceExample | ProblemExample


@dataclass(frozen=True, slots=True)
class Parsed:
    """What came of a line: the example, unless a fault is an error."""

    example: Example | None
    faults: tuple[Fault, ...]


def detect_method(stream: BinaryIO) -> str:
    """The method that a file was probably made for; reads its first line, and goes back to the start."""
    first = next(read_lines(stream), None)
    stream.seek(0)
    return looks_like(first) if isinstance(first, Line) else "supervised"


def read_lines(stream: BinaryIO) -> Iterator[Line | Fault]:
    """Each line as an object or as a fault, in order, in constant memory.

    A byte order mark, CRLF and blank lines at the end are fine; a blank line in the middle is a fault.
    """
    number = blanks = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        is_long = len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n")
        if is_long:
            _skip_line(stream)
        elif not raw.strip():
            blanks += 1
            continue
        yield from (_empty_line(n) for n in range(number - blanks, number))
        blanks = 0
        yield _line_too_long(number) if is_long else _read_line(number, raw)


def parse(line: Line, *, method: str = "supervised") -> Parsed:
    """The line's example and its faults; an example that has an error is None."""
    check_method(method)
    shape = _Shape(line.number)
    example = _FORMATS[method](shape, line.value)
    has_errors = any(fault.level == "error" for fault in shape.faults)
    return Parsed(None if has_errors else example, tuple(shape.faults))


def check_method(method: str) -> None:
    """Raises Unsupported for a method that has no format here."""
    if method not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise Unsupported(f"There is no training format for the method {method!r}; use {known}.", param="method")


def read_examples(stream: BinaryIO, *, method: str = "supervised") -> Iterator[Example]:
    """The examples of a file that was checked before; raises InvalidData at the first line that has none."""
    for item in read_lines(stream):
        parsed = Parsed(None, (item,)) if isinstance(item, Fault) else parse(item, method=method)
        if parsed.example is None:
            errors = [fault for fault in parsed.faults if fault.level == "error"]
            raise InvalidData(errors[0].message, details=[fault.to_json() for fault in errors])
        yield parsed.example


def _skip_line(stream: BinaryIO) -> None:
    while piece := stream.readline(1024**2):
        if piece.endswith(b"\n"):
            return


def _empty_line(number: int) -> Fault:
    return Fault(number, "", "empty_line", "error", f"Line {number} is empty. Remove it: each line is one example.")


def _line_too_long(number: int) -> Fault:
    limit = MAX_LINE_BYTES // 1024**2
    message = f"Line {number} is longer than {limit} MiB. Split the example, or put each example on its own line."
    return Fault(number, "", "line_too_long", "error", message)


def _read_line(number: int, raw: bytes) -> Line | Fault:
    def fault(code: str, message: str) -> Fault:
        return Fault(number, "", code, "error", message)

    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return fault("non_utf8", f"Line {number} is UTF-16. Save the file as UTF-8.")
    if b"\0" in raw:
        at = raw.index(b"\0") + 1
        return fault("nul_byte", f"Line {number} has a NUL at byte {at}. Remove it, or save the file as UTF-8.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return fault("non_utf8", f"Line {number} is not UTF-8 at byte {error.start + 1}. Save the file as UTF-8.")
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        return fault("json_parse", f"Line {number} is not JSON at column {error.colno}: {error.msg}. {_ONE_OBJECT}")
    except ValueError as error:
        return fault("json_parse", f"Line {number} is not JSON that can be used: {error}.")
    except RecursionError:
        return _too_deep(number)
    if not isinstance(value, dict):
        return fault("not_object", f"Line {number} holds {_kind(value)}, not an object. {_ONE_OBJECT}")
    if text.count("{") + text.count("[") > MAX_DEPTH and not _is_shallow(value):
        return _too_deep(number)
    if "\\u" in text and _has_half_surrogate(value):
        message = f"Line {number} has half of a surrogate pair (\\ud800 to \\udfff). Write the whole character."
        return fault("non_utf8", message)
    return Line(number, value)


_ONE_OBJECT = "Write each example as one JSON object on one line."


def _too_deep(number: int) -> Fault:
    message = f"Line {number} nests deeper than {MAX_DEPTH} levels. Flatten it."
    return Fault(number, "", "too_deep", "error", message)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_show(twice)} stands twice in one object")
    return value


def _is_shallow(value: Any) -> bool:
    layer = [value]
    for _ in range(MAX_DEPTH):
        inner = [child for parent in layer for child in _children(parent)]
        layer = [child for child in inner if isinstance(child, dict | list)]
        if not layer:
            return True
    return False


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _has_half_surrogate(value: Json) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        str: "a text",
        list: "a list",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _show(value: Any) -> str:
    """The value for a message: short, and as the file writes it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:39] + "…"


@dataclass
class _Shape:
    """Collects the faults of one line."""

    line: int
    faults: list[Fault] = field(default_factory=list)

    def fault(self, pointer: str, code: str, message: str, level: Level = "error") -> None:
        self.faults.append(Fault(self.line, pointer, code, level, f"Line {self.line}: {message}"))

    def unknown_keys(self, value: Json, known: frozenset[str], pointer: str) -> None:
        for key in sorted(set(value) - known):
            escaped = key.replace("~", "~0").replace("/", "~1")
            self.fault(
                f"{pointer}/{escaped}",
                "unknown_key",
                f"{_show(key)} is not used in training. Remove it.",
                "warn",
            )


def _supervised(shape: _Shape, value: Json) -> Example | None:
    if "messages" not in value and _COMPLETION_KEYS & set(value):
        return _completion(shape, value)
    if "messages" not in value:
        hint = (
            "The line looks like a preference pair: use the method dpo for it."
            if "preferred_output" in value
            else ('Write {"messages": [...]}, or {"prompt": ..., "completion": ...} for a model without chat.')
        )
        shape.fault("", "missing_messages", f'"messages" is missing. {hint}')
        return None
    return _chat(shape, value)


def _preference(shape: _Shape, value: Json) -> Example | None:
    shape.unknown_keys(value, _PAIR_KEYS, "")
    given = value.get("input")
    if not isinstance(given, dict) or "messages" not in given:
        hint = (
            'Write {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}.'
            if "messages" not in value
            else "The line looks like a chat: use the method supervised for it."
        )
        shape.fault("/input", "missing_messages", f'"input" must be an object with "messages". {hint}')
        return None
    shape.unknown_keys(given, _INPUT_KEYS, "/input")
    messages = _messages(shape, given["messages"], "/input/messages")
    tools = _tools(shape, given, "/input")
    parallel = _parallel(shape, given, "/input")
    outputs = [_output(shape, value.get(name), f"/{name}") for name in _OUTPUTS]
    if outputs[0] and outputs[0] == outputs[1]:
        message = "the two outputs are equal: there is nothing to prefer. Remove the line, or correct one of them."
        shape.fault("/non_preferred_output", "dpo_identical_pair", message)
    if messages and messages[-1].get("role") == "assistant":
        message = "the input ends with an answer already. Let it end with what the outputs answer."
        shape.fault(f"/input/messages/{len(messages) - 1}/role", "dpo_input_answered", message, "warn")
    return PreferenceExample(shape.line, tuple(messages), tuple(outputs[0]), tuple(outputs[1]), tools, parallel)


def _output(shape: _Shape, given: Any, pointer: str) -> list[Message]:
    """One side of a pair: the assistant's messages, and the tools' between them."""
    if isinstance(given, dict):
        shape.fault(pointer, "dpo_bad_output", "an output must be a list of messages; put this one into a list.")
        return []
    if not isinstance(given, list) or not given:
        name = pointer.removeprefix("/")
        found = "empty" if given == [] else _kind(given)
        text = f'"{name}" must be a list with at least one assistant message; it is {found}.'
        shape.fault(pointer, "dpo_bad_output", text)
        return []
    messages = _messages(shape, given, pointer)
    for n, message in enumerate(messages):
        role = message.get("role")
        if role in ROLES and role not in ("assistant", "tool"):
            text = f"the role is {_show(role)}; an output holds the assistant's and the tools' messages only."
            shape.fault(f"{pointer}/{n}/role", "dpo_bad_output", text)
    if all(message.get("role") != "assistant" for message in messages):
        shape.fault(pointer, "no_assistant", "no message of the output is the assistant's: there is nothing to learn.")
    return messages


def _problem(shape: _Shape, value: Json) -> Example | None:
    if "messages" not in value:
        shape.fault("", "missing_messages", '"messages" is missing. Write {"messages": [...], "reference": ...}.')
        return None
    messages = _messages(shape, value["messages"], "/messages")
    tools = _tools(shape, value)
    parallel = _parallel(shape, value)
    if messages and messages[-1].get("role") in ROLES and messages[-1]["role"] != "user":
        message = f"the last message is the {messages[-1]['role']}'s; it must be the user's, which the model answers."
        shape.fault(f"/messages/{len(messages) - 1}/role", "rft_last_not_user", message)
    item = {key: of for key, of in value.items() if key not in _CHAT_KEYS}
    return ProblemExample(shape.line, tuple(messages), item, tools, parallel)


_FORMATS: Mapping[str, Callable[[_Shape, Json], Example | None]] = {
    "supervised": _supervised,
    "dpo": _preference,
    "reinforcement": _problem,
}
METHODS = tuple(_FORMATS)


def looks_like(line: Line) -> str:
    """The method that a file was probably made for, by its first line."""
    value = line.value
    if _PAIR_KEYS & set(value):
        return "dpo"
    messages = value.get("messages")
    roles = [m.get("role") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    if roles and roles[-1] == "user" and (set(value) - _CHAT_KEYS or "assistant" not in roles):
        return "reinforcement"
    return "supervised"


def _completion(shape: _Shape, value: Json) -> Example | None:
    shape.unknown_keys(value, _COMPLETION_KEYS, "")
    for key in sorted(_COMPLETION_KEYS):
        if not isinstance(value.get(key), str):
            shape.fault(f"/{key}", "missing_content", f'"{key}" must be a text; it is {_kind(value.get(key))}.')
    if value.get("completion") == "":
        shape.fault("/completion", "empty_answer", "the completion is empty: the model learns to say nothing.", "warn")
    return CompletionExample(shape.line, value.get("prompt", ""), value.get("completion", ""))


def _chat(shape: _Shape, value: Json) -> Example | None:
    shape.unknown_keys(value, _CHAT_KEYS, "")
    messages = _messages(shape, value["messages"], "/messages")
    if not messages:
        return None
    parallel = _parallel(shape, value)
    return ChatExample(shape.line, tuple(messages), _tools(shape, value), parallel)


def _messages(shape: _Shape, given: Any, pointer: str) -> list[Message]:
    """The messages in today's form; empty where there are none to use."""
    if not isinstance(given, list):
        shape.fault(pointer, "missing_messages", f'"messages" must be a list; it is {_kind(given)}.')
        return []
    if not given:
        shape.fault(pointer, "empty_messages", '"messages" is empty. Give at least a user and an assistant message.')
    return _link_legacy([_message(shape, message, f"{pointer}/{n}", n) for n, message in enumerate(given)])


def _parallel(shape: _Shape, value: Json, place: str = "") -> bool | None:
    parallel = value.get("parallel_tool_calls")
    if parallel is None or isinstance(parallel, bool):
        return parallel
    message = f"parallel_tool_calls must be true or false; it is {_show(parallel)}."
    shape.fault(f"{place}/parallel_tool_calls", "bad_value", message)
    return None


def _tools(shape: _Shape, value: Json, place: str = "") -> tuple[Json, ...] | None:
    """The example's tools; the old `functions` become tools."""
    key = "functions" if value.get("functions") is not None and value.get("tools") is None else "tools"
    given = value.get(key)
    if value.get("functions") is not None and value.get("tools") is not None:
        shape.fault(f"{place}/functions", "bad_tool", "the line has both tools and functions. Keep tools.")
    if given is None:
        return None
    if not isinstance(given, list):
        shape.fault(f"{place}/{key}", "bad_tool", f'"{key}" must be a list; it is {_kind(given)}.')
        return None
    is_legacy = key == "functions"
    tools = [{"type": "function", "function": tool} if is_legacy else tool for tool in given]
    names: set[str] = set()
    for n, tool in enumerate(tools):
        at = f"{place}/{key}/{n}"
        _tool(shape, tool, at, at if is_legacy else f"{at}/function", names)
    return tuple(tools) or None


def _tool(shape: _Shape, tool: Any, pointer: str, function_pointer: str, names: set[str]) -> None:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        shape.fault(
            pointer,
            "bad_tool",
            'a tool must be {"type": "function", "function": {"name": ..., "parameters": ...}}.',
        )
        return
    name = function.get("name")
    if not isinstance(name, str) or not name:
        shape.fault(f"{function_pointer}/name", "bad_tool", "the function has no name.")
    elif name in names:
        shape.fault(f"{function_pointer}/name", "bad_tool", f"two tools have the name {_show(name)}.")
    else:
        names.add(name)
    if not isinstance(function.get("parameters", {}), dict):
        shape.fault(f"{function_pointer}/parameters", "bad_tool", "parameters must be a JSON schema, an object.")
    if not isinstance(function.get("description", ""), str):
        shape.fault(f"{function_pointer}/description", "bad_tool", "the description must be a text.")


def _message(shape: _Shape, given: Any, pointer: str, index: int) -> Message:
    """The message in today's form; its faults go to `shape`."""
    if not isinstance(given, dict):
        shape.fault(pointer, "bad_role", f"a message must be an object with role and content; it is {_kind(given)}.")
        return {"role": "user", "content": ""}
    message = _modern(given, index)
    shape.unknown_keys(message, _MESSAGE_KEYS, pointer)
    role = message.get("role")
    if role not in ROLES:
        shape.fault(f"{pointer}/role", "bad_role", f"the role is {_show(role)}; it must be one of {', '.join(ROLES)}.")
        return message
    call_pointer = f"{pointer}/function_call" if "function_call" in given else None
    _check_calls(shape, message, pointer, call_pointer)
    _check_content(shape, message, pointer)
    _check_weight(shape, message, pointer)
    if role == "tool" and given.get("role") == "tool" and not _is_text(message.get("tool_call_id")):
        shape.fault(
            f"{pointer}/tool_call_id",
            "missing_tool_call_id",
            "a tool message must name the call that it answers.",
        )
    for key in ("name", "refusal", "reasoning_content"):
        if not isinstance(message.get(key), str | None):
            shape.fault(f"{pointer}/{key}", "bad_value", f"{key} must be a text; it is {_kind(message[key])}.")
    return message


def _modern(given: Message, index: int) -> Message:
    """`function_call` becomes the one entry of `tool_calls`; a function's message becomes a tool's."""
    message = {key: value for key, value in given.items() if key != "function_call"}
    if isinstance(given.get("function_call"), dict):
        message["tool_calls"] = [{"id": f"call_{index}", "type": "function", "function": given["function_call"]}]
    if given.get("role") == "function":
        message["role"] = "tool"
    return message


def _link_legacy(messages: list[Message]) -> list[Message]:
    """A function's message names no call; it answers the one before it."""
    open_call: str | None = None
    linked = []
    for message in messages:
        if message.get("role") == "tool" and "tool_call_id" not in message and open_call is not None:
            message = {**message, "tool_call_id": open_call}
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls and isinstance(calls[-1], dict):
            open_call = calls[-1].get("id")
        linked.append(message)
    return linked


def _check_content(shape: _Shape, message: Message, pointer: str) -> None:
    content = message.get("content")
    is_assistant = message["role"] == "assistant"
    if content is None:
        if not (is_assistant and (message.get("tool_calls") or message.get("refusal"))):
            shape.fault(f"{pointer}/content", "missing_content", "the message has no content.")
    elif isinstance(content, list):
        _check_parts(shape, content, f"{pointer}/content")
    elif not isinstance(content, str):
        shape.fault(
            f"{pointer}/content",
            "missing_content",
            f"content must be a text or a list of parts; it is {_kind(content)}.",
        )
    elif is_assistant and not content and not message.get("tool_calls") and message.get("weight", 1) != 0:
        shape.fault(
            f"{pointer}/content",
            "empty_answer",
            "the answer is empty: the model learns to say nothing.",
            "warn",
        )


def _check_parts(shape: _Shape, parts: list[Any], pointer: str) -> None:
    if not parts:
        shape.fault(pointer, "missing_content", "the list of content parts is empty.")
    for n, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            shape.fault(
                f"{pointer}/{n}",
                "unsupported_content",
                f"the part's type is {_show(kind)}; only text can be learned here.",
            )
        elif not isinstance(part.get(kind), str):
            shape.fault(f"{pointer}/{n}/{kind}", "missing_content", f"the part has no {kind}.")


def _check_weight(shape: _Shape, message: Message, pointer: str) -> None:
    weight = message.get("weight")
    if weight is None:
        return
    if isinstance(weight, bool) or weight not in (0, 1):
        shape.fault(f"{pointer}/weight", "bad_weight", f"the weight is {_show(weight)}; it must be 0 or 1.")
    elif message["role"] != "assistant":
        shape.fault(f"{pointer}/weight", "bad_weight", "only an assistant message can have a weight. Remove it.")


def _check_calls(shape: _Shape, message: Message, pointer: str, call_pointer: str | None) -> None:
    """`call_pointer` is where the one call stood in the old form."""
    calls = message.get("tool_calls")
    if calls is None:
        return
    where = f"{pointer}/tool_calls"
    if message["role"] != "assistant":
        shape.fault(call_pointer or where, "bad_tool_call", "only the assistant calls tools.")
    if not isinstance(calls, list) or not calls:
        shape.fault(
            where,
            "bad_tool_call",
            "tool_calls must be a list with at least one call. Leave it out where there is none.",
        )
        return
    for n, call in enumerate(calls):
        _check_call(shape, call, f"{where}/{n}", call_pointer or f"{where}/{n}/function")


def _check_call(shape: _Shape, call: Any, pointer: str, function_pointer: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type") != "function":
        shape.fault(
            pointer,
            "bad_tool_call",
            'a call must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}.',
        )
        return
    if not _is_text(call.get("id")):
        shape.fault(f"{pointer}/id", "bad_tool_call", "the call has no id.")
    if not _is_text(function.get("name")):
        shape.fault(f"{function_pointer}/name", "bad_tool_call", "the call names no function.")
    if not isinstance(function.get("arguments"), str):
        message = 'arguments must be a text that holds a JSON object, such as "{\\"city\\": \\"Paris\\"}".'
        shape.fault(f"{function_pointer}/arguments", "tool_call_bad_json", message)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
