import json

import pytest

from tunekeeper.errors import InvalidRequest
from tunekeeper.lifecycle.catalog import Catalog
from tunekeeper.lifecycle.sources import read_claims

YAML = """# mine
models:
  - model: gpt-4o
    version: 2024-05-13
    publisher: Azure OpenAI
    retirement_date: No earlier than 2026-03-31
    training_retirement_date: TBD
    replacement: gpt-5.1
"""


def read(text: str, filename: str):
    return read_claims(text, filename=filename, source=filename, catalog=Catalog(()), said_at=7)


def told(claims):
    return [(c.model, c.version, c.publisher, c.field, c.text, c.date, c.line) for c in claims]


def test_yaml_by_hand_with_its_lines():
    assert told(read(YAML, "mine.yaml")) == [
        ("gpt-4o", "2024-05-13", "Azure OpenAI", "retirement_date", "No earlier than 2026-03-31", "2026-03-31", 6),
        ("gpt-4o", "2024-05-13", "Azure OpenAI", "training_retirement_date", "TBD", None, 7),
        ("gpt-4o", "2024-05-13", "Azure OpenAI", "replacement", "gpt-5.1", None, 8),
    ]
    assert {claim.origin for claim in read(YAML, "mine.yaml")} == {"manual"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- model: a\n  retirment_date: 2026-01-01\n", "line 1: 'retirment_date' is unknown"),
        ("- version: 1\n", "line 1: `model` is missing"),
        ("- a\n", "line 1: an entry must be a mapping"),
        ("- model: a\n  retirement_date: [1]\n", "line 2: retirement_date must be a text"),
        ("a: 1\n", "must hold a list"),
        ("- [", "not valid YAML"),
    ],
)
def test_faulty_yaml_is_refused_with_its_line(text, says):
    with pytest.raises(InvalidRequest, match=says.replace("[", r"\[")):
        read(text, "mine.yml")


def test_litellms_list():
    models = {
        "sample_spec": {"deprecation_date": "date when the model becomes deprecated"},
        "gpt-4.5": {"litellm_provider": "openai", "deprecation_date": "2025-07-14"},
        "azure/gpt-4o": {"litellm_provider": "azure", "deprecation_date": "2026-10-01"},
        "lasting": {"litellm_provider": "openai"},
    }
    assert told(read(json.dumps(models, indent=4), "prices.json")) == [
        ("gpt-4.5", "", "openai", "retirement_date", "2025-07-14", "2025-07-14", 5),
        ("gpt-4o", "", "azure", "retirement_date", "2026-10-01", "2026-10-01", 9),
    ]


def test_openais_models():
    body = {"object": "list", "data": [{"id": "gpt-4.1", "owned_by": "openai", "shutdown_date": "2027-05-05"}]}
    assert told(read(json.dumps(body), "models.json")) == [
        ("gpt-4.1", "", "openai", "retirement_date", "2027-05-05", "2027-05-05", None)
    ]


def test_azures_models_of_the_data_plane_have_unix_times():
    entry = {"id": "gpt-4o", "deprecation": {"fine_tune": 1774915200, "inference": 1806451200}}
    entry["lifecycle_status"] = "generally-available"
    assert [(c.field, c.text) for c in read(json.dumps({"data": [entry]}), "models.json")] == [
        ("retirement_date", "2027-03-31"),
        ("training_retirement_date", "2026-03-31"),
        ("lifecycle_status", "generally-available"),
    ]


def test_azures_models_of_the_control_plane_use_other_words():
    model = {
        "format": "OpenAI",
        "name": "gpt-4o",
        "version": "2024-05-13",
        "lifecycleStatus": "Deprecating",
        "deprecation": {"inference": "2026-10-01T00:00:00Z", "fineTune": "2026-09-01T00:00:00Z"},
        "replacementConfig": {
            "targetModelName": "gpt-5.1",
            "targetModelVersion": "2025-11-13",
            "autoUpgradeStartDate": "2026-09-09T00:00:00Z",
        },
    }
    claims = read(json.dumps({"value": [{"kind": "OpenAI", "model": model}]}), "account.json")
    assert {(c.model, c.version, c.publisher) for c in claims} == {("gpt-4o", "2024-05-13", "OpenAI")}
    assert [(c.field, c.date or c.text) for c in claims] == [
        ("retirement_date", "2026-10-01"),
        ("training_retirement_date", "2026-09-01"),
        ("lifecycle_status", "deprecated"),
        ("replacement", "gpt-5.1 (2025-11-13)"),
        ("auto_upgrade_date", "2026-09-09"),
    ]


@pytest.mark.parametrize(
    ("text", "filename", "says"),
    [
        ("{", "a.json", "not valid JSON"),
        ("[1]", "a.json", "neither LiteLLM's"),
        ('{"data": [{"object": "model"}]}', "a.json", "neither `id` nor `name`"),
        ("# A page\n\n| A | B |\n|---|---|\n| 1 | 2 |", "a.md", "no table of model retirements"),
    ],
)
def test_what_is_nothing_of_all_that_is_refused(text, filename, says):
    with pytest.raises(InvalidRequest, match=says):
        read(text, filename)
