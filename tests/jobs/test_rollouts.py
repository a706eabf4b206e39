"""Answers as the trainer gets them: exact tokens, repeatable, graded while others are still sampled."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from naive import drawn_adapter
from tunekeeper.datasets.formats import ProblemExample
from tunekeeper.datasets.render import render
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import TunekeeperError
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.packed import packed_view
from tunekeeper.jobs.prepare import Data
from tunekeeper.jobs.rollouts import EngineSampler, ProblemPlayer
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.trainer.config import ReinforcementConfig, resolve, validate_method
from tunekeeper.trainer.loop import Forest
from tunekeeper.trainer.rollouts import Ask, Judge, Rollout
from tunekeeper.types import Branch, Grade, Json, Tree

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Tokyo"]}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip


class LengthGrader:
    """Scores an answer by its length, and notes what it was given."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.seen: list[tuple[Json, Json]] = []
        self.threads: set[str] = set()
        self.times: list[float] = []

    def grade(self, sample: Json, item: Json) -> Grade:
        self.times.append(time.perf_counter())
        time.sleep(self.delay_s)
        self.seen.append((sample, item))
        self.threads.add(threading.current_thread().name)
        return Grade(score=float(len(sample["output_text"])))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def adapter(decoder: Decoder) -> LoraAdapter:
    return drawn_adapter(decoder)


@pytest.fixture
def engine(decoder: Decoder, tiny_base: Path) -> Iterator[Engine]:
    tokenizer = Tokenizer.load(tiny_base)
    with Engine(
        decoder,
        tokenizer,
        tiny_base,
        cache_tokens=8192,
        max_batch=8,
        max_waiting=1000,
        chunk_tokens=64,
        in_background=False,
    ) as running:
        yield running


def config(**hyperparameters: Any) -> ReinforcementConfig:
    said = {"max_completion_tokens": 12, **hyperparameters}
    method = {"type": "reinforcement", "reinforcement": {"grader": {}, "hyperparameters": said}}
    resolved = resolve(validate_method(method), n_examples=6, n_valid=0, context=512, hidden_size=32)
    assert isinstance(resolved, ReinforcementConfig)
    return resolved


def data(tokenizer: Tokenizer, n: int = 3, **more: Any) -> Data:
    problems = tuple(
        ProblemExample(k + 1, ({"role": "user", "content": f"Question {k}, " + "and so on " * 3 * k},), {"answer": k},
                       **more)
        for k in range(n)
    )  # fmt: skip
    return Data(tuple(render(problem, tokenizer)[0].tree for problem in problems), n, (), (), problems)


def player(
    engine: Engine, base: Path, grader: LengthGrader | None = None, form: Json | None = None, **more: Any
) -> ProblemPlayer:
    tokenizer = Tokenizer.load(base)
    files = data(tokenizer, **more)
    judges = [Judge("g", "g", "python")]
    return ProblemPlayer(
        EngineSampler(engine, engine.decoder),
        tokenizer,
        grader or LengthGrader(),
        judges,
        config(),
        files,
        files,
        response_format=form,
    )


ASKS = [Ask(problem, index, 1000 + 10 * problem + index) for problem in range(3) for index in range(4)]


def tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.tokens for rollout in rollouts]


def test_an_answer_has_the_tokens_that_were_sampled_and_its_grade(
    engine: Engine, tiny_base: Path, adapter: LoraAdapter
) -> None:
    grader = LengthGrader()
    rollouts = player(engine, tiny_base, grader).play(ASKS, adapter, valid=False)
    read = Tokenizer.load(tiny_base)
    for rollout in rollouts:
        ended = rollout.tokens[-1] in read.eos_ids
        assert rollout.is_cut == (not ended)
        assert len(rollout.tokens) == 12 if rollout.is_cut else ended
        text = b"".join(read.token_bytes(token) for token in rollout.tokens[: -1 if ended else None])
        assert rollout.text == text.decode("utf-8", "replace")
        assert rollout.grade.score == len(rollout.text)
        assert set(rollout.weights) == {1.0}
    sample, item = grader.seen[0]
    assert {"output_text", "output_tools", "choices"} <= set(sample)
    assert item["messages"][0]["role"] == "user"
    assert item["answer"] in (0, 1, 2)


def test_what_is_sampled_depends_on_nothing_that_was_played_before(
    engine: Engine, tiny_base: Path, adapter: LoraAdapter, decoder: Decoder
) -> None:
    played = player(engine, tiny_base)
    first = tokens(played.play(ASKS, adapter, valid=False))
    played.play(ASKS[::-1], None, valid=True)
    assert tokens(played.play(ASKS, adapter, valid=False)) == first
    fresh = Engine(decoder, Tokenizer.load(tiny_base), tiny_base, cache_tokens=8192, max_batch=8, max_waiting=99,
                   chunk_tokens=64, in_background=False)  # fmt: skip
    with fresh:
        assert tokens(player(fresh, tiny_base).play(ASKS, adapter, valid=False)) == first
    assert len(set(first)) > 6


def test_a_changed_adapter_is_not_answered_from_what_the_old_one_cached(
    engine: Engine, tiny_base: Path, decoder: Decoder
) -> None:
    changing = drawn_adapter(decoder, seed=8)
    played = player(engine, tiny_base)
    played.play(ASKS, changing, valid=False)
    with torch.no_grad():
        for pair in changing.pairs.values():
            pair.b_OR.mul_(-3)
    changing.forget_fused()
    after = tokens(played.play(ASKS, changing, valid=False))
    fresh = drawn_adapter(decoder, seed=8)
    with torch.no_grad():
        for pair in fresh.pairs.values():
            pair.b_OR.mul_(-3)
    assert tokens(played.play(ASKS, fresh, valid=False)) == after


def test_the_engine_samples_from_the_distribution_that_training_computes(
    engine: Engine, tiny_base: Path, adapter: LoraAdapter, decoder: Decoder
) -> None:
    from tunekeeper.inference.params import Sampling

    files = data(Tokenizer.load(tiny_base))
    params = Sampling(max_tokens=10, seed=4, top_logprobs=0)
    answers = engine.answers([tree.trunk for tree in files.trees], params, adapters=[adapter] * 3)
    trees = [
        Tree(tree.trunk, (Branch(tuple(one.token for one in answer.logprobs), (1.0,) * len(answer.logprobs)),))
        for tree, answer in zip(files.trees, answers, strict=True)
    ]
    with torch.no_grad():
        _, logprob_N, _ = Forest(decoder, trees, adapter, 0).logprobs(range(3))
    sampled = torch.tensor([one.logprob for answer in answers for one in answer.logprobs])
    torch.testing.assert_close(logprob_N, sampled, rtol=1e-4, atol=1e-4)


def test_a_view_with_the_adapter_merged_into_it_samples_the_same_answers(
    engine: Engine, tiny_base: Path, adapter: LoraAdapter, decoder: Decoder
) -> None:
    plain = player(engine, tiny_base).play(ASKS, adapter, valid=False)
    tokenizer, judges = Tokenizer.load(tiny_base), [Judge("g", "g", "python")]
    files = data(tokenizer)
    with Engine(
        packed_view(decoder),
        tokenizer,
        tiny_base,
        cache_tokens=8192,
        max_batch=8,
        max_waiting=99,
        chunk_tokens=64,
        in_background=False,
    ) as running:
        sampler = EngineSampler(running, decoder)
        merged = ProblemPlayer(sampler, tokenizer, LengthGrader(), judges, config(), files, files)
        for _ in range(2):
            assert tokens(merged.play(ASKS, adapter, valid=False)) == tokens(plain)


def test_answers_are_graded_in_threads_while_others_are_still_sampled(
    engine: Engine, tiny_base: Path, adapter: LoraAdapter
) -> None:
    grader = LengthGrader(delay_s=0.05)
    asks = [Ask(n % 3, n, n) for n in range(32)]  # four times the engine's batch
    began = time.perf_counter()
    player(engine, tiny_base, grader).play(asks, adapter, valid=False)
    ended = time.perf_counter()
    assert len(grader.seen) == 32
    assert len(grader.threads) > 1
    assert min(grader.times) - began < 0.7 * (ended - began)
    assert ended - began < 32 * 0.05 + 5


def test_a_response_format_holds_every_answer_and_what_it_forces_is_not_learned(
    engine: Engine, tiny_base: Path, adapter: LoraAdapter
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    played = player(engine, tiny_base, form=form)
    played._config = config(max_completion_tokens=40)
    rollouts = played.play(ASKS, adapter, valid=False)
    for rollout in rollouts:
        assert json.loads(rollout.text)["city"] in ("Paris", "Tokyo")
        assert 0.0 in rollout.weights
        assert 1.0 in rollout.weights
        assert len(rollout.weights) == len(rollout.tokens)


def test_calls_of_a_lines_functions_reach_the_grader(engine: Engine, tiny_base: Path) -> None:
    grader = LengthGrader()
    played = player(engine, tiny_base, grader, tools=(TOOL,))
    words, calls = played._parted('Wait.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', ["f"])
    assert words.strip() == "Wait."
    assert [(call["type"], call["function"]) for call in calls] == [("function", {"name": "f", "arguments": "{}"})]


def test_a_grader_whose_thread_cannot_start_is_an_error_of_the_run(engine: Engine, tiny_base: Path) -> None:
    played = player(engine, tiny_base)
    played._pool.shutdown()  # as where the system gives no more threads: what is handed in is refused
    with pytest.raises(RuntimeError):
        played.play(ASKS[:2], None, valid=False)


def test_an_engine_that_fails_is_an_error_of_the_run(engine: Engine, tiny_base: Path, decoder: Decoder) -> None:
    broken = drawn_adapter(decoder)
    with torch.no_grad():
        next(iter(broken.pairs.values())).b_OR.fill_(float("nan"))
    with pytest.raises(TunekeeperError, match="NaN"):
        player(engine, tiny_base).play(ASKS[:2], broken, valid=False)
