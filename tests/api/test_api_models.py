from dataclasses import replace

import pytest

from fakes import FakeClock, local_client
from tunekeeper.api.app import create_app
from tunekeeper.settings import Settings
from tunekeeper.types import Checkpoint, Job, Model

BASE = Model(id="Qwen/tiny", created_at=5, kind="base", path="bases/tiny", base="Qwen/tiny", info={"license": "mit"})
TUNED = Model(
    id="ft:tiny:org:s:abcd1234",
    created_at=6,
    kind="adapter",
    path="models/abcd1234",
    base="Qwen/tiny",
    parent="Qwen/tiny",
    job_id="ftjob-1",
)


@pytest.fixture
def app(tmp_path):
    settings = Settings(home=tmp_path, aliases={"gpt-4o-mini": BASE.id, "dangling": "nowhere"})
    app = create_app(settings, clock=FakeClock(), worker=False)
    store = app.state.services.store
    store.add_model(BASE)
    store.add_model(TUNED)
    (tmp_path / TUNED.path).mkdir(parents=True)
    (tmp_path / TUNED.path / "adapter_model.safetensors").write_bytes(b"x")
    return app


@pytest.fixture
def client(app):
    with local_client(app) as client:
        yield client


def test_the_list_has_bases_tuned_models_and_the_aliases_that_lead_somewhere(client):
    body = client.get("/v1/models").json()
    assert [model["id"] for model in body["data"]] == [BASE.id, TUNED.id, "gpt-4o-mini"]
    assert body["has_more"] is False


def test_a_model_has_the_fields_of_both_vendors(client):
    shown = client.get(f"/v1/models/{TUNED.id}").json()
    openai = {"id", "object", "created", "owned_by", "shutdown_date"}
    azure = {"created_at", "status", "model", "fine_tune", "capabilities", "lifecycle_status", "deprecation"}
    assert openai | azure <= set(shown)
    assert (shown["model"], shown["fine_tune"], shown["parents"]) == (BASE.id, "ftjob-1", [BASE.id])
    base = client.get(f"/v1/models/{BASE.id}").json()
    assert (base["model"], base["license"], base["parents"]) == (None, "mit", [])


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", "/openai"])
@pytest.mark.parametrize(
    "name",
    ["Qwen/tiny", "Qwen%2Ftiny", "ft:tiny:org:s:abcd1234", "ft%3Atiny%3Aorg%3As%3Aabcd1234", "gpt-4o-mini"],
)
def test_a_model_is_found_however_its_name_is_written(client, prefix, name):
    assert client.get(f"{prefix}/models/{name}?api-version=2024-10-21").status_code == 200


def test_an_alias_says_what_it_stands_for(client):
    shown = client.get("/v1/models/gpt-4o-mini").json()
    assert (shown["id"], shown["alias_of"], shown["object"]) == ("gpt-4o-mini", BASE.id, "model")


def test_a_checkpoint_is_found_under_its_own_id(client, app):
    store = app.state.services.store
    model = replace(TUNED, id=f"{TUNED.id}:ckpt-step-2", path="models/c", step=2)
    store.add_model(model)
    store.add_job(Job(id="ftjob-1", created_at=1, model=BASE.id, training_file="f", method={}, seed=1))
    store.add_checkpoint(Checkpoint(id="ftckpt_9", job_id="ftjob-1", created_at=1, model=model.id, step=2, metrics={}))
    assert client.get("/v1/models/ftckpt_9").json()["id"] == model.id


@pytest.mark.parametrize("name", ["gpt-9", "dangling", "Qwen", "Qwen/tiny/x"])
def test_an_unknown_model_is_404_with_openais_code(client, name):
    response = client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_deleted_model_and_its_weights_are_gone(client, tmp_path):
    body = client.delete(f"/v1/models/{TUNED.id}").json()
    assert body == {"id": TUNED.id, "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{TUNED.id}").status_code == 404
    assert list((tmp_path / "models").iterdir()) == []


def test_a_base_model_is_not_deleted(client):
    assert client.delete("/v1/models/Qwen%2Ftiny").status_code in {400, 403}
    assert client.get("/v1/models/Qwen%2Ftiny").status_code == 200


def test_an_alias_and_what_it_points_at_stay_while_it_points(tmp_path):
    app = create_app(Settings(home=tmp_path, aliases={"prod": TUNED.id}), worker=False)
    app.state.services.store.add_model(TUNED)
    with local_client(app) as client:
        for name in ("prod", TUNED.id):
            response = client.delete(f"/v1/models/{name}")
            assert (response.status_code, response.json()["error"]["code"]) == (400, "model_in_use")


def test_a_model_that_another_was_trained_on_stays(client, app):
    app.state.services.store.add_model(replace(TUNED, id="ft:child", path="models/child", parent=TUNED.id))
    assert "ft:child" in client.delete(f"/v1/models/{TUNED.id}").json()["error"]["message"]
    assert client.get("/v1/models/ft:child").json()["parents"] == [TUNED.id, BASE.id]


@pytest.mark.parametrize("path", ["../outside", "bases/tiny", "models"])
def test_weights_outside_the_models_directory_are_never_removed(client, app, tmp_path, path):
    (tmp_path / path).mkdir(parents=True, exist_ok=True)
    app.state.services.store.add_model(replace(TUNED, id="ft:odd", path=path))
    assert client.delete("/v1/models/ft:odd").status_code == 200
    assert (tmp_path / path).is_dir()


def test_weights_that_two_models_share_go_with_the_last(client, app, tmp_path):
    app.state.services.store.add_model(replace(TUNED, id="ft:same"))
    client.delete("/v1/models/ft:same")
    assert (tmp_path / TUNED.path).is_dir()
    client.delete(f"/v1/models/{TUNED.id}")
    assert not (tmp_path / TUNED.path).exists()


def test_an_interrupted_deletion_is_finished_at_the_next_start(app, tmp_path):
    left = tmp_path / "models" / "model-x.deleted"
    left.mkdir()
    with local_client(app):
        assert not left.exists()
