"""Answers that a model samples to be graded: what is asked for, what comes back, and what it all comes to.

Numbers only, no torch: who samples and who grades is behind `Player`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Protocol, get_args

from tunekeeper.types import Grade, GradeFault, GradeFaultKind, Json

if TYPE_CHECKING:
    from tunekeeper.models.lora import LoraAdapter

SHOWN = 3
"""Best and worst answers that are kept of an evaluation."""

MAX_SHOWN_CHARACTERS = 4000

_SPLIT = ("train", "valid")


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted."""

    problem: int
    """Place in the file's list of problems."""
    index: int
    """Which of the answers to it."""
    seed: int
    """Of the answer's own random stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One answer and its grade."""

    tokens: tuple[int, ...]
    """Through the one that ended the turn."""
    weights: tuple[float, ...]
    """1 for a token that the model chose; 0 for one that a grammar left no choice at, and for what a tool said."""
    text: str
    grade: Grade
    is_cut: bool = False
    """It ran into max_completion_tokens or the context."""
    reasoning_tokens: int = 0
    logprobs: tuple[float, ...] = ()
    """Of each token when it was sampled; empty where the trainer's own decoder sampled it, which finds the same."""
    n_read: int = 0
    """Tokens in between that tools said."""
    messages: tuple[Json, ...] = ()
    """The model's and the tools', of an answer that called tools."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One grader, as metrics name it."""

    key: str
    """Under a multi grader its key, else the name."""
    name: str
    type: str
    model: str | None = None


class Player(Protocol):
    """Samples answers with the present weights and has them graded."""

    judges: Sequence[Judge]

    def play(self, asks: Sequence[Ask], adapter: "LoraAdapter | None", *, valid: bool) -> list[Rollout]:
        """The answers in the order of `asks`, of the training or of the validation file."""
        ...

    def prompt_of(self, problem: int, *, valid: bool) -> tuple[int, str]:
        """The problem's line and its last message, for people."""
        ...


@dataclass(frozen=True, slots=True)
class Played:
    """Answers with what was asked for."""

    asks: Sequence[Ask]
    rollouts: Sequence[Rollout]

    def graded(self) -> list[Rollout]:
        """Those whose grade says something about them."""
        return [rollout for rollout in self.rollouts if rollout.grade.is_valid]

    @property
    def reward_mean(self) -> float | None:
        """Mean reward of the graded answers; None where there are none."""
        rewards = [rollout.grade.score for rollout in self.graded()]
        return fmean(rewards) if rewards else None

    @property
    def failed_share(self) -> float:
        """Share of the answers that could not be graded."""
        return 1 - len(self.graded()) / max(1, len(self.rollouts))


def seed_of(*parts: object) -> int:
    """A seed that depends on all of these and on nothing else."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def metrics(played: Mapping[str, Played], judges: Sequence[Judge], *, tied_share: float) -> Json:
    """The metrics of a step in OpenAI's form; `played` has "train", and "valid" where there was an evaluation."""
    train, valid = played["train"], played.get("valid")
    data: Json = {
        "usage": {
            "graders": [_described(judge) for judge in judges],
            "samples": _over(
                played, lambda each: _mean_and_count("reasoning_tokens", [r.reasoning_tokens for r in each.rollouts])
            ),
        },
        "errors": {"graders": [{**_described(judge), **_errors(played, judge)} for judge in judges]},
        "scores": {
            "graders": [
                {**_described(judge), **_over(played, lambda each, j=judge: {"reward_mean": _score_mean(each, j)})}
                for judge in judges
            ],
            **_over(played, lambda each: {"reward_mean": each.reward_mean}),
        },
        "timing": {
            "graders": [
                {**_described(judge), **_over(played, lambda each: {"execution_latency_mean": _latency(each)})}
                for judge in judges
            ]
        },
        "train_mean_reward": train.reward_mean,
        "train_reward_mean": train.reward_mean,
        "train_reasoning_tokens_mean": _mean([r.reasoning_tokens for r in train.rollouts]),
        "reasoning_tokens_mean": _mean([r.reasoning_tokens for r in train.rollouts]),
        "completion_tokens_mean": _mean([len(r.tokens) - r.n_read for r in train.rollouts]),
        "cut_answers_mean": _mean([float(r.is_cut) for r in train.rollouts]),
        "train_grader_error_mean": train.failed_share,
        "mean_unresponsive_rewards": tied_share,
        "model_graders_token_usage": _token_usage(played),
    }
    if valid is not None:
        data |= {
            "valid_reward_mean": valid.reward_mean,
            "full_valid_mean_reward": valid.reward_mean,
            "full_valid_mean_parse_error": _parse_errors(valid),
            "valid_reasoning_tokens_mean": _mean([r.reasoning_tokens for r in valid.rollouts]),
            "valid_completion_tokens_mean": _mean([len(r.tokens) - r.n_read for r in valid.rollouts]),
            "valid_grader_error_mean": valid.failed_share,
        }
    return data


def extremes(played: Played, player: Player, *, valid: bool) -> Json:
    """The best and the worst answers, for people to read: where a reward is hacked, it shows here."""
    ranked = sorted(
        (n for n, rollout in enumerate(played.rollouts) if rollout.grade.is_valid),
        key=lambda n: (-played.rollouts[n].grade.score, n),
    )
    n_shown = min(SHOWN, len(ranked) // 2) if len(ranked) > 1 else len(ranked)
    shown = {"best": ranked[:n_shown], "worst": ranked[::-1][:n_shown]}
    failed = [n for n, rollout in enumerate(played.rollouts) if not rollout.grade.is_valid][:SHOWN]
    return {
        "file": "validation" if valid else "training",
        **{
            name: [_shown(played.asks[n], played.rollouts[n], player, valid=valid) for n in places]
            for name, places in ({**shown, "not_graded": failed} if failed else shown).items()
        },
    }


def first_faults(rollouts: Sequence[Rollout]) -> list[GradeFault]:
    """The first fault of each kind and grader that is not the answer's own."""
    found: dict[tuple[str, str], GradeFault] = {}
    for rollout in rollouts:
        for fault in rollout.grade.faults:
            if not fault.by_sample:
                found.setdefault((fault.grader, fault.kind), fault)
    return list(found.values())


def _shown(ask: Ask, rollout: Rollout, player: Player, *, valid: bool) -> Json:
    line, prompt = player.prompt_of(ask.problem, valid=valid)
    shown: Json = {
        "line": line,
        "prompt": prompt[-MAX_SHOWN_CHARACTERS:],
        "output": rollout.text[:MAX_SHOWN_CHARACTERS],
        "reward": rollout.grade.score,
    }
    if rollout.grade.sub_scores:
        shown["scores"] = dict(rollout.grade.sub_scores)
    if rollout.grade.faults:
        shown["errors"] = [f"{fault.grader}: {fault.message}"[:500] for fault in rollout.grade.faults]
    return shown


def _described(judge: Judge) -> Json:
    return {"name": judge.name, "type": judge.type, **({"model": judge.model} if judge.model else {})}


def _over(played: Mapping[str, Played], measure: "_Measure") -> Json:
    """What is measured on each split, under names that begin with it."""
    return {
        f"{split}_{name}": value
        for split in _SPLIT
        if split in played
        for name, value in measure(played[split]).items()
    }


class _Measure(Protocol):
    def __call__(self, each: Played, /) -> Mapping[str, float | None]: ...


def _errors(played: Mapping[str, Played], judge: Judge) -> Json:
    def counted(each: Played) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for kind in get_args(GradeFaultKind):
            hits = [any(f.kind == kind and f.grader in (judge.key, judge.name) for f in r.grade.faults)
                    for r in each.rollouts]  # fmt: skip
            found |= _mean_and_count(kind, hits)
        return found

    return _over(played, counted)


def _score_mean(played: Played, judge: Judge) -> float | None:
    scores = [
        rollout.grade.sub_scores.get(judge.key, rollout.grade.score)
        for rollout in played.graded()
        if judge.key in rollout.grade.sub_scores or not rollout.grade.sub_scores
    ]
    return fmean(scores) if scores else None


def _latency(played: Played) -> float | None:
    return _mean([rollout.grade.execution_time_s for rollout in played.rollouts])


def _parse_errors(played: Played) -> float | None:
    return _mean([any(f.kind == "sample_parse_error" for f in r.grade.faults) for r in played.rollouts])


def _token_usage(played: Mapping[str, Played]) -> Json:
    usage: dict[str, dict[str, int]] = {}
    for split, word in zip(_SPLIT, ("train", "eval"), strict=True):
        for rollout in played[split].rollouts if split in played else ():
            for model, tokens in rollout.grade.token_usage.items():
                counts = usage.setdefault(model, {})
                counts[f"{word}_tokens"] = counts.get(f"{word}_tokens", 0) + tokens
    return usage


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _mean_and_count(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_mean": _mean(values), f"{name}_count": sum(values)}
