"""Reinforcement on packed groups equals the policy gradient written out; and it learns, resumes and ends as it says."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from forests import branch
from naive import check_gradients, drawn_adapter, factors_of, naive_logprobs, plain_llama
from tunekeeper.errors import TunekeeperError
from tunekeeper.models.load import load_decoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter
from tunekeeper.trainer.config import ReinforcementConfig, resolve, validate_method
from tunekeeper.trainer.losses import LossInputs, advantages, importance, policy_gradient
from tunekeeper.trainer.reinforce import FAILING_STEPS, Reinforcer
from tunekeeper.trainer.rollouts import Ask, Judge, Played, Rollout
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import Grade, GradeFault, Tree

GRADER = {"type": "string_check"}
JUDGE = Judge("g", "g", "string_check")
FAULT = GradeFault(kind="python_grader_runtime_error", message="ZeroDivisionError", grader="g")

Reward = Callable[[Tree, tuple[int, ...]], float]


class PlainPlayer:
    """Samples token by token with the decoder itself, and grades by a function of the tokens.

    Unless told otherwise that is the share of tokens on one side of the head's space: what can be learned soon.
    """

    judges: Sequence[Judge] = (JUDGE,)

    def __init__(self, base: Path, reward: Reward | None = None, *, length: int = 4, failing: bool = False) -> None:
        self._decoder = load_decoder(base, dtype="fp32")
        likeness_V = self._decoder.head_VE @ self._decoder.head_VE[70]
        self.liked = set(likeness_V.topk(150).indices.tolist())
        self._reward, self._length, self._failing = reward or self.share_liked, length, failing
        self.files: dict[bool, Sequence[Tree]] = {}

    def share_liked(self, tree: Tree, tokens: tuple[int, ...]) -> float:
        return sum(token in self.liked for token in tokens) / len(tokens)

    def play(self, asks: Sequence[Ask], adapter: LoraAdapter | None, *, valid: bool) -> list[Rollout]:
        return [self._one(self.files[valid][ask.problem], ask, adapter) for ask in asks]

    def prompt_of(self, problem: int, *, valid: bool) -> tuple[int, str]:
        return self.files[valid][problem].line, f"problem {problem}"

    @torch.no_grad()
    def _one(self, tree: Tree, ask: Ask, adapter: LoraAdapter | None) -> Rollout:
        tokens = list(tree.trunk)
        generator = torch.Generator().manual_seed(ask.seed)
        while len(tokens) < len(tree.trunk) + self._length:
            packed = pack([Tree(tuple(tokens), ())])
            rows = (AdapterRows(adapter, 0, packed.size),) if adapter else ()
            hidden = self._decoder.hidden(
                packed.tokens_T, packed.positions_T, TreeAttention(packed.spans), adapters=rows
            )
            chances = self._decoder.logits(hidden[-1:]).softmax(-1)[0]
            tokens.append(int(torch.multinomial(chances, 1, generator=generator)))
        answer = tuple(tokens[len(tree.trunk) :])
        grade = Grade(score=0.0, faults=(FAULT,)) if self._failing else Grade(score=self._reward(tree, answer))
        return Rollout(tokens=answer, weights=(1.0,) * len(answer), text=str(answer), grade=grade)


def config(n: int = 6, n_valid: int = 0, **hyperparameters: Any) -> ReinforcementConfig:
    said = {"n_epochs": 2, "batch_size": 3, "num_generations": 4, "max_completion_tokens": 8, "lora_rank": 4,
            "learning_rate_multiplier": 30.0, **hyperparameters}  # fmt: skip
    method = validate_method({"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": said}})
    resolved = resolve(method, n_examples=n, n_valid=n_valid, context=512, hidden_size=32)
    assert isinstance(resolved, ReinforcementConfig)
    return resolved


def prompts(n: int, seed: int = 0) -> list[Tree]:
    rng = random.Random(seed)
    return [
        Tree(tuple(rng.randrange(3, 300) for _ in range(rng.randrange(3, 8))), (), (), line)
        for line in range(1, n + 1)
    ]  # fmt: skip


def reinforcer(base: Path, settings: ReinforcementConfig, player: PlainPlayer | None = None, *, valid: int = 0,
               **options: Any) -> Reinforcer:  # fmt: skip
    player = player or PlainPlayer(base)
    player.files = {False: prompts(6), True: prompts(valid, seed=9)}
    return Reinforcer(
        load_decoder(base, dtype="fp32"), player.files[False], player.files[True], settings, player, seed=5, **options
    )


def played(groups: Sequence[Sequence[tuple[int, float]]], seed: int = 0, *, alike: bool = False) -> Played:
    """Answers of the given lengths and rewards, one group a problem; `alike`: of two tokens, so that many are equal."""
    rng = random.Random(seed)
    asks, rollouts = [], []
    for problem, group in enumerate(groups):
        for index, (length, reward) in enumerate(group):
            side = branch(length, rng)
            if alike:
                side = replace(side, tokens=tuple(5 + token % 2 for token in side.tokens))
            weights = tuple(0.0 if n == 1 else 1.0 for n in range(length))  # the second token was forced
            asks.append(Ask(problem, index, 0))
            rollouts.append(Rollout(tokens=side.tokens, weights=weights, text="", grade=Grade(score=reward)))
    return Played(asks, rollouts)


answer = st.tuples(st.integers(1, 7), st.sampled_from([0.0, 0.25, 1.0]))


@settings(max_examples=8, deadline=None)
@given(
    groups=st.lists(st.lists(answer, min_size=2, max_size=4), min_size=1, max_size=3),
    temperature=st.sampled_from([1.0, 0.7]),
    microbatch=st.sampled_from([10, 2048]),
    alike=st.booleans(),
)
def test_the_step_is_the_policy_gradient_of_one_sequence_a_row(
    tiny_base: Path, groups: list[list[tuple[int, float]]], temperature: float, microbatch: int, alike: bool
) -> None:
    run = reinforcer(tiny_base, config(temperature=temperature), microbatch_tokens=microbatch)
    assert run.adapter is not None
    run.adapter.pairs.update(drawn_adapter(run.decoder).pairs)
    answers = played(groups, alike=alike)
    caught: list[float] = []
    run._update = lambda rate: caught.append(rate) or 0.0  # type: ignore[assignment, func-returns-value]
    sums, _ = run.optimize(run.compare(answers), 1.0, n_answers=len(answers.asks))

    factors = factors_of(run.adapter)
    theirs = torch.zeros(())
    for problem, group in enumerate(groups):
        rewards = [reward for _, reward in group]
        for n, rollout in enumerate(r for a, r in zip(answers.asks, answers.rollouts, strict=True)
                                    if a.problem == problem):  # fmt: skip
            others = rewards[:n] + rewards[n + 1 :]
            advantage = rewards[n] - sum(others) / len(others)
            side = replace(branch(1, random.Random(0)), tokens=rollout.tokens, weights=rollout.weights)
            logprobs = naive_logprobs(
                tiny_base, factors, run.adapter.scale, run.problems[problem].trunk, side, temperature
            )
            theirs = theirs - advantage * logprobs.sum() / (len(answers.asks) * 8)
    tied = all(len({reward for _, reward in group}) == 1 for group in groups)
    assert bool(caught) != tied or alike  # equal answers may have unequal rewards, which teach nothing
    if caught:
        theirs.backward()
        assert sums.loss == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
        check_gradients(run.adapter, factors)


@pytest.mark.parametrize("microbatch", [20, 2048])
def test_what_another_program_sampled_is_weighted_by_how_much_likelier_it_is_here(
    tiny_base: Path, microbatch: int
) -> None:
    run = reinforcer(tiny_base, config(), microbatch_tokens=microbatch)
    assert run.adapter is not None
    run.adapter.pairs.update(drawn_adapter(run.decoder).pairs)
    run._update = lambda rate: 0.0  # type: ignore[method-assign, assignment]
    answers = played([[(5, 1.0), (3, 0.0), (6, 0.5)], [(2, 0.0), (4, 1.0)]])
    factors = factors_of(run.adapter)
    here = []
    for ask, rollout in zip(answers.asks, answers.rollouts, strict=True):
        side = replace(branch(1, random.Random(0)), tokens=rollout.tokens, weights=(1.0,) * len(rollout.tokens))
        here.append(naive_logprobs(tiny_base, factors, run.adapter.scale, run.problems[ask.problem].trunk, side))
    shifts = [[0.3 * ((n + place) % 5) - 0.9 for place in range(len(one))] for n, one in enumerate(here)]
    told = [
        replace(rollout, logprobs=tuple((one.detach() - torch.tensor(shift)).tolist()))
        for rollout, one, shift in zip(answers.rollouts, here, shifts, strict=True)
    ]
    sums, _ = run.optimize(run.compare(Played(answers.asks, told)), 1.0, n_answers=5)
    theirs = torch.zeros(())
    gaps = []
    advantages_of = [0.75, -0.75, 0.0, -1.0, 1.0]
    for one, shift, advantage, rollout in zip(here, shifts, advantages_of, answers.rollouts, strict=True):
        for place, (logprob, by) in enumerate(zip(one, shift, strict=True)):
            weight = rollout.weights[place] * min(math.exp(by), 2.0)
            theirs = theirs - advantage * weight * logprob / (5 * 8)
            gaps += [abs(by)] if rollout.weights[place] and advantage else []
    theirs.backward()
    assert sums.loss == pytest.approx(theirs.item(), rel=1e-4, abs=1e-5)
    check_gradients(run.adapter, factors)
    assert run._gap == pytest.approx(statistics.mean(gaps), abs=1e-4)


def test_tokens_that_are_far_likelier_here_have_a_bounded_weight() -> None:
    here = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weights = importance(here, torch.tensor([-1.0, -9.0, -0.5]))
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)])
    assert not weights.requires_grad


def test_advantages_worked_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5, 3.0, 3.0, 9.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    assert advantages(rewards, groups).tolist() == pytest.approx([0.75, -0.75, 0.0, 0.0, 0.0, 0.0])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_advantages_of_a_group_sum_to_nothing(rewards: list[float]) -> None:
    found = advantages(torch.tensor(rewards, dtype=torch.float64), torch.zeros(len(rewards), dtype=torch.long))
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)
    if len(set(rewards)) == 1:
        assert not found.any()


def test_a_loss_worked_by_hand() -> None:
    # Two answers of two tokens and of one: -(0.5 * (-1 - 2) - 0.5 * -4) / 6
    inputs = LossInputs(
        torch.tensor([-1.0, -2.0, -4.0]), torch.ones(3), torch.tensor([0, 0, 1]), None, torch.tensor([0.5, -0.5])
    )
    torch.testing.assert_close(policy_gradient(inputs, 6.0), torch.tensor(-0.5 / 6))


def test_a_gradient_averages_to_that_of_the_expected_reward(tiny_base: Path) -> None:
    """Unbiased: one-token answers, whose expected reward can be written out in full."""
    player = PlainPlayer(tiny_base, length=1)
    run = reinforcer(tiny_base, config(num_generations=16, max_completion_tokens=1), player)
    assert run.adapter is not None
    run.adapter.pairs.update(drawn_adapter(run.decoder).pairs)
    run._update = lambda rate: 0.0  # type: ignore[assignment]
    for seed in range(150):  # of 16 answers each: a standard error of about a tenth
        asks = [Ask(0, n, seed * 100 + n) for n in range(16)]
        answers = Played(asks, run.player.play(asks, run.adapter, valid=False))
        run.optimize(run.compare(answers), 1.0, n_answers=16)
    factors = factors_of(run.adapter)
    logprobs = expected_logprobs(tiny_base, factors, run.adapter.scale, run.problems[0].trunk)
    (-logprobs[sorted(player.liked)].exp().sum()).backward()
    ours = torch.cat([pair.b_OR.grad.flatten() / 150 for pair in run.adapter.pairs.values()])  # type: ignore[union-attr]
    theirs = torch.cat([factors[f"{name}.b"].grad.flatten() for name in run.adapter.pairs])  # type: ignore[union-attr]
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.9
    assert float(ours @ theirs / (theirs @ theirs)) == pytest.approx(1, abs=0.25)


def expected_logprobs(base: Path, factors: dict[str, Tensor], scale: float, trunk: tuple[int, ...]) -> Tensor:
    """Log-probability of every token after the prompt, (V,)."""
    weights = load_file(base / "model.safetensors")
    names = {name.rpartition(".")[0] for name in factors}
    changed = {f"{n}.weight": weights[f"{n}.weight"] + scale * factors[f"{n}.b"] @ factors[f"{n}.a"] for n in names}
    return plain_llama(base, weights | changed)(torch.tensor(trunk))[-1].log_softmax(-1)


def test_the_reward_rises_and_the_evaluation_says_so(tiny_base: Path) -> None:
    run = reinforcer(tiny_base, config(n_epochs=8, n_valid=3, eval_interval=8, eval_samples=8, num_generations=8,
                                       learning_rate_multiplier=30.0), valid=3)  # fmt: skip
    before = run.prepare()
    assert before is not None
    steps = list(run.steps())
    assert len(steps) == 16
    evaluated = [step.details["valid_reward_mean"] for step in steps if "valid_reward_mean" in step.details]
    assert len(evaluated) == 2
    assert evaluated[-1] > float(before.partition("=")[2]) + 0.15
    assert [step.step for step in steps if step.samples] == [8, 16]
    assert steps[-1].samples is not None
    assert steps[-1].samples["best"][0]["reward"] >= steps[-1].samples["worst"][0]["reward"]


@pytest.mark.parametrize("variant", [{}, {"kl_coef": 0.1}, {"temperature": 0.8}])
def test_a_resumed_run_ends_with_the_same_weights(tiny_base: Path, tmp_path: Path, variant: dict[str, Any]) -> None:
    settings = config(n_valid=2, eval_interval=2, **variant)
    whole = reinforcer(tiny_base, settings, valid=2)
    undisturbed = list(whole.steps())
    for stop_after in (0, 1, 3):
        first = reinforcer(tiny_base, settings, valid=2)
        first.prepare()
        first.save_state(tmp_path / "state")
        for _, step in zip(range(stop_after), first.steps(), strict=False):
            first.save_state(tmp_path / "state")
            assert step.step <= stop_after
        second = reinforcer(tiny_base, settings, valid=2)
        second.load_state(tmp_path / "state")
        assert second.prepare() is None
        resumed = list(second.steps())
        assert [s.details["scores"] for s in resumed] == [s.details["scores"] for s in undisturbed[stop_after:]]
        for name, tensor in whole.parameters.items():
            assert torch.equal(tensor, second.parameters[name]), name


def test_the_divergence_from_the_start_is_measured_and_holds_the_model_back(tiny_base: Path) -> None:
    free = list(reinforcer(tiny_base, config(n_epochs=6, kl_coef=1e-9)).steps())
    held = list(reinforcer(tiny_base, config(n_epochs=6, kl_coef=1.0)).steps())
    assert free[0].details["train_kl_mean"] == pytest.approx(0, abs=1e-5)
    assert held[-1].details["train_kl_mean"] < 0.5 * free[-1].details["train_kl_mean"]


def test_the_divergence_is_measured_in_passes_of_the_same_size(tiny_base: Path) -> None:
    found = []
    for microbatch in (12, 2048):
        run = reinforcer(tiny_base, config(kl_coef=0.5), microbatch_tokens=microbatch)
        assert run.adapter is not None
        run.adapter.pairs.update(drawn_adapter(run.decoder).pairs)
        found.append(run.compare(played([[(5, 1.0), (3, 0.0), (6, 0.5)], [(2, 0.0), (4, 1.0)]])))
    assert found[0].kl_mean == pytest.approx(found[1].kl_mean, rel=1e-4)
    assert [a for one in found[0].advantages for a in one] == pytest.approx(
        [a for one in found[1].advantages for a in one], rel=1e-4
    )


def test_all_weights_can_learn_too(tiny_base: Path) -> None:
    settings = replace(config(n_epochs=4), full_finetune=True, learning_rate=3e-3)
    player = PlainPlayer(tiny_base)
    run = reinforcer(tiny_base, settings, player)
    player._decoder = run.decoder
    steps = list(run.steps())
    assert steps[-1].details["train_reward_mean"] > steps[0].details["train_reward_mean"] + 0.1


def test_answers_that_were_not_graded_teach_nothing(tiny_base: Path) -> None:
    run = reinforcer(tiny_base, config())
    answers = played([[(3, 1.0), (3, 0.0)], [(3, 1.0), (3, 1.0)]])
    lost = replace(answers.rollouts[1], grade=Grade(score=0.0, faults=(FAULT,)))
    half = Played(answers.asks, [answers.rollouts[0], lost, *answers.rollouts[2:]])
    assert len(run.compare(answers).trees) == 1
    assert run.compare(answers).tied_share == 0.5
    assert run.compare(half).trees == ()
    earned = replace(lost, grade=Grade(score=0.0, faults=(replace(FAULT, by_sample=True),)))
    assert len(run.compare(Played(answers.asks, [answers.rollouts[0], earned, *answers.rollouts[2:]])).trees) == 1


def test_a_group_larger_than_a_pass_is_split_with_its_prompt(tiny_base: Path) -> None:
    run = reinforcer(tiny_base, config(), microbatch_tokens=20)
    sampled = run.compare(played([[(6, 1.0), (6, 0.0), (6, 0.5), (6, 0.25)]]))
    assert len(sampled.trees) > 1
    assert {tree.trunk for tree in sampled.trees} == {run.problems[0].trunk}
    assert sum(len(each) for each in sampled.advantages) == 4


def test_what_answers_share_is_computed_once_and_what_is_equal_too(tiny_base: Path) -> None:
    run = reinforcer(tiny_base, config())
    answers = played([[(5, 1.0), (5, 0.0), (5, 0.0), (5, 1.0)]])
    tokens = [(7, 8, 9, 10, 2), (7, 8, 11, 12, 2), (7, 8, 11, 12, 2), (7, 8, 13, 2, 14)]
    told = [replace(one, tokens=each) for one, each in zip(answers.rollouts, tokens, strict=True)]
    sampled = run.compare(Played(answers.asks, told))
    assert [tree.trunk for tree in sampled.trees] == [(*run.problems[0].trunk, 7, 8)]
    assert [one.tokens for one in sampled.trees[0].branches] == [(9, 10, 2), (11, 12, 2), (13, 2, 14)]
    assert sampled.advantages[0] == pytest.approx([2 / 3, -4 / 3, 2 / 3])
    run.config = replace(run.config, adapter_scope="completion")  # a trunk is then computed without the adapter
    assert run.compare(Played(answers.asks, told)).trees[0].trunk == run.problems[0].trunk


def test_a_grader_that_keeps_failing_ends_the_run_with_its_words(tiny_base: Path) -> None:
    run = reinforcer(tiny_base, config(n_epochs=9), PlainPlayer(tiny_base, failing=True))
    done = []
    with pytest.raises(TunekeeperError, match=r"python_grader_runtime_error.*ZeroDivisionError") as caught:
        done.extend(step.step for step in run.steps())
    assert run.step == FAILING_STEPS
    assert caught.value.code == "grader_failed"
    watched = reinforcer(tiny_base, config(n_valid=2), PlainPlayer(tiny_base, failing=True), valid=2)
    with pytest.raises(TunekeeperError, match="Before the first step"):
        watched.prepare()


def test_ties_without_end_fail_a_run_that_learned_nothing_and_stop_one_that_did(tiny_base: Path) -> None:
    never = reinforcer(tiny_base, config(n_epochs=9), PlainPlayer(tiny_base, lambda tree, tokens: 0.0))
    with pytest.raises(TunekeeperError, match="got the same score") as caught:
        list(never.steps())
    assert (caught.value.code, never.step) == ("no_learning_signal", 5)
    calls = []

    def then_solved(tree: Tree, tokens: tuple[int, ...]) -> float:
        calls.append(1)
        return player.share_liked(tree, tokens) if len(calls) <= 12 else 1.0

    player = PlainPlayer(tiny_base, then_solved)
    solved = list(reinforcer(tiny_base, config(n_epochs=9), player).steps())
    assert len(solved) == 6
    assert "equally good" in (solved[-1].stop_reason or "")
    assert solved[-1].epoch_end
