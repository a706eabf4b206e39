"""The chat route's own behaviour; what the official client makes of it is in tests/contract."""

import json

import pytest

from fakes import FakeClock, local_client
from tunekeeper.api.app import create_app
from tunekeeper.settings import Settings
from tunekeeper.types import Model

HELLO = [{"role": "user", "content": "hello there"}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def client(tiny_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, aliases={"gpt-4o": "tiny"}, cache_tokens=4096, max_concurrent_requests=4)
    app = create_app(settings, clock=FakeClock(), worker=False)
    app.state.services.store.add_model(Model(id="tiny", created_at=1, kind="base", path=str(tiny_base), base="tiny"))
    app.state.services.store.add_model(Model(id="gone", created_at=1, kind="base", path="bases/gone", base="gone"))
    with local_client(app) as client:
        yield client
    app.state.services.answers.close()


def post(client, **body):
    return client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 5} | body,
    )


def events(response) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def test_a_response_has_every_field_that_the_api_names(client):
    body = post(client).json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "tiny", 1_800_000_000)
    [choice] = body["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["refusal"] is None
    usage = body["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert set(usage["prompt_tokens_details"]) == {"cached_tokens", "audio_tokens"}


def test_a_stream_is_the_same_answer_in_chunks(client):
    whole = post(client).json()["choices"][0]["message"]["content"]
    *chunks, done = events(post(client, stream=True))
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert all("usage" not in chunk for chunk in chunks)


def test_with_usage_every_chunk_names_it_and_one_more_brings_it(client):
    *chunks, _ = events(post(client, stream=True, stream_options={"include_usage": True}))
    chunks = [json.loads(chunk) for chunk in chunks]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_the_same_prompt_again_comes_from_the_cache(client):
    messages = [{"role": "user", "content": "what is the weather in the city"}]
    first, again = (post(client, messages=messages).json()["usage"] for _ in range(2))
    assert again["prompt_tokens_details"]["cached_tokens"] == first["prompt_tokens"] - 1


def test_an_alias_answers_as_the_model_behind_it(client):
    assert post(client, model="gpt-4o").json()["model"] == "tiny"


def refused(response, status=400):
    assert response.status_code == status
    return response.json()["error"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.0.content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages.0.content.0.type",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0", "invalid_value"),
        ({"stop": {}}, "stop", "invalid_type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
        ({"tool_choice": {"type": "robot", "function": {"name": "f"}}}, "tool_choice.type", "invalid_value"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type", "unsupported_parameter"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "c"}}}, "tool_choice.type", "unsupported_parameter"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools.0.type", "unsupported_parameter"),
        ({"reasoning": {}}, "reasoning", "unknown_parameter"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages.0.mood", "unknown_parameter"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content", "missing_required_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"max_tokens": 4}, "max_tokens", "invalid_value"),
        ({"metadata": {"a": "b"}}, "metadata", "invalid_value"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        (
            {
                "tools": [{"type": "function", "function": FUNCTION}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
            "invalid_value",
        ),
        ({"tools": [{"type": "function", "function": FUNCTION}] * 2}, "tools", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
            "tools.0.function.name",
            "invalid_value",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": {"type": "nope"}},
                }
            },
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "the city " * 400}]}, "messages", "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(client, body, param, code, stream):
    error = refused(post(client, **body, **({"stream": True} if stream and "stream_options" not in body else {})))
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_an_image_is_refused_where_it_stands(client):
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    error = refused(post(client, messages=[{"role": "user", "content": content}]))
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_parameter")


def test_a_model_that_is_not_there_is_404_and_weights_that_are_gone_503(client):
    assert refused(post(client, model="nope"), 404)["code"] == "model_not_found"
    error = refused(post(client, model="gone"), 503)
    assert "tunekeeper models pull gone" in error["message"]


@pytest.mark.parametrize(
    "hint",
    [
        {"user": "u"},
        {"safety_identifier": "u"},
        {"prompt_cache_key": "k"},
        {"service_tier": "auto"},
        {"prediction": {"type": "content", "content": "x"}},
        {"store": False},
        {"metadata": None},
        {"reasoning_effort": "none"},
        {"modalities": ["text"]},
        {"parallel_tool_calls": True},
        {"stop": None, "seed": None, "logit_bias": None, "tools": None},
    ],
)
def test_hints_change_no_answer(client, hint):
    assert post(client, **hint).json()["choices"] == post(client).json()["choices"]


def test_text_parts_and_a_whole_conversation_are_read(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "it is 42", "reasoning_content": None, "reasoning": None},
    ]
    tools = [{"type": "function", "function": FUNCTION}]
    assert post(client, messages=messages, tools=tools).status_code == 200


def test_functions_are_answered_in_their_own_form(client):
    body = {"functions": [FUNCTION], "function_call": {"name": "f"}, "max_completion_tokens": 100}
    [choice] = post(client, **body).json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "f"
    assert json.loads(choice["message"]["function_call"]["arguments"]) == {}
    assert "tool_calls" not in choice["message"]
    *chunks, _ = events(post(client, **body, stream=True))
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert calls[0]["name"] == "f"
    assert json.loads("".join(call["arguments"] for call in calls)) == {}


def test_malformed_json_is_400(client):
    response = client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert refused(response)["code"] == "invalid_json"
