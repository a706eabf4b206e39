"""Packing is an optimisation only: every number equals that of one sequence at a time."""

from pathlib import Path

import pytest
import torch

from forests import tree
from tunekeeper.models.decoder import Decoder
from tunekeeper.models.load import load_decoder
from tunekeeper.trainer.losses import token_logprobs
from tunekeeper.trainer.trees import (
    ROW_MULTIPLE,
    Packed,
    PrefixAttention,
    Recorder,
    Span,
    TreeAttention,
    microbatches,
    pack,
    row_multiple,
    tree_mask,
)
from tunekeeper.types import Branch, Tree


@pytest.fixture(scope="module")
def decoder(tiny_base: Path) -> Decoder:
    return load_decoder(tiny_base, dtype="fp32")


def logprobs(decoder: Decoder, packed: Packed) -> torch.Tensor:
    hidden = decoder.hidden(packed.tokens_T, packed.positions_T, TreeAttention(packed.spans))
    rows_N = packed.source_N[: packed.target_N.shape[0]]
    return token_logprobs(hidden[rows_N], decoder.head_VE, packed.target_N)[0]


def test_packed_trees_give_the_numbers_of_each_tree_alone(decoder: Decoder) -> None:
    trees = [tree(5, 3, seed=1), tree(17, 8, seed=2), tree(2, 1, seed=3)]
    together = logprobs(decoder, pack(trees))
    alone = torch.cat([logprobs(decoder, pack([each])) for each in trees])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_branches_that_share_a_trunk_give_the_numbers_of_separate_sequences(decoder: Decoder) -> None:
    shared = tree(9, 4, 1, 7, seed=4)
    together = logprobs(decoder, pack([tree(3, 2, seed=5), shared]))
    separate = [tree(3, 2, seed=5)] + [Tree(shared.trunk, (branch,)) for branch in shared.branches]
    alone = torch.cat([logprobs(decoder, pack([each])) for each in separate])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiple", [2, 16, 64])
def test_rows_that_fill_a_batch_up_change_none_of_its_numbers(decoder: Decoder, multiple: int) -> None:
    trees = [tree(5, 3, seed=1), tree(9, 4, 1, 7, seed=4)]
    filled, plain = pack(trees, multiple=multiple), pack(trees)
    assert filled.size % multiple == filled.source_N.shape[0] % multiple == 0
    assert filled.size - plain.size < multiple
    torch.testing.assert_close(logprobs(decoder, filled), logprobs(decoder, plain), rtol=1e-5, atol=1e-5)


def test_a_batch_that_predicts_nothing_fills_up_no_rows_that_predict() -> None:
    packed = pack([Tree((1, 2, 3), ())], multiple=8)
    assert (packed.size, packed.source_N.shape[0]) == (8, 0)


def test_rows_are_filled_up_where_a_processor_multiplies_bf16(decoder: Decoder, tiny_base: Path) -> None:
    assert row_multiple(decoder) == 1
    assert row_multiple(load_decoder(tiny_base, dtype="bf16")) == ROW_MULTIPLE


@pytest.mark.parametrize("multiple", [1, 16])
def test_a_tree_on_a_recorded_prefix_gives_the_numbers_of_the_whole_tree(decoder: Decoder, multiple: int) -> None:
    trees = [tree(12, 5, seed=6), tree(7, 3, 4, seed=7)]
    active = 3
    prefixes = pack([Tree(each.trunk[:-active], ()) for each in trees], multiple=multiple)
    recorder = Recorder(TreeAttention(prefixes.spans))
    decoder.hidden(prefixes.tokens_T, prefixes.positions_T, recorder)
    rest = pack(
        [Tree(each.trunk[-active:], each.branches) for each in trees],
        [len(each.trunk) - active for each in trees],
        multiple=multiple,
    )
    hidden = decoder.hidden(rest.tokens_T, rest.positions_T, PrefixAttention(rest.spans, recorder.prefixes()))
    rows_N = rest.source_N[: rest.target_N.shape[0]]
    got, _ = token_logprobs(hidden[rows_N], decoder.head_VE, rest.target_N)
    torch.testing.assert_close(got, logprobs(decoder, pack(trees)), rtol=1e-5, atol=1e-5)


def test_positions_of_each_branch_continue_its_trunk() -> None:
    packed = pack([Tree((10, 11, 12, 13), (Branch((20, 21, 22), (1, 1, 1)), Branch((30, 31), (1, 1)))), tree(2, 1)])
    assert packed.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2]
    assert packed.source_N.tolist() == [3, 4, 5, 3, 7, 10]
    assert packed.target_N.tolist()[:5] == [20, 21, 22, 30, 31]
    assert packed.branch_N.tolist() == [0, 0, 0, 1, 1, 2]


def test_tokens_without_weight_are_seen_but_not_predicted() -> None:
    packed = pack([Tree((1, 2), (Branch((5, 6, 7), (0.0, 1.0, 0.5)),), trunk_weights=(0.1, 0.1))])
    assert packed.target_N.tolist() == [2, 6, 7]
    torch.testing.assert_close(packed.weight_N, torch.tensor([0.1, 1.0, 0.5]))


def test_a_branch_never_sees_its_sibling() -> None:
    seen = tree_mask(Span(10, (12, 14, 15))).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_microbatch_never_exceeds_its_tokens_unless_one_tree_does() -> None:
    assert microbatches([4, 4, 9, 1, 2], [0, 1, 2, 3, 4], max_tokens=8) == [[0, 1], [2], [3, 4]]
