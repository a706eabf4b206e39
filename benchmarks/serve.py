"""Answers a second: the embedded engine beside `transformers.generate`, on the same weights, prompts and tokens.

    python -m benchmarks.serve --model DIR [--tokens 64] [--streams 16] [--rounds 5] [--dtype fp32] [--json]

Greedy, no stop token, so that both compute the same number of tokens; in fp32, where they are to give the same text.
One thread computes on both sides, as in the server: with helpers of two, both would be slower. Measured in turn,
round by round, so that whatever else the machine does meets both; the figures are medians. transformers has two ways
to serve many requests: one after another, and one batch with left padding, its best case, for it needs all requests
at once.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekeeper.models.process import prepare_process

os.environ.setdefault("HF_HUB_OFFLINE", "1")
prepare_process()  # as the server does; it serves transformers too

import torch
import transformers

from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.packed import pack
from tunekeeper.inference.params import Sampling
from tunekeeper.models.load import load_decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

TOPICS = (
    "the tides",
    "bread",
    "a lighthouse keeper who finds a letter",
    "how a bill becomes a law, step by step, for a class of ten-year-olds",
    "prime numbers",
    "the difference between a process and a thread, with an example of when each is the better choice",
    "gardening in dry places",
    "Vienna",
)


class NoEnd:
    """A tokenizer whose answers never end by themselves."""

    eos_ids = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.token_bytes = tokenizer.token_bytes


def prompts(tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """Different questions of different lengths."""
    texts = [f"{i + 1}. Tell me about {TOPICS[i % len(TOPICS)]}." for i in range(n)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    return [tokenizer.encode(tokenizer.render_chat(chat, add_generation_prompt=True)) for chat in chats]


def generate(model: Any, batch: list[list[int]], n_tokens: int) -> list[list[int]]:
    """transformers' answers to a batch, padded on the left."""
    longest = max(map(len, batch))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return [row[longest:].tolist() for row in out]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate for each prompt")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of both sides")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(options.model, options.tokens, options.streams, options.rounds, options.dtype)
    print(json.dumps(result, indent=2) if options.json else table(result))


def measure(directory: Path, n_tokens: int, n_streams: int, n_rounds: int, dtype: str) -> dict[str, Any]:
    """Median tokens a second of each way, and ratios."""
    transformers.utils.logging.disable_progress_bar()
    tokenizer = Tokenizer.load(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPES[dtype]).eval()
    theirs.generation_config.eos_token_id = None
    decoder = load_decoder(directory, dtype=dtype)
    pack(decoder)
    sampling = Sampling(max_tokens=n_tokens, temperature=0)
    many = prompts(tokenizer, n_streams)
    times: dict[str, list[float]] = {}
    with Engine(
        decoder,
        NoEnd(tokenizer),
        directory,
        cache_tokens=n_streams * 1024,
        max_batch=n_streams,
        in_background=False,
    ) as engine:

        def fresh(batch: list[list[int]]) -> None:
            engine.forget()  # each round computes its prompts
            engine.answers(batch, sampling)

        ways: dict[str, Callable[[], object]] = {
            "engine, 1 stream": lambda: fresh(many[:1]),
            "transformers, 1 sequence": lambda: generate(theirs, many[:1], n_tokens),
            f"engine, {n_streams} streams": lambda: fresh(many),
            f"transformers, batch of {n_streams}": lambda: generate(theirs, many, n_tokens),
            f"transformers, {n_streams} one by one": lambda: [generate(theirs, [p], n_tokens) for p in many],
        }
        for way in ways.values():
            way()
        for _ in range(n_rounds):
            for name, way in ways.items():
                times.setdefault(name, []).append(seconds(way))
        same = agreement(engine, theirs, tokenizer, many, sampling)
    return summary(times, n_tokens, n_streams) | {"dtype": dtype, "same_text": same}


def agreement(engine: Engine, theirs: Any, tokenizer: Tokenizer, many: list[list[int]], sampling: Sampling) -> str:
    """How many of the answers are the same text as transformers' own, one by one."""
    ours = engine.answers(many, sampling)
    wanted = [tokenizer.decode(generate(theirs, [p], sampling.max_tokens or 0)[0]) for p in many]
    return f"{sum(a.text == b for a, b in zip(ours, wanted, strict=True))} of {len(many)}"


def summary(times: dict[str, list[float]], n_tokens: int, n_streams: int) -> dict[str, Any]:
    """Rates, and the engine's ratio to each way of transformers with as many answers."""
    rates = {}
    for name, measured in times.items():
        n_answers = 1 if name.endswith(("1 stream", "1 sequence")) else n_streams
        rates[name] = round(n_answers * n_tokens / statistics.median(measured), 1)
    one, one_theirs, ours, batch, serial = rates.values()
    return {
        "tokens_per_second": rates,
        "ratios": {
            "1 stream": round(one / one_theirs, 2),
            f"{n_streams} streams, to one by one": round(ours / serial, 2),
            f"{n_streams} streams, to its batch": round(ours / batch, 2),
        },
        "tokens": n_tokens,
        "rounds": len(next(iter(times.values()))),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{name:36} {rate:9.1f} tokens/s" for name, rate in result["tokens_per_second"].items()]
    lines += [f"{name:36} {ratio:9.2f} times" for name, ratio in result["ratios"].items()]
    lines.append(f"{'same text as transformers':36} {result['same_text']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
