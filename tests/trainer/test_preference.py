"""DPO on packed trees equals a naive one: one sequence a row, full logits, plain torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from forests import tree
from naive import check_gradients, drawn_adapter, factors_of, merged, naive_logprobs
from tunekeeper.models.decoder import LlamaConfig, LlamaDecoder
from tunekeeper.models.load import load_adapter, load_decoder, read_config
from tunekeeper.trainer.config import DpoConfig, resolve, validate_method
from tunekeeper.trainer.loop import Forest, Trainer
from tunekeeper.trainer.losses import LossInputs, branch_logprobs, preference
from tunekeeper.types import Branch, Tree

BETA = 0.3
INVOCATION = (70, 71)


def config(n: int = 12, n_valid: int = 0, **hyperparameters: Any) -> DpoConfig:
    said = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 20.0, "lora_rank": 4, **hyperparameters}
    method = validate_method({"type": "dpo", "dpo": {"hyperparameters": said}})
    resolved = resolve(method, n_examples=n, n_valid=n_valid, context=512, hidden_size=32)
    assert isinstance(resolved, DpoConfig)
    return resolved


def pairs(n: int, *, invocation: tuple[int, ...] = (), seed: int = 0) -> list[Tree]:
    """Pairs that can be learned: the preferred branch repeats the trunk, the other is noise."""
    made = []
    for index in range(n):
        whole = tree(5 + index % 4, 4 + index % 3, seed=seed * 1000 + index, invocation=invocation)
        chosen = (*whole.trunk[:3], 2)
        made.append(replace(whole, branches=(Branch(chosen, (1.0,) * 4), whole.branches[0]), line=index + 1))
    return made


lengths = st.integers(1, 9)


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.tuples(lengths, lengths, lengths), min_size=1, max_size=4), silent=st.integers(0, 3))
def test_loss_and_gradients_are_those_of_one_sequence_a_row(
    tiny_base: Path, sizes: list[tuple[int, int, int]], silent: int
) -> None:
    trees = [tree(trunk, a, b, seed=n) for n, (trunk, a, b) in enumerate(sizes)]
    first = trees[0].branches[0]
    weights = (*(0.0 if n < silent else 1.0 for n in range(len(first.tokens) - 1)), 1.0)
    trees[0] = replace(trees[0], branches=(replace(first, weights=weights), trees[0].branches[1]))
    decoder = load_decoder(tiny_base, dtype="fp32")
    adapter = drawn_adapter(decoder)
    reference = torch.linspace(-20, -10, 2 * len(trees))

    forest = Forest(decoder, trees, adapter, 0)
    packed, logprob_N, _ = forest.logprobs(range(len(trees)))
    inputs = LossInputs(logprob_N, packed.weight_N, packed.branch_N, reference)
    ours = preference(inputs, len(trees), beta=BETA)
    ours.backward()

    factors = factors_of(adapter)
    theirs = torch.zeros(())
    for n, each in enumerate(trees):
        chosen, rejected = (
            naive_logprobs(tiny_base, factors, adapter.scale, each.trunk, b).sum() for b in each.branches
        )
        margin = (chosen - reference[2 * n]) - (rejected - reference[2 * n + 1])
        theirs = theirs - F.logsigmoid(BETA * margin) / len(trees)
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    check_gradients(adapter, factors)


def test_a_pair_worked_by_hand() -> None:
    # Log-ratios: chosen -3 - (-4) = 1, rejected -5 - (-4) = -1; beta 0.5: margin 1; loss ln(1 + 1/e).
    inputs = LossInputs(
        torch.tensor([-1.0, -2.0, -5.0]), torch.ones(3), torch.tensor([0, 0, 1]), torch.tensor([-4.0, -4.0])
    )
    torch.testing.assert_close(preference(inputs, 1.0, beta=0.5), torch.tensor(0.3132617))


def test_the_reference_is_the_parent_merged_into_its_base(tiny_base: Path, tmp_path: Path) -> None:
    first = Trainer(load_decoder(tiny_base, dtype="fp32"), pairs(12), [], config(), seed=5)
    list(first.steps())
    first.save_model(tmp_path / "parent", base_id="tiny")

    decoder = load_decoder(tiny_base, dtype="fp32")
    child = Trainer(decoder, pairs(6, seed=2), [], config(6), seed=6, parent=load_adapter(tmp_path / "parent", decoder))
    assert child.prepare()
    whole = merged(load_file(tiny_base / "model.safetensors"), load_adapter(tmp_path / "parent", decoder))
    alone = LlamaDecoder(LlamaConfig.from_json(read_config(tiny_base)), whole, dtype=torch.float32, device="cpu")
    packed, logprob_N, _ = Forest(alone, pairs(6, seed=2), None, 0).logprobs(range(6))
    expected = branch_logprobs(LossInputs(logprob_N, packed.weight_N, packed.branch_N), 12)
    torch.testing.assert_close(child._reference["train"].view(-1), expected, rtol=1e-5, atol=1e-4)


def trainer(base: Path, settings: DpoConfig, *, valid: int = 0, **options: Any) -> Trainer:
    invocation = INVOCATION if settings.adapter_scope == "completion" else ()
    return Trainer(
        load_decoder(base, dtype="fp32"), pairs(12, invocation=invocation),
        pairs(valid, invocation=invocation, seed=9), settings, seed=5, invocation_tokens=invocation, **options,
    )  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "completion only": {"adapter_scope": "completion"},
    "full": {"full_finetune": True, "learning_rate": 3e-3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_margin_rises_from_nothing_and_the_metrics_say_so(tiny_base: Path, variant: str) -> None:
    settings = replace(config(n_valid=4, n_epochs=6), **VARIANTS[variant])
    steps = list(trainer(tiny_base, settings, valid=4).steps())
    first, last = steps[0], steps[-1]
    assert first.train_loss == pytest.approx(0.693147, abs=1e-4)  # ln 2: policy and reference are one
    assert first.details["train_reward_margin"] == pytest.approx(0, abs=1e-4)
    assert last.train_loss < 0.6
    assert last.details["train_preference_accuracy"] == 1.0
    margin = last.details["train_chosen_reward"] - last.details["train_rejected_reward"]
    assert last.details["train_reward_margin"] == pytest.approx(margin, abs=1e-5)
    assert {"valid_reward_margin", "full_valid_preference_accuracy"} <= set(last.details)
    assert last.full_valid_loss is not None
    assert last.full_valid_loss < 0.69


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_keeps_the_reference_and_ends_with_the_same_weights(
    tiny_base: Path, tmp_path: Path, variant: str
) -> None:
    settings = replace(config(n_valid=2), **VARIANTS[variant])
    whole = trainer(tiny_base, settings, valid=2)
    undisturbed = list(whole.steps())
    for stop_after in (0, 1, 4):
        first = trainer(tiny_base, settings, valid=2)
        first.prepare()
        first.save_state(tmp_path / "state")
        for step, _ in zip(first.steps(), range(stop_after), strict=False):
            first.save_state(tmp_path / "state")
            if step.step == stop_after:
                break
        second = trainer(tiny_base, settings, valid=2)
        second.load_state(tmp_path / "state")
        assert not second.prepare()
        resumed = list(second.steps())
        assert [s.train_loss for s in resumed] == [s.train_loss for s in undisturbed[stop_after:]]
        assert [s.details for s in resumed] == [s.details for s in undisturbed[stop_after:]]
        for name, tensor in whole.parameters.items():
            assert torch.equal(tensor, second.parameters[name]), name


def test_small_passes_give_the_gradient_of_the_whole_batch(tiny_base: Path) -> None:
    whole = trainer(tiny_base, config(batch_size=12))
    parts = trainer(tiny_base, config(batch_size=12), microbatch_tokens=40)
    for one, other in zip(whole.steps(), parts.steps(), strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
