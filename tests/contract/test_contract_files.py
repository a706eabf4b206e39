"""Files, uploads, models and errors as the official client sees them, over a real socket."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from urllib.parse import urlsplit

import openai
import pytest

from tunekeeper.api.server import background
from tunekeeper.errors import Unavailable
from tunekeeper.settings import Settings, Upstream
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Model

LINE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
DATA = LINE * 12


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def base_url(home):
    store = Store(connect(home))
    store.add_model(Model(id="Qwen/tiny", created_at=5, kind="base", path="bases/tiny", base="Qwen/tiny"))
    store.add_model(Model(id="ft:tiny:org::abcd1234", created_at=6, kind="adapter", path="models/x", base="Qwen/tiny"))
    store.close()
    with background(Settings(home=home, max_file_bytes=3_000_000), worker=False) as url:
        yield url


@pytest.fixture(params=["openai", "azure v1", "azure dated"], scope="module")
def client(request, base_url):
    root = base_url.removesuffix("/v1")
    made = {
        "openai": lambda: openai.OpenAI(base_url=base_url, api_key="none", max_retries=0),
        "azure v1": lambda: openai.OpenAI(base_url=f"{root}/openai/v1/", api_key="none", max_retries=0),
        "azure dated": lambda: openai.AzureOpenAI(
            azure_endpoint=root, api_key="none", api_version="2024-10-21", max_retries=0
        ),
    }[request.param]()
    with made as client:
        yield client


@pytest.fixture(scope="module")
def plain(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def talk(base_url, request: bytes) -> bytes:
    """Send raw bytes, return all that comes back."""
    url = urlsplit(base_url)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def open_upload(base_url, *, sent: int) -> socket.socket:
    """A connection on which an upload has begun and will never end."""
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=B\r\n"
        b"content-length: 2500000\r\n\r\n"
        b'--B\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    url = urlsplit(base_url)
    connection = socket.create_connection((url.hostname, url.port))
    connection.sendall(head + bytes(sent))
    return connection


def temporary_files(home):
    return list((home / "blobs" / "tmp").iterdir())


def eventually(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_is_uploaded_checked_read_and_deleted(client):
    file = client.files.create(file=("train.jsonl", DATA), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename) == ("file", len(DATA), "train.jsonl")
    ready = client.files.wait_for_processing(file.id, poll_interval=0.05)
    assert ready.status == "processed"
    assert client.files.content(file.id).read() == DATA
    assert client.files.delete(file.id).deleted is True
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert caught.value.request_id


def test_a_file_may_expire(client):
    expires = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("a.txt", b"x"), purpose="user_data", expires_after=expires)
    assert file.expires_at == file.created_at + 3600
    client.files.delete(file.id)


def test_the_pager_gives_each_file_once_and_ends(client):
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose="vision").id for n in range(5)]
    listed = [file.id for file in client.files.list(purpose="vision", limit=2, order="asc")]
    assert listed == made
    for file in client.files.list(purpose="vision", limit=2):  # deleting while paging loses none
        client.files.delete(file.id)
    assert client.files.list(purpose="vision").data == []


def test_a_large_file_goes_up_in_parts(client, tmp_path):
    path = tmp_path / "big.jsonl"
    path.write_bytes(LINE * 3000)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=50_000
    )
    assert (upload.status, upload.file.bytes) == ("completed", path.stat().st_size)
    assert client.files.content(upload.file.id).read() == path.read_bytes()
    client.files.delete(upload.file.id)


def test_an_upload_can_be_cancelled(client):
    upload = client.uploads.create(filename="f", bytes=3, mime_type="text/plain", purpose="batch")
    client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload.id, part_ids=["part_x"])
    assert caught.value.code == "invalid_state"


@pytest.mark.parametrize("name", ["Qwen/tiny", "ft:tiny:org::abcd1234"])
def test_models_are_listed_and_shown(client, name):
    assert name in [model.id for model in client.models.list()]
    model = client.models.retrieve(name)
    assert (model.id, model.object) == (name, "model")
    assert isinstance(model.created, int)


def test_an_unknown_model_and_a_base_are_not_deleted(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.delete("no/such-model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("Qwen/tiny")


def test_errors_carry_what_a_program_needs(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a.txt", b"x"), purpose="training")
    error = caught.value
    assert (error.param, error.code, error.type) == ("purpose", "invalid_value", "invalid_request_error")
    assert error.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.create(filename="f", bytes=3, mime_type="t", purpose="batch", extra_body={"colour": 1})
    assert (caught.value.param, caught.value.code) == ("colour", "unknown_parameter")
    with pytest.raises(openai.BadRequestError):
        client.files.list(after="file-none")


def test_a_file_over_the_limit_is_answered_while_it_is_still_being_sent(plain, home):
    with pytest.raises(openai.APIStatusError) as caught:
        plain.files.create(file=("big.txt", bytes(20_000_000)), purpose="user_data")
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as caught:
        plain.files.create(file=("big.txt", bytes(3_500_000)), purpose="user_data")
    assert caught.value.status_code == 413
    assert temporary_files(home) == []


def test_a_client_that_leaves_in_the_middle_leaves_nothing(base_url, plain, home):
    before = {file.id for file in plain.files.list()}
    with open_upload(base_url, sent=2_000_000):
        eventually(lambda: temporary_files(home))
    eventually(lambda: not temporary_files(home))
    assert {file.id for file in plain.files.list()} == before


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /v1/files/%00%ff HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", b"404"),
        (b"POST /v1/uploads HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", b"400"),
    ],
)
def test_broken_requests_are_answered_and_do_no_harm(base_url, plain, request_bytes, status):
    assert talk(base_url, request_bytes).split(b" ", 2)[1] == status
    assert plain.models.list().data


def test_a_head_without_end_is_cut_off(base_url, plain):
    head = b"GET /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\nx: "
    with suppress(ConnectionError):  # a client that only sends may not get to read the answer
        assert talk(base_url, head + b"y" * 1_000_000).split(b" ", 2)[1] == b"400"
    assert plain.models.list().data


def test_the_models_of_upstream_servers_are_listed_and_a_dead_one_is_passed_over(base_url, tmp_path):
    upstreams = (
        Upstream(name="dead", base_url="http://127.0.0.1:9/v1"),
        Upstream(name="live", base_url=base_url),
    )
    settings = Settings(home=tmp_path, upstreams=upstreams, aliases={"prod": "Qwen/tiny"})
    with background(settings, worker=False) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        assert {"Qwen/tiny", "prod"} <= {model.id for model in client.models.list()}
        assert client.models.retrieve("Qwen/tiny").owned_by
        assert client.models.retrieve("prod").alias_of == "Qwen/tiny"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-9")


def serving(home):
    script = "import sys; from pathlib import Path; from tunekeeper.settings import Settings\n"
    script += "from tunekeeper.api.server import serve; serve(Settings(home=Path(sys.argv[1]), port=0))"
    process = subprocess.Popen([sys.executable, "-c", script, str(home)], stderr=subprocess.DEVNULL)
    eventually((home / "server.json").exists, seconds=30)
    return process, json.loads((home / "server.json").read_text())["base_url"]


def test_a_server_that_was_killed_in_the_middle_of_an_upload_starts_clean(tmp_path):
    process, base_url = serving(tmp_path)
    with open_upload(base_url, sent=2_000_000):
        eventually(lambda: temporary_files(tmp_path))
        process.kill()
        process.wait()
    assert temporary_files(tmp_path)
    (tmp_path / "server.json").unlink()  # a killed server cannot withdraw its address
    process, base_url = serving(tmp_path)
    assert temporary_files(tmp_path) == []
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert not (tmp_path / "server.json").exists()


def test_a_running_server_says_where_it_is_and_keeps_others_out(base_url, home):
    note = json.loads((home / "server.json").read_text())
    assert note == {"base_url": base_url, "pid": os.getpid()}
    with pytest.raises(Unavailable, match=base_url), background(Settings(home=home), worker=False):
        pass
    assert (home / "server.json").exists()


def test_a_stopped_server_withdraws_its_address_and_frees_the_home(tmp_path):
    for _ in range(2):
        with background(Settings(home=tmp_path), worker=False):
            assert (tmp_path / "server.json").exists()
        assert not (tmp_path / "server.json").exists()


def test_an_upload_takes_constant_memory(tmp_path):
    """Client and server in one process: 80 MB go up and come down within 30 MB."""
    script = """
        import resource, sys
        from pathlib import Path
        import httpx
        from tunekeeper.api.server import background
        from tunekeeper.settings import Settings

        home, big = Path(sys.argv[1]) / "home", Path(sys.argv[1]) / "big"
        with big.open("wb") as file:
            file.truncate(80_000_000)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        client = httpx.Client(timeout=60, trust_env=False)
        with background(Settings(home=home), worker=False) as url, client:
            send = lambda stream: client.post(
                f"{url}/files", data={"purpose": "user_data"}, files={"file": ("big", stream)}
            ).json()["id"]
            send(b"warm")
            before = peak()
            with big.open("rb") as stream:
                file_id = send(stream)
            size = 0
            with client.stream("GET", f"{url}/files/{file_id}/content") as response:
                for piece in response.iter_raw():
                    size += len(piece)
            print(size, peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown_kib = map(int, run.stdout.split())
    assert size == 80_000_000
    assert grown_kib < 30_000
