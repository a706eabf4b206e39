import asyncio
import json
import shutil
import subprocess
import sys
from importlib.resources import files

import pytest

from tiny import CHAT_TEMPLATE, make_tokenizer
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import ModelNotFound, Overloaded, Unavailable
from tunekeeper.inference.answers import Answers, ChatRequest, Counts, Delta, RemoteTarget, call_style
from tunekeeper.inference.params import Sampling
from tunekeeper.inference.tools import CallBegins, Words
from tunekeeper.settings import Settings, Upstream
from tunekeeper.types import Model

HELLO = [{"role": "user", "content": "hello there"}]
SHORT = Sampling(temperature=0, max_tokens=6)


class Shelf:
    """Models by id."""

    def __init__(self, *models: Model) -> None:
        self._models = {model.id: model for model in models}

    def get_model(self, model_id: str) -> Model:
        if model_id not in self._models:
            raise ModelNotFound("no", param="model")
        return self._models[model_id]


def base(name: str, path: object) -> Model:
    return Model(id=name, created_at=0, kind="base", path=str(path), base=name)


@pytest.fixture
def make(tmp_path):
    made = []

    def answers(*models: Model, **options: object) -> Answers:
        settings = Settings(**{"home": tmp_path, "cache_tokens": 2048, "max_concurrent_requests": 4} | options)
        made.append(Answers(settings, Shelf(*models)))
        return made[-1]

    yield answers
    for each in made:
        each.close()


def ask(answers: Answers, model: Model, request: ChatRequest) -> list[Delta | Counts]:
    async def read() -> list[Delta | Counts]:
        return [event async for event in answers.chat(model, request)]

    return asyncio.run(read())


def text(events: list[Delta | Counts], index: int = 0) -> str:
    parts = [part for e in events if isinstance(e, Delta) and e.index == index for part in e.parts]
    return "".join(part.text for part in parts if isinstance(part, Words))


def test_importing_it_loads_no_torch():
    code = "import sys, tunekeeper.inference.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_base_answers_and_its_counts_come_last(make, tiny_base):
    model = base("tiny", tiny_base)
    *deltas, counts = ask(make(model), model, ChatRequest(messages=HELLO, sampling=SHORT))
    assert isinstance(counts, Counts)
    assert counts.n_generated == 6
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]


def test_n_answers_are_different_and_their_prompt_is_computed_once(make, tiny_base):
    model = base("tiny", tiny_base)
    sampling = Sampling(temperature=1.5, seed=3, max_tokens=12)
    events = ask(make(model), model, ChatRequest(messages=HELLO, sampling=sampling, n=3))
    texts = [text(events, index) for index in range(3)]
    assert len(set(texts)) == 3
    assert events[-1].n_generated == 36
    alone = ask(make(model), model, ChatRequest(messages=HELLO, sampling=sampling))
    assert text(alone) == texts[0]


def test_a_function_that_must_be_called_is_called(make, tiny_base):
    model = base("tiny", tiny_base)
    function = {
        "name": "f",
        "parameters": {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]},
    }
    request = ChatRequest(
        messages=HELLO,
        functions=[function],
        tool_choice="required",
        named_function="f",
        sampling=Sampling(temperature=1, seed=1, max_tokens=100),
    )
    events = ask(make(model), model, request)
    parts = [part for event in events if isinstance(event, Delta) for part in event.parts]
    assert parts[0] == CallBegins(0, "f")
    assert json.loads("".join(part.text for part in parts[1:]))["x"] in ("a", "b")
    assert [e.finish_reason for e in events if isinstance(e, Delta) and e.finish_reason] == ["tool_calls"]


@pytest.mark.parametrize("parallel", [True, False])
def test_without_parallel_calls_there_is_one(make, tiny_base, parallel):
    model = base("tiny", tiny_base)
    request = ChatRequest(
        messages=HELLO,
        functions=[{"name": "f"}],
        tool_choice="required",
        parallel_tool_calls=parallel,
        # Nothing but the end would stop a model that may call again: forbid the end.
        sampling=Sampling(temperature=1, seed=1, max_tokens=120, logit_bias={2: -100}),
    )
    events = ask(make(model), model, request)
    parts = [part for event in events if isinstance(event, Delta) for part in event.parts]
    assert (sum(isinstance(part, CallBegins) for part in parts) > 1) is parallel


def test_weights_that_are_gone_say_how_to_get_them_back(make, tmp_path):
    model = base("tiny", tmp_path / "nowhere")
    with pytest.raises(Unavailable, match="tunekeeper models pull tiny"):
        ask(make(model), model, ChatRequest(messages=HELLO))


def test_the_base_used_least_recently_makes_room(make, tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "copy")
    one, other = base("one", tiny_base), base("other", tmp_path / "copy")
    answers = make(one, other, max_loaded_bases=1)
    request = ChatRequest(messages=HELLO, sampling=SHORT)
    assert text(ask(answers, one, request)) == text(ask(answers, other, request))
    assert list(answers._bases) == ["other"]


def test_a_base_in_use_is_not_unloaded(make, tiny_base, tmp_path):
    one, other = base("one", tiny_base), base("other", tiny_base)
    answers = make(one, other, max_loaded_bases=1)

    async def both() -> None:
        events = answers.chat(one, ChatRequest(messages=HELLO, sampling=Sampling(max_tokens=300, seed=1)))
        await anext(events)
        try:
            await anext(answers.chat(other, ChatRequest(messages=HELLO)))
        finally:
            await events.aclose()

    with pytest.raises(Overloaded, match="max_loaded_bases"):
        asyncio.run(both())
    assert text(ask(answers, other, ChatRequest(messages=HELLO, sampling=SHORT)))


def test_a_name_is_an_id_an_alias_or_an_upstreams_model(make, tiny_base):
    model = base("tiny", tiny_base)
    upstream = Upstream(name="vllm", base_url="http://127.0.0.1:1/v1", models=("qwen",))
    down = Upstream(name="down", base_url="http://127.0.0.1:1/v1")
    answers = make(model, aliases={"gpt-4o": "tiny", "other": "qwen", "lost": "x"}, upstreams=(down, upstream))
    assert asyncio.run(answers.resolve("tiny")) == asyncio.run(answers.resolve("gpt-4o")) == model
    target = asyncio.run(answers.resolve("other"))
    assert isinstance(target, RemoteTarget)
    assert (target.model, target.remote.upstream.name) == ("qwen", "vllm")
    with pytest.raises(ModelNotFound, match="an alias of 'x'") as caught:
        asyncio.run(answers.resolve("lost"))
    assert caught.value.param == "model"


def test_an_upstream_that_is_down_hides_no_other(make):
    up = Upstream(name="vllm", base_url="http://127.0.0.1:1/v1", models=("qwen",))
    down = Upstream(name="down", base_url="http://127.0.0.1:1/v1")
    models = asyncio.run(make(upstreams=(down, up)).upstream_models())
    assert [entry["id"] for entry in models] == ["qwen"]


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (CHAT_TEMPLATE, "tagged"),
        (CHAT_TEMPLATE.replace("<tool_call>", "").replace("</tool_call>", ""), "bare"),
        (files("tunekeeper.models").joinpath("chatml_tools.jinja").read_text("utf-8"), "pythonic"),
        (None, "bare"),
    ],
    ids=["Hermes", "bare JSON", "ours", "none"],
)
def test_a_model_writes_calls_as_its_chat_template_does(tmp_path, template, style):
    assert call_style(Tokenizer.load(make_tokenizer(tmp_path / "model", chat_template=template))) == style
