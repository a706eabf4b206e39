"""Evals as the official client sees them, over a real socket: OpenAI's and Azure's."""

import json
import time

import openai
import pytest

from tunekeeper.api.server import background
from tunekeeper.settings import Settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Model

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
CUSTOM = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
ALIKE = {
    "type": "text_similarity",
    "name": "alike",
    "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "pass_threshold": 0.9,
}
CODE = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n    return float(len(sample['output_text']) < 1000)",
    "pass_threshold": 1.0,
}
JUDGE = {
    "type": "label_model",
    "name": "judge",
    "model": "tiny",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good", "bad"],
}
TEMPLATE = {
    "type": "template",
    "template": [
        {"role": "developer", "content": "Answer shortly."},
        {"role": "user", "content": {"type": "input_text", "text": "{{ item.question }}"}},
    ],
}
ROWS = [{"item": {"question": f"What is {n} and {n}?", "answer": str(2 * n)}} for n in range(6)]
GIVEN = [
    {"item": {"question": "a", "answer": "x"}, "sample": {"output_text": "x"}},
    {"item": {"question": "b", "answer": "y"}, "sample": {"output_text": "z"}},
]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, tiny_base):
    home = tmp_path_factory.mktemp("home")
    store = Store(connect(home))
    store.add_model(Model(id="tiny", created_at=5, kind="base", path=str(tiny_base), base="tiny"))
    store.close()
    with background(Settings(home=home, cache_tokens=8192, price_per_hour=2.0)) as url:
        yield url


@pytest.fixture(params=["openai", "azure"], scope="module")
def client(request, base_url):
    if request.param == "azure":
        made = openai.AzureOpenAI(
            azure_endpoint=base_url.removesuffix("/v1"), api_key="none", api_version="2025-04-01-preview", max_retries=0
        )
    else:
        made = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    with made as client:
        yield client


def ended(client, run, *, seconds=60):
    deadline = time.monotonic() + seconds
    while run.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, run
        time.sleep(0.05)
        run = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    return run


def file_of(client, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("rows.jsonl", data), purpose="evals").id


def test_an_eval_is_made_shown_changed_listed_and_deleted(client):
    made = client.evals.create(
        name="sums", data_source_config=CUSTOM, testing_criteria=[EXACT, ALIKE, CODE, JUDGE], metadata={"a": "b"}
    )
    assert made.id.startswith("eval_")
    assert made.data_source_config.schema_["properties"]["item"] == SCHEMA
    assert made.data_source_config.schema_["required"] == ["item", "sample"]
    assert [grader.type for grader in made.testing_criteria] == [
        "string_check",
        "text_similarity",
        "python",
        "label_model",
    ]
    assert client.evals.retrieve(made.id).model_dump() == made.model_dump()
    changed = client.evals.update(made.id, name="more sums", metadata={"c": "d"})
    assert (changed.name, changed.metadata) == ("more sums", {"c": "d"})
    other = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    client.evals.update(made.id, name="sums again")
    assert [each.id for each in client.evals.list(order="desc", order_by="updated_at", limit=1)][:2] == [
        made.id,
        other.id,
    ]
    assert client.evals.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.evals.retrieve(made.id)
    client.evals.delete(other.id)


def test_given_samples_are_graded_as_they_are(client):
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    run = client.evals.runs.create(
        made.id, data_source={"type": "jsonl", "source": {"type": "file_content", "content": GIVEN}}
    )
    assert run.data_source.source.content[1].sample == {"output_text": "z"}
    run = ended(client, run)
    assert run.status == "completed"
    assert run.result_counts.model_dump() == {"total": 2, "passed": 1, "failed": 1, "errored": 0}
    assert run.per_testing_criteria_results[0].passed == 1
    failed = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, status="fail"))
    assert [item.datasource_item["question"] for item in failed] == ["b"]
    assert failed[0].sample.output[0].content == "z"


def test_a_model_answers_a_file_and_is_graded(client):
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT, ALIKE, CODE, JUDGE])
    run = client.evals.runs.create(
        made.id,
        name="tiny",
        metadata={"of": "tests"},
        data_source={
            "type": "completions",
            "model": "tiny",
            "source": {"type": "file_id", "id": file_of(client, ROWS)},
            "input_messages": TEMPLATE,
            "sampling_params": {"temperature": 0, "max_completion_tokens": 8, "seed": 3},
        },
    )
    run = ended(client, run)
    assert (run.status, run.model, run.error) == ("completed", "tiny", None)
    assert run.result_counts.total == 6
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
    assert sorted(item.datasource_item_id for item in items) == [*range(6)]
    item = client.evals.runs.output_items.retrieve(items[0].id, eval_id=made.id, run_id=run.id)
    assert item.model_dump() == items[0].model_dump()
    assert [message.role for message in item.sample.input] == ["developer", "user"]
    assert item.sample.input[1].content == item.datasource_item["question"]
    assert (item.sample.seed, item.sample.temperature, item.sample.max_completion_tokens) == (3, 0, 8)
    assert item.sample.usage.total_tokens == item.sample.usage.prompt_tokens + item.sample.usage.completion_tokens
    assert item.latency_seconds > 0
    assert [result.name for result in item.results] == ["exact", "alike", "code", "judge"]
    (usage,) = run.per_model_usage
    assert usage.run_model_name == "tiny"
    assert usage.invocation_count >= 12  # each item's answer, and its judge's
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert run.cost == pytest.approx(2.0 * run.seconds / 3600)
