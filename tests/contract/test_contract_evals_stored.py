"""Evals over stored completions by the official client: graded as they are, or asked again of another model."""

import openai
import pytest
from test_contract_evals import ended

from scripted_server import scripted
from tunekeeper.api.server import background
from tunekeeper.settings import Settings, Upstream

LIKE = {
    "type": "string_check",
    "name": "says blue",
    "operation": "like",
    "input": "{{ sample.output_text }}",
    "reference": "blue",
}


def saying(text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
    return {("POST", "/chat/completions"): {"id": "c", "model": "teacher", "choices": [choice], "usage": usage}}


@pytest.fixture
def client(tmp_path):
    with scripted(saying("blue")) as teacher, scripted(saying("red")) as student:
        upstreams = tuple(
            Upstream(name=name, base_url=server.url, models=(name,))
            for name, server in (("teacher", teacher), ("student", student))
        )
        with (
            background(Settings(home=tmp_path, upstreams=upstreams)) as url,
            openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ):
            yield client


def test_stored_completions_are_graded_and_asked_again_of_another_model(client):
    for n in range(6):
        client.chat.completions.create(
            model="teacher",
            messages=[{"role": "user", "content": f"Which colour, {n}?"}],
            store=True,
            metadata={"use": "colours" if n < 4 else "other"},
        )
    made = client.evals.create(
        data_source_config={"type": "logs", "metadata": {"use": "colours"}}, testing_criteria=[LIKE]
    )
    source = {"type": "stored_completions", "model": "teacher", "limit": 3}
    stored = client.evals.runs.create(made.id, data_source={"type": "completions", "source": source})
    again = client.evals.runs.create(
        made.id,
        data_source={
            "type": "completions",
            "source": source,
            "model": "student",
            "input_messages": {"type": "item_reference", "item_reference": "item.input"},
        },
    )
    stored, again = ended(client, stored), ended(client, again)
    assert (stored.result_counts.total, stored.result_counts.passed) == (3, 3)
    assert (again.result_counts.total, again.result_counts.failed) == (3, 3)
    item = next(iter(client.evals.runs.output_items.list(stored.id, eval_id=made.id)))
    assert item.sample.input[0].content.startswith("Which colour")
    assert item.sample.output[0].content == "blue"
    assert item.sample.usage.total_tokens == 5
    assert item.sample.model == "teacher"
