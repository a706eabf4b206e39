"""Retirement as the official client sees it: the fields of a model, 410, and a job that is refused."""

import datetime

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from fakes import FakeClock
from tunekeeper.api.app import create_app
from tunekeeper.lifecycle.catalog import Claim
from tunekeeper.settings import Lifecycle, ModelLife, Settings
from tunekeeper.types import Model

DAY = datetime.date(2027, 1, 15)  # FakeClock's
EVE = DAY + datetime.timedelta(days=1)
UNIX_EVE = 1_800_057_600


def base(name: str) -> Model:
    return Model(id=name, created_at=5, kind="base", path=f"bases/{name}", base=name)


def tuned(name: str, on: str) -> Model:
    return Model(id=name, created_at=6, kind="adapter", path="models/x", base=on, parent=on)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def open_client(tmp_path, clock):
    """The official client of a server with this policy."""
    opened = []

    def client(policy: Lifecycle, claims=()) -> openai.OpenAI:
        settings = Settings(home=tmp_path, aliases={"gpt-4o-mini": "old"}, lifecycle=policy)
        app = create_app(settings, clock=clock, worker=False)
        store = app.state.services.store
        for model in (base("old"), base("new"), tuned("ft:old:org::a", "old")):
            (tmp_path / model.path).mkdir(parents=True, exist_ok=True)
            store.add_model(model)
        store.add_claims(claims)
        test_client = TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000))
        opened.append(test_client)
        test_client.__enter__()
        return openai.OpenAI(
            base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, http_client=_through(test_client)
        )

    yield client
    for each in opened:
        each.__exit__(None, None, None)


def _through(test_client: TestClient) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        given = test_client.request(request.method, str(request.url), content=request.content, headers=request.headers)
        return httpx.Response(given.status_code, headers=dict(given.headers), content=given.content)

    return httpx.Client(transport=httpx.MockTransport(answer))


def chat(client: openai.OpenAI, model: str) -> None:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=1)


def submit(client: openai.OpenAI, model: str) -> None:
    client.fine_tuning.jobs.create(model=model, training_file="file-none")


def test_without_a_policy_nothing_here_ends_whatever_documents_say(open_client):
    said = Claim(model="old", field="retirement_date", text="2020-01-01", date="2020-01-01", origin="page")
    client = open_client(Lifecycle(), [said])
    shown = client.models.retrieve("old").model_dump()
    assert (shown["shutdown_date"], shown["lifecycle_status"], shown["lifecycle_stage"], shown["replacement"]) == (
        None,
        "generally-available",
        "ga",
        None,
    )
    assert shown["deprecation"] == {"fine_tune": None, "inference": None}
    with pytest.raises(openai.BadRequestError, match="no file"):  # the model itself was not refused
        submit(client, "old")


def test_a_model_shows_when_it_ends_and_what_replaces_it(open_client):
    life = ModelLife(shutdown_date=EVE, training_retirement_date=DAY, replacement="new")
    client = open_client(Lifecycle(models={"old": life}))
    listed = {model.id: model.model_dump() for model in client.models.list()}
    for name in ("old", "gpt-4o-mini"):
        shown = client.models.retrieve(name).model_dump()
        assert shown == listed[name]
        assert (shown["shutdown_date"], shown["lifecycle_stage"]) == (EVE.isoformat(), "deprecated")
        assert shown["deprecation"] == {"fine_tune": UNIX_EVE - 86_400, "inference": UNIX_EVE}
        assert shown["replacement"] == {"model": "new", "auto_upgrade_start": None}
    assert listed["new"]["shutdown_date"] is None
    assert listed["ft:old:org::a"]["shutdown_date"] is None


def test_a_retired_model_is_gone_under_every_name_and_its_weights_stay(open_client, tmp_path):
    client = open_client(Lifecycle(models={"old": ModelLife(shutdown_date=DAY, replacement="new")}))
    for name in ("old", "gpt-4o-mini"):
        with pytest.raises(openai.APIStatusError, match="Use new instead") as caught:
            chat(client, name)
        assert (caught.value.status_code, caught.value.code, caught.value.type) == (
            410,
            "model_retired",
            "invalid_request_error",
        )
    assert client.models.retrieve("old").model_dump()["lifecycle_stage"] == "retired"
    assert (tmp_path / "bases/old").is_dir()


def test_it_ends_on_its_day_and_not_before(open_client, clock):
    client = open_client(Lifecycle(models={"old": ModelLife(shutdown_date=EVE)}))
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, "old")
    assert caught.value.status_code != 410  # it was tried: there are no weights in this test
    clock.advance(86_400)
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, "old")
    assert caught.value.status_code == 410


def test_no_job_starts_on_a_base_that_is_retired_for_training(open_client):
    life = ModelLife(training_retirement_date=DAY, replacement="new")
    client = open_client(Lifecycle(models={"old": life}))
    for name in ("old", "gpt-4o-mini", "ft:old:org::a"):
        with pytest.raises(openai.APIStatusError, match="Train new instead") as caught:
            submit(client, name)
        assert (caught.value.status_code, caught.value.code, caught.value.param) == (
            400,
            "model_retired_for_training",
            "model",
        )


def test_the_catalog_binds_where_the_operator_enforces_it(open_client):
    said = [
        Claim(model="old", field="retirement_date", text="2027-01-01", date="2027-01-01", qualifier="exact"),
        Claim(model="old", field="replacement", text="new"),
    ]
    client = open_client(Lifecycle(enforce=("old",)), said)
    with pytest.raises(openai.APIStatusError, match="Use new instead") as caught:
        chat(client, "old")
    assert caught.value.status_code == 410
