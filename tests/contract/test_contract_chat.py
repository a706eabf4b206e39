"""Chats as the official client sees them, over a real socket: OpenAI and Azure, ours and an upstream's."""

import json
import math
import time

import openai
import pytest
from pydantic import BaseModel, Field

from tunekeeper.api.server import background
from tunekeeper.settings import Settings, Upstream
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Model

HELLO = [{"role": "user", "content": "hello there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["paris", "tokyo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class City(BaseModel):
    name: str = Field(max_length=6)
    large: bool


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, tiny_base):
    home = tmp_path_factory.mktemp("home")
    store = Store(connect(home))
    store.add_model(Model(id="org/tiny", created_at=5, kind="base", path=str(tiny_base), base="org/tiny"))
    store.close()
    with background(Settings(home=home, cache_tokens=4096, max_concurrent_requests=8), worker=False) as url:
        yield url


@pytest.fixture(scope="module")
def upstream_url(tmp_path_factory, base_url):
    """A second server, whose only model is the first one's."""
    upstream = Upstream(name="first", base_url=base_url)
    settings = Settings(home=tmp_path_factory.mktemp("second"), upstreams=(upstream,), aliases={"gpt-4o": "org/tiny"})
    with background(settings, worker=False) as url:
        yield url


@pytest.fixture(params=["openai", "azure", "upstream"], scope="module")
def client(request, base_url):
    if request.param == "azure":
        made = openai.AzureOpenAI(
            azure_endpoint=base_url.removesuffix("/v1"), api_key="none", api_version="2024-10-21", max_retries=0
        )
    else:
        url = request.getfixturevalue("upstream_url") if request.param == "upstream" else base_url
        made = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with made as client:
        yield client


@pytest.fixture(scope="module")
def plain(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def create(client, **options):
    return client.chat.completions.create(
        **{"model": "org/tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 8} | options
    )


def test_an_answer(client):
    completion = create(client)
    assert completion.model == "org/tiny"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 8


def test_a_stream(client):
    whole = create(client).choices[0].message.content
    with create(client, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens == 8


def test_a_required_call(client):
    completion = create(
        client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_completion_tokens=100
    )
    [call] = completion.choices[0].message.tool_calls
    assert completion.choices[0].finish_reason == "tool_calls"
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("paris", "tokyo")


def test_a_streamed_call_of_a_named_function(client):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(
        model="org/tiny", messages=HELLO, tools=[WEATHER], tool_choice=choice, temperature=0, max_completion_tokens=100
    ) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    [call] = completion.choices[0].message.tool_calls
    assert call.function.parsed_arguments["city"] in ("paris", "tokyo")


def test_a_conversation_with_a_call_goes_on(plain):
    called = create(
        plain, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_completion_tokens=100
    )
    message = called.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    assert create(plain, messages=[*HELLO, message, result], tools=[WEATHER]).choices[0].finish_reason == "length"


def test_an_answer_parsed_into_a_class(client):
    completion = client.chat.completions.parse(
        model="org/tiny", messages=HELLO, response_format=City, temperature=1.3, seed=4, max_completion_tokens=150
    )
    assert isinstance(completion.choices[0].message.parsed, City)


def test_a_json_object(client):
    completion = create(
        client, response_format={"type": "json_object"}, max_completion_tokens=60, logit_bias={"2": 20, "1": -100}
    )
    choice = completion.choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        json.loads(choice.message.content)


def test_logprobs(client):
    choice = create(client, logprobs=True, top_logprobs=2).choices[0]
    assert len(choice.logprobs.content) == 8
    for each in choice.logprobs.content:
        assert each.logprob == pytest.approx(each.top_logprobs[0].logprob)
        assert sum(math.exp(other.logprob) for other in each.top_logprobs) <= 1
    text = b"".join(bytes(each.bytes) for each in choice.logprobs.content).decode("utf-8", "replace")
    assert text == choice.message.content


def test_several_choices_stop_strings_and_seeds(client):
    options = {"n": 3, "temperature": 1.2, "seed": 9, "max_completion_tokens": 16}
    first, again = create(client, **options), create(client, **options)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    stop = texts[0][3:5]
    cut = create(client, **options | {"n": 1}, stop=[stop]).choices[0]
    assert cut.message.content == texts[0][: texts[0].index(stop)]
    assert cut.finish_reason == "stop"


def test_errors_are_the_clients_own_classes(client):
    with pytest.raises(openai.NotFoundError) as missing:
        create(client, model="nope")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as unknown:
        create(client, extra_body={"colour": "red"})
    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "colour")


def test_an_azure_deployment_names_the_model(base_url):
    with openai.AzureOpenAI(
        azure_endpoint=base_url.removesuffix("/v1"),
        azure_deployment="org/tiny",
        api_key="none",
        api_version="2024-10-21",
        max_retries=0,
    ) as azure:
        assert create(azure, model="whatever").model == "org/tiny"


def test_an_alias_reaches_an_upstreams_model(upstream_url):
    with openai.OpenAI(base_url=upstream_url, api_key="none", max_retries=0) as client:
        assert create(client, model="gpt-4o").choices[0].message.content
        assert "org/tiny" in [model.id for model in client.models.list()]


def test_a_client_that_leaves_frees_its_place(plain):
    for _ in range(10):
        stream = create(plain, stream=True, temperature=1, seed=1, max_completion_tokens=400)
        next(iter(stream))
        stream.close()
    start = time.monotonic()
    assert create(plain).choices
    assert time.monotonic() - start < 5
