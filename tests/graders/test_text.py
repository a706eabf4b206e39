"""Scores of texts: those of the reference libraries on whatever text, and some worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.errors import InvalidRequest, UpstreamFailed
from tunekeeper.graders.build import build
from tunekeeper.graders.template import sample_of
from tunekeeper.graders.text import metric

pytest.importorskip("rapidfuzz")
pytest.importorskip("sacrebleu")
pytest.importorskip("nltk")
pytest.importorskip("rouge_score")

VOCABULARY = ["the", "cat", "cats", "sat", "on", "a", "mat", ",", ".", "It's", "running", "ran", "naïve", "東京", "🙂"]
words = st.lists(st.sampled_from(VOCABULARY), max_size=12)
texts = words.map(" ".join) | st.text(max_size=40)


def check(operation, text, reference):
    spec = {
        "type": "string_check",
        "operation": operation,
        "input": "{{sample.output_text}}",
        "reference": "{{item.r}}",
    }
    return build(spec).grade(sample_of(text), {"r": reference}).score


@pytest.mark.parametrize(
    ("operation", "text", "reference", "score"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "paris", "Paris", 0),
        ("eq", "Paris ", "Paris", 0),
        ("eq", "", "", 1),
        ("ne", "paris", "Paris", 1),
        ("neq", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("like", "Paris", "It is Paris.", 0),
        ("ilike", "It is PARIS.", "paris", 1),
        ("ilike", "STRASSE", "straße", 1),
        ("ilike", "Rome", "paris", 0),
        ("like", "anything", "", 1),
    ],
)
def test_a_string_check_compares_as_it_says(operation, text, reference, score):
    assert check(operation, text, reference) == score


@settings(deadline=None)
@given(texts, texts)
def test_fuzzy_match_is_rapidfuzz(text, reference):
    from rapidfuzz import fuzz

    assert metric("fuzzy_match")(text, reference) == fuzz.WRatio(text, reference) / 100


@settings(deadline=None)
@given(texts, texts)
def test_bleu_is_sacrebleu(text, reference):
    import sacrebleu

    expected = sacrebleu.BLEU(effective_order=True).sentence_score(text, [reference]).score / 100
    assert metric("bleu")(text, reference) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(texts, texts)
def test_gleu_is_nltk(text, reference):
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.translate.gleu_score import corpus_gleu

    split = NLTKWordTokenizer().tokenize
    assert metric("gleu")(text, reference) == corpus_gleu([[split(reference)]], [split(text)])


@settings(deadline=None)
@given(texts, texts)
def test_meteor_is_nltk_with_the_same_stages(text, reference):
    from nltk.corpus import wordnet
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.translate.meteor_score import meteor_score

    class Silent:
        def synsets(self, word):
            return []

    try:
        wordnet.ensure_loaded()
        synonyms = wordnet
    except LookupError:
        synonyms = Silent()
    split = NLTKWordTokenizer().tokenize
    expected = meteor_score([split(reference)], split(text), wordnet=synonyms)
    assert metric("meteor")(text, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"])
@settings(deadline=None)
@given(text=texts, reference=texts)
def test_rouge_is_rouge_score(name, text, reference):
    from rouge_score.rouge_scorer import RougeScorer

    key = name.replace("rouge_", "rouge").replace("rougel", "rougeL")
    expected = RougeScorer([key]).score(target=reference, prediction=text)[key].fmeasure
    assert metric(name)(text, reference) == expected


def test_rouge_l_of_long_texts_fits_into_memory():
    words = [str(n % 97) for n in range(30_000)]  # the library's table would have a thousand million places
    assert metric("rouge_l")(" ".join(words), " ".join(words[:-10_000])) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["fuzzy_match", "meteor"])
def test_texts_that_would_take_minutes_are_a_fault(name):
    spec = {"type": "text_similarity", "evaluation_metric": name, "input": "{{ sample.output_text }}"}
    grader = build({**spec, "reference": "{{ item.r }}"})
    [fault] = grader.grade(sample_of("ab " * 50_000), {"r": "b " * 20_000}).faults
    assert (fault.kind, fault.by_sample) == ("truncated_observation_error", False)
    assert "150,000 and 40,000 characters" in fault.message


def test_scores_worked_by_hand():
    text, reference = "the cat sat", "the cat slept"
    # 2 of 3 words each way
    assert metric("rouge_1")(text, reference) == pytest.approx(2 / 3)
    # 1 of 2 pairs each way
    assert metric("rouge_2")(text, reference) == pytest.approx(1 / 2)
    # 6 n-grams each; shared: the, cat, the cat
    assert metric("gleu")(text, reference) == pytest.approx(3 / 6)
    # P = R = 2/3, one chunk of two words: penalty 0.5 * (1/2)^3
    assert metric("meteor")(text, reference) == pytest.approx((1 - 0.5 / 8) * 2 / 3)


@pytest.mark.parametrize("name", ["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_5", "rouge_l"])
@settings(deadline=None)
@given(text=texts, reference=texts)
def test_each_metric_stays_between_0_and_1(name, text, reference):
    assert 0 <= metric(name)(text, reference) <= 1


def cosine(embedder=None):
    spec = {"type": "text_similarity", "evaluation_metric": "cosine", "input": "{{ sample.output_text }}"}
    return build({**spec, "reference": "{{ item.r }}"}, embedder=embedder)


class Embeds:
    """An embedder with a table."""

    def __init__(self, table):
        self._table = table

    def embed(self, texts):
        if isinstance(self._table, Exception):
            raise self._table
        return [self._table[text] for text in texts]


vectors = st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=3, max_size=3).filter(any)


@settings(deadline=None)
@given(vectors, vectors)
def test_cosine_is_that_of_the_embeddings(left, right):
    grade = cosine(Embeds({"a": left, "b": right})).grade(sample_of("a"), {"r": "b"})
    expected = np.dot(left, right) / (np.linalg.norm(left) * np.linalg.norm(right))
    assert grade.score == pytest.approx(expected, abs=1e-9)
    assert not grade.faults


def test_cosine_without_an_embedding_model_is_refused_by_name():
    with pytest.raises(InvalidRequest, match="embedding_model") as caught:
        cosine()
    assert caught.value.param == "grader.evaluation_metric"


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (UpstreamFailed("away"), "model_grader_server_error"),
        ({"a": [0.0], "b": [1.0]}, "model_grader_parse_error"),
        ({"a": [1.0, 2.0], "b": [1.0]}, "model_grader_parse_error"),
        ({"a": [float("nan")], "b": [1.0]}, "model_grader_parse_error"),
    ],
)
def test_embeddings_without_an_angle_are_a_fault(table, kind):
    grade = cosine(Embeds(table)).grade(sample_of("a"), {"r": "b"})
    assert [fault.kind for fault in grade.faults] == [kind]
