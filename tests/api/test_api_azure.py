import json

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from tunekeeper.api.azure import PREFIXES, AzureStyle, Deployments


@pytest.fixture
def client():
    app = FastAPI()

    async def echo(request: Request, response: Response, style: AzureStyle):
        style.created(response, "/there")
        body = await request.body()
        return {"path": request.url.path, "query": str(request.query_params), "body": body.decode()}

    for prefix in PREFIXES:
        app.post(f"{prefix}/chat/completions")(echo)
    app.add_middleware(Deployments)
    return TestClient(app)


@pytest.mark.parametrize(
    ("path", "model"),
    [("dep1", "dep1"), ("Qwen%2FQwen3", "Qwen/Qwen3"), ("ft:a:b:c:d", "ft:a:b:c:d"), ("a/b", "a/b")],
)
def test_a_deployment_in_the_path_is_the_model(client, path, model):
    url = f"/openai/deployments/{path}/chat/completions?api-version=2024-10-21"
    reply = client.post(url, json={"model": "other", "n": 1}).json()
    assert reply["path"] == "/openai/chat/completions"
    assert reply["query"] == "api-version=2024-10-21"
    assert json.loads(reply["body"]) == {"model": model, "n": 1}


def test_a_body_without_a_model_gets_one_and_may_arrive_in_pieces(client):
    body = iter([b'{"n"', b": 1}"])
    reply = client.post("/openai/deployments/d/chat/completions", content=body).json()
    assert json.loads(reply["body"]) == {"n": 1, "model": "d"}


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_left_for_the_route_to_refuse(body):
    seen = []
    app = FastAPI()

    @app.post("/openai/chat/completions")
    async def take(request: Request):
        seen.append(await request.body())

    app.add_middleware(Deployments)
    TestClient(app).post("/openai/deployments/d/chat/completions", content=body)
    assert seen == [body]


@pytest.mark.parametrize("path", ["/openai/deployments//chat/completions", "/openai/deployments/d/images/edits"])
def test_other_operations_on_deployments_are_unknown(client, path):
    assert client.post(path, json={}).status_code == 404


@pytest.mark.parametrize(("prefix", "status"), [("/v1", 200), ("/openai/v1", 200), ("/openai", 201)])
def test_only_the_dated_api_answers_201(client, prefix, status):
    response = client.post(f"{prefix}/chat/completions", json={})
    assert response.status_code == status
    assert response.headers.get("location") == ("/there" if status == 201 else None)
