"""Our models and an upstream's as graders ask them: from threads, over a loop elsewhere."""

import json
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from scripted_server import scripted
from tunekeeper.errors import InvalidRequest, ModelNotFound, Unsupported, UpstreamFailed
from tunekeeper.inference.answers import Answers
from tunekeeper.inference.sampler import AnswersSampler, in_background
from tunekeeper.settings import Settings, Upstream
from tunekeeper.types import Model

HELLO = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"result": {"type": "number", "enum": [1, 2]}},
    "required": ["result"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": SCHEMA}}


class Shelf:
    """Models by id."""

    def __init__(self, *models: Model) -> None:
        self._models = {model.id: model for model in models}

    def get_model(self, model_id: str) -> Model:
        if model_id not in self._models:
            raise ModelNotFound("no", param="model")
        return self._models[model_id]


@pytest.fixture(scope="module")
def upstream():
    completion = {"model": "big", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    embeddings = {"data": [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}]}
    answers = {("POST", "/chat/completions"): completion, ("POST", "/embeddings"): embeddings}
    with scripted(answers) as server:
        yield server


@pytest.fixture(scope="module")
def sampler(upstream, tiny_base, tmp_path_factory):
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        cache_tokens=2048,
        upstreams=(Upstream(name="up", base_url=upstream.url, models=("big",)),),
        aliases={"judge": "tiny"},
    )
    tiny = Model(id="tiny", created_at=0, kind="base", path=str(tiny_base), base="tiny")
    with in_background(Answers(settings, Shelf(tiny)), embedding_model="big") as sampler:
        yield sampler


def test_our_own_model_answers_in_the_form_that_was_asked_for(sampler):
    body = {"model": "judge", "messages": HELLO, "response_format": FORM, "temperature": 0, "max_completion_tokens": 60}
    answer = sampler.complete(body)
    [choice] = answer["choices"]
    assert (answer["model"], choice["finish_reason"]) == ("tiny", "stop")
    assert json.loads(choice["message"]["content"])["result"] in (1, 2)
    assert answer["usage"]["total_tokens"] > 0


def test_the_same_seed_gives_the_same_answer(sampler):
    body = {"model": "tiny", "messages": HELLO, "seed": 3, "max_completion_tokens": 8}
    assert sampler.complete(body)["choices"] == sampler.complete(body)["choices"]


def test_an_upstream_is_asked_as_it_is(sampler, upstream):
    body = {"model": "big", "messages": HELLO, "reasoning_effort": "high"}
    assert sampler.complete(body)["choices"][0]["message"]["content"] == "hi"
    assert json.loads(upstream.bodies("POST", "/chat/completions")[-1]) == body


def test_a_model_that_is_not_there_is_known_beforehand(sampler):
    sampler.check({"model": "judge", "messages": HELLO})
    with pytest.raises(ModelNotFound, match="nobody"):
        sampler.check({"model": "nobody", "messages": HELLO})


def test_what_our_own_model_does_not_have_is_known_beforehand_and_an_upstream_is_not_second_guessed(sampler):
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    for change in ({"reasoning_effort": "high"}, {"messages": picture}):
        sampler.check({"model": "big", "messages": HELLO, **change})
        with pytest.raises(Unsupported):
            sampler.check({"model": "judge", "messages": HELLO, **change})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"reasoning_effort": "high"}, Unsupported),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, InvalidRequest),
        ({"messages": [{"role": "user", "content": "the city " * 400}]}, InvalidRequest),
        ({"model": "nobody"}, ModelNotFound),
    ],
)
def test_what_our_own_models_cannot_do_is_refused(sampler, change, error):
    with pytest.raises(error):
        sampler.complete({"model": "tiny", "messages": HELLO, **change})


def test_embeddings_come_in_the_order_of_their_texts(sampler):
    assert sampler.embed(["a", "b"]) == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(UpstreamFailed, match="2 embeddings of 3"):
        sampler.embed(["a", "b", "c"])


def test_a_stopped_sampler_ends_what_is_being_answered_and_answers_no_more(sampler):
    other = AnswersSampler(sampler._answers, sampler._loop)
    other.load("tiny")
    other.load("big")  # an upstream's: there is nothing to load
    body = {"model": "tiny", "messages": HELLO, "max_completion_tokens": 400, "logit_bias": {"0": -100, "2": -100}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(other.complete, body)
        while not other._asked:
            time.sleep(0.001)
        other.stop()
        with pytest.raises(CancelledError):
            answer.result(10)
    with pytest.raises(CancelledError):
        other.complete(body)
    assert sampler.complete({**body, "max_completion_tokens": 1})["choices"]
