import pytest
from starlette.testclient import TestClient

from fakes import FakeClock, local_client
from tunekeeper.api.app import create_app
from tunekeeper.settings import Settings
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store

PREFIXES = ["/v1", "/openai/v1", "/openai"]


@pytest.fixture
def store(tmp_path):
    store = Store(connect(tmp_path), FakeClock())
    yield store
    store.close()


@pytest.fixture
def local_app(tmp_path, store):
    return create_app(Settings(home=tmp_path), store=store, worker=False)


@pytest.fixture
def open_app(tmp_path, store):
    return create_app(Settings(home=tmp_path, host="0.0.0.0"), store=store, worker=False)


def test_on_this_machine_no_key_is_needed(local_app, store):
    store.add_key("someone")
    client = local_client(local_app)
    assert client.get("/v1/files").status_code == 200
    assert client.get("/v1/files", headers={"authorization": "Bearer whatever"}).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_key_opens_every_prefix_in_both_ways(open_app, store, prefix):
    _, secret = store.add_key("k")
    client = local_client(open_app)
    for headers in ({"authorization": f"Bearer {secret}"}, {"api-key": secret}):
        assert client.get(f"{prefix}/files", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Basic c2s6"},
        {"authorization": "Bearer sk-tk-wrong"},
        {"api-key": "schlüssel"},
        {"api-key": ""},
    ],
)
def test_without_a_good_key_an_open_server_refuses(open_app, store, headers):
    store.add_key("k")
    encoded = {name: value.encode() for name, value in headers.items()}
    response = local_client(open_app).get("/v1/files", headers=encoded)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["x-request-id"]


def test_a_server_without_any_key_refuses_strangers_too(open_app):
    response = local_client(open_app).get("/v1/files", headers={"api-key": "x"})
    assert response.status_code == 401


def test_a_revoked_key_is_refused_at_once(open_app, store):
    key, secret = store.add_key("k")
    client = local_client(open_app)
    assert client.get("/v1/files", headers={"api-key": secret}).status_code == 200
    store.delete_key(key.id)
    assert client.get("/v1/files", headers={"api-key": secret}).status_code == 401


def test_nothing_is_told_to_strangers_about_which_routes_exist(open_app):
    assert local_client(open_app).get("/nowhere").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # a name that was re-bound to 127.0.0.1
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"x-forwarded-for": "203.0.113.9"},  # a proxy on this machine speaks for somebody else
        {"forwarded": "for=203.0.113.9"},
        {"host": "[::1"},
    ],
)
def test_a_foreign_page_or_a_proxy_needs_a_key_even_on_loopback(local_app, store, headers):
    _, secret = store.add_key("k")
    client = local_client(local_app)
    assert client.get("/v1/files", headers=headers).status_code == 401
    assert client.get("/v1/files", headers={**headers, "api-key": secret}).status_code == 200


@pytest.mark.parametrize("headers", [{"host": "localhost:1"}, {"host": "[::1]:8000"}, {"origin": "http://localhost:3"}])
def test_every_name_of_this_machine_is_local(local_app, headers):
    assert local_client(local_app).get("/v1/files", headers=headers).status_code == 200


def test_a_peer_from_elsewhere_needs_a_key(local_app):
    stranger = TestClient(local_app, base_url="http://127.0.0.1", client=("203.0.113.9", 1))
    assert stranger.get("/v1/files").status_code == 401
