"""Examples in the prompt: which to show, and the request that shows them. What one does without tuning.

shots = similar(pool)                    # or short(pool)
messages, tools = with_examples(record, shots(record, 3))
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from tunekeeper.evals.signs import Record, words
from tunekeeper.types import Json, Message

Choice = Callable[[Record, int], list[Record]]
"""A question and a number of examples -> the examples to show before it, in order."""


def short(pool: Sequence[Record]) -> Choice:
    """The same short ones for every question, of as many different answers as there are.

    The shortest tenth is left out: it is seldom typical.
    """
    by_length = sorted(pool, key=lambda record: len(record.prompt) + len(record.text))[len(pool) // 10 :]
    seen: set[str] = set()
    fresh: list[Record] = []
    again: list[Record] = []
    for record in by_length:
        (again if record.text in seen else fresh).append(record)
        seen.add(record.text)
    chosen = [*fresh, *again]
    return lambda record, k: chosen[:k]


def similar(pool: Sequence[Record]) -> Choice:
    """Those whose question has most words in common with this one, rare words counting more (TF-IDF, cosine).

    The most similar comes last, next to the question.
    """
    counts = [Counter(words(record.question)) for record in pool]
    in_records = Counter(word for count in counts for word in count)
    idf = {word: math.log((1 + len(pool)) / (1 + n)) + 1 for word, n in in_records.items()}
    index: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for n, count in enumerate(counts):
        norm = math.sqrt(math.fsum((times * idf[word]) ** 2 for word, times in count.items())) or 1.0
        for word, times in count.items():
            index[word].append((n, times * idf[word] / norm))

    def choose(record: Record, k: int) -> list[Record]:
        scores: dict[int, float] = defaultdict(float)
        for word, times in Counter(words(record.question)).items():
            for n, weight in index.get(word, ()):
                scores[n] += times * idf[word] * weight
        ranked = sorted(scores, key=lambda n: (-scores[n], n))
        ranked += [n for n in range(min(len(pool), len(ranked) + k)) if n not in scores]
        return [pool[n] for n in ranked[:k]][::-1]

    return choose


CHOICES: dict[str, Callable[[Sequence[Record]], Choice]] = {"short": short, "similar": similar}


def with_examples(record: Record, shown: Sequence[Record] = ()) -> tuple[list[Message], list[Json]]:
    """Messages and tools of a request; the shown ones are earlier turns, and their functions are offered too.

    The instructions at the beginning are the question's own.
    """
    n = _instructions(record)
    messages = list(record.messages[:n])
    for example in shown:
        answer = example.answer if example.text else {"role": "assistant", "content": example.reference}
        messages += [*example.messages[_instructions(example) :], answer]
    tools = {tool["function"]["name"]: tool for each in (*shown, record) for tool in each.tools}
    return [*messages, *record.messages[n:]], list(tools.values())


def _instructions(record: Record) -> int:
    """How many messages at the beginning are instructions."""
    roles = [message["role"] for message in record.messages]
    return next((n for n, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
