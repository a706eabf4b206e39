"""Fast runs against the whole decoder with an adapter on the same layers."""

import pytest
import torch

from forests import forest, tree
from tunekeeper.errors import Unsupported
from tunekeeper.models.load import load_decoder
from tunekeeper.models.lora import LoraAdapter, LoraPair
from tunekeeper.trainer.config import resolve, validate_method
from tunekeeper.trainer.fast import FastTrainer, TopLayers, first_trained
from tunekeeper.trainer.loop import Forest, Trainer

INVOCATION = (5, 6, 7)


@pytest.fixture(scope="module")
def decoder(tiny_base):
    return load_decoder(tiny_base, dtype="fp32")


def config(kind="supervised", **hyperparameters):
    said = {"n_epochs": 2, "batch_size": 4, "lora_rank": 4, **hyperparameters}
    method = validate_method({"type": kind, kind: {"hyperparameters": said}})
    return resolve(method, n_examples=8, n_valid=2, context=512, hidden_size=64)


def test_the_top_third_has_at_least_one_layer():
    assert [first_trained(n) for n in (1, 2, 3, 6, 30, 32)] == [0, 1, 2, 4, 20, 22]


def same_adapter_on_the_whole(trainer: Trainer) -> LoraAdapter:
    adapter = trainer.adapter
    pairs = {
        name: LoraPair(pair.a_RI.detach().clone().requires_grad_(), pair.b_OR.detach().clone().requires_grad_())
        for name, pair in adapter.pairs.items()
    }
    return LoraAdapter(pairs, adapter.rank, adapter.alpha, adapter.scope, adapter.invocation_tokens)


@pytest.mark.parametrize("scope", ["all", "completion"])
@pytest.mark.parametrize("budget", [10**9, 0])
def test_gradients_are_those_of_a_whole_run_with_adapters_on_these_layers(decoder, scope, budget):
    invocation = INVOCATION if scope == "completion" else ()
    trees = [*forest(6, invocation=invocation), tree(9, 5, 7, seed=3, invocation=invocation)]
    trainer = FastTrainer(
        decoder, trees, (), config(adapter_scope=scope), seed=3, invocation_tokens=invocation, budget_bytes=budget
    )
    for pair in trainer.adapter.pairs.values():  # not at zero, where half of the gradients vanish
        torch.nn.init.normal_(pair.b_OR, std=0.1, generator=torch.Generator().manual_seed(1))
    assert {int(name.split(".")[2]) for name in trainer.adapter.pairs} == {1}
    adapter = same_adapter_on_the_whole(trainer)
    whole = Forest(decoder, trees, adapter, 10**9)
    for batch in ([0, 1, 2], [6, 3, 0], [4, 5]):
        losses = []
        for side in (trainer.train, whole):
            _, logprob_N, _ = side.logprobs(batch)
            loss = -logprob_N.sum()
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, pair in trainer.adapter.pairs.items():
        other = adapter.pairs[name]
        for ours, theirs in ((pair.a_RI, other.a_RI), (pair.b_OR, other.b_OR)):
            assert float(theirs.grad.abs().max()) > 0
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * float(theirs.grad.abs().max()))


def test_the_lower_layers_run_once_for_all_trials(decoder):
    trees = forest(8)
    calls = []

    class Counted(TopLayers):
        def stream_below(self, layer, tokens_T, positions_T, attention):
            calls.append(len(tokens_T))
            return super().stream_below(layer, tokens_T, positions_T, attention)

    first = FastTrainer(Counted(decoder), trees, (), config(), seed=1)
    first.train.top.__class__ = Counted
    list(first.steps())
    assert sum(calls) == sum(one.size for one in trees)
    second = FastTrainer(decoder, trees, (), config(lora_rank=2), seed=1)
    second.share(first)
    second.train.top.__class__ = Counted
    losses = [step.train_loss for step in second.steps()]
    assert sum(calls) == sum(one.size for one in trees)
    alone = FastTrainer(decoder, trees, (), config(lora_rank=2), seed=1)
    assert [step.train_loss for step in alone.steps()] == losses


@pytest.mark.parametrize("scope", ["all", "completion"])
def test_a_fast_run_learns_and_goes_on_bit_for_bit(decoder, tmp_path, scope):
    invocation = INVOCATION if scope == "completion" else ()
    trees = forest(8, invocation=invocation)

    def trainer():
        asked = config(adapter_scope=scope, learning_rate_multiplier=10, n_epochs=6)
        return FastTrainer(decoder, trees, trees[:2], asked, seed=1, invocation_tokens=invocation)

    whole = trainer()
    losses = [step.train_loss for step in whole.steps()]
    assert losses[-1] < losses[0]
    before = trainer()
    for step in before.steps():
        if step.step == 5:
            break
    before.save_state(tmp_path / "state")
    after = trainer()
    after.load_state(tmp_path / "state")
    assert [step.train_loss for step in after.steps()] == losses[5:]
    for name, tensor in whole.parameters.items():
        assert torch.equal(tensor, after.parameters[name])


def test_trials_share_the_reference_of_pairs(decoder):
    trees = [tree(6, 4, 5, seed=n) for n in range(4)]
    first = Trainer(decoder, trees, trees[:2], config("dpo", batch_size=2), seed=1)
    first.prepare()
    second = Trainer(decoder, trees, trees[:2], config("dpo", batch_size=2, lora_rank=2), seed=1)
    second.share(first)
    assert second.prepare() is None
    alone = Trainer(decoder, trees, trees[:2], config("dpo", batch_size=2, lora_rank=2), seed=1)
    assert [s.train_loss for s in second.steps()] == [s.train_loss for s in alone.steps()]


def test_a_decoder_of_another_family_is_refused():
    class Foreign:
        pass

    with pytest.raises(Unsupported, match="Llama family"):
        FastTrainer(Foreign(), forest(2), (), config(), seed=1)


@pytest.mark.parametrize("scope", ["all", "completion"])
@pytest.mark.parametrize("fast", [True, False])
def test_in_bf16_losses_and_gradients_are_those_of_fp32_as_far_as_it_goes(decoder, tiny_base, scope, fast):
    invocation = INVOCATION if scope == "completion" else ()
    trees = [*forest(6, invocation=invocation), tree(9, 5, 7, seed=3, invocation=invocation)]
    losses, gradients = [], []
    for each in (decoder, load_decoder(tiny_base, dtype="bf16")):
        kind = FastTrainer if fast else Trainer
        trainer = kind(each, trees, (), config(adapter_scope=scope), seed=3, invocation_tokens=invocation)
        for pair in trainer.adapter.pairs.values():
            torch.nn.init.normal_(pair.b_OR, std=0.1, generator=torch.Generator().manual_seed(1))
        loss = -trainer.train.logprobs([0, 6, 2, 3])[1].mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.adapter.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
