import json

import pytest

from fakes import local_client
from scripted_server import scripted
from tunekeeper.api.app import create_app
from tunekeeper.settings import Settings, Upstream
from tunekeeper.types import Model

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["question"],
    "additionalProperties": False,
}
CUSTOM = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.question }}",
}
ALIKE = {**EXACT, "type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match"}
del ALIKE["operation"]
READS_SAMPLE = {"type": "template", "template": [{"role": "user", "content": "{{ sample.output_text }}"}]}
STORED = {"type": "responses", "model": "far", "input_messages": READS_SAMPLE, "source": {"type": "responses"}}
ASKED = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}


def content(*items, **more):
    return {"type": "file_content", "content": [{"item": item, **more} for item in items]}


def completions(source, **more):
    return {"type": "completions", "model": "far", "source": source, "input_messages": ASKED, **more}


@pytest.fixture
def client(tmp_path):
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}
    with scripted({("POST", "/chat/completions"): answer}) as upstream:
        far = Upstream(name="far", base_url=upstream.url, models=("far",))
        app = create_app(Settings(home=tmp_path, upstreams=(far,)), worker=False)  # runs stay queued
        app.state.services.store.add_model(Model(id="own", created_at=1, kind="base", path="nowhere", base="own"))
        with local_client(app) as client:
            yield client


@pytest.fixture
def made(client):
    answer = client.post("/v1/evals", json={"data_source_config": CUSTOM, "testing_criteria": [EXACT]})
    assert answer.status_code == 201
    return f"/v1/evals/{answer.json()['id']}"


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"data_source_config": {"type": "table"}}, "data_source_config.type"),
        ({"data_source_config": {**CUSTOM, "colour": "red"}}, "data_source_config.colour"),
        ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema"),
        ({"data_source_config": {**CUSTOM, "item_schema": {"type": "nonsense"}}}, "data_source_config.item_schema"),
        (
            {"data_source_config": {**CUSTOM, "item_schema": {"properties": {"a": {"pattern": "("}}}}},
            "data_source_config.item_schema",
        ),
        ({"data_source_config": {**CUSTOM, "item_schema": {"type": "array"}}}, "data_source_config.item_schema.type"),
        (
            {"data_source_config": {**CUSTOM, "item_schema": {"$ref": "http://127.0.0.1:1/x"}}},
            "data_source_config.item_schema",
        ),
        ({"data_source_config": {"type": "logs", "item_schema": SCHEMA}}, "data_source_config.item_schema"),
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [EXACT, EXACT]}, "testing_criteria[1].name"),
        ({"testing_criteria": [ALIKE]}, "testing_criteria[0].pass_threshold"),
        ({"testing_criteria": [{**EXACT, "reference": "{{ item.answer }}"}]}, "testing_criteria[0]"),
        ({"testing_criteria": [{**EXACT, "operation": "is"}]}, "testing_criteria[0].operation"),
        ({"share_with": "all"}, "share_with"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64),
    ],
)
def test_an_eval_that_cannot_be_is_refused_with_its_place(client, change, param):
    body = {"data_source_config": CUSTOM, "testing_criteria": [EXACT], **change}
    assert refused(client.post("/v1/evals", json=body))["param"] == param
    assert client.get("/v1/evals").json()["data"] == []


def test_a_judge_that_does_not_exist_is_named_before_anything_runs(client):
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "nobody",
        "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    }
    body = {"data_source_config": CUSTOM, "testing_criteria": [EXACT, judge]}
    error = refused(client.post("/v1/evals", json=body), 404)
    assert error["param"] == "testing_criteria[1].model"
    assert "nobody" in error["message"]


def test_all_faults_of_the_data_are_told_with_line_and_pointer(client, made):
    source = content({"question": "fine"}, {"question": 5, "n": "x"}, {"n": 1}, {"question": "fine", "extra": 1})
    error = refused(client.post(f"{made}/runs", json={"data_source": completions(source)}))
    assert error["code"] == "invalid_eval_data"
    assert error["param"] == "data_source.source"
    places = {(fault["line"], fault["pointer"], fault["code"]) for fault in error["details"]}
    assert places == {
        (2, "/item/question", "not_in_schema"),
        (2, "/item/n", "not_in_schema"),
        (3, "/item", "not_in_schema"),
        (3, "/item/question", "missing_grader_variable"),
        (3, "/item", "bad_request"),
        (4, "/item", "not_in_schema"),
    }
    assert client.get(f"{made}/runs").json()["data"] == []


def test_a_file_of_bare_rows_is_taken_and_its_faults_point_into_them(client, made):
    def upload(text):
        files = {"file": ("rows.jsonl", text.encode())}
        return client.post("/v1/files", data={"purpose": "evals"}, files=files).json()["id"]

    def create(text):
        source = {"type": "file_id", "id": upload(text)}
        return client.post(f"{made}/runs", json={"data_source": completions(source)})

    run = create('{"question": "a"}\n{"item": {"question": "b"}}\n').json()
    assert run["result_counts"]["total"] == 2
    error = refused(create('{"question": 1}\nnot json\n'))
    assert [(fault["line"], fault["pointer"]) for fault in error["details"]] == [(1, "/question"), (2, "")]


def test_rows_without_samples_cannot_be_graded_as_they_are(client, made):
    source = {"type": "jsonl", "source": content({"question": "a"})}
    error = refused(client.post(f"{made}/runs", json={"data_source": source}))
    assert [(fault["line"], fault["pointer"], fault["code"]) for fault in error["details"]] == [
        (1, "/sample", "bad_sample")
    ]
    source = {"type": "jsonl", "source": content({"question": "a"}, sample={"output_text": "a"})}
    assert client.post(f"{made}/runs", json={"data_source": source}).status_code == 201


@pytest.mark.parametrize(
    ("source", "param"),
    [
        ({"type": "table", "source": content({})}, "data_source.type"),
        (completions(content({"question": "a"}), stream=True), "data_source.stream"),
        ({"type": "jsonl", "source": content({"question": "a"}), "model": "far"}, "data_source.model"),
        (completions(content({"question": "a"}), input_messages=None), "data_source.input_messages"),
        (completions(content({"question": "a"}), model=None), "data_source.model"),
        (
            completions(content({"question": "a"}), sampling_params={"top_k": 4}),
            "data_source.sampling_params.top_k",
        ),
        (
            completions(content({"question": "a"}), sampling_params={"temperature": 3}),
            "data_source.sampling_params.temperature",
        ),
        (
            completions(content({"question": "a"}), input_messages=READS_SAMPLE),
            "data_source.input_messages.template",
        ),
        (completions({"type": "file_content", "content": []}), "data_source.source.content"),
        (STORED, "data_source.source.type"),
        (completions({"type": "stored_completions", "created_after": 10**30}), "data_source.source.created_after"),
        (completions({"type": "stored_completions", "limit": 10**30}), "data_source.source.limit"),
        (
            {
                **completions(content({"question": "a"}), sampling_params={"tools": [{"type": "web_search"}]}),
                "type": "responses",
            },
            "data_source.sampling_params.tools[0].type",
        ),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused_with_its_place(client, made, source, param):
    assert refused(client.post(f"{made}/runs", json={"data_source": source}))["param"] == param


def test_an_unknown_model_file_or_eval_is_not_found(client, made):
    source = completions(content({"question": "a"}))
    refused(client.post(f"{made}/runs", json={"data_source": {**source, "model": "nobody"}}), 404)
    refused(
        client.post(f"{made}/runs", json={"data_source": {**source, "source": {"type": "file_id", "id": "file-0"}}}),
        404,
    )
    refused(client.post("/v1/evals/eval_0/runs", json={"data_source": source}), 404)
    refused(client.get(f"{made}/runs/evalrun_0"), 404)


def test_what_our_own_models_cannot_do_is_refused_before_the_run(client, made):
    params = {"reasoning_effort": "high"}
    source = {**completions(content({"question": "a"}), sampling_params=params), "model": "own"}
    error = refused(client.post(f"{made}/runs", json={"data_source": source}))
    assert "reasoning_effort" in error["message"]
    assert (error["param"], error["code"]) == ("data_source.sampling_params.reasoning_effort", "unsupported_parameter")
    assert "details" not in error


def test_the_responses_form_of_formats_and_tools_is_taken(client, made):
    params = {
        "max_completion_tokens": 9,
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}},
        "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}],
    }
    source = {**completions(content({"question": "a"}), sampling_params=params), "type": "responses"}
    run = client.post(f"{made}/runs", json={"data_source": source})
    assert run.status_code == 201
    assert run.json()["data_source"] == source


def test_a_run_is_shown_as_it_was_asked_for_and_cancelled_on_both_paths(client, made):
    source = completions(content({"question": "a"}, {"question": "b", "n": 2}), sampling_params={"max_tokens": 5})
    body = {"name": "first", "metadata": {"k": "v"}, "data_source": source}
    run = client.post(f"{made}/runs", json=body).json()
    assert run["id"].startswith("evalrun_")
    assert run == {
        **{key: run[key] for key in ("id", "created_at", "report_url")},
        "object": "eval.run",
        "eval_id": made.rpartition("/")[2],
        "name": "first",
        "status": "queued",
        "model": "far",
        "result_counts": {"total": 2, "passed": 0, "failed": 0, "errored": 0},
        "per_model_usage": [],
        "per_testing_criteria_results": [{"testing_criteria": "exact", "passed": 0, "failed": 0, "errored": 0}],
        "data_source": source,
        "metadata": {"k": "v"},
        "error": None,
        "finished_at": None,
        "seconds": 0.0,
        "cost": None,
        "currency": None,
    }
    assert client.get(run["report_url"]).json()["data"] == []
    assert client.get(f"/v1/evals/runs/{run['id']}").json() == run
    other = client.post(f"{made}/runs", json=body).json()
    assert client.post(f"{made}/runs/{run['id']}").json()["status"] == "canceled"
    assert client.post(f"{made}/runs/{other['id']}/cancel").json()["status"] == "canceled"
    assert refused(client.post(f"{made}/runs/{run['id']}/cancel"))["code"] == "invalid_state"
    assert [each["id"] for each in client.get(f"{made}/runs?status=canceled&order=desc").json()["data"]] == [
        other["id"],
        run["id"],
    ]
    assert client.get(f"{made}/runs?status=queued").json()["data"] == []


def test_the_data_of_a_run_is_its_own_and_goes_with_it(client, made, tmp_path):
    def blobs():
        return list((tmp_path / "blobs").glob("??/*"))

    files = {"file": ("rows.jsonl", b'{"question": "a"}\n')}
    file_id = client.post("/v1/files", data={"purpose": "evals"}, files=files).json()["id"]
    source = completions({"type": "file_id", "id": file_id})
    run = client.post(f"{made}/runs", json={"data_source": source}).json()
    same = client.post(f"{made}/runs", json={"data_source": source}).json()
    client.delete(f"/v1/files/{file_id}")
    assert len(blobs()) == 1  # the frozen lines, once for both runs
    assert json.loads(blobs()[0].read_text()) == {"item": {"question": "a"}}
    answer = client.delete(f"{made}/runs/{run['id']}").json()
    assert answer == {"object": "eval.run.deleted", "deleted": True, "run_id": run["id"]}
    assert len(blobs()) == 1
    deleted = client.delete(made).json()
    assert deleted == {"object": "eval.deleted", "deleted": True, "eval_id": made.rpartition("/")[2]}
    assert blobs() == []
    refused(client.get(f"/v1/evals/runs/{same['id']}"), 404)


def test_lists_go_on_after_their_cursor_also_by_time_of_change(client):
    body = {"data_source_config": CUSTOM, "testing_criteria": [EXACT]}
    ids = [client.post("/v1/evals", json=body).json()["id"] for _ in range(3)]
    client.post(f"/v1/evals/{ids[0]}", json={"name": "changed"})

    def pages(query):
        found, after = [], ""
        while True:
            page = client.get(f"/v1/evals?limit=1&{query}{after}").json()
            found += [each["id"] for each in page["data"]]
            if not page["has_more"]:
                return found
            after = f"&after={page['last_id']}"

    assert pages("order=asc") == ids
    assert pages("order=desc&order_by=updated_at") == [ids[0], ids[2], ids[1]]
    assert refused(client.get("/v1/evals?colour=red"))["param"] == "colour"
