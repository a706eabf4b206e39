import math
from collections import Counter

import numpy as np
import pytest
import torch

from tunekeeper.inference.params import Sampling
from tunekeeper.inference.sampling import Draw, choose, new_random


def draw(seed: int = 0, **params: object) -> Draw:
    return Draw(Sampling(seed=seed, **params), new_random(seed, 0))


def frequencies(logits: list[float], n: int = 4000, **params: object) -> list[float]:
    one = draw(**params)
    counts = Counter(choose(torch.tensor([logits]), [one])[0].token for _ in range(n))
    return [counts[token] / n for token in range(len(logits))]


LOGITS = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]


def test_greedy_takes_the_most_likely():
    rows = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert [c.token for c in choose(rows, [draw(temperature=0), draw(temperature=0)])] == [1, 0]


def test_tokens_come_as_often_as_the_model_says():
    assert frequencies(LOGITS) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens():
    assert frequencies(LOGITS, temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    assert frequencies(LOGITS, top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


def test_top_p_of_a_flat_distribution_looks_at_the_whole_vocabulary():
    tokens = {choose(torch.zeros(1, 2000), [d])[0].token for d in [draw(top_p=0.9)] for _ in range(3000)}
    assert 1300 < len(tokens) <= 1800


def test_top_p_zero_is_greedy():
    assert frequencies(LOGITS, n=20, top_p=0.0) == [1, 0, 0, 0]


def test_bias_of_minus_a_hundred_bans_and_plus_a_hundred_forces():
    assert frequencies(LOGITS, n=300, logit_bias={0: -100})[0] == 0
    assert frequencies(LOGITS, n=300, logit_bias={3: 100})[3] == 1


def test_penalties_count_what_was_generated():
    one = draw(temperature=0, presence_penalty=1.0, frequency_penalty=0.5)
    one.counts.update({0: 2})
    # 5 - 1 - 2 * 0.5 = 3, below 4
    assert choose(torch.tensor([[5.0, 4.0, 0.0]]), [one])[0].token == 1
    one.counts.clear()
    assert choose(torch.tensor([[5.0, 4.0, 0.0]]), [one])[0].token == 0


def test_a_grammar_leaves_only_what_it_allows():
    one = draw(temperature=2)
    one.allowed_words = np.array([0b0110], dtype=np.int32)
    found = {choose(torch.tensor([[9.0, 0.0, 0.0, 9.0]]), [one])[0].token for _ in range(50)}
    assert found == {1, 2}


def test_a_seed_gives_the_same_tokens_whatever_stands_beside():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    alone, beside = draw(7), draw(7)
    first = [choose(rows[:1], [alone])[0].token for _ in range(20)]
    others = [draw(1), draw(2, temperature=0)]
    assert first == [choose(rows, [beside, *others])[0].token for _ in range(20)]
    assert len(set(first)) > 5


def test_each_answer_to_a_request_has_its_own_stream():
    assert new_random(3, 0).random() == new_random(3, 0).random() != new_random(3, 1).random()


def test_logprobs_are_the_models_before_temperature_and_bias():
    one = draw(temperature=0, logit_bias={1: 50}, top_logprobs=2)
    choice = choose(torch.tensor([LOGITS]), [one])[0]
    assert choice.token == 1
    assert choice.logprob == pytest.approx(math.log(0.3))
    assert [token for token, _ in choice.top] == [0, 1]
    assert [value for _, value in choice.top] == pytest.approx(LOGITS[:2])


@pytest.mark.parametrize("params", [{"temperature": 0}, {}])
def test_logits_that_are_no_numbers_give_no_token(params):
    rows = torch.tensor([[1.0, float("nan"), 0.0], [1.0, 2.0, 0.0]])
    choices = choose(rows, [draw(**params), draw(temperature=0)])
    assert [choice.token for choice in choices] == [None, 1]


def test_a_given_row_is_not_changed():
    row = torch.tensor([[1.0, 2.0]])
    choose(row, [draw(temperature=0, logit_bias={0: 5})])
    assert row.tolist() == [[1.0, 2.0]]
