"""Hyperparameters: each has bounds, "auto" becomes a number, nothing is ignored."""

from typing import Any

import pytest

from tunekeeper.errors import InvalidConfig
from tunekeeper.trainer.config import (
    DpoConfig,
    ReinforcementConfig,
    learning_rate_at,
    method_of,
    resolve,
    validate_method,
)

PREFIX = "method.supervised.hyperparameters"


def method(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def resolved(n_valid: int = 0, parent: dict[str, Any] | None = None, **hyperparameters: Any) -> Any:
    return resolve(
        validate_method(method(**hyperparameters)),
        n_examples=500, n_valid=n_valid, context=2048, hidden_size=576, parent=parent,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_epochs", 0), ("n_epochs", 51), ("n_epochs", 1.5), ("n_epochs", "many"), ("n_epochs", True),
        ("batch_size", 257), ("learning_rate_multiplier", 0), ("learning_rate_multiplier", "fast"),
        ("prompt_loss_weight", 1.1), ("prompt_loss_weight", "auto"), ("scheduler", "sawtooth"),
        ("target_modules", []), ("target_modules", "q_proj"), ("full_finetune", "yes"), ("lora_rank", -1),
        ("early_stopping", {"metric": "bleu"}), ("max_wall_seconds", 0), ("packing", True), ("lora_dropout", 0.1),
        ("early_stopping", 3), ("adapter_scope", "prompt"), ("dtype", "fp8"),
    ],
)  # fmt: skip
def test_a_value_out_of_its_bounds_or_unknown_is_refused_by_its_dotted_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        validate_method(method(**{name: value}))
    assert caught.value.param is not None
    assert caught.value.param.startswith(f"{PREFIX}.{name}")
    assert name in str(caught.value)


def test_auto_and_null_become_numbers() -> None:
    config = resolved(n_epochs="auto", batch_size=None, learning_rate_multiplier="auto")
    assert (config.n_epochs, config.batch_size, config.learning_rate_multiplier) == (3, 12, 1.0)
    wire = config.to_wire()
    assert "auto" not in {value for name, value in wire.items() if name != "dtype" and isinstance(value, str)}


def test_a_short_file_never_has_a_batch_larger_than_itself() -> None:
    config = resolve(validate_method(method(batch_size=64)), n_examples=10, n_valid=0, context=512, hidden_size=64)
    assert config.batch_size == 10


def test_a_method_that_is_unknown_or_two_at_once_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfig, match=r"method\.type"):
        validate_method({"type": "magic"})
    with pytest.raises(InvalidConfig, match=r"method\.dpo does not belong"):
        validate_method({"type": "supervised", "dpo": {}})


def test_early_stopping_without_validation_data_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="validation_file"):
        resolved(early_stopping={"patience": 2})
    assert resolved(n_valid=5, early_stopping={"patience": 2}).early_stopping.patience == 2


def test_a_child_inherits_its_parents_adapter_and_may_not_contradict_it() -> None:
    parent = {"lora_rank": 4, "lora_alpha": 8.0, "adapter_scope": "completion"}
    config = resolved(parent=parent)
    assert (config.lora_rank, config.lora_alpha, config.adapter_scope) == (4, 8.0, "completion")
    with pytest.raises(InvalidConfig, match="lora_rank"):
        resolved(parent=parent, lora_rank=8)


def test_full_fine_tuning_has_no_rank() -> None:
    with pytest.raises(InvalidConfig, match="no meaning"):
        validate_method(method(full_finetune=True, lora_rank=8))


def test_the_learning_rate_warms_up_and_decays_but_never_to_zero() -> None:
    config = resolved(warmup_ratio=0.1)
    rates = [learning_rate_at(config, step, 100) for step in range(1, 101)]
    assert rates.index(max(rates)) == 9
    assert max(rates) == pytest.approx(config.learning_rate)
    assert all(rate > 0 for rate in rates)
    assert rates[-1] < 0.02 * max(rates)


GRADER = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "operation": "eq", "reference": "x"}


def other(kind: str, n_valid: int = 0, **hyperparameters: Any) -> Any:
    body = {"hyperparameters": hyperparameters, **({"grader": GRADER} if kind == "reinforcement" else {})}
    return resolve(
        validate_method({"type": kind, kind: body}), n_examples=500, n_valid=n_valid, context=2048, hidden_size=576
    )


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("dpo", "beta", 0), ("dpo", "beta", 2.5), ("dpo", "prompt_loss_weight", 0.5), ("dpo", "eval_interval", 5),
        ("reinforcement", "compute_multiplier", 1e-5), ("reinforcement", "compute_multiplier", 11),
        ("reinforcement", "num_generations", 1), ("reinforcement", "reasoning_effort", "most"),
        ("reinforcement", "eval_samples", 0), ("reinforcement", "eval_steps", 5), ("reinforcement", "beta", 0.1),
        ("supervised", "beta", 0.1), ("supervised", "eval_interval", 5),
    ],
)  # fmt: skip
def test_each_method_has_its_own_hyperparameters_and_bounds(kind: str, name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        other(kind, **{name: value})
    assert caught.value.param == f"method.{kind}.hyperparameters.{name}"


def test_auto_of_a_preference_run_is_gentler_than_supervised() -> None:
    config = other("dpo", beta="auto")
    assert isinstance(config, DpoConfig)
    assert method_of(config) == "dpo"
    assert (config.beta, config.n_epochs, config.batch_size, config.eval_steps) == (0.1, 1, 12, 0)
    assert config.learning_rate == pytest.approx(resolved().learning_rate / 10)


def test_auto_of_a_reinforcement_run_is_a_group_of_eight_and_about_a_hundred_steps() -> None:
    config = other("reinforcement", n_valid=10)
    assert isinstance(config, ReinforcementConfig)
    assert (config.num_generations, config.max_completion_tokens, config.save_every) == (8, 512, 1)
    steps = -(-500 // config.batch_size) * config.n_epochs
    assert 80 <= steps <= 130
    assert config.eval_interval == steps // 10
    assert other("reinforcement", compute_multiplier=2.5).num_generations == 20
    assert other("reinforcement", num_generations=4).compute_multiplier == 0.5
    assert other("reinforcement", reasoning_effort="high").max_completion_tokens == 1024


def test_the_number_of_answers_may_not_be_said_twice_in_two_ways() -> None:
    assert other("reinforcement", compute_multiplier=1, num_generations=8).num_generations == 8
    with pytest.raises(InvalidConfig, match="comes to 16"):
        other("reinforcement", compute_multiplier=2, num_generations=8)


def test_a_reinforcement_method_needs_a_grader() -> None:
    with pytest.raises(InvalidConfig, match=r"grader is missing") as caught:
        validate_method({"type": "reinforcement", "reinforcement": {}})
    assert caught.value.param == "method.reinforcement.grader"


def test_a_response_format_is_taken_in_both_of_its_forms() -> None:
    schema = {"type": "object"}
    for given in (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
        {"type": "json_schema", "name": "a", "schema": schema, "strict": True},
    ):
        method = validate_method(
            {"type": "reinforcement", "reinforcement": {"grader": GRADER, "response_format": given}}
        )
        assert method["reinforcement"]["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(InvalidConfig, match="response_format"):
        validate_method(
            {"type": "reinforcement", "reinforcement": {"grader": GRADER, "response_format": {"type": "x"}}}
        )


def test_servers_that_are_called_while_sampling_are_kept_as_they_were_sent() -> None:
    tools = [{"name": "search", "server_url": "http://127.0.0.1/"}]
    body = {"grader": GRADER, "tools": tools, "max_episode_steps": 3}
    checked = validate_method({"type": "reinforcement", "reinforcement": body})["reinforcement"]
    assert (checked["tools"], checked["max_episode_steps"]) == (tools, 3)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{}], "max_episode_steps": 0}, "max_episode_steps"),
        ({"tools": [{}], "max_episode_steps": True}, "max_episode_steps"),
        ({"tools": [{}], "max_episode_steps": "many"}, "max_episode_steps"),
        ({"max_episode_steps": 3}, "max_episode_steps"),
    ],
)
def test_servers_of_another_form_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        validate_method({"type": "reinforcement", "reinforcement": {"grader": GRADER, **body}})
    assert caught.value.param == f"method.reinforcement.{param}"
