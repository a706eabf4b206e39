"""The loop learns, resumes bit for bit, and what it saves is what it trained."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from forests import forest
from tunekeeper.errors import InvalidConfig
from tunekeeper.models.adapters import read_adapter
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.load import load_adapter, load_decoder
from tunekeeper.models.lora import new_adapter
from tunekeeper.trainer.config import SupervisedConfig, resolve, validate_method
from tunekeeper.trainer.diagnosis import diagnose
from tunekeeper.trainer.estimate import estimate, measure
from tunekeeper.trainer.loop import Trainer
from tunekeeper.trainer.step import Step

INVOCATION = (70, 71)


def config(n: int = 12, n_valid: int = 0, **hyperparameters: Any) -> SupervisedConfig:
    said = {
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate_multiplier": 2.0,
        "lora_rank": 4,
        **hyperparameters,
    }
    method = validate_method({"type": "supervised", "supervised": {"hyperparameters": said}})
    return resolve(method, n_examples=n, n_valid=n_valid, context=512, hidden_size=32)


def trainer(base: Path, settings: SupervisedConfig, *, valid: int = 0, n: int = 12, **options: Any) -> Trainer:
    decoder = load_decoder(base, dtype="fp32")
    invocation = INVOCATION if settings.adapter_scope == "completion" else ()
    return Trainer(
        decoder,
        forest(n, invocation=invocation),
        forest(valid, invocation=invocation, seed=9),
        settings,
        seed=5,
        invocation_tokens=invocation,
        **options,
    )


def digest(directory: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(directory.iterdir()))).hexdigest()


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "completion only": {"adapter_scope": "completion"},
    "full": {"full_finetune": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls_and_the_validation_loss_with_it(tiny_base: Path, variant: str) -> None:
    said = VARIANTS[variant] | ({"learning_rate_multiplier": 5.0} if variant == "full" else {})
    if variant == "full":
        said = {name: value for name, value in said.items() if name != "lora_rank"}
        settings = replace(config(n=12, n_valid=4, n_epochs=6), full_finetune=True, learning_rate=3e-3)
    else:
        settings = config(n=12, n_valid=4, n_epochs=6, **said)
    steps = list(trainer(tiny_base, settings, valid=4).steps())
    assert len(steps) == 18
    assert steps[-1].train_loss < 0.9 * steps[0].train_loss
    full = [step.full_valid_loss for step in steps if step.full_valid_loss is not None]
    assert len(full) == 6
    assert full[-1] < full[0]
    assert [step.step for step in steps if step.epoch_end] == [3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_with_the_same_bytes(tiny_base: Path, tmp_path: Path, variant: str) -> None:
    settings = replace(config(), **VARIANTS[variant])
    whole = trainer(tiny_base, settings)
    undisturbed = list(whole.steps())
    whole.save_model(tmp_path / "whole", base_id="tiny", base_directory=tiny_base)
    for stop_after in (1, 4):
        first = trainer(tiny_base, settings)
        for step in first.steps():
            first.save_state(tmp_path / "state")
            if step.step == stop_after:
                break
        second = trainer(tiny_base, settings)
        second.load_state(tmp_path / "state")
        resumed = list(second.steps())
        second.save_model(tmp_path / "resumed", base_id="tiny", base_directory=tiny_base)
        assert digest(tmp_path / "resumed") == digest(tmp_path / "whole")
        assert [s.train_loss for s in resumed] == [s.train_loss for s in undisturbed[stop_after:]]


def test_a_state_that_was_being_replaced_when_the_power_went_is_still_there(tiny_base: Path, tmp_path: Path) -> None:
    run = trainer(tiny_base, config())
    next(run.steps())
    run.save_state(tmp_path / "state")
    (tmp_path / "state").rename(tmp_path / ".state.old")  # between the two renames
    again = trainer(tiny_base, config())
    again.load_state(tmp_path / "state")
    assert again.step == 1


def test_small_passes_give_the_gradient_of_the_whole_batch(tiny_base: Path) -> None:
    whole = trainer(tiny_base, config(batch_size=12))
    parts = trainer(tiny_base, config(batch_size=12), microbatch_tokens=20)
    for one, other in zip(whole.steps(), parts.steps(), strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


def test_prefixes_that_do_not_fit_the_budget_give_the_same_losses(tiny_base: Path) -> None:
    settings = config(adapter_scope="completion")
    kept = list(trainer(tiny_base, settings).steps())
    computed = list(trainer(tiny_base, settings, budget_bytes=0).steps())
    assert [s.train_loss for s in kept] == pytest.approx([s.train_loss for s in computed], rel=1e-4)


def test_an_adapter_of_completions_answers_in_peft_as_here(tiny_base: Path, tmp_path: Path) -> None:
    run = trainer(tiny_base, config(adapter_scope="completion"))
    list(run.steps())
    run.save_model(tmp_path / "adapter", base_id="tiny")
    theirs = PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        tmp_path / "adapter",
    ).eval()
    for index in range(3):
        tree = run.train.trees[index]
        with torch.no_grad():
            packed, ours, _ = run.train.logprobs([index])
            ids = torch.tensor([tree.trunk + tree.branches[0].tokens])
            logits = theirs(input_ids=ids).logits[0, len(tree.trunk) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, packed.target_N[:, None])[:, 0]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_child_starts_where_its_parent_stopped(tiny_base: Path, tmp_path: Path) -> None:
    parent = trainer(tiny_base, config())
    losses = [step.train_loss for step in parent.steps()]
    parent.save_model(tmp_path / "parent", base_id="tiny")
    decoder: Decoder = load_decoder(tiny_base, dtype="fp32")
    child = Trainer(decoder, forest(12), [], config(), seed=6, parent=load_adapter(tmp_path / "parent", decoder))
    assert next(child.steps()).train_loss < losses[0] * 0.98


def test_early_stopping_ends_the_run_and_says_why(tiny_base: Path) -> None:
    settings = config(
        n_valid=4,
        n_epochs=50,
        eval_steps=1,
        early_stopping={"patience": 2, "min_delta": 0.5},
        scheduler="constant",
    )
    steps = list(trainer(tiny_base, settings, valid=4).steps())
    assert len(steps) < 150
    assert "has not fallen" in (steps[-1].stop_reason or "")
    assert steps[-1].epoch_end


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_gradient_without_a_finite_norm_changes_no_weight(tiny_base: Path, value: float) -> None:
    run = trainer(tiny_base, config())
    before = {name: tensor.detach().clone() for name, tensor in run.parameters.items()}
    for tensor in run.parameters.values():
        tensor.grad = torch.full_like(tensor, value)
    run._update(1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.parameters.items())


def test_an_adapter_lies_where_its_decoder_does(tiny_base: Path, tmp_path: Path) -> None:
    run = trainer(tiny_base, config())
    run.save_model(tmp_path / "adapter", base_id="tiny")
    modules = run.decoder.linear_modules()
    made = [
        new_adapter(modules, rank=4, alpha=8.0, seed=1, device="meta"),
        read_adapter(tmp_path / "adapter", modules, "meta"),
    ]
    assert {tensor.device.type for one in made for tensor in one.parameters()} == {"meta"}
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in made[0].parameters())


def test_only_the_named_layers_learn(tiny_base: Path) -> None:
    run = trainer(tiny_base, config(target_modules=["q_proj", "v_proj"]))
    assert run.adapter is not None
    assert run.adapter.target_modules == ["q_proj", "v_proj"]
    with pytest.raises(InvalidConfig, match=r"no linear layer 'w1'.*q_proj"):
        trainer(tiny_base, config(target_modules=["q_proj", "w1"]))


def test_the_estimate_counts_exactly_what_the_run_then_does(tiny_base: Path) -> None:
    run = trainer(tiny_base, config())
    speed = measure(run.train, run.optimizer)
    forecast = estimate(run.train.trees, [], run.config, run.decoder.shape, speed, price_per_hour=3600.0)
    steps = list(run.steps())
    assert forecast.steps == len(steps)
    assert forecast.billable_tokens == steps[-1].tokens
    assert forecast.est_wall_seconds > 0
    assert forecast.est_cost is not None
    assert forecast.est_cost["amount"] == pytest.approx(forecast.est_wall_seconds, abs=0.1)


def test_measuring_changes_nothing_that_is_trained(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("plain", "measured"):
        run = trainer(tiny_base, config())
        if name == "measured":
            measure(run.train, run.optimizer)
        list(run.steps())
        run.save_model(tmp_path / name, base_id="tiny")
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
    assert digest(tmp_path / "plain") == digest(tmp_path / "measured")


def history(train: list[float], valid: dict[int, float] | None = None) -> list[Step]:
    return [
        Step(
            step=i, total_steps=len(train), epoch=i / 10, train_loss=loss, train_mean_token_accuracy=0.5,
            learning_rate=1e-3, grad_norm=1.0, tokens=i, seconds=0.1, full_valid_loss=(valid or {}).get(i),
        )
        for i, loss in enumerate(train, start=1)
    ]  # fmt: skip


FALLING = [2.0 - 0.06 * i for i in range(30)]


@pytest.mark.parametrize(
    ("steps", "code", "since"),
    [
        (history(FALLING, {10: 1.5, 20: 1.2, 30: 1.4}), "over_fitting", 20),
        (history(FALLING, {10: 1.5, 20: 1.2, 30: 1.0}), "under_fitting", 30),
        (history(FALLING, {10: 1.5, 20: 1.02, 30: 1.01}), "healthy", 30),
        (history([2.0] * 30), "not_learning", 30),
        (history([*FALLING[:15], *(1.0 + 0.2 * i for i in range(15))]), "diverging", 19),
        (history([1.0, float("nan"), *[float("nan")] * 8]), "diverging", 2),
        (history([2.0 / (i + 1) ** 3 for i in range(30)]), "data_exhausted", 6),
    ],
)
def test_the_curves_are_named_in_plain_words(steps: list[Step], code: str, since: int) -> None:
    first = diagnose(steps)[0]
    assert (first.code, first.step) == (code, since)


def test_a_loss_above_its_best_is_not_called_falling_too() -> None:
    assert [finding.code for finding in diagnose(history(FALLING, {10: 1.0, 20: 1.5, 30: 1.2}))] == ["over_fitting"]


def test_losses_of_different_validation_examples_are_not_compared() -> None:
    steps = [replace(step, valid_loss=1.0 + step.step / 10) for step in history(FALLING, {30: 1.2})]
    assert [finding.code for finding in diagnose(steps)] == ["healthy"]


def test_nothing_is_said_of_a_few_steps() -> None:
    assert diagnose(history([3.0, 9.0, 27.0])) == []


def test_a_beginning_that_all_prompts_share_is_computed_once_and_changes_nothing(tiny_base: Path) -> None:
    settings = config(adapter_scope="completion")
    common = tuple(range(100, 112))

    def losses(*, shared: bool) -> list[float]:
        trees = [replace(tree, trunk=common + tree.trunk) for tree in forest(12, invocation=INVOCATION)]
        odd = [] if shared else [replace(trees[0], trunk=(99, *trees[0].trunk[1:]))]
        run = Trainer(
            load_decoder(tiny_base, dtype="fp32"), [*trees, *odd], [], settings, seed=5, invocation_tokens=INVOCATION
        )
        assert run.train.frozen is not None
        assert run.train.frozen.n_root == (12 if shared else 0)
        return [float(run.train.logprobs([index])[1].detach().sum()) for index in range(12)]

    assert losses(shared=True) == pytest.approx(losses(shared=False), rel=1e-4)
