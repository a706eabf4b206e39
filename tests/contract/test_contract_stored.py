"""Stored completions as the official client sees them, over a real socket: our own model and an upstream's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from scripted_server import scripted
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
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["paris", "tokyo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, tiny_base):
    home = tmp_path_factory.mktemp("home")
    store = Store(connect(home))
    store.add_model(Model(id="tiny", created_at=5, kind="base", path=str(tiny_base), base="tiny"))
    store.close()
    with background(Settings(home=home, cache_tokens=4096, max_concurrent_requests=8), worker=False) as url:
        yield url


@pytest.fixture(scope="module")
def gateway_url(tmp_path_factory, base_url):
    """A second server, whose only model is the first one's."""
    home = tmp_path_factory.mktemp("gateway")
    with background(Settings(home=home, upstreams=(Upstream(name="first", base_url=base_url),)), worker=False) as url:
        yield url


@pytest.fixture(params=["own", "gateway", "azure"])
def client(request, base_url):
    if request.param == "azure":
        made = openai.AzureOpenAI(
            azure_endpoint=base_url.removesuffix("/v1"), api_key="none", api_version="2024-10-21", max_retries=0
        )
    else:
        url = base_url if request.param == "own" else request.getfixturevalue("gateway_url")
        made = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with made as client:
        yield client
        for kept in client.chat.completions.list():
            client.chat.completions.delete(kept.id)


def create(client, **options):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 8, "store": True} | options
    )


def test_an_answer_is_stored_listed_changed_and_deleted(client):
    made = create(client, metadata={"team": "a"})
    kept = client.chat.completions.retrieve(made.id)
    assert kept.choices == made.choices
    assert kept.usage == made.usage
    assert (kept.created, kept.model, kept.metadata) == (made.created, made.model, {"team": "a"})
    assert client.chat.completions.update(made.id, metadata={"good": "yes"}).metadata == {"team": "a", "good": "yes"}
    [found] = client.chat.completions.list(model="tiny", metadata={"team": "a", "good": "yes"})
    assert found.id == made.id
    assert list(client.chat.completions.list(metadata={"team": "b"})) == []
    gone = client.chat.completions.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "chat.completion.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)


def test_lists_go_on_from_page_to_page(client):
    made = [create(client, max_completion_tokens=1).id for _ in range(5)]
    assert [kept.id for kept in client.chat.completions.list(limit=2)] == made
    assert [kept.id for kept in client.chat.completions.list(limit=2, order="desc")] == made[::-1]


def test_the_messages_are_what_was_asked(client):
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": " there"}]
    made = create(client, messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}])
    first, second = client.chat.completions.messages.list(made.id, limit=1)
    assert (first.id, first.role, first.content) == (f"{made.id}-0", "system", "be brief")
    assert [part.text for part in second.content_parts] == ["hello", " there"]


def test_a_stream_is_stored_as_the_answer_that_it_was(client):
    with create(client, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    [kept] = client.chat.completions.list()
    assert kept.id == chunks[0].id
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (kept.choices[0].message.content, kept.choices[0].finish_reason) == (text, "length")
    assert kept.usage.completion_tokens == 8


def test_a_streamed_call_is_stored_as_the_client_put_it_together(client):
    with client.chat.completions.stream(
        model="tiny",
        messages=HELLO,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_completion_tokens=100,
        store=True,
        metadata={"kind": "call"},
    ) as stream:
        made = stream.get_final_completion()
    kept = client.chat.completions.retrieve(made.id)
    assert kept.choices[0].finish_reason == "tool_calls"
    for ours, theirs in zip(kept.choices[0].message.tool_calls, made.choices[0].message.tool_calls, strict=True):
        assert (ours.id, ours.function.name, ours.function.arguments) == (
            theirs.id, theirs.function.name, theirs.function.arguments,
        )  # fmt: skip


def test_what_is_not_to_be_stored_is_not(client):
    made = create(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="store: true"):
        create(client, store=False, metadata={"a": "b"})


def test_a_client_that_leaves_midway_leaves_nothing_behind(client):
    stream = create(client, stream=True, temperature=1, seed=1, max_completion_tokens=400)
    next(iter(stream))
    stream.close()
    create(client, metadata={"after": "all"})
    assert [kept.metadata for kept in client.chat.completions.list()] == [{"after": "all"}]


def test_a_client_that_stops_at_the_last_word_has_its_answer_stored(client):
    stream = create(client, stream=True)
    for chunk in stream:
        if chunk.choices[0].finish_reason:
            break
    stream.close()
    deadline = time.monotonic() + 5
    while not (found := list(client.chat.completions.list())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [kept.id for kept in found] == [chunk.id]


def test_training_data_is_made_of_what_was_stored(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        create(client, tools=[WEATHER], tool_choice="required", max_completion_tokens=100, metadata={"for": "export"})
        body = {"filter": {"metadata": {"for": "export"}}}
        done = client.post("/chat/completions/export", body=body, cast_to=dict[str, object])
        lines = client.files.content(str(done["id"])).text.splitlines()
        assert len(lines) == 1
        assert '"tool_calls"' in lines[0]


WHOLE = {
    "id": "chatcmpl-whole",
    "object": "chat.completion",
    "created": 1,
    "model": "big",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
STREAMED = (
    b'data: {"id": "chatcmpl-streamed", "object": "chat.completion.chunk", "created": 1, "model": "big", "choices": '
    b'[{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
)


def serve(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    command = [sys.executable, "-m", "tunekeeper", "serve", "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (home / "server.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, json.loads((home / "server.json").read_text())["base_url"]


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path):
    with scripted({("POST", "/chat/completions"): [WHOLE, STREAMED]}) as upstream:
        (tmp_path / "tunekeeper.toml").write_text(
            f'[server]\nport = 0\n[recording]\nmodels = "*"\n'
            f'[[upstreams]]\nname = "vendor"\nbase_url = "{upstream.url}"\nmodels = ["big"]\n'
        )
        process, url = serve(tmp_path)
        try:
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                client.chat.completions.create(model="big", messages=HELLO)
                with client.chat.completions.create(model="big", messages=HELLO, stream=True) as stream:
                    assert len(list(stream)) == 1
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    store = Store(connect(tmp_path))
    assert [kept.id for kept in store.iter_completions()] == ["chatcmpl-whole", "chatcmpl-streamed"]
    store.close()
