import json
from dataclasses import replace

import pytest

from jobshop import add_data, events_of, examples
from tunekeeper.errors import (
    InvalidConfig,
    InvalidData,
    InvalidRequest,
    ModelNotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from tunekeeper.jobs.submit import Submission, draft, find_trainable, submit
from tunekeeper.settings import Upstream
from tunekeeper.types import Model

SUPERVISED = {"type": "supervised"}


@pytest.fixture
def data(desk):
    return add_data(desk, examples())


@pytest.fixture
def ask(desk, data):
    """Draft a job with these fields."""

    def drafted(**fields):
        submission = Submission(**{"model": "tiny", "training_file": data, **fields})
        return draft(submission, desk.store, desk.settings)

    return drafted


def refused(ask, error, **fields):
    with pytest.raises(error) as caught:
        ask(**fields)
    return caught.value


def test_a_job_needs_no_more_than_a_model_and_a_file(ask):
    job = ask()
    assert job.method == {"type": "supervised", "supervised": {"hyperparameters": {}}}
    assert job.status == "validating_files"
    assert 0 <= job.seed < 2**31
    assert job.extra["tuned_model"].startswith("ft:tiny:tunekeeper::")
    assert len(job.extra["tuned_model"].rpartition(":")[2]) == 8


def test_nothing_is_stored_before_all_is_checked(desk, ask):
    refused(ask, InvalidRequest, suffix="with space")
    ask()
    assert desk.store.list_jobs().data == []


def test_a_submitted_job_begins_its_history(desk, data):
    submission = Submission(model="tiny", training_file=data, suffix="s" * 41)
    job = submit(submission, desk.store, desk.settings)
    history = [(event.level, event.message) for event in events_of(desk, job)]
    assert history[:2] == [
        ("info", f"Created fine-tuning job: {job.id}"),
        ("info", f"Validating training file: {data}"),
    ]
    assert history[2][0] == "warn"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "a.b"}, "suffix"),
        ({"suffix": "a" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata." + "k" * 64),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"training_type": "cheap"}, "trainingType"),
        ({"method": {**SUPERVISED, "dpo": {}}}, "method.dpo"),
        ({"hyperparameters": {"n_epochs": 1}, "method": {"type": "dpo", "dpo": {}}}, "hyperparameters"),
        (
            {
                "hyperparameters": {"n_epochs": 1},
                "method": {**SUPERVISED, "supervised": {"hyperparameters": {"n_epochs": 2}}},
            },
            "hyperparameters",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(ask, fields, param):
    assert refused(ask, InvalidRequest, **fields).param == param


@pytest.mark.parametrize("value", ["Standard", "GLOBALSTANDARD", "DatazoneStandard", "developerTier", 1])
def test_azures_training_types_are_taken_in_any_case(ask, value):
    assert ask(training_type=value).extra["training_type"] == value


def test_the_deprecated_place_of_hyperparameters_still_works(ask):
    asked = {"n_epochs": 3, "batch_size": "auto"}
    assert ask(hyperparameters=asked).method["supervised"]["hyperparameters"] == asked
    both = ask(hyperparameters=asked, method={**SUPERVISED, "supervised": {"hyperparameters": asked}})
    assert both.method["supervised"]["hyperparameters"] == asked


def test_a_hyperparameter_is_refused_under_the_name_that_the_client_gave_it(ask):
    assert refused(ask, InvalidConfig, hyperparameters={"n_epochs": 0}).param == "hyperparameters.n_epochs"
    method = {**SUPERVISED, "supervised": {"hyperparameters": {"n_epochs": 0}}}
    assert refused(ask, InvalidConfig, method=method).param == "method.supervised.hyperparameters.n_epochs"
    early = {"early_stopping": {"patience": 2}}
    assert refused(ask, InvalidConfig, hyperparameters=early).param == "hyperparameters.early_stopping"
    assert refused(ask, InvalidConfig, hyperparameters={"max_cost": 3}).param == "hyperparameters.max_cost"


def test_a_value_of_a_sweep_is_refused_in_its_place(ask, tuned):
    error = refused(ask, InvalidConfig, model=tuned.id, sweep={"space": {"lora_rank": [8, 16]}})
    assert error.param == "sweep.space.lora_rank"


def test_what_needs_a_validation_file_is_refused_without_one(ask):
    method = {**SUPERVISED, "supervised": {"hyperparameters": {"early_stopping": {"patience": 2}}}}
    assert refused(ask, InvalidConfig, method=method).param.endswith("early_stopping")


def test_a_price_limit_needs_a_price(ask):
    method = {**SUPERVISED, "supervised": {"hyperparameters": {"max_cost": 5}}}
    error = refused(ask, InvalidConfig, method=method)
    assert error.param == "method.supervised.hyperparameters.max_cost"
    assert "price_per_hour" in error.message


def test_a_grader_that_cannot_be_is_refused_by_its_place(ask):
    def method(grader):
        return {"type": "reinforcement", "reinforcement": {"grader": grader}}

    assert refused(ask, InvalidConfig, method={"type": "reinforcement"}).param == "method.reinforcement.grader"
    error = refused(ask, InvalidRequest, method=method({"type": "string_check", "operation": "same"}))
    assert error.param is not None
    assert error.param.startswith("method.reinforcement.grader.")
    source = "def grade(sample, item):\n    return 1.0\n"
    assert ask(method=method({"type": "python", "source": source})).method["type"] == "reinforcement"


def test_a_grader_that_could_not_grade_here_is_refused_before_anything_waits_for_it(ask):
    def fault(kind, **grader):
        return refused(ask, kind, method={"type": "reinforcement", "reinforcement": {"grader": grader}})

    judge = {"type": "score_model", "name": "j", "model": "tiny", "input": [{"role": "user", "content": "?"}]}
    place = "method.reinforcement.grader"
    assert fault(InvalidRequest, type="python", source="def grade(:").param == f"{place}.source"
    assert fault(ModelNotFound, **{**judge, "model": "nobody"}).param == f"{place}.model"
    asked = {**judge, "sampling_params": {"reasoning_effort": "low"}}
    assert fault(Unsupported, **asked).param == f"{place}.sampling_params.reasoning_effort"
    picture = {"type": "input_image", "image_url": "http://a/b.png"}
    assert fault(Unsupported, **{**judge, "input": [{"role": "user", "content": [picture]}]}).param == f"{place}.input"


def test_a_grader_elsewhere_is_refused_where_the_operator_does_not_let_it(desk, data):
    grader = {"type": "endpoint", "name": "far", "url": "http://there/grade"}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    submission = Submission(model="tiny", training_file=data, method=method)
    assert draft(submission, desk.store, replace(desk.settings, grader_hosts="there")).method["type"] == "reinforcement"
    with pytest.raises(PermissionDenied) as denied:
        draft(submission, desk.store, replace(desk.settings, grader_hosts="here"))
    assert denied.value.param == "method.reinforcement.grader.url"


@pytest.mark.parametrize(
    ("name", "value"), [("full_finetune", True), ("adapter_scope", "completion"), ("temperature", 0.7)]
)
def test_what_a_server_that_is_given_adapters_cannot_sample_is_refused_by_name(desk, data, name, value):
    method = {
        "type": "reinforcement",
        "reinforcement": {
            "grader": {"type": "python", "source": "def grade(sample, item):\n    return 1.0\n"},
            "hyperparameters": {name: value},
        },
    }
    submission = Submission(model="tiny", training_file=data, method=method)
    assert draft(submission, desk.store, desk.settings)
    upstream = Upstream(name="far", base_url="http://far/v1", rollouts=("tiny",))
    with pytest.raises(Unsupported, match="far") as caught:
        draft(submission, desk.store, replace(desk.settings, upstreams=(upstream,)))
    assert caught.value.param == f"method.reinforcement.hyperparameters.{name}"


def test_a_tool_server_is_checked_with_its_place_and_its_host(desk, data):
    def asked(url, scope="all", **settings):
        tools = [{"name": "f", "server_url": url}]
        grader = {"type": "python", "source": "def grade(sample, item):\n    return 1.0\n"}
        body = {"grader": grader, "tools": tools, "hyperparameters": {"adapter_scope": scope}}
        method = {"type": "reinforcement", "reinforcement": body}
        submission = Submission(model="tiny", training_file=data, method=method)
        return draft(submission, desk.store, replace(desk.settings, **settings))

    assert asked("http://there/f").method["reinforcement"]["tools"][0]["name"] == "f"
    with pytest.raises(InvalidRequest) as caught:
        asked("there/f")
    assert caught.value.param == "method.reinforcement.tools[0].server_url"
    with pytest.raises(PermissionDenied, match="grader_hosts") as denied:
        asked("http://there/f", grader_hosts="here")
    assert denied.value.param == "method.reinforcement.tools[0].server_url"
    with pytest.raises(Unsupported, match="several turns"):
        asked("http://there/f", scope="completion")


def test_an_integration_is_refused_by_its_name(ask):
    error = refused(ask, Unsupported, integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
    assert "wandb" in error.message
    assert error.param == "integrations[0].type"
    assert ask(integrations=[]).integrations is None


def test_a_file_of_another_purpose_or_with_faults_or_expired_is_refused(desk, ask, data):
    desk.store.update_file(data, purpose="batch")
    assert "purpose" in refused(ask, InvalidRequest).message
    faults = [{"line": 3, "code": "json_parse", "message": "Line 3: no JSON."}]
    desk.store.update_file(data, purpose="fine-tune", status="error", status_details=json.dumps(faults))
    error = refused(ask, InvalidData)
    assert (error.code, error.details) == ("invalid_training_file", tuple(faults))
    desk.store.update_file(data, status="processed", expires_at=1)
    assert "expired" in refused(ask, InvalidRequest).message


def test_an_alias_is_resolved_once_and_for_all(desk, data):
    settings = replace(desk.settings, aliases={"gpt-4o-mini": "tiny"})
    job = draft(Submission(model="gpt-4o-mini", training_file=data), desk.store, settings)
    assert job.model == "tiny"


def test_models_that_cannot_be_trained_here_are_told_apart(desk):
    settings = replace(
        desk.settings, upstreams=(Upstream(name="vllm", base_url="http://127.0.0.1:1", models=("far",)),)
    )
    with pytest.raises(ModelNotFound):
        find_trainable("nowhere", desk.store, settings)
    with pytest.raises(InvalidRequest, match="another server"):
        find_trainable("far", desk.store, settings)
    desk.store.add_model(Model(id="gone", created_at=1, kind="base", path="bases/gone", base="gone"))
    with pytest.raises(Unavailable, match="pull"):
        find_trainable("gone", desk.store, settings)


@pytest.fixture
def tuned(desk):
    path = desk.settings.home / "models" / "a"
    path.mkdir(parents=True)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    model = Model(id="ft:tiny:x::1", created_at=1, kind="adapter", path="models/a", base="tiny")
    return desk.store.add_model(model)


@pytest.mark.parametrize(
    "asked", [{"lora_rank": 4}, {"lora_alpha": 4}, {"adapter_scope": "completion"}, {"full_finetune": True}]
)
def test_a_job_on_an_adapter_keeps_its_shape(ask, tuned, asked):
    method = {**SUPERVISED, "supervised": {"hyperparameters": asked}}
    (name,) = asked
    error = refused(ask, InvalidConfig, model=tuned.id, method=method)
    assert error.param == f"method.supervised.hyperparameters.{name}"


def test_a_job_on_an_adapter_is_named_after_the_first_base(ask, tuned):
    same = {**SUPERVISED, "supervised": {"hyperparameters": {"lora_rank": 8}}}
    assert ask(model=tuned.id, method=same).extra["tuned_model"].startswith("ft:tiny:")


def test_an_adapter_that_cannot_be_read_is_named(desk, ask, tuned):
    (desk.settings.home / tuned.path / "adapter_config.json").write_text("{")
    assert "cannot be read" in refused(ask, Unavailable, model=tuned.id).message
