"""Graders that compare two texts, without a model: string_check and text_similarity.

Each metric is a reference library's, divided by 100 where that speaks of percents:

    fuzzy_match       rapidfuzz.fuzz.WRatio
    bleu              sacrebleu.sentence_bleu, its defaults
    gleu              nltk.translate.gleu_score.sentence_gleu
    meteor            nltk.translate.meteor_score.single_meteor_score; synonyms where nltk finds WordNet on this machine
    rouge_1 … rouge_l rouge_score, F-measure, no stemmer; it reads only a-z and 0-9
    cosine            of the embeddings of an upstream's model

gleu and meteor see the words of `nltk.word_tokenize(text, preserve_line=True)`, which needs no data file.
"""

import logging
import math
from collections.abc import Callable
from operator import mul
from typing import Any

from tunekeeper.errors import InvalidRequest, TunekeeperError, Unavailable
from tunekeeper.graders.spec import StringCheck, TextSimilarity
from tunekeeper.graders.template import Ungradable, template
from tunekeeper.ports import Embedder
from tunekeeper.types import Grade, Json

MAX_PAIRS = 10**8
"""Characters of the one text times those of the other, where a metric's time grows with it: seconds at this."""

Similarity = Callable[[str, str], float]
"""Of the text that is graded, and of its reference."""
Score = Callable[[Json, Json], Grade]


def string_check(spec: StringCheck) -> Score:
    """1 where the comparison holds, else 0."""
    input_, reference = template(spec.input), template(spec.reference)
    holds = _CHECKS[spec.operation]

    def score(sample: Json, item: Json) -> Grade:
        return Grade(score=float(holds(input_.render(sample, item), reference.render(sample, item))))

    return score


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def text_similarity(spec: TextSimilarity, embedder: Embedder | None = None) -> Score:
    """The metric's value; raises Unavailable where its package or its model is not here."""
    input_, reference = template(spec.input), template(spec.reference)
    similarity = _cosine(embedder) if spec.evaluation_metric == "cosine" else metric(spec.evaluation_metric)
    is_slow = spec.evaluation_metric in ("fuzzy_match", "meteor")

    def score(sample: Json, item: Json) -> Grade:
        left, right = input_.render(sample, item), reference.render(sample, item)
        if is_slow and len(left) * len(right) > MAX_PAIRS:
            lengths = f"{len(left):,} and {len(right):,} characters"
            message = f"{spec.evaluation_metric} takes too long for {lengths}: take rouge_l or bleu."
            raise Ungradable("truncated_observation_error", message)
        return Grade(score=similarity(left, right))

    return score


def metric(name: str) -> Similarity:
    """A metric that needs no model; raises Unavailable where its package is missing."""
    try:
        if name.startswith("rouge_"):
            return _rouge(name.removeprefix("rouge_"))
        return {"fuzzy_match": _fuzzy_match, "bleu": _bleu, "gleu": _gleu, "meteor": _meteor}[name]()
    except ImportError as error:
        raise Unavailable(f"{name} needs {error.name}: pip install 'tunekeeper[graders]'.") from error


def _fuzzy_match() -> Similarity:
    from rapidfuzz import fuzz

    return lambda text, reference: fuzz.WRatio(text, reference) / 100


def _bleu() -> Similarity:
    from sacrebleu import sentence_bleu

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # it warns of each text that looks tokenised
    # Rounding lets it pass 100 by a hair.
    return lambda text, reference: min(sentence_bleu(text, [reference]).score / 100, 1.0)


def _gleu() -> Similarity:
    from nltk.translate.gleu_score import sentence_gleu

    words = _words()
    return lambda text, reference: float(sentence_gleu([words(reference)], words(text)))


def _meteor() -> Similarity:
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import single_meteor_score

    words = _words()
    try:
        wordnet.ensure_loaded()  # now, for it is not loaded safely from several threads
        synonyms = wordnet
    except LookupError:
        synonyms = _NoSynonyms()
    return lambda text, reference: float(single_meteor_score(words(reference), words(text), wordnet=synonyms))


class _NoSynonyms:
    """Stands in for WordNet: METEOR with its exact and its stem stage."""

    def synsets(self, word: str) -> list[Any]:
        """None."""
        return []


def _rouge(which: str) -> Similarity:
    from rouge_score.rouge_scorer import RougeScorer

    if which == "l":
        return _rouge_l()
    name = f"rouge{which.upper()}"
    scorer = RougeScorer([name])
    return lambda text, reference: float(scorer.score(reference, text)[name].fmeasure)


def _rouge_l() -> Similarity:
    """As RougeScorer has it, whose table of all words by all words fills the memory at some 100 KB of text."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenizers import DefaultTokenizer

    words = DefaultTokenizer(use_stemmer=False).tokenize

    def similarity(text: str, reference: str) -> float:
        said, wanted = words(text), words(reference)
        if not said or not wanted:
            return 0.0
        common = LCSseq.similarity(said, wanted)
        return float(fmeasure(common / len(said), common / len(wanted)))

    return similarity


def _words() -> Callable[[str], list[str]]:
    from nltk.tokenize import word_tokenize

    return lambda text: list(word_tokenize(text, preserve_line=True))


def _cosine(embedder: Embedder | None) -> Similarity:
    if embedder is None:
        raise InvalidRequest(
            "The metric cosine needs an embedding model, and none is configured. Set embedding_model to one that an "
            "upstream serves, or take another metric, such as fuzzy_match.",
            param="evaluation_metric",
        )

    def similarity(text: str, reference: str) -> float:
        try:
            left, right = embedder.embed([text, reference])
        except TunekeeperError as error:
            raise Ungradable("model_grader_server_error", error.message) from error
        size = math.hypot(*left) * math.hypot(*right)
        if len(left) != len(right) or size == 0 or not math.isfinite(size):
            raise Ungradable("model_grader_parse_error", "The embedding model gave vectors that have no angle.")
        cosine: float = sum(map(mul, left, right)) / size
        return max(-1.0, min(1.0, cosine))

    return similarity
