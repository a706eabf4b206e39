"""Weights in another order, with an adapter merged into them or not, give the same numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from naive import drawn_adapter
from tunekeeper.inference.packed import PackedWeight, merge, packed_view, unmerge
from tunekeeper.models.decoder import Decoder, LlamaDecoder
from tunekeeper.models.load import load_decoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import Branch, Tree

TREE = Tree(tuple(range(5, 30)), (Branch((40, 41, 42), (1.0,) * 3), Branch((43,), (1.0,))))


@pytest.fixture
def decoder(tiny_base: Path) -> Decoder:
    return load_decoder(tiny_base, dtype="fp32")


def logits(decoder: Decoder, adapter: LoraAdapter | None = None) -> Tensor:
    packed = pack([TREE])
    rows = (AdapterRows(adapter, 0, packed.size),) if adapter else ()
    with torch.no_grad():
        hidden = decoder.hidden(packed.tokens_T, packed.positions_T, TreeAttention(packed.spans), adapters=rows)
        return decoder.logits(hidden)


def test_a_view_answers_as_its_decoder_which_stays_as_it_was(decoder: Decoder) -> None:
    before = logits(decoder)
    view = packed_view(decoder)
    assert isinstance(view, LlamaDecoder)
    assert isinstance(decoder, LlamaDecoder)
    assert isinstance(view.layers[0].qkv_OE, PackedWeight)
    assert not isinstance(decoder.layers[0].qkv_OE, PackedWeight)
    torch.testing.assert_close(logits(view), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(decoder), before)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 here")
def test_a_view_in_bf16_answers_as_its_decoder_and_takes_no_adapter_into_weights_that_would_round_it_away(
    tiny_base: Path,
) -> None:
    decoder = load_decoder(tiny_base, dtype="bf16")
    view = packed_view(decoder)
    assert isinstance(view, LlamaDecoder)
    assert isinstance(view.layers[0].qkv_OE, PackedWeight)
    adapter = drawn_adapter(decoder)
    assert not merge(view, decoder, adapter)
    for learned in (None, adapter):
        torch.testing.assert_close(logits(view, learned), logits(decoder, learned), rtol=2e-2, atol=2e-2)


def test_a_merged_view_answers_with_the_adapter_at_every_merge(decoder: Decoder) -> None:
    view = packed_view(decoder)
    plain = logits(decoder)
    for seed in (3, 4):
        adapter = drawn_adapter(decoder, seed=seed)
        if seed == 4:  # of some modules only
            adapter.pairs = {name: pair for name, pair in adapter.pairs.items() if "v_proj" in name or "down" in name}
        assert merge(view, decoder, adapter)
        torch.testing.assert_close(logits(view), logits(decoder, adapter), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits(view), plain, atol=1e-2)
        unmerge(view, decoder, adapter)
        torch.testing.assert_close(logits(view), plain, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_some_modules_leaves_the_others_in_their_order_so_that_every_merge_gives_the_same_bits(
    decoder: Decoder,
) -> None:
    adapter = drawn_adapter(decoder)
    adapter.pairs = {name: pair for name, pair in adapter.pairs.items() if "q_proj" in name}
    view = packed_view(decoder)
    found = []
    for _ in range(2):
        assert merge(view, decoder, adapter)
        found.append(logits(view))
        unmerge(view, decoder, adapter)
    assert torch.equal(*found)
    assert isinstance(view, LlamaDecoder)
    assert isinstance(view.layers[0].down_EF, PackedWeight)


def test_an_adapter_of_completions_and_a_decoder_without_a_view_are_not_merged(decoder: Decoder) -> None:
    adapter = drawn_adapter(decoder)
    assert not merge(decoder, decoder, adapter)
    adapter.scope = "completion"
    view = packed_view(decoder)
    assert not merge(view, decoder, adapter)
    torch.testing.assert_close(logits(view), logits(decoder), rtol=1e-5, atol=1e-5)
