"""Graders as the official client sees them, over a real socket: OpenAI's and Azure's."""

import openai
import pytest

from tunekeeper.api.server import background
from tunekeeper.settings import Settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Model

CHECK = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
FUZZY = {
    "type": "text_similarity",
    "name": "fuzzy",
    "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
PYTHON = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return len(item['answer']) / 10"}
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "tiny",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    "range": [1, 5],
    "sampling_params": {"seed": 1, "temperature": 0, "max_completions_tokens": 40},
}
MULTI = {
    "type": "multi",
    "name": "all",
    "graders": {"exact": CHECK, "fuzzy": FUZZY, "code": PYTHON},
    "calculate_output": "0.5 * exact + 0.3 * fuzzy + 0.2 * min(code, 1)",
}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, tiny_base):
    home = tmp_path_factory.mktemp("home")
    store = Store(connect(home))
    store.add_model(Model(id="tiny", created_at=5, kind="base", path=str(tiny_base), base="tiny"))
    store.close()
    with background(Settings(home=home, cache_tokens=4096), worker=False) as url:
        yield url


@pytest.fixture(params=["openai", "azure"], scope="module")
def graders(request, base_url):
    if request.param == "azure":
        made = openai.AzureOpenAI(
            azure_endpoint=base_url.removesuffix("/v1"), api_key="none", api_version="2025-04-01-preview", max_retries=0
        )
    else:
        made = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    with made as client:
        yield client.fine_tuning.alpha.graders


@pytest.mark.parametrize("grader", [CHECK, FUZZY, PYTHON, JUDGE], ids=lambda grader: grader["type"])
def test_a_valid_grader_comes_back_as_it_went(graders, grader):
    answer = graders.validate(grader=grader)
    assert answer.grader.type == grader["type"]
    assert answer.grader.name == grader["name"]


def test_a_multi_grader_is_validated_with_its_map(graders):
    answer = graders.with_raw_response.validate(grader=MULTI)  # the client's own type has room for one grader only
    assert answer.http_response.json()["grader"] == MULTI


def test_an_invalid_grader_is_a_bad_request_with_its_place(graders):
    with pytest.raises(openai.BadRequestError) as caught:
        graders.validate(grader={**MULTI, "calculate_output": "exact + missing"})
    assert caught.value.param == "grader.calculate_output"
    with pytest.raises(openai.NotFoundError):
        graders.validate(grader={**JUDGE, "model": "nobody"})


def test_a_run_of_a_multi_grader(graders):
    answer = graders.run(grader=MULTI, model_sample="Paris", item={"answer": "Paris"})
    assert answer.reward == pytest.approx(0.5 + 0.3 + 0.2 * 0.5)
    assert answer.sub_rewards == {"exact": 1.0, "fuzzy": 1.0, "code": 0.5}
    assert answer.metadata.name == "all"
    assert answer.metadata.execution_time > 0
    assert not any(value for value in answer.metadata.errors.to_dict().values())


def test_a_run_whose_grader_fails_has_its_flag(graders):
    answer = graders.run(grader=PYTHON, model_sample="Paris", item={})
    assert answer.reward == 0
    assert answer.metadata.errors.python_grader_runtime_error
    assert "KeyError" in answer.metadata.errors.python_grader_runtime_error_details


def test_our_own_model_judges_and_what_it_cannot_finish_is_no_score(graders):
    answer = graders.run(grader=JUDGE, model_sample="Paris")
    assert answer.metadata.sampled_model_name == "tiny"
    assert answer.metadata.token_usage > 40  # the untrained model writes reasons until it is cut off
    assert answer.metadata.errors.api_model_grader_parse_error
    assert answer.reward == 0
