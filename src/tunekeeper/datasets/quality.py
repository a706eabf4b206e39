"""What is wrong with data that is well formed: repeats, contradictions, leaks, secrets, lopsided labels.

Nothing here is an error: each is a warning that a person judges. Memory grows with the number of examples,
two hashes each, never with their size. Values that may be secret are masked before they leave this module.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from itertools import accumulate
from typing import Literal

from tunekeeper.datasets.formats import (
    ChatExample,
    CompletionExample,
    Example,
    Fault,
    FileRole,
    PreferenceExample,
)
from tunekeeper.datasets.tokenizer import text_of
from tunekeeper.types import Json, Message

ADVICE: Mapping[str, str] = {
    "duplicate_example": "repeat an earlier example; repeats are learned more strongly. Keep one of each",
    "contradictory_answers": "answer a prompt otherwise than an earlier example. Keep the answer you want",
    "train_valid_overlap": "of the validation file stand in the training file too, so the validation loss "
    "flatters. Remove them from one of the two",
    "inconsistent_tools": "define a function otherwise than an earlier example does. Use one definition",
    "example_too_long": "are longer than the model is trained on and are cut. Shorten or split them",
    "possible_secret": "hold what looks like a key or password; the model may repeat it. Remove it",
    "personal_data": "hold what looks like personal data; the model may repeat it. Invent data instead",
    "special_token_in_text": "hold a special token written as text. Write it otherwise",
}
"""What to do about all the lines with one code, after 'N examples'."""

MAX_LABELS = 50
MAX_LABEL_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the whole file that a person should look at."""

    code: str
    level: Literal["info", "warn"]
    message: str
    count: int = 0
    lines: tuple[int, ...] = ()
    """The first lines that it is about."""

    def to_json(self) -> Json:
        """The finding as reports show it."""
        return {
            "code": self.code,
            "level": self.level,
            "message": self.message,
            "count": self.count,
            "lines": list(self.lines),
        }


@dataclass(frozen=True, slots=True)
class Sensitive:
    """Something in a text that should perhaps not be learned."""

    kind: str
    masked: str
    start: int
    """Where it stands in the text, and where it ends."""
    end: int


class Comparison:
    """Compares each example with all that came before it, of both files."""

    def __init__(self) -> None:
        self._examples: dict[int, int] = {}
        """Hash of prompt and answer -> the training line where they first stood."""
        self._prompts: dict[int, int] = {}
        self._tools: dict[str, tuple[int, int]] = {}
        self.labels = Labels()

    def add(self, example: Example, file: FileRole = "training") -> Iterator[Fault]:
        """Remember a training example, and say what it repeats, contradicts or leaks."""
        prompt, answer = prompt_and_answer(example)
        whole = _digest(json.dumps([prompt, answer]))
        same = self._examples.get(whole)
        if file == "validation":
            if same is not None:
                message = f"the same example is line {same} of the training file."
                yield _fault(example, "train_valid_overlap", message, file)
            return
        if isinstance(example, ChatExample | CompletionExample):
            self.labels.add(answer)
        first = self._prompts.setdefault(_digest(prompt), example.line)
        if same is not None:
            yield _fault(example, "duplicate_example", f"the same example is line {same}.", file)
        elif isinstance(
            example, PreferenceExample
        ):  # several pairs for one prompt are usual; the same pair the other way round is not
            swapped = self._examples.get(_digest(json.dumps([prompt, _pair(example, swapped=True)])))
            if swapped is not None:
                message = f"line {swapped} prefers the output that this line rejects."
                yield _fault(example, "contradictory_answers", message, file)
        elif first != example.line:
            message = f"line {first} answers the same prompt otherwise."
            yield _fault(example, "contradictory_answers", message, file)
        self._examples.setdefault(whole, example.line)
        yield from self._compare_tools(example, file)

    def _compare_tools(self, example: Example, file: FileRole) -> Iterator[Fault]:
        tools = () if isinstance(example, CompletionExample) else (example.tools or ())
        for n, tool in enumerate(tools):
            name, definition = tool["function"]["name"], _digest(_canonical(tool))
            line, first = self._tools.setdefault(name, (example.line, definition))
            if definition != first:
                message = f"the function {name!r} is defined otherwise than on line {line}."
                yield _fault(example, "inconsistent_tools", message, file, f"{_tools_place(example)}/{n}")


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long the examples are."""

    unit: Literal["tokens", "characters"]
    buckets: tuple[tuple[int, int, int], ...]
    """(from, to, examples), both ends included; each bucket is twice as wide as the one before."""
    minimum: int
    median: int
    p95: int
    maximum: int
    mean: float

    def to_json(self) -> Json:
        """The histogram as reports show it."""
        buckets = [{"from": first, "to": last, "count": count} for first, last, count in self.buckets]
        return {**asdict(self), "buckets": buckets}


class Lengths:
    """Counts lengths; how many different ones there are bounds the memory, not how many examples."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """Count one example."""
        self._counts[length] += 1

    @property
    def total(self) -> int:
        """All lengths together."""
        return sum(length * count for length, count in self._counts.items())

    def histogram(self, unit: Literal["tokens", "characters"]) -> Histogram | None:
        """The lengths at a glance; None when there are none."""
        if not self._counts:
            return None
        buckets: Counter[int] = Counter()
        for length, count in self._counts.items():
            buckets[length.bit_length()] += count
        return Histogram(
            unit,
            tuple((2**n // 2, 2**n - 1, buckets[n]) for n in range(min(buckets), max(buckets) + 1)),
            minimum=min(self._counts),
            median=self._at(0.5),
            p95=self._at(0.95),
            maximum=max(self._counts),
            mean=round(self.total / self._counts.total(), 1),
        )

    def _at(self, share: float) -> int:
        """The shortest length that this share of the examples does not exceed."""
        needed = math.ceil(share * self._counts.total())
        lengths = sorted(self._counts)
        reached = accumulate(self._counts[length] for length in lengths)
        return next(length for length, count in zip(lengths, reached, strict=True) if count >= needed)


class Labels:
    """Counts answers for as long as they look like the labels of a classification."""

    def __init__(self) -> None:
        self._counts: Counter[str] | None = Counter()

    def add(self, answer: str) -> None:
        """Count one answer; a long one, or too many different ones, mean that these are no labels."""
        if self._counts is None:
            return
        self._counts[answer] += 1
        if len(answer) > MAX_LABEL_CHARACTERS or len(self._counts) > MAX_LABELS:
            self._counts = None

    @property
    def counts(self) -> dict[str, int]:
        """Answers and how often each occurs, most frequent first; empty when they are no labels."""
        counts = self._counts or Counter()
        is_label_set = len(counts) > 1 and counts.total() >= 5 * len(counts)
        return dict(counts.most_common()) if is_label_set else {}

    def finding(self) -> Finding | None:
        """What the balance of the labels tells, if they are labels."""
        counts = self.counts
        if not counts:
            return None
        total = sum(counts.values())
        (most, often), (least, seldom) = next(iter(counts.items())), list(counts.items())[-1]
        summary = f"The answers are {len(counts)} labels: {_shown(most)} is {often / total:.0%} of {total}"
        if often < 0.8 * total and often < 10 * seldom:
            return Finding("label_balance", "info", f"{summary}, {_shown(least)} {seldom / total:.0%}.", total)
        advice = "The model may learn to say the frequent one; add examples of the rare ones."
        return Finding("label_imbalance", "warn", f"{summary}, {_shown(least)} {seldom / total:.1%}. {advice}", total)


def sensitive_faults(example: Example, file: FileRole = "training") -> Iterator[Fault]:
    """A warning for each text that seems to hold a secret or personal data; one a kind and text."""
    for pointer, text in texts(example):
        for code, found in (
            ("possible_secret", find_secrets(text)),
            ("personal_data", find_personal_data(text)),
        ):
            for kind, masked in {item.kind: item.masked for item in found}.items():
                yield _fault(example, code, f"this looks like {kind}: {masked}", file, pointer)


def texts(example: Example) -> Iterator[tuple[str, str]]:
    """Each text of the example with the JSON pointer to it."""
    if isinstance(example, CompletionExample):
        yield from (("/prompt", example.prompt), ("/completion", example.completion))
        return
    if isinstance(example, PreferenceExample):
        yield from _message_texts(example.messages, "/input/messages")
        yield from _message_texts(example.preferred, "/preferred_output")
        yield from _message_texts(example.rejected, "/non_preferred_output")
    else:
        yield from _message_texts(example.messages, "/messages")
    for n, tool in enumerate(example.tools or ()):
        yield f"{_tools_place(example)}/{n}", _canonical(tool)


def _message_texts(messages: Sequence[Message], place: str) -> Iterator[tuple[str, str]]:
    for n, message in enumerate(messages):
        yield f"{place}/{n}/content", text_of(message.get("content"))
        for key in ("refusal", "reasoning_content", "name"):
            if message.get(key):
                yield f"{place}/{n}/{key}", message[key]
        for k, call in enumerate(message.get("tool_calls") or ()):
            yield f"{place}/{n}/tool_calls/{k}/function/arguments", call["function"]["arguments"]


def _tools_place(example: Example) -> str:
    return "/input/tools" if isinstance(example, PreferenceExample) else "/tools"


def _fault(example: Example, code: str, message: str, file: FileRole, pointer: str = "") -> Fault:
    return Fault(example.line, pointer, code, "warn", f"Line {example.line}: {message}", file)


def prompt_and_answer(example: Example) -> tuple[str, str]:
    """What is asked and what is learned last, so written that only real differences remain."""
    if isinstance(example, CompletionExample):
        return _normal(example.prompt), _normal(example.completion)
    tools = [_canonical(tool) for tool in example.tools or ()]
    if not isinstance(example, ChatExample):
        prompt = json.dumps([[_essence(message) for message in example.messages], tools])
        return prompt, _pair(example) if isinstance(example, PreferenceExample) else _canonical(example.item)
    trained = [n for n in range(len(example.messages)) if example.is_trained(n)]
    cut = trained[-1] if trained else len(example.messages)
    before, last = example.messages[:cut], example.messages[cut : cut + 1]
    prompt = json.dumps([[_essence(message) for message in before], tools])
    is_plain = all(not message.get("tool_calls") for message in last)
    if last and is_plain:
        return prompt, _normal(text_of(last[0].get("content")))
    return prompt, json.dumps([_essence(message) for message in last])


def _pair(example: PreferenceExample, *, swapped: bool = False) -> str:
    outputs = [[_essence(message) for message in output] for output in (example.preferred, example.rejected)]
    return json.dumps(outputs[::-1] if swapped else outputs)


def _essence(message: Message) -> list[str]:
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls") or ()]
    content = text_of(message.get("content")) or message.get("refusal") or ""
    return [message["role"], _normal(content), *(_normal(text) for call in calls for text in call)]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _shown(label: str) -> str:
    hidden = [*find_secrets(label), *find_personal_data(label)]
    return hidden[0].masked if hidden else json.dumps(label, ensure_ascii=False)


def find_secrets(text: str) -> Iterator[Sensitive]:
    """Keys, tokens and passwords in the text, masked."""
    for kind, heads, pattern in _SECRETS:
        if any(head in text for head in heads):
            yield from (_sensitive(kind, match) for match in pattern.finditer(text))
    lowered = text.lower()
    for kind, heads, pattern in _ASSIGNED:
        if any(head in lowered for head in heads):
            found = (match for match in pattern.finditer(text) if _looks_random(match.group(1)))
            yield from (_sensitive(kind, match, 1) for match in found)


def find_personal_data(text: str) -> Iterator[Sensitive]:
    """E-mail and IP addresses, telephone, card, account and social security numbers in the text, masked."""
    patterns = _ADDRESSES if "@" in text else ()
    if _NUMBER.search(text):
        patterns += _NUMBERS
    for kind, pattern, is_valid in patterns:
        yield from (_sensitive(kind, match) for match in pattern.finditer(text) if is_valid(match.group(0)))


def _sensitive(kind: str, match: re.Match[str], group: int = 0) -> Sensitive:
    return Sensitive(kind, _mask(match.group(group)), *match.span(group))


def _mask(value: str) -> str:
    return f"{value[:3]}…{value[-2:]}" if len(value) >= 12 else f"{value[:1]}…"


def _looks_random(value: str) -> bool:
    """Whether the text is more like a key than like a word: letters, digits, and many different ones."""
    counts = Counter(value).values()
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
    return bits >= 3.2 and bool(re.search(r"\d", value)) and bool(re.search(r"[A-Za-z]", value))


def _is_real_address(address: str) -> bool:
    domain = address.rpartition("@")[2].lower()
    return not re.search(r"(^|\.)(example(\.(com|org|net))?|test|invalid|localhost)$", domain)


def _is_card(digits: str) -> bool:
    """Luhn's check over the digits, the last one first."""
    numbers = [int(character) for character in reversed(digits) if character.isdigit()]
    doubled = [n if place % 2 == 0 else sum(divmod(2 * n, 10)) for place, n in enumerate(numbers)]
    return numbers[-1] in {3, 4, 5, 6} and len(set(numbers)) > 1 and sum(doubled) % 10 == 0


def _is_iban(account: str) -> bool:
    """ISO 7064 over the account with its head moved to the end, letters as two digits."""
    compact = account.replace(" ", "")
    moved = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_phone(number: str) -> bool:
    return 9 <= sum(character.isdigit() for character in number) <= 15


def _is_social_security_number(number: str) -> bool:
    return number != "123-45-6789"


def _is_public(address: str) -> bool:
    """Whether an address is somebody's: none of a private network, of documents, of this machine."""
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


# Each pattern begins at a boundary and repeats within bounds, so that a hostile line costs linear time.
# The heads are texts that every match holds: looking for them first is what makes large files bearable.
_SECRETS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("an AWS access key", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("an API key", ("sk-",), re.compile(r"\bsk-(?=[A-Za-z_-]{0,200}\d)[A-Za-z0-9_-]{20,200}")),
    (
        "a GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    ),
    ("a Slack token", ("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,250}")),
    ("a Google API key", ("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}")),
    ("a Hugging Face token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,100}\b")),
    (
        "a JSON web token",
        ("eyJ",),
        re.compile(r"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
    ),
    (
        "a private key",
        ("PRIVATE KEY",),
        # To its end, or as far as it goes on like a key where the end is missing.
        re.compile(
            r"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?:(?!-----)[\s\S]){0,20000}-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"|[A-Za-z0-9+/=\s\\]{0,20000})"
        ),
    ),
)
_ASSIGNED: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("a bearer token", ("bearer",), re.compile(r"\b[Bb]earer\s{1,4}([A-Za-z0-9._~+/-]{20,2000}=*)")),
    (
        "a password or key",
        ("passw", "secret", "token", "key"),
        re.compile(
            r"(?:passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key)[\"']?\s{0,4}[:=]\s{0,4}[\"']?"
            r"([^\s\"',;<>(){}]{12,200}(?<!\\))",  # a backslash before a quote belongs to the quote
            re.IGNORECASE,
        ),
    ),
)
_Patterns = tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...]
_ADDRESSES: _Patterns = (
    (
        "an e-mail address",
        re.compile(
            r"(?<![\w.%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"
        ),
        _is_real_address,
    ),
)
_NUMBER = re.compile(r"\d[\d ().-]{6}")
_NUMBERS: _Patterns = (
    ("a telephone number", re.compile(r"(?<![\w+])\+\d(?:[ ().-]{0,2}\d){7,14}(?!\d)"), _is_phone),
    (
        "a telephone number",
        re.compile(r"(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"),
        _is_phone,
    ),
    ("a telephone number", re.compile(r"(?<![\w.-])0[1-9]\d{0,3}-\d{1,4}-\d{4}(?![\w-])"), _is_phone),
    ("a card number", re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])"), _is_card),
    (
        "an account number",
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        _is_iban,
    ),
    (
        "a social security number",
        re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
        _is_social_security_number,
    ),
    ("an IP address", re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"), _is_public),
)
