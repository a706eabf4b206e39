import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tiny_gguf import vocabulary
from tunekeeper.errors import InvalidRequest, Unsupported
from tunekeeper.models import gguf_tokenizer


def byte_level_metadata(**changes):
    tokens, merges = vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def written(metadata, directory) -> Tokenizer:
    gguf_tokenizer.write(metadata, directory, context_window=512)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def test_smollm_cuts_digits_before_spaces(tmp_path):
    tokenizer = written(byte_level_metadata(), tmp_path)
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in  123")]
    assert pieces == ["in", "ĠĠ", "1", "2", "3"]


def test_gpt_2_leaves_a_space_with_its_number(tmp_path):
    tokenizer = written(byte_level_metadata(pre="default"), tmp_path)
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in  123")]
    assert pieces == ["in", "Ġ", "Ġ123"]


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("llama-bpe", ["I", "'LL", "Ġpay", "Ġ", "123", "4", "!!", "Ċ"]),
        ("qwen2", ["I", "'LL", "Ġpay", "Ġ", "1", "2", "3", "4", "!!", "Ċ"]),
    ],
)
def test_the_newer_rules_cut_numbers_their_own_way(tmp_path, rule, pieces):
    tokenizer = written(byte_level_metadata(pre=rule), tmp_path)
    found = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("I'LL pay 1234!!\n")]
    # Both rules keep line ends with the punctuation before them.
    assert found == [*pieces[:-2], "!!Ċ"]


def test_qwen_sees_composed_letters(tmp_path):
    tokenizer = written(byte_level_metadata(pre="qwen2"), tmp_path)
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    return written(byte_level_metadata(), tmp_path_factory.mktemp("smollm"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_from_its_bytes(smollm, text):
    assert smollm.decode(smollm.encode(text).ids, skip_special_tokens=False) == text


def test_an_unknown_rule_is_refused_by_name(tmp_path):
    with pytest.raises(Unsupported, match="viking"):
        written(byte_level_metadata(pre="viking"), tmp_path)


def test_an_unknown_kind_is_refused_by_name(tmp_path):
    with pytest.raises(Unsupported, match="rwkv"):
        written(byte_level_metadata(model="rwkv"), tmp_path)


def test_merges_that_the_vocabulary_does_not_know_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="fit together"):
        written(byte_level_metadata(merges=["Q Zx"]), tmp_path)


def test_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path):
    tokens, _ = vocabulary()
    types = [3, 3, 4] + [1] * (len(tokens) - 3)
    tokenizer = written(byte_level_metadata(token_type=types), tmp_path)
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": False}


def test_every_token_that_ends_a_turn_ends_an_answer(tmp_path):
    ids = gguf_tokenizer.write(byte_level_metadata(eot_token_id=0), tmp_path, context_window=512)
    assert ids["eos_token_id"] == [2, 0]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_a_model_that_never_stops_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="never stop"):
        written(byte_level_metadata(eos_token_id=None), tmp_path)


def test_a_special_id_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="outside its vocabulary"):
        written(byte_level_metadata(padding_token_id=10**6), tmp_path)


def test_bos_is_put_first_only_where_the_file_says_so(tmp_path):
    assert written(byte_level_metadata(add_bos_token=True), tmp_path).encode("the").ids[0] == 1
    assert written(byte_level_metadata(add_bos_token=False), tmp_path).encode("the").ids[0] != 1


SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{n:02X}>" for n in range(256)]
WORDS = ["▁the", "▁th", "he", "▁t", "th", "in", "▁in", "ing", "▁thing", "thing", "▁▁"]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz"]


def sentencepiece_metadata():
    words = [*WORDS, *LETTERS]
    tokens = [*SPECIAL, *BYTES, *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def joined_by_score(text: str) -> list[str]:
    """SentencePiece by the book: join the neighbours that make the best piece, leftmost first."""
    score = {word: -n for n, word in enumerate([*WORDS, *LETTERS])}
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        neighbours = enumerate(pairwise(symbols))
        pairs = [(score[a + b], -i) for i, (a, b) in neighbours if a + b in score]
        if not pairs:
            return symbols
        i = -max(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    return written(sentencepiece_metadata(), tmp_path_factory.mktemp("sentencepiece"))


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="thinge ab", max_size=30))
def test_sentencepiece_joins_as_its_scores_say(sentencepiece, text):
    found = sentencepiece.encode(text, add_special_tokens=False).tokens
    assert found == (joined_by_score(text) if text else [])


def test_what_sentencepiece_has_no_piece_for_is_spelled_in_bytes(tmp_path):
    tokenizer = written(sentencepiece_metadata(), tmp_path)
    encoded = tokenizer.encode("the é")
    assert encoded.tokens == ["<s>", "▁the", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "the é"


def test_sentencepiece_without_scores_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="scores"):
        written(sentencepiece_metadata() | {"tokenizer.ggml.scores": []}, tmp_path)
