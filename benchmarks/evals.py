"""Tokens a second of an eval run, beside the engine's plain batched decoding of the same prompts.

    python -m benchmarks.evals [--model smollm2-135m] [--items 1000] [--tokens 64] [--rounds 3] [--json]

Both on one engine in one process, in turn, round by round, so that whatever else the machine does meets both; the
figures are medians. The run is a whole one: requests checked and rendered, answers graded by a string_check and a
fuzzy_match, every item stored. Greedy, so that both compute the same tokens. Ratio: the run's rate by plain decoding's.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tunekeeper.inference.answers import Answers
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.params import Sampling
from tunekeeper.inference.sampler import AnswersSampler, in_background
from tunekeeper.jobs.eval_data import data_source_config
from tunekeeper.jobs.evals import ENDED, EvalRunner
from tunekeeper.settings import load_settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Eval, EvalRun, Json, Model, new_id

TOPICS = (
    "the tides",
    "bread",
    "a lighthouse keeper who finds a letter",
    "how a bill becomes a law, step by step, for a class of ten-year-olds",
    "prime numbers",
    "the difference between a process and a thread, with an example of when each is the better choice",
)
SAMPLE = {"input": "{{ sample.output_text }}", "reference": "{{ item.reference }}"}
CRITERIA: list[Json] = [
    {"type": "string_check", "name": "has", "operation": "ilike", **SAMPLE},
    {"type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.5, **SAMPLE},
]


def questions(n: int) -> list[str]:
    """Different questions of different lengths."""
    return [f"{i + 1}. Tell me about {TOPICS[i % len(TOPICS)]}." for i in range(n)]


class Course:
    """One home in which runs are made."""

    def __init__(self, home: Path, model: Model, asked: list[str], n_tokens: int) -> None:
        self.settings = replace(load_settings(), home=home, max_waiting_requests=1 << 20)
        self.store, self.blobs = Store(connect(home)), DirectoryBlobs(home / "blobs")
        self.store.add_model(model)
        self.runner = EvalRunner(self.store, self.blobs, self.settings)
        config = data_source_config({"type": "custom", "item_schema": {"type": "object"}})
        self.eval = self.store.add_eval(
            Eval(id="eval_0", created_at=0, name="speed", data_source_config=config, testing_criteria=CRITERIA)
        )
        with self.blobs.writer() as writer:
            for text in asked:
                line = {"item": {"question": text, "reference": text}}
                writer.write(json.dumps(line).encode() + b"\n")
            self.sha256, _ = writer.commit()
        self.total = len(asked)
        self.source = {
            "type": "completions",
            "model": model.id,
            "source": {"type": "file_id", "id": "file-0"},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]},
            "sampling_params": {"temperature": 0, "max_completion_tokens": n_tokens},
        }

    def run(self) -> tuple[float, int]:
        """Seconds of a whole run, and the tokens that it generated."""
        run = self.store.add_eval_run(
            EvalRun(
                id=new_id("evalrun_"),
                eval_id=self.eval.id,
                created_at=0,
                name="speed",
                data_source=self.source,
                sha256=self.sha256,
                total=self.total,
                model=self.source["model"],
            )
        )
        began = time.perf_counter()
        self.runner.wake()
        while (run := self.store.get_eval_run(run.id)).status not in ENDED:
            time.sleep(0.02)
        took = time.perf_counter() - began
        assert run.status == "completed", run.error
        assert run.tally.get("errored", 0) == 0
        return took, sum(used["completion_tokens"] for used in run.tally["usage"].values())


def plain(engine: Engine, prompts: list[list[int]], n_tokens: int) -> tuple[float, int]:
    """Seconds of plain batched decoding, and the tokens that it generated."""
    began = time.perf_counter()
    answers = engine.answers(prompts, Sampling(max_tokens=n_tokens, temperature=0))
    return time.perf_counter() - began, sum(answer.n_generated for answer in answers)


def measure(model: Model, n_items: int, n_tokens: int, n_rounds: int) -> Json:
    """Rates of both, in tokens a second, and their ratio."""
    asked = questions(n_items)
    rates: dict[str, list[float]] = {"plain": [], "run": []}
    with tempfile.TemporaryDirectory() as directory:
        course = Course(Path(directory), model, asked, n_tokens)
        answers = Answers(course.settings, course.store)
        with in_background(answers) as sampler:
            base, _ = answers._acquire(model)  # the very engine that the run will ask
            chats = [[{"role": "user", "content": text}] for text in asked]
            render = base.tokenizer.render_chat
            prompts = [base.tokenizer.encode(render(chat, add_generation_prompt=True)) for chat in chats]
            course.runner.start(lambda: AnswersSampler(answers, sampler._loop))
            generated: dict[str, int] = {}
            plain(base.engine, prompts[:8], n_tokens)
            for _ in range(n_rounds):
                for name in rates:
                    base.engine.forget()  # each computes its prompts
                    took, n = plain(base.engine, prompts, n_tokens) if name == "plain" else course.run()
                    rates[name].append(n / took)
                    generated[name] = n
            course.runner.stop()
        course.store.close()
    found = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tokens_per_second": {name: round(value, 1) for name, value in found.items()},
        "ratio": round(found["run"] / found["plain"], 3),
        "ratios": [round(run / other, 3) for run, other in zip(rates["run"], rates["plain"], strict=True)],
        "generated": generated,
        "items": n_items,
        "tokens": n_tokens,
        "batch": course.settings.max_concurrent_requests,
    }


def model_of(name: str) -> Model:
    """A model of the home directory, or a directory of weights."""
    if Path(name).is_dir():
        return Model(id="measured", created_at=0, kind="base", path=str(Path(name).resolve()), base="measured")
    settings = load_settings()
    store = Store(connect(settings.home))
    model = store.get_model(name)
    store.close()
    return replace(model, path=str(settings.home / model.path))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a base model of the home directory, or a directory")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    found = measure(model_of(options.model), options.items, options.tokens, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    for name, rate in found["tokens_per_second"].items():
        print(f"{name:8}{rate:10.1f} tokens/s  ({found['generated'][name]:,} tokens of {found['items']:,} items)")
    print(f"{'ratio':8}{found['ratio']:10.3f}  (rounds: {', '.join(map(str, found['ratios']))})")


if __name__ == "__main__":
    main()
