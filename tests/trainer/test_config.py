"""Hyperparameters: each has bounds, "auto" becomes a number, nothing is ignored."""

from typing import Any

import pytest

from tunekeeper.errors import InvalidConfig, Unsupported
from tunekeeper.trainer.config import learning_rate_at, resolve, validate_method

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


def test_other_methods_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="dpo"):
        validate_method({"type": "dpo", "dpo": {}})
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
