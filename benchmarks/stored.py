"""Stored completions at size: find by metadata, and export to a file on disk.

    python -m benchmarks.stored [--completions 10000] [--rounds 5] [--json]

The completions are of a kilobyte or two, every fourth with a tool and a call, all with three pairs of metadata; one
pair fits a tenth of them. Medians of the rounds, in seconds; the limit for filtering and exporting is 2 s.
`add_ms` is what keeping one answer costs, with the disk's sync.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekeeper.jobs.export import export
from tunekeeper.storage import completions as rows
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect, writing
from tunekeeper.storage.store import Store
from tunekeeper.types import CompletionFilter, Json, StoredCompletion

WORDS = "order ticket was sent to paris and the customer asks when it will arrive at the door please"
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Find an order by its number.",
        "parameters": {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]},
    },
}


def completion(n: int, random_: random.Random) -> StoredCompletion:
    """The n-th of them."""

    words = WORDS.split()

    def text(n_words: int) -> str:
        return " ".join(random_.choice(words) for _ in range(n_words))

    request: Json = {
        "model": "teacher",
        "messages": [{"role": "system", "content": text(60)}, {"role": "user", "content": text(80)}],
        "temperature": 0,
    }
    message: Json = {"role": "assistant", "content": text(60), "refusal": None, "annotations": []}
    if n % 4 == 0:
        request["tools"] = [TOOL]
        call = {"name": "find_order", "arguments": json.dumps({"number": str(n)})}
        message |= {"content": None, "tool_calls": [{"id": f"call_{n}", "type": "function", "function": call}]}
    reason = "tool_calls" if n % 4 == 0 else "stop"
    return StoredCompletion(
        id=f"chatcmpl-{n:08}",
        created=1_800_000_000 + n,
        model="teacher-2026-01-01",
        request=request,
        response={
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": {"prompt_tokens": 180, "completion_tokens": 70, "total_tokens": 250},
        },
        source="upstream",
        metadata={"team": f"team-{n % 10}", "env": "prod", "ticket": str(n)},
        request_id=f"req_{n}",
        latency_s=0.5,
    )


def median(work: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(home: Path, n: int, rounds: int) -> Json:
    engine = connect(home)
    store, blobs = Store(engine), DirectoryBlobs(home / "blobs")
    random_ = random.Random(0)
    with writing(engine).begin() as tx:
        for number in range(n):
            rows.add(tx, completion(number, random_))
    fresh = iter(range(n, n + 200))

    def to_file(filter_: CompletionFilter, format_: Any) -> int:
        with blobs.writer() as writer:
            found = export(store.iter_completions(filter_), writer, format_)
            writer.commit()
        return found.lines

    everyone, team = CompletionFilter(metadata={"env": "prod"}), CompletionFilter(metadata={"team": "team-3"})
    assert to_file(everyone, "chat") == n
    assert to_file(team, "chat") == n // 10
    result: Json = {
        "completions": n,
        "mean_bytes": store.completion_totals().bytes // n,
        "page_of_a_tenth_s": median(lambda: store.list_completions(team, limit=100, order="desc"), rounds),
        "read_all_s": median(lambda: sum(1 for _ in store.iter_completions(everyone)), rounds),
        "export_tenth_chat_s": median(lambda: to_file(team, "chat"), rounds),
        "export_all_chat_s": median(lambda: to_file(everyone, "chat"), rounds),
        "export_all_eval_s": median(lambda: to_file(everyone, "eval"), rounds),
        "add_ms": 1000 * median(lambda: store.add_completion(completion(next(fresh), random_)), 50),
    }
    store.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = measure(Path(home), options.completions, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value:,}")


if __name__ == "__main__":
    main()
