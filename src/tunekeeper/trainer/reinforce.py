"""Reinforcement: sample answers to a batch of problems, have them graded, step along the policy gradient.

    trainer = Reinforcer(decoder, prompts, valid_prompts, config, player, seed=1)
    for step in trainer.steps():
        print(step.step, step.details["train_reward_mean"])

Every answer is sampled by the very weights that then learn from it, and is used once: the gradient is on-policy.
Where another program samples, in other arithmetic, its log-probabilities come with the answers and are corrected by.
A group, the answers to one problem, is one tree: its prompt is computed once, with the beginning that they share, and
answers that are the same are one branch.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from tunekeeper.errors import TunekeeperError
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.trainer.config import ReinforcementConfig, learning_rate_at
from tunekeeper.trainer.loop import MICROBATCH_TOKENS, Forest, Learner, Sums, check_trunks
from tunekeeper.trainer.losses import LossInputs, advantages, branch_logprobs, importance, policy_gradient
from tunekeeper.trainer.rollouts import Ask, Played, Player, Rollout, extremes, first_faults, metrics, seed_of
from tunekeeper.trainer.step import Step
from tunekeeper.trainer.trees import microbatches
from tunekeeper.types import Branch, Json, Tree

FAILING_STEPS = 3
"""Steps one after another in which most answers could not be graded, after which the run fails."""

TIED_STEPS = 20
"""Steps one after another in which no answer was better than another, after which the run ends."""

MOST_GAP = 0.5
"""Nats by which the sampler's and the trainer's log-probability of a token may differ, on average: arithmetic in
bfloat16 comes to some hundredths, other weights to more than this."""


_Answer = tuple[tuple[int, float, float], ...]
"""Of each token: which it is, its loss weight, and its log-probability where it was sampled; its weight again: here."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answers of a step that something is learned from, as trees with an advantage for each branch."""

    trees: tuple[Tree, ...]
    advantages: tuple[tuple[float, ...], ...]
    """Of each tree's branches."""
    tied_share: float
    """Share of the problems whose answers were all equally good, or could not be compared."""
    kl_mean: float | None = None
    """Mean log-ratio of an answer to the starting model, in nats; where it is measured."""
    logprobs: tuple[tuple[float, ...], ...] = ()
    """Of each tree's learned tokens where they were sampled; empty where that was here."""


@dataclass(frozen=True, slots=True)
class _Lessons:
    """A tree of sampled answers, with what is known of its branches."""

    tree: Tree
    advantages: tuple[float, ...]
    logprobs: tuple[float, ...]


class Reinforcer(Learner):
    """A run on problems that the model answers itself. See the module's docstring."""

    def __init__(
        self,
        decoder: Decoder,
        problems: Sequence[Tree],
        valid: Sequence[Tree],
        config: ReinforcementConfig,
        player: Player,
        *,
        seed: int,
        parent: LoraAdapter | None = None,
        invocation_tokens: tuple[int, ...] = (),
        microbatch_tokens: int = MICROBATCH_TOKENS,
    ) -> None:
        """`problems` and `valid` are prompts: trees without branches."""
        super().__init__(
            decoder,
            config,
            seed=seed,
            parent=parent,
            invocation_tokens=invocation_tokens,
            microbatch_tokens=microbatch_tokens,
        )
        self.config, self.player = config, player
        check_trunks([*problems, *valid], self.adapter, self._prefix)
        self.problems, self.valid = problems, valid
        self.steps_per_epoch = -(-len(problems) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.n_epochs
        self._reference = copy.deepcopy(self.adapter) if config.kl_coef else None
        self._baseline: float | None = None
        self._gap = 0.0
        """Mean difference of the last step's log-probabilities to the sampler's, in nats a token."""
        self._failing = self._tied = self._informative = 0
        self._faults: list[str] = []

    def prepare(self) -> str | None:
        """Measure the starting model on the validation file, once."""
        if not self.valid or self._baseline is not None or self.step:
            return None
        played = self._evaluate()
        self._baseline = played.reward_mean if played.reward_mean is not None else 0.0
        self._check_grades(played, "Before the first step")
        return f"Before training: full validation mean reward={self._baseline:.2f}"

    def _one_step(self) -> Step:
        began = time.perf_counter()
        batch = self._batch(len(self.problems))
        rate = learning_rate_at(self.config, self.step + 1, self.total_steps)
        asks = [
            Ask(problem, index, seed_of(self.seed, "train", self.step, self.problems[problem].line, index))
            for problem in batch
            for index in range(self.config.num_generations)
        ]
        train = Played(asks, self.player.play(asks, self.adapter, valid=False))
        sampled_at = time.perf_counter()
        sampled = self.compare(train)
        sums, norm = self.optimize(sampled, rate, n_answers=len(asks))
        trained_at = time.perf_counter()
        self.step += 1
        self.tokens += sum(len(self.problems[problem].trunk) for problem in batch)
        self.tokens += sum(len(rollout.tokens) for rollout in train.rollouts)
        valid = self._measure()
        self._take_stock(train, sampled)
        epoch_end = self.step % self.steps_per_epoch == 0
        played = {"train": train} | ({"valid": valid} if valid else {})
        details = metrics(played, self.player.judges, tied_share=sampled.tied_share)
        if sampled.kl_mean is not None:
            details["train_kl_mean"] = sampled.kl_mean
        if sampled.logprobs:
            details["train_sampler_gap_mean"] = self._gap
        ended = time.perf_counter()
        details["timing"]["step"] = {
            "sampling": sampled_at - began,
            "training": trained_at - sampled_at,
            "eval": ended - trained_at if valid else 0.0,
            "full_iteration": ended - began,
        }
        measured = sums.means()
        return Step(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.steps_per_epoch,
            train_loss=measured.loss,
            train_mean_token_accuracy=measured.accuracy,
            learning_rate=rate,
            grad_norm=norm,
            tokens=self.tokens,
            seconds=ended - began,
            epoch_end=epoch_end or self.stopped is not None,
            stop_reason=self.stopped,
            details=details,
            samples=self._samples(train, valid),
        )

    def compare(self, played: Played) -> Sampled:
        """What the answers of a step teach: those that were better or worse than others to the same problem."""
        groups: dict[int, list[Rollout]] = {ask.problem: [] for ask in played.asks}
        for ask, rollout in zip(played.asks, played.rollouts, strict=True):
            if rollout.grade.is_valid and any(rollout.weights):
                groups[ask.problem].append(rollout)
        trees = {
            problem: Tree(
                self.problems[problem].trunk,
                tuple(Branch(rollout.tokens, rollout.weights) for rollout in group),
                (),
                self.problems[problem].line,
            )
            for problem, group in groups.items()
            if group
        }
        rewards = [torch.tensor([r.grade.score for r in groups[p]], dtype=torch.float64) for p in trees]
        kl_mean = None
        if self.config.kl_coef and trees:
            ratios = self._log_ratios(list(trees.values()))
            kl_mean = float(torch.cat(ratios).mean())
            rewards = [reward - self.config.kl_coef * ratio for reward, ratio in zip(rewards, ratios, strict=True)]
        found = [advantages(reward, torch.zeros(len(reward), dtype=torch.long)) for reward in rewards]
        kept: list[_Lessons] = []
        for (problem, tree), advantage_B in zip(trees.items(), found, strict=True):
            told: dict[_Answer, float] = {}  # what was sampled twice is one branch
            for rollout, advantage in zip(groups[problem], advantage_B.tolist(), strict=True):
                answer = tuple(zip(rollout.tokens, rollout.weights, rollout.logprobs or rollout.weights, strict=True))
                told[answer] = told.get(answer, 0.0) + advantage
            told = {answer: advantage for answer, advantage in told.items() if advantage}
            kept += self._lessons(tree, told, elsewhere=any(rollout.logprobs for rollout in groups[problem]))
        n_tied = len(groups) - sum(bool(advantage_B.any()) for advantage_B in found)
        return Sampled(
            tuple(each.tree for each in kept),
            tuple(each.advantages for each in kept),
            n_tied / len(groups),
            kl_mean,
            tuple(each.logprobs for each in kept) if any(each.logprobs for each in kept) else (),
        )

    def _lessons(self, tree: Tree, told: Mapping[_Answer, float], *, elsewhere: bool) -> list[_Lessons]:
        """The answers as trees, in parts that one pass takes; the trunk is in each, so parts are no shorter."""
        trunk = tree.trunk
        n_shared = 0
        if self.config.adapter_scope == "all":
            # Advantages add up to nothing, and so does what is to be learned of a beginning that all answers have.
            shared = [*takewhile(lambda at: len(set(at)) == 1, zip(*told, strict=False))]
            trunk, n_shared = (*trunk, *(at[0][0] for at in shared)), len(shared)
        rests = [(answer[n_shared:], advantage) for answer, advantage in told.items() if len(answer) > n_shared]
        parts = [[rests[n] for n in part] for part in self._passes(trunk, [len(rest) for rest, _ in rests])]
        return [
            _Lessons(
                Tree(trunk, tuple(_branch(rest) for rest, _ in part), (), tree.line),
                tuple(advantage for _, advantage in part),
                tuple(logprob for rest, _ in part for _, weight, logprob in rest if weight) if elsewhere else (),
            )
            for part in parts
        ]

    def _passes(self, trunk: tuple[int, ...], sizes: Sequence[int]) -> list[list[int]]:
        """Which of the branches of these sizes are computed together; each pass has the trunk beside them."""
        return microbatches(sizes, range(len(sizes)), max(len(trunk), self.microbatch_tokens - len(trunk)))

    def _log_ratios(self, trees: Sequence[Tree]) -> list[Tensor]:
        """How much likelier each answer is than under the starting model, in nats: an unbiased estimate of the KL."""
        sums = []
        for adapter in (self.adapter, self._reference):
            each = []
            for tree in trees:
                parts = [
                    replace(tree, branches=tuple(tree.branches[n] for n in part))
                    for part in self._passes(tree.trunk, [len(branch.tokens) for branch in tree.branches])
                ]
                forest = Forest(self.decoder, parts, adapter, 0, self.config.temperature)
                found = []
                with torch.no_grad():
                    for index, part in enumerate(parts):
                        packed, logprob_N, _ = forest.logprobs([index])
                        inputs = LossInputs(logprob_N.cpu(), packed.weight_N, packed.branch_N)
                        found.append(branch_logprobs(inputs, len(part.branches)).double())
                each.append(torch.cat(found))
            sums.append(each)
        return [policy - reference for policy, reference in zip(*sums, strict=True)]

    def optimize(self, sampled: Sampled, rate: float, *, n_answers: int) -> tuple[Sums, float]:
        """One optimizer step on these answers; none where there is nothing to learn."""
        sums = Sums(loss=0.0, count=1.0)
        if not sampled.trees:
            return sums, 0.0
        forest = Forest(self.decoder, sampled.trees, self.adapter, 0, self.config.temperature)
        normalizer = float(n_answers * self.config.max_completion_tokens)
        gap = 0.0
        for part in microbatches(forest.sizes, range(len(sampled.trees)), self.microbatch_tokens):
            packed, logprob_N, right_N = forest.logprobs(part)
            device = logprob_N.device
            weight_N = packed.weight_N.to(device)
            advantage_B = torch.tensor([a for index in part for a in sampled.advantages[index]], device=device)
            if sampled.logprobs:
                sampled_N = torch.tensor([one for index in part for one in sampled.logprobs[index]], device=device)
                gap += float((logprob_N.detach() - sampled_N).abs().sum())
                lesson_N = weight_N * importance(logprob_N, sampled_N)
            else:
                lesson_N = weight_N
            inputs = LossInputs(logprob_N, lesson_N, packed.branch_N.to(device), advantage_B=advantage_B)
            loss = policy_gradient(inputs, normalizer)
            loss.backward()
            sums.loss += float(loss.detach())
            sums.right += float((right_N * weight_N).sum())
            sums.weight += float(weight_N.sum())
        self._gap = gap / max(sums.weight, 1.0)
        if not self._gap <= MOST_GAP:
            self.optimizer.zero_grad()
            raise TunekeeperError(
                f"Step {self.step + 1}: the log-probability of a sampled token differs by {self._gap:.2f} nats on "
                "average between the server that sampled it and this one. The server does not run this job's base "
                "model with the adapter that it was given, or not with --logprobs-mode raw_logprobs.",
                code="sampler_mismatch",
            )
        return sums, self._update(rate)

    def _measure(self) -> Played | None:
        due = self.step % self.config.eval_interval == 0 or self.step == self.total_steps
        return self._evaluate() if self.valid and due else None

    def _evaluate(self) -> Played:
        """The whole validation file, with the same random numbers each time, so that evaluations compare."""
        asks = [
            Ask(problem, index, seed_of(self.seed, "valid", self.valid[problem].line, index))
            for problem in range(len(self.valid))
            for index in range(self.config.eval_samples)
        ]
        return Played(asks, self.player.play(asks, self.adapter, valid=True))

    def _samples(self, train: Played, valid: Played | None) -> Json | None:
        if valid is not None:
            return extremes(valid, self.player, valid=True)
        due = self.step % self.config.eval_interval == 0 or self.step == self.total_steps
        return extremes(train, self.player, valid=False) if due and not self.valid else None

    def _take_stock(self, train: Played, sampled: Sampled) -> None:
        """Count what makes going on useless; the counts are part of the state."""
        self._failing = self._failing + 1 if train.failed_share > 0.5 else 0
        if self._failing:
            self._faults = _told(train.rollouts)
        if sampled.trees:
            self._tied, self._informative = 0, self._informative + 1
        else:
            self._tied += 1
        if self._tied >= self._most_tied and self._informative:
            self.stopped = f"in the last {self._tied} steps all answers to a problem were equally good"

    @property
    def _most_tied(self) -> int:
        return max(5, min(TIED_STEPS, self.steps_per_epoch))

    def _check(self) -> None:
        if self._failing >= FAILING_STEPS:
            raise TunekeeperError(
                f"The grader failed on most answers of {self._failing} steps one after another, the last of them step "
                f"{self.step}. {' '.join(self._faults)}",
                code="grader_failed",
                param="method.reinforcement.grader",
            )
        if self._tied >= self._most_tied and not self._informative:
            raise TunekeeperError(
                f"In {self._tied} steps all answers to a problem got the same score, so there was nothing to learn. "
                "Use easier or harder problems, a grader that gives part of the score for a part of the work, more "
                "answers a problem (compute_multiplier), or supervised tuning first.",
                code="no_learning_signal",
            )

    def _check_grades(self, played: Played, when: str) -> None:
        if not played.graded():
            raise TunekeeperError(
                f"{when} the grader failed on all {len(played.rollouts)} answers. {' '.join(_told(played.rollouts))}",
                code="grader_failed",
                param="method.reinforcement.grader",
            )

    def _meta(self) -> Json:
        return {
            "baseline": self._baseline,
            "failing": self._failing,
            "tied": self._tied,
            "informative": self._informative,
            "faults": self._faults,
        }

    def _restore(self, tensors: Mapping[str, Tensor], meta: Json) -> None:
        self._baseline, self._faults = meta["baseline"], meta["faults"]
        self._failing, self._tied, self._informative = meta["failing"], meta["tied"], meta["informative"]


def _branch(answer: _Answer) -> Branch:
    return Branch(tuple(token for token, _, _ in answer), tuple(weight for _, weight, _ in answer))


def _told(rollouts: Sequence[Rollout]) -> list[str]:
    """What the graders said, one sentence for each kind of failure."""
    return [f"{fault.grader} ({fault.kind}): {fault.message}" for fault in first_faults(rollouts)[:5]]


def imagined(problems: Sequence[Tree], config: ReinforcementConfig, n_tokens: int) -> list[Tree]:
    """Problems with a group of answers of so many tokens each: what a step would learn from, to estimate by."""
    answer = Branch((0,) * n_tokens, (1.0,) * n_tokens)
    return [Tree(tree.trunk, (answer,) * config.num_generations, (), tree.line) for tree in problems]
