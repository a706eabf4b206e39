"""Many answers in OpenAI's numbers; the best and the worst for people."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tunekeeper.trainer.rollouts import Ask, Judge, Played, Rollout, extremes, first_faults, metrics, seed_of
from tunekeeper.types import Grade, GradeFault

CITY, STYLE = Judge("city", "City", "string_check"), Judge("style", "Style", "score_model", "judge-1")
CRASH = GradeFault(kind="model_grader_server_error", message="no answer", grader="style")
NO_JSON = GradeFault(kind="sample_parse_error", message="no JSON", grader="city", by_sample=True)


class Prompts:
    """A player that only knows its problems."""

    judges = (CITY, STYLE)

    def play(self, asks: Sequence[Ask], adapter: Any, *, valid: bool) -> list[Rollout]:
        raise AssertionError("nothing is played here")

    def prompt_of(self, problem: int, *, valid: bool) -> tuple[int, str]:
        return problem + 1, f"{'valid' if valid else 'train'} {problem}"


def answer(score: float, *faults: GradeFault, **more: Any) -> Rollout:
    grade = Grade(
        score=score, faults=faults, sub_scores={"city": score, **({} if CRASH in faults else {"style": 0.5})},
        execution_time_s=0.25, token_usage={"judge-1": 10},
    )  # fmt: skip
    return Rollout(**{"tokens": (5, 6, 2), "weights": (1.0,) * 3, "text": f"says {score}", "grade": grade, **more})


def played(*rollouts: Rollout) -> Played:
    return Played([Ask(n, 0, n) for n in range(len(rollouts))], rollouts)


TRAIN = played(answer(1.0), answer(0.0, NO_JSON), answer(0.0, CRASH, is_cut=True), answer(0.5, reasoning_tokens=4))


def test_a_score_that_says_nothing_is_in_no_mean() -> None:
    data = metrics({"train": TRAIN}, [CITY, STYLE], tied_share=0.25)
    assert data["train_mean_reward"] == data["train_reward_mean"] == 0.5
    assert data["train_grader_error_mean"] == 0.25
    assert data["mean_unresponsive_rewards"] == 0.25
    city, style = data["scores"]["graders"]
    assert (city["name"], city["type"], city["train_reward_mean"]) == ("City", "string_check", 0.5)
    assert (style["model"], style["train_reward_mean"]) == ("judge-1", 0.5)
    assert "valid_reward_mean" not in data
    assert "valid_reward_mean" not in city


def test_errors_are_counted_by_grader_and_kind() -> None:
    city, style = metrics({"train": TRAIN}, [CITY, STYLE], tied_share=0.0)["errors"]["graders"]
    assert (city["train_sample_parse_error_count"], city["train_sample_parse_error_mean"]) == (1, 0.25)
    assert style["train_model_grader_server_error_count"] == 1
    assert (style["train_sample_parse_error_count"], city["train_model_grader_server_error_count"]) == (0, 0)
    assert style["train_python_grader_runtime_error_mean"] == 0


def test_lengths_thoughts_time_and_tokens_are_told() -> None:
    data = metrics({"train": TRAIN, "valid": played(answer(1.0), answer(0.0, NO_JSON))}, [CITY, STYLE], tied_share=0.0)
    assert data["completion_tokens_mean"] == 3
    assert data["cut_answers_mean"] == 0.25
    assert data["usage"]["samples"]["train_reasoning_tokens_count"] == 4
    assert data["reasoning_tokens_mean"] == data["train_reasoning_tokens_mean"] == 1
    assert data["timing"]["graders"][0]["train_execution_latency_mean"] == 0.25
    assert data["model_graders_token_usage"] == {"judge-1": {"train_tokens": 40, "eval_tokens": 20}}
    assert (data["full_valid_mean_reward"], data["full_valid_mean_parse_error"]) == (0.5, 0.5)
    assert json.loads(json.dumps(data)) == data


def test_the_only_grader_is_told_by_its_score() -> None:
    alone = Rollout(tokens=(2,), weights=(1.0,), text="", grade=Grade(score=0.75))
    data = metrics({"train": played(alone)}, [CITY], tied_share=1.0)
    assert data["scores"]["graders"][0]["train_reward_mean"] == 0.75


def test_nothing_graded_has_no_mean() -> None:
    data = metrics({"train": played(answer(0.0, CRASH))}, [CITY, STYLE], tied_share=1.0)
    assert data["train_mean_reward"] is None


def test_the_best_and_the_worst_are_shown_and_those_that_no_grader_could_read() -> None:
    shown = extremes(played(*(answer(n / 10) for n in range(9)), answer(0.0, CRASH)), Prompts(), valid=True)
    assert [each["reward"] for each in shown["best"]] == [0.8, 0.7, 0.6]
    assert [each["reward"] for each in shown["worst"]] == [0.0, 0.1, 0.2]
    assert shown["best"][0]["prompt"] == "valid 8"
    assert shown["best"][0]["line"] == 9
    assert shown["best"][0]["scores"] == {"city": 0.8, "style": 0.5}
    (failed,) = shown["not_graded"]
    assert failed["errors"] == ["style: no answer"]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_few_answers_are_not_shown_twice(n: int) -> None:
    shown = extremes(played(*(answer(k / 10) for k in range(n))), Prompts(), valid=False)
    outputs = [each["output"] for name in ("best", "worst") for each in shown[name]]
    assert len(outputs) == len(set(outputs)) or n == 1


def test_a_fault_is_told_once_and_those_of_the_answer_not_at_all() -> None:
    assert first_faults([answer(0.0, CRASH), answer(0.0, CRASH), answer(0.0, NO_JSON)]) == [CRASH]


def test_a_seed_follows_from_its_parts() -> None:
    assert seed_of(1, "train", 0, 3) == seed_of(1, "train", 0, 3)
    assert len({seed_of(1, "train", step, k) for step in range(50) for k in range(50)}) == 2500
