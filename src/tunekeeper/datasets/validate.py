"""Whether a training file can be learned from: every fault with its line, in one pass, before a job.

Memory does not grow with the file but for two hashes an example. A new rule is one function and one line in
CHECKS; its name is the fault's code.

    with open("train.jsonl", "rb") as stream:
        report = check(stream, tokenizer=tokenizer, max_tokens=2048)
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TextIO

from tunekeeper.datasets.formats import (
    ChatExample,
    CompletionExample,
    Example,
    Fault,
    FileRole,
    Level,
    Line,
    PreferenceExample,
    ProblemExample,
    check_method,
    parse,
    read_lines,
)
from tunekeeper.datasets.quality import Comparison, Lengths, sensitive_faults, texts
from tunekeeper.datasets.render import Rendered, render
from tunekeeper.datasets.report import FaultLog, Report
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidRequest

__all__ = ["CHECKS", "Fault", "check"]

Problem = tuple[str, Level, str]
"""JSON pointer, level, and what to do."""
Check = Callable[[ChatExample], Iterable[Problem]]

ItemFaults = Callable[[int, dict[str, Any]], Iterable[Fault]]
"""The faults of a line's item, by the line's number."""

COMMON_SPECIAL_TOKENS = frozenset({"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>"})
"""What is looked for while the model is not known."""


def no_assistant(example: ChatExample) -> Iterator[Problem]:
    """There must be something to learn."""
    if all(message["role"] != "assistant" for message in example.messages):
        yield (
            "/messages",
            "error",
            "no message is the assistant's: there is nothing to learn. Add the answer.",
        )


def all_weights_zero(example: ChatExample) -> Iterator[Problem]:
    """A weight of 0 on every answer leaves nothing to learn."""
    answers = [n for n, message in enumerate(example.messages) if message["role"] == "assistant"]
    if answers and not any(example.is_trained(n) for n in answers):
        yield (
            "/messages",
            "error",
            "every assistant message has weight 0: nothing is learned. Give one the weight 1.",
        )


def last_not_assistant(example: ChatExample) -> Iterator[Problem]:
    """What follows the last answer is read by nobody."""
    roles = [message["role"] for message in example.messages]
    if "assistant" in roles and roles[-1] != "assistant":
        pointer = f"/messages/{len(roles) - 1}"
        yield pointer, "warn", "the last message is not the assistant's; it is not used."


def unknown_tool_name(example: ChatExample) -> Iterator[Problem]:
    """A call must be of a function that the example offers."""
    names = [tool["function"]["name"] for tool in example.tools or ()]
    for pointer, call in _calls(example):
        name = call["function"]["name"]
        if name not in names:
            message = f"the function {name!r} is not in tools. Offer it there, or correct the name."
            yield f"{pointer}/function/name", "error", message


def tool_call_bad_json(example: ChatExample) -> Iterator[Problem]:
    """Arguments are JSON in a text; the model would learn the broken text."""
    for pointer, call in _calls(example):
        try:
            is_object = isinstance(json.loads(call["function"]["arguments"]), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            yield (
                f"{pointer}/function/arguments",
                "error",
                "arguments must be a text that holds a JSON object.",
            )


def tool_result_without_call(example: ChatExample) -> Iterator[Problem]:
    """A tool's message answers a call of an assistant message before it, each call once."""
    waiting: set[str] = set()
    for n, message in enumerate(example.messages):
        waiting |= {call["id"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                text = f"no call before it has the id {message['tool_call_id']!r}, or it was answered already."
                yield f"/messages/{n}/tool_call_id", "error", text
            waiting.discard(message["tool_call_id"])


def tool_call_without_result(example: ChatExample) -> Iterator[Problem]:
    """In use a conversation goes on only after each call was answered; at the end it may stay open."""
    waiting: set[str] = set()
    for n, message in enumerate(example.messages):
        if message["role"] == "tool":
            waiting.discard(message["tool_call_id"])
        elif waiting:
            text = f"the call {min(waiting)!r} was not answered before this message. Add the tool's message."
            yield f"/messages/{n}", "warn", text
            waiting.clear()
        waiting |= {call["id"] for call in message.get("tool_calls") or ()}


def parallel_calls_forbidden(example: ChatExample) -> Iterator[Problem]:
    """With parallel_tool_calls false a message makes one call."""
    for n, message in enumerate(example.messages):
        if example.parallel_tool_calls is False and len(message.get("tool_calls") or ()) > 1:
            text = "several calls in one message, though parallel_tool_calls is false."
            yield f"/messages/{n}/tool_calls", "warn", text


CALL_CHECKS: tuple[Check, ...] = (
    unknown_tool_name,
    tool_call_bad_json,
    tool_result_without_call,
    tool_call_without_result,
    parallel_calls_forbidden,
)
CHECKS: tuple[Check, ...] = (no_assistant, all_weights_zero, last_not_assistant, *CALL_CHECKS)


def check(
    stream: BinaryIO,
    *,
    method: str = "supervised",
    tokenizer: Tokenizer | None = None,
    max_tokens: int | None = None,
    validation: BinaryIO | None = None,
    min_examples: int = 10,
    item_faults: ItemFaults | None = None,
    faults_out: TextIO | None = None,
) -> Report:
    """Everything that is wrong with a training file, and how large it is.

    Tokens are counted, and cut to `max_tokens`, where a tokenizer is given. `faults_out` gets every fault as
    a line of JSON, also those that are too many for the report. `item_faults` says what the item of a problem
    lacks for its grader. Raises Unsupported for an unknown method.
    """
    check_method(method)
    checker = _Checker(method, tokenizer, max_tokens, FaultLog(faults_out), item_faults)
    training = checker.read(stream, "training", min_examples)
    held_out = None if validation is None else checker.read(validation, "validation", 1)
    return checker.report(training, held_out)


class _Tally:
    """Numbers of one file."""

    def __init__(self) -> None:
        self.lines = self.examples = self.tokens = self.trained = self.truncated = self.left_out = 0
        self.format: type[Example] | None = None
        self.lengths = Lengths()


class _Checker:
    """Reads files and puts what it finds together."""

    def __init__(
        self,
        method: str,
        tokenizer: Tokenizer | None,
        max_tokens: int | None,
        log: FaultLog,
        item_faults: ItemFaults | None,
    ) -> None:
        self._item_faults = item_faults
        self._item_keys: tuple[int, frozenset[str]] | None = None
        self._method = method
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._log = log
        self._comparison = Comparison()
        special = COMMON_SPECIAL_TOKENS if tokenizer is None else tokenizer.special_tokens
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def read(self, stream: BinaryIO, file: FileRole, min_examples: int) -> _Tally:
        """Check every line of one file."""
        tally = _Tally()
        for item in read_lines(stream):
            tally.lines += 1
            self._add([item] if isinstance(item, Fault) else self._line(item, tally, file), file)
        self._add(_file_faults(tally, file, min_examples), file)
        return tally

    def report(self, training: _Tally, held_out: _Tally | None) -> Report:
        """What was found in the files that were read."""
        tallies = [training] if held_out is None else [training, held_out]
        has_tokens = self._tokenizer is not None
        labels = self._comparison.labels
        balance = labels.finding()
        return Report(
            ok=not self._log.levels["error"],
            method=self._method,
            n_examples=training.examples,
            n_tokens=training.tokens if has_tokens else None,
            trained_tokens=training.trained if has_tokens else None,
            n_truncated=sum(tally.truncated for tally in tallies),
            n_left_out=sum(tally.left_out for tally in tallies),
            n_validation_examples=held_out.examples if held_out else None,
            n_validation_tokens=held_out.tokens if held_out and has_tokens else None,
            faults=self._log.faults,
            counts=dict(self._log.counts),
            n_errors=self._log.levels["error"],
            n_warnings=self._log.levels["warn"],
            findings=(*self._log.findings(), *([balance] if balance else [])),
            labels=labels.counts,
            histogram=training.lengths.histogram("tokens" if has_tokens else "characters"),
        )

    def _add(self, faults: Iterable[Fault], file: FileRole) -> None:
        for fault in faults:
            self._log.add(Fault(fault.line, fault.pointer, fault.code, fault.level, fault.message, file))

    def _line(self, line: Line, tally: _Tally, file: FileRole) -> Iterator[Fault]:
        parsed = parse(line, method=self._method)
        yield from parsed.faults
        if parsed.example is None:
            return
        example = parsed.example
        tally.examples += 1
        yield from _mixed_formats(example, tally)
        faults = [*_logic_faults(example), *self._problem_faults(example), *self._special_faults(example)]
        yield from faults
        yield from self._comparison.add(example, file)
        yield from sensitive_faults(example, file)
        if self._tokenizer is None:
            tally.lengths.add(sum(len(text) for _, text in texts(example)))
        elif all(fault.level == "warn" for fault in faults):
            yield from self._token_faults(example, self._tokenizer, tally)

    def _problem_faults(self, example: Example) -> Iterator[Fault]:
        """What a problem lacks for its grader, and keys that other lines have not."""
        if not isinstance(example, ProblemExample):
            return
        if self._item_faults is not None:
            item = {**example.item, "messages": list(example.messages)}
            for fault in self._item_faults(example.line, item):
                yield _fault(example, fault.code, fault.level, fault.message, fault.pointer)
        line, keys = self._item_keys = self._item_keys or (example.line, frozenset(example.item))
        if odd := sorted(keys ^ set(example.item)):
            verb = "is missing here" if odd[0] in keys else f"is not on line {line}"
            yield _fault(example, "rft_item_keys_differ", "warn", f"the key {odd[0]!r} {verb}; graders read all alike.")

    def _special_faults(self, example: Example) -> Iterator[Fault]:
        """Special tokens written as text; those that start or end a turn would forge one."""
        control = self._tokenizer.control_tokens if self._tokenizer else frozenset()
        for pointer, text in texts(example):
            for token in sorted(set(self._special.findall(text))):
                # People write whole prompts, control tokens too, for models that take no messages.
                forges = token in control and not isinstance(example, CompletionExample)
                message = f"{token!r} is read as one special token, not as text. Write it otherwise."
                yield _fault(example, "special_token_in_text", "error" if forges else "warn", message, pointer)

    def _token_faults(self, example: Example, tokenizer: Tokenizer, tally: _Tally) -> Iterator[Fault]:
        try:
            whole = render(example, tokenizer)
        except InvalidRequest as error:
            yield _fault(example, "template_refused", "error", error.message)
            return
        length = max((_longest(rendered) for rendered in whole), default=0)
        tally.lengths.add(length)
        kept = whole
        if self._max_tokens is not None and length > self._max_tokens:
            kept = render(example, tokenizer, max_tokens=self._max_tokens)
            yield self._too_long(example, length, kept)
            tally.truncated += bool(kept)
        tally.left_out += not kept
        tally.tokens += sum(rendered.tree.size for rendered in kept)
        tally.trained += sum(rendered.trained_tokens for rendered in kept)

    def _too_long(self, example: Example, length: int, kept: list[Rendered]) -> Fault:
        consequence = "its end is cut off" if kept else "no answer would be left, so it is left out"
        message = f"{length:,} tokens are more than {self._max_tokens:,}: {consequence}. Shorten or split it."
        return _fault(example, "example_too_long", "warn", message)


def _file_faults(tally: _Tally, file: FileRole, min_examples: int) -> Iterator[Fault]:
    if tally.lines < min_examples:
        message = f"The {file} file has {tally.lines} examples; it needs at least {min_examples}. Add some."
        yield Fault(0, "", "too_few_examples", "error", message)
    if tally.examples and tally.left_out == tally.examples:
        message = f"No example of the {file} file fits into the model with its answer. Shorten the prompts."
        yield Fault(0, "", "nothing_to_learn", "error", message)


def _mixed_formats(example: Example, tally: _Tally) -> Iterator[Fault]:
    tally.format = tally.format or type(example)
    if not isinstance(example, tally.format):
        message = "the lines before it have the other format. Use messages, or prompt and completion, throughout."
        yield _fault(example, "mixed_formats", "error", message)


def _logic_faults(example: Example) -> Iterator[Fault]:
    if isinstance(example, ChatExample):
        for rule in CHECKS:
            for pointer, level, message in rule(example):
                yield _fault(example, rule.__name__, level, message, pointer)
    elif isinstance(example, PreferenceExample):
        yield from _pair_faults(example)
    elif isinstance(example, ProblemExample):
        chat = ChatExample(example.line, example.messages, example.tools, example.parallel_tool_calls)
        for rule in CALL_CHECKS:
            for pointer, level, message in rule(chat):
                yield _fault(example, rule.__name__, level, message, pointer)


def _pair_faults(example: PreferenceExample) -> Iterator[Fault]:
    """The faults of both chats, each at its place in the line; those of the input, which both have, once."""
    sides = zip(example.chats(), ("/preferred_output", "/non_preferred_output"), strict=True)
    for second, (chat, output) in enumerate(sides):
        for rule in (all_weights_zero, last_not_assistant, *CALL_CHECKS):
            for pointer, level, message in rule(chat):
                place = _place_in_pair(pointer, len(example.messages), output)
                if not (second and place.startswith("/input")):
                    yield _fault(example, rule.__name__, level, message, place)


def _place_in_pair(pointer: str, n_input: int, output: str) -> str:
    """A pointer into one of a pair's chats as a pointer into the line."""
    head, _, rest = pointer.removeprefix("/messages").removeprefix("/").partition("/")
    if not head:
        return output
    index = int(head)
    place = f"/input/messages/{index}" if index < n_input else f"{output}/{index - n_input}"
    return f"{place}/{rest}" if rest else place


def _calls(example: ChatExample) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    for n, message in enumerate(example.messages):
        for k, call in enumerate(message.get("tool_calls") or ()):
            yield f"/messages/{n}/tool_calls/{k}", call


def _longest(rendered: Rendered) -> int:
    """Tokens of the longest sequence in a tree."""
    return len(rendered.tree.trunk) + max((len(branch.tokens) for branch in rendered.tree.branches), default=0)


def _fault(example: Example, code: str, level: Level, message: str, pointer: str = "") -> Fault:
    return Fault(example.line, pointer, code, level, f"Line {example.line}: {message}")
