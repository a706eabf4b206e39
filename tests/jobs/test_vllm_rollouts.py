"""Answers sampled by a server that is given the adapter: those of the engine inside, and the same training."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from fake_vllm import FakeVllm, fake_vllm
from jobshop import add_job, events_of, problems
from naive import drawn_adapter
from tunekeeper.datasets.formats import ProblemExample
from tunekeeper.datasets.render import render
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import UpstreamFailed
from tunekeeper.graders.build import build
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.vllm import ATTEMPTS, VllmSampler
from tunekeeper.jobs import finetune
from tunekeeper.jobs.prepare import Data, Desk
from tunekeeper.jobs.queue import resume
from tunekeeper.jobs.rollouts import EngineSampler, ProblemPlayer, TokenSampler
from tunekeeper.models.decoder import Decoder
from tunekeeper.settings import Upstream
from tunekeeper.trainer.config import ReinforcementConfig, resolve, validate_method
from tunekeeper.trainer.loop import Forest
from tunekeeper.trainer.rollouts import Ask, Judge
from tunekeeper.types import Branch, Job, Tree

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Tokyo"]}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
ASKS = [Ask(problem, index, 1000 + 10 * problem + index) for problem in range(3) for index in range(3)]
GRADER = {"type": "string_check", "name": "g", "operation": "like", "input": "{{ sample.output_text }}",
          "reference": "a"}  # fmt: skip


@pytest.fixture
def server(tiny_base: Path) -> Iterator[FakeVllm]:
    with fake_vllm(tiny_base) as running:
        yield running


@pytest.fixture
def sampler(server: FakeVllm, tiny_base: Path, tmp_path: Path) -> Iterator[VllmSampler]:
    made = open_sampler(server, tiny_base, tmp_path / "rollouts")
    yield made
    made.close()


def open_sampler(server: FakeVllm, base: Path, directory: Path, **changes: Any) -> VllmSampler:
    return VllmSampler(
        Upstream(name="far", base_url=server.url, **changes),
        Tokenizer.load(base),
        base,
        base_id="tiny",
        directory=directory,
        there=PurePosixPath(directory),
        pause_s=0.001,
    )


def player(sampler: TokenSampler, base: Path, form: Any = None, **hyperparameters: Any) -> ProblemPlayer:
    tokenizer = Tokenizer.load(base)
    examples = tuple(
        ProblemExample(k + 1, ({"role": "user", "content": f"Question {k}, " + "and so on " * 3 * k},), {})
        for k in range(3)
    )
    files = Data(tuple(render(each, tokenizer)[0].tree for each in examples), 3, (), (), examples)
    said = {"max_completion_tokens": 12, **hyperparameters}
    method = {"type": "reinforcement", "reinforcement": {"grader": {}, "hyperparameters": said}}
    config = resolve(validate_method(method), n_examples=6, n_valid=0, context=512, hidden_size=32)
    assert isinstance(config, ReinforcementConfig)
    judges = [Judge("g", "g", "string_check")]
    return ProblemPlayer(sampler, tokenizer, build(GRADER), judges, config, files, files, response_format=form)


def test_the_server_answers_from_the_adapter_as_the_engine_inside_does(
    server: FakeVllm, sampler: VllmSampler, tiny_base: Path, decoder: Decoder
) -> None:
    tokenizer = Tokenizer.load(tiny_base)
    for seed in (3, 4):
        adapter = drawn_adapter(decoder, seed=seed)
        far = player(sampler, tiny_base).play(ASKS, adapter, valid=False)
        with Engine(decoder, tokenizer, tiny_base, cache_tokens=8192, max_batch=8, in_background=False) as engine:
            here = player(EngineSampler(engine, engine.decoder), tiny_base).play(ASKS, adapter, valid=False)
        assert [one.tokens for one in far] == [one.tokens for one in here]
        assert [(one.text, one.weights, one.is_cut, one.grade.score) for one in far] == [
            (one.text, one.weights, one.is_cut, one.grade.score) for one in here
        ]
        assert all(len(one.logprobs) == len(one.tokens) for one in far)
    assert len(server.loaded) == 2
    assert server.unloaded == server.loaded[:1]


def test_its_log_probabilities_are_those_that_training_computes(
    sampler: VllmSampler, tiny_base: Path, decoder: Decoder
) -> None:
    adapter = drawn_adapter(decoder)
    played = player(sampler, tiny_base)
    rollouts = played.play(ASKS, adapter, valid=False)
    trees = [
        Tree(played._files[False].trees[ask.problem].trunk, (Branch(one.tokens, one.weights),))
        for ask, one in zip(ASKS, rollouts, strict=True)
    ]
    with torch.no_grad():
        _, logprob_N, _ = Forest(decoder, trees, adapter, 0).logprobs(range(len(trees)))
    sampled = torch.tensor([logprob for one in rollouts for logprob in one.logprobs])
    torch.testing.assert_close(logprob_N, sampled, rtol=1e-4, atol=1e-4)


def test_a_response_format_goes_along_and_what_it_forces_is_not_learned(
    server: FakeVllm, sampler: VllmSampler, tiny_base: Path, decoder: Decoder
) -> None:
    played = player(sampler, tiny_base, FORM, max_completion_tokens=40)
    for rollout in played.play(ASKS, drawn_adapter(decoder), valid=False):
        assert json.loads(rollout.text)["city"] in ("Paris", "Tokyo")
        assert {0.0, 1.0} == set(rollout.weights)
    assert all("grammar" in body["structured_outputs"] for body in server.asked)


def test_nothing_of_the_distribution_is_left_to_the_servers_defaults(
    server: FakeVllm, sampler: VllmSampler, tiny_base: Path, decoder: Decoder
) -> None:
    player(sampler, tiny_base).play(ASKS[:1], drawn_adapter(decoder), valid=False)
    (asked,) = server.asked
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    assert [asked[name] for name in names] == [1.0, 1.0, 0, 0.0, 1.0, 0.0, 0.0]


def test_a_server_that_was_started_again_is_given_the_adapter_again(
    server: FakeVllm, sampler: VllmSampler, tiny_base: Path, decoder: Decoder
) -> None:
    adapter = drawn_adapter(decoder)
    before = player(sampler, tiny_base).play(ASKS, adapter, valid=False)
    sampler.begin(adapter)
    server.adapters.clear()
    played = player(sampler, tiny_base)
    played.sampler = replace_begin(sampler)
    assert [one.tokens for one in played.play(ASKS, adapter, valid=False)] == [one.tokens for one in before]


def replace_begin(sampler: VllmSampler) -> TokenSampler:
    """The same sampler, whose adapter is not loaded anew: it was, before the server lost it."""

    class Begun:
        context = sampler.context

        def begin(self, adapter: object) -> None:
            """It has begun."""

        def ask(self, *args: Any) -> None:
            sampler.ask(*args)

        def end(self) -> None:
            """Nothing is kept."""

    return Begun()


def test_a_server_that_is_busy_is_asked_again_and_one_that_is_away_is_named(
    server: FakeVllm, sampler: VllmSampler, tiny_base: Path, decoder: Decoder
) -> None:
    server.failures = [503, 500, 429]
    assert len(player(sampler, tiny_base).play(ASKS, drawn_adapter(decoder), valid=False)) == len(ASKS)
    server.failures = [503] * ATTEMPTS
    with pytest.raises(UpstreamFailed, match=r"far at http.* was asked 6 times: status 503"):
        player(sampler, tiny_base).play(ASKS, drawn_adapter(decoder), valid=False)


def test_a_server_that_cannot_load_adapters_or_gives_no_token_ids_says_what_to_do(
    server: FakeVllm, tiny_base: Path, tmp_path: Path, decoder: Decoder
) -> None:
    adapter = drawn_adapter(decoder)
    blind = open_sampler(server, tiny_base, tmp_path / "a")
    blind._there = PurePosixPath("/elsewhere")
    with pytest.raises(UpstreamFailed, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        player(blind, tiny_base).play(ASKS, adapter, valid=False)
    old = open_sampler(server, tiny_base, tmp_path / "b")
    server.without = {"token_ids"}
    with pytest.raises(UpstreamFailed, match=r"0\.11"):
        player(old, tiny_base).play(ASKS, adapter, valid=False)
    for each in (blind, old):
        each.close()


def test_adapters_that_a_killed_run_left_behind_are_taken_away(
    server: FakeVllm, tiny_base: Path, tmp_path: Path, decoder: Decoder
) -> None:
    killed = open_sampler(server, tiny_base, tmp_path / "rollouts")
    killed.begin(drawn_adapter(decoder))
    assert len(server.adapters) == 1
    killed._http.close()
    open_sampler(server, tiny_base, tmp_path / "rollouts").close()
    assert not server.adapters
    assert not (tmp_path / "rollouts").exists()


def job_of(desk: Desk, server: FakeVllm, **changes: Any) -> tuple[Desk, Job]:
    upstream = Upstream(name="far", base_url=server.url, rollouts=("tiny",))
    with_upstream = replace(desk, settings=replace(desk.settings, upstreams=(upstream,)))
    asked = {"validation": problems(2, first=100), "eval_interval": 6, "learning_rate_multiplier": 30, **changes}
    job = add_job(with_upstream, method="reinforcement", **asked)
    for _ in range(2):
        finetune.run(job.id, with_upstream)
    return with_upstream, desk.store.get_job(job.id)


def test_a_job_that_samples_there_learns_what_one_that_samples_here_learns(
    desk: Desk, server: FakeVllm, tmp_path: Path
) -> None:
    far, job = job_of(desk, server)
    assert (job.status, job.error) == ("succeeded", None)
    events = events_of(far, job)
    assert any(event.message == "Answers are sampled by the upstream far" for event in events)
    steps = [event.data for event in events if event.type == "metrics"]
    gaps = [step["train_sampler_gap_mean"] for step in steps if "train_sampler_gap_mean" in step]
    assert gaps
    assert max(gaps) < 1e-3
    here = add_job(
        desk, method="reinforcement", validation=problems(2, first=100), eval_interval=6, learning_rate_multiplier=30
    )
    for _ in range(2):
        finetune.run(here.id, desk)
    inside = [event.data for event in events_of(desk, desk.store.get_job(here.id)) if event.type == "metrics"]
    assert all("train_sampler_gap_mean" not in step for step in inside)
    assert [step["train_mean_reward"] for step in steps] == pytest.approx(
        [step["train_mean_reward"] for step in inside], abs=1e-6
    )
    assert not server.adapters


def test_a_server_with_other_weights_ends_the_job_with_that_reason(desk: Desk, server: FakeVllm) -> None:
    server.shift = -0.8
    _, job = job_of(desk, server)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "sampler_mismatch"
    assert "0.80 nats" in job.error["message"]
    assert job.step == 0


def test_a_job_whose_server_went_away_goes_on_when_it_is_back(desk: Desk, server: FakeVllm) -> None:
    server.without = {"token_ids"}
    far, job = job_of(desk, server)
    assert (job.status, (job.error or {}).get("code")) == ("failed", "upstream_failed")
    server.without = set()
    assert resume(desk.store, job.id).status == "queued"
    finetune.run(job.id, far)
    assert desk.store.get_job(job.id).status == "succeeded"


def test_a_job_that_the_server_cannot_sample_is_refused_when_it_starts_too(desk: Desk, server: FakeVllm) -> None:
    job = add_job(desk, method="reinforcement", temperature=0.7)
    upstream = Upstream(name="far", base_url=server.url, rollouts=("tiny",))
    later = replace(desk, settings=replace(desk.settings, upstreams=(upstream,)))
    for _ in range(2):
        finetune.run(job.id, later)
    failed = desk.store.get_job(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["param"] == "method.reinforcement.hyperparameters.temperature"
    assert not server.asked
