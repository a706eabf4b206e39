"""What a data set shows by itself, before anything is trained: contradictions, a held-out part that is unlike the
rest, answers that are guessed easily, facts that no prompt holds, and answers that leave the given passages.

Each sign is a hint in plain words with its figures; a person judges. Words are compared as they are written,
without case, so texts of languages that put no spaces between words give rough figures.

    >>> train, held_out = split(records, 0.2, seed=1)
    >>> contradictions(train).ceiling
    0.93
"""

import json
import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunekeeper.types import Json, Message

FEWEST_HELD_OUT = 10
"""With fewer items not even a great difference is seen."""
MUCH_CONTRADICTED = 0.2
"""From this share of lines on it is not worth training."""
STRANGE_WORDS = 0.1
MANY_FACTS_MISSING = 0.3
WITHIN_PASSAGES = 0.8
"""Share of an answer's words that stand in its prompt, from which on it counts as taken from there."""

REFERENCES = ("reference_answer", "answer", "reference", "expected", "solution", "label", "target")
"""Keys of a problem that may hold its right answer."""

_WORD = re.compile(r"[^\W_]+(?:[.,'-][^\W_]+)*")
_PASSAGE = re.compile(
    r"^\s*(?:#+\s*|<)?(?:context|passages?|documents?|sources?|excerpts?|snippets?|search results?|articles?|docs?)\b"
    r"[^\n:>]{0,40}(?:[:>]|$)|^\s*\[\d+\]\s",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of a data set, as what is asked and what is to be answered."""

    line: int
    messages: tuple[Message, ...]
    """What the model is given."""
    answer: Message
    """The assistant's message that is to come; without content where the line has none."""
    value: Json
    """The line itself."""
    tools: tuple[Json, ...] = ()
    item: Json = field(default_factory=dict)
    """What a grader knows beside the answer."""

    @property
    def prompt(self) -> str:
        """Everything that the model is given, as one text."""
        said = [f"{message['role']}: {_text(message)}" for message in self.messages]
        return "\n".join([*said, *(json.dumps(tool, sort_keys=True) for tool in self.tools)])

    @property
    def question(self) -> str:
        """What the user said last."""
        said = [_text(message) for message in self.messages if message["role"] == "user"]
        return said[-1] if said else self.prompt

    @property
    def calls(self) -> list[Json]:
        """The functions that the answer calls: [{"name", "arguments"}], the arguments as a value."""
        return [
            {"name": call["function"]["name"], "arguments": _value(call["function"]["arguments"])}
            for call in self.answer.get("tool_calls") or ()
        ]

    @property
    def reference(self) -> str:
        """The right answer as one text, also where a problem's line has it under a key; empty: there is none."""
        known = (self.item[key] for key in REFERENCES if isinstance(self.item.get(key), str | int | float))
        return self.text or next((str(value).strip() for value in known), "")

    @property
    def text(self) -> str:
        """The answer as one text; calls as JSON."""
        calls = self.calls
        return json.dumps(calls, sort_keys=True, ensure_ascii=False) if calls else _text(self.answer).strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something that was found, in plain words, with its figures."""

    code: str = field(kw_only=False)
    level: Literal["info", "hint", "warn", "stop"]
    """hint: a person should look; stop: tuning makes no sense before it is mended."""
    text: str
    figures: Mapping[str, float | int | str | None] = field(default_factory=dict)


def split(records: Sequence[Record], share: float, *, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and held-out records, in the file's order; lines with the same prompt stay on one side.

    Of small data more is held out, up to a half, so that there are 2 * FEWEST_HELD_OUT items if it goes.
    """
    wanted = max(round(share * len(records)), min(2 * FEWEST_HELD_OUT, len(records) // 2))
    groups = list(_groups(records).values())
    random.Random(seed).shuffle(groups)
    held_out: set[int] = set()
    for group in groups:
        if len(held_out) + len(group) <= wanted:
            held_out |= {id(record) for record in group}
    return [r for r in records if id(r) not in held_out], [r for r in records if id(r) in held_out]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradictions:
    """Prompts that are answered in more than one way."""

    lines: int
    """Lines whose prompt another line answers otherwise."""
    n: int
    ceiling: float
    """Share of the lines that a model could have right at best, for it can give one answer to a prompt."""
    first: tuple[int, ...]
    """Line numbers of the first group."""


def contradictions(records: Sequence[Record]) -> Contradictions:
    """Look for equal prompts with different answers; spaces do not count. Of no record the ceiling is 1."""
    lines = best = 0
    first: tuple[int, ...] = ()
    for group in _groups(records).values():
        answers = Counter(_normal(record.text) for record in group)
        best += max(answers.values())
        if len(answers) > 1:
            lines += len(group)
            first = first or tuple(sorted(record.line for record in group))
    return Contradictions(lines=lines, n=len(records), ceiling=best / len(records) if records else 1.0, first=first)


def shift(training: Sequence[Record], held_out: Sequence[Record]) -> list[Remark]:
    """Where the held-out items are unlike the training data: in their words, or in their labels.

    New words are counted against what one finds between two parts of the training data itself.
    """
    found = []
    if min(len(training), len(held_out)) >= FEWEST_HELD_OUT:
        usual, seen = _unseen_within(training), _unseen(held_out, training)
        if seen > STRANGE_WORDS and seen > 2 * usual:
            found.append(
                Remark(
                    "held_out_unlike_training",
                    level="warn",
                    text=f"{seen:.0%} of the words of the held-out questions do not occur in the training data; "
                    f"between parts of the training data it is {usual:.0%}. What is measured holds for other "
                    "questions than those that are learned: add training data like them.",
                    figures={"unseen_words": round(seen, 4), "unseen_words_within_training": round(usual, 4)},
                )
            )
    return [*found, *_label_shift(training, held_out)]


def labels(records: Sequence[Record]) -> dict[str, int]:
    """Answers with their counts where they are labels: short, few, and each often; else empty."""
    counts = Counter(_normal(record.text) for record in records)
    is_set = 1 < len(counts) <= 50 and counts.total() >= 5 * len(counts) and max(map(len, counts)) <= 64
    return dict(counts.most_common()) if is_set else {}


def majority(training: Sequence[Record], held_out: Sequence[Record]) -> float | None:
    """Share of the held-out items that one has right who always says the training's most frequent label."""
    known = labels(training)
    if not known or not held_out:
        return None
    most = next(iter(known))
    return sum(_normal(record.text) == most for record in held_out) / len(held_out)


def has_passages(records: Sequence[Record]) -> bool:
    """Whether most prompts bring passages to answer from, in words: below a heading such as 'Context:', or [1]."""
    asked = [record for record in records if not record.calls]
    marked = sum(any(_PASSAGE.search(_text(m)) for m in record.messages) for record in asked)
    return bool(asked) and marked >= 0.8 * len(records)


def single_passages(records: Sequence[Record]) -> float:
    """Share of the prompts with no more than one passage, so that nothing has to be left aside."""
    texts = ("\n".join(_text(message) for message in record.messages) for record in records)
    return sum(len(_PASSAGE.findall(text)) <= 1 for text in texts) / max(1, len(records))


def is_within(record: Record, text: str) -> bool:
    """Whether an answer stays within its prompt: all its numbers and most of its other words stand there."""
    given = set(_words(record.prompt))
    words = [word for word in _words(text) if len(word) > 3 or word[0].isdigit()]
    numbers = [word for word in words if word[0].isdigit()]
    if not words:
        return True
    return all(n in given for n in numbers) and sum(w in given for w in words) >= WITHIN_PASSAGES * len(words)


def missing_knowledge(
    training: Sequence[Record], held_out: Sequence[Record], right: Sequence[bool], *, loss_fell: bool
) -> Remark | None:
    """A hint that answers need facts which no prompt brings: they are learned by heart, not understood.

    Counted are the words and numbers of the right answers that are neither in the item's prompt nor usual in the
    training answers (two or more of them); `right` says which items the tuned model had right.
    """
    in_answers = Counter(word for record in training for word in set(_facts(record.text)))
    usual = {word for word, count in in_answers.items() if count > 1}
    shares: dict[bool, list[float]] = {True: [], False: []}
    for record, is_right in zip(held_out, right, strict=True):
        if facts := _facts(record.text):
            given = set(_words(record.prompt)) | usual
            shares[is_right].append(sum(fact not in given for fact in facts) / len(facts))
    wrong, fine = (math.fsum(each) / len(each) if each else 0.0 for each in (shares[False], shares[True]))
    if not loss_fell or len(shares[False]) < 5 or wrong < MANY_FACTS_MISSING or wrong < fine + 0.1:
        return None
    return Remark(
        "missing_knowledge",
        level="hint",
        text=f"Of the answers that the tuned model missed, {wrong:.0%} of the words and numbers stand neither in the "
        f"prompt nor in other answers ({fine:.0%} where it was right), while the training loss fell. That looks like "
        "facts that cannot be worked out from the question: put them into the prompt (retrieval) rather than into "
        "the weights. It is a hint from counting words, no proof.",
        figures={"not_in_prompt_wrong": round(wrong, 4), "not_in_prompt_right": round(fine, 4)},
    )


def _label_shift(training: Sequence[Record], held_out: Sequence[Record]) -> list[Remark]:
    known = labels(training)
    if not known or len(held_out) < FEWEST_HELD_OUT:
        return []
    there = Counter(_normal(record.text) for record in held_out)
    new = sum(count for label, count in there.items() if label not in known) / len(held_out)
    if new > 0.05:
        return [
            Remark(
                "labels_never_trained",
                level="warn",
                text=f"{new:.0%} of the held-out items have an answer that no training line has; it cannot be learned. "
                "Add examples of each label.",
                figures={"share": round(new, 4)},
            )
        ]
    total = sum(known.values())
    names = {*known, *there}
    distance = sum(abs(known.get(name, 0) / total - there[name] / len(held_out)) for name in names) / 2
    p = _chance_of(distance, known, len(held_out))
    if distance < 0.15 or p > 0.01:
        return []
    return [
        Remark(
            "labels_shifted",
            level="warn",
            text=f"The labels are distributed otherwise in the held-out items than in training (distance "
            f"{distance:.2f}, by chance in {p:.1%} of draws). Train on the mixture that will be asked.",
            figures={"distance": round(distance, 4), "p": round(p, 4)},
        )
    ]


def _chance_of(distance: float, known: Mapping[str, int], n: int, draws: int = 1000) -> float:
    """How often n items drawn from the training's labels are as far from them."""
    rng, names, total = random.Random(0), list(known), sum(known.values())
    weights = list(known.values())
    far = 0
    for _ in range(draws):
        drawn = Counter(rng.choices(names, weights, k=n))
        far += sum(abs(known[name] / total - drawn[name] / n) for name in names) / 2 >= distance - 1e-12
    return (far + 1) / (draws + 1)


def _unseen(asked: Iterable[Record], known: Iterable[Record]) -> float:
    vocabulary = {word for record in known for word in _words(record.question)}
    words = [word for record in asked for word in _words(record.question)]
    return sum(word not in vocabulary for word in words) / max(1, len(words))


def _unseen_within(records: Sequence[Record], parts: int = 5) -> float:
    found = [
        _unseen(records[part::parts], [r for n, r in enumerate(records) if n % parts != part]) for part in range(parts)
    ]
    return math.fsum(found) / parts


def _facts(text: str) -> list[str]:
    return [word for word in _words(text) if word[0].isdigit() or len(word) > 3]


def _groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[_normal(record.prompt)].append(record)
    return groups


def words(text: str) -> list[str]:
    """The words and numbers of a text, without case."""
    return [word.casefold() for word in _WORD.findall(text)]


_words = words


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or part.get("refusal") or "") for part in content)
    return str(content or message.get("refusal") or "")


def _value(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
