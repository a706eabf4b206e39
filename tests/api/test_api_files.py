import hashlib
import io
import json
import os
import threading

import pytest

from fakes import FakeClock, local_client
from tunekeeper.api.app import create_app, expire
from tunekeeper.errors import Unavailable
from tunekeeper.settings import Settings
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.types import Job

LINE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
DATA = LINE * 12


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def app(tmp_path, clock):
    settings = Settings(home=tmp_path, max_file_bytes=200_000, max_body_bytes=100_000)
    return create_app(settings, clock=clock, worker=False)


@pytest.fixture
def client(app):
    with local_client(app) as client:
        yield client


def send(client, content=DATA, *, name="train.jsonl", purpose="fine-tune", prefix="/v1", **fields):
    return client.post(f"{prefix}/files", data={"purpose": purpose, **fields}, files={"file": (name, content)})


def settled(client, file_id):
    """The file once its check is done."""
    client.app.state.services.checks.wait()
    return client.get(f"/v1/files/{file_id}").json()


def left_on_disk(tmp_path):
    """Every file under blobs/, temporary ones too."""
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def raw_form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


def field(name: str, value: str) -> bytes:
    return f'content-disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def upload_part(content: bytes, name: str = "t.jsonl") -> bytes:
    return f'content-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content


def send_raw(client, body, content_type="multipart/form-data; boundary=B"):
    return client.post("/v1/files", content=body, headers={"content-type": content_type})


def test_a_file_goes_in_and_comes_out_byte_for_byte(client):
    sent = send(client)
    assert sent.status_code == 200
    file = sent.json()
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(DATA), "train.jsonl")
    content = client.get(f"/v1/files/{file['id']}/content")
    assert content.content == DATA
    assert content.headers["content-type"] == "application/octet-stream"


def test_a_good_training_file_becomes_processed(client):
    file = send(client).json()
    assert file["status"] == "uploaded"
    assert settled(client, file["id"])["status"] == "processed"


def test_a_bad_training_file_says_which_lines_are_wrong(client):
    file = send(client, LINE + b"{not json\n").json()
    checked = settled(client, file["id"])
    assert checked["status"] == "error"
    assert json.loads(checked["status_details"])[0]["line"] == 2


def test_a_file_that_nobody_trains_on_is_ready_at_once(client):
    assert send(client, b"anything", purpose="user_data").json()["status"] == "processed"


def test_files_are_listed_by_their_purpose_and_of_one_that_is_not_had_here_there_are_none(client):
    file = send(client, b"anything", purpose="user_data").json()
    listed = {
        purpose: [one["id"] for one in client.get(f"/v1/files?purpose={purpose}").json()["data"]]
        for purpose in ("user_data", "batch", "assistants_output")
    }
    assert listed == {"user_data": [file["id"]], "batch": [], "assistants_output": []}


def test_a_check_that_a_stopped_server_left_is_made_after_the_next_start(app, tmp_path, clock):
    client = local_client(app)
    app.state.services.checks.stop()
    file = send(client).json()
    with local_client(create_app(Settings(home=tmp_path), clock=clock, worker=False)) as again:
        assert settled(again, file["id"])["status"] == "processed"


def test_the_dated_azure_api_answers_201_with_the_place(client):
    created = send(client, prefix="/openai")
    assert created.status_code == 201
    assert created.headers["location"] == f"/openai/files/{created.json()['id']}"
    assert send(client, prefix="/openai/v1").status_code == 200


def test_files_are_validated_on_request(client):
    file = send(client, LINE * 3).json()
    report = client.post(f"/v1/files/{file['id']}/validate?method=supervised").json()
    assert report["file_id"] == file["id"]
    assert report["ok"] is False  # three examples are too few to train on


def test_an_unknown_file_is_named(client):
    for response in (
        client.get("/v1/files/file-none"),
        client.delete("/v1/files/file-none"),
        client.get("/v1/files/file-none/content"),
        client.post("/v1/files/file-none/validate"),
    ):
        assert response.status_code == 404
        assert "file-none" in response.json()["error"]["message"]


def test_a_deleted_file_and_its_bytes_are_gone(client, tmp_path):
    file = send(client).json()
    assert client.delete(f"/v1/files/{file['id']}").json() == {
        "id": file["id"],
        "object": "file",
        "deleted": True,
    }
    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert left_on_disk(tmp_path) == []


def test_two_files_of_the_same_bytes_do_not_lose_them_to_each_other(client, tmp_path):
    first, second = send(client).json(), send(client, name="copy.jsonl").json()
    client.delete(f"/v1/files/{first['id']}")
    assert client.get(f"/v1/files/{second['id']}/content").content == DATA
    client.delete(f"/v1/files/{second['id']}")
    assert left_on_disk(tmp_path) == []


def test_a_file_that_a_job_needs_is_not_deleted(client, app):
    file = send(client).json()
    job = Job(id="ftjob-1", created_at=1, model="m", training_file=file["id"], method={}, seed=1, status="running")
    app.state.services.store.add_job(job)
    response = client.delete(f"/v1/files/{file['id']}")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "file_in_use")
    assert client.get(f"/v1/files/{file['id']}/content").content == DATA


def test_a_list_is_paged_and_says_where_it_ends(client):
    ids = [send(client, name=f"{n}.jsonl").json()["id"] for n in range(3)]
    first = client.get("/v1/files?limit=2").json()
    assert [file["id"] for file in first["data"]] == ids[:0:-1]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[2], ids[1])
    rest = client.get(f"/v1/files?limit=2&after={first['last_id']}").json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (ids[:1], False)
    past = client.get(f"/v1/files?after={ids[0]}").json()
    assert past == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert client.get("/v1/files?after=file-none").status_code == 400


def test_files_expire_when_they_were_told_to(client, app, clock, tmp_path):
    sent = send(client, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    file = sent.json()
    assert file["expires_at"] == file["created_at"] + 3600
    clock.advance(3600)
    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert client.get("/v1/files").json()["data"] == []
    expire(app.state.services)
    assert left_on_disk(tmp_path) == []


def test_batch_files_expire_after_thirty_days_by_themselves(client):
    file = send(client, purpose="batch").json()
    assert file["expires_at"] == file["created_at"] + 30 * 86400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "training"}, "purpose"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 5000},
            "expires_after.seconds",
        ),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "last_used", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_field_is_named_and_nothing_stays(client, tmp_path, fields, param):
    response = send(client, **{"purpose": "fine-tune", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert left_on_disk(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (raw_form(field("purpose", "fine-tune"), upload_part(DATA), end=b""), "truncated_body"),
        (raw_form(field("purpose", "fine-tune"), upload_part(DATA), end=b"--B")[:-40], "truncated_body"),
        (b"", "truncated_body"),
        (b"this is no form", "malformed_body"),
        (raw_form(field("purpose", "fine-tune")), "missing_required_parameter"),
        (raw_form(upload_part(DATA)), "missing_required_parameter"),
        (raw_form(field("purpose", "fine-tune"), field("file", "as text")), "invalid_type"),
        (raw_form(field("purpose", "fine-tune"), upload_part(DATA), upload_part(DATA)), "invalid_value"),
        (raw_form(field("purpose", "a"), field("purpose", "b"), upload_part(DATA)), "invalid_value"),
        (raw_form(field("purpose", "fine-tune"), upload_part(b"")), "empty_file"),
        (raw_form(field("purpose", "x" * 70_000), upload_part(DATA)), "invalid_value"),
        (raw_form(b"x-long: " + b"x" * 70_000 + b"\r\n\r\n"), "malformed_body"),
    ],
)
def test_a_broken_form_is_refused_and_nothing_stays(client, tmp_path, body, code):
    response = send_raw(client, body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert left_on_disk(tmp_path) == []
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "text/plain", ""])
def test_a_body_that_is_no_form_is_refused(client, content_type):
    response = send_raw(client, b"{}", content_type)
    assert response.json()["error"]["code"] == "invalid_content_type"


def test_a_file_over_the_limit_is_413_and_nothing_stays(client, tmp_path):
    response = send(client, b"x" * 200_001)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "file_too_large")
    assert send(client, b"x" * 200_000, purpose="user_data").status_code == 200
    assert len(left_on_disk(tmp_path)) == 1


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\träin.jsonl", "träin.jsonl"),
        ("a\tb.jsonl", "ab.jsonl"),
        ("/", "upload"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
    ],
)
def test_a_filename_is_only_a_name(client, sent, kept):
    response = send_raw(client, raw_form(field("purpose", "user_data"), upload_part(b"x", sent)))
    assert response.json()["filename"] == kept
    download = client.get(f"/v1/files/{response.json()['id']}/content")
    assert download.headers["content-disposition"].isascii()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_form_may_arrive_in_pieces_of_any_size(client, chunk):
    data = b"\r\n--\r\n-B\r--B\n--B\r\n--A\r\n" * 20  # almost boundaries
    body = raw_form(field("purpose", "user_data"), upload_part(data))
    response = send_raw(client, (body[i : i + chunk] for i in range(0, len(body), chunk)))
    assert client.get(f"/v1/files/{response.json()['id']}/content").content == data


class FullDisk(DirectoryBlobs):
    """Blobs on a device whose every write fails for want of space."""

    def writer(self):
        writer = super().writer()
        fd = os.open("/dev/full", os.O_WRONLY)
        os.dup2(fd, writer.fileno())
        os.close(fd)
        return writer


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    blobs = FullDisk(tmp_path / "blobs")
    with local_client(create_app(Settings(home=tmp_path), blobs=blobs, worker=False)) as client:
        response = send(client)
        assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")
        assert client.get("/v1/files").json()["data"] == []
    assert left_on_disk(tmp_path) == []


def test_uploads_at_once_do_not_mix(client):
    contents = [f"{n}".encode() * 150_000 for n in range(4)]
    replies = {}

    def one(n: int) -> None:
        replies[n] = send(client, contents[n], purpose="user_data").json()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, content in enumerate(contents):
        got = client.get(f"/v1/files/{replies[n]['id']}/content").content
        assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()


def test_bytes_without_a_row_are_removed_at_the_next_start(app, tmp_path, clock):
    blobs = app.state.services.blobs
    orphan, _ = blobs.put(io.BytesIO(b"the process died before the row was written"))
    os.utime(blobs.path(orphan), (0, 0))
    (tmp_path / "blobs" / "tmp" / "half").write_bytes(b"x")
    with local_client(app) as client:
        kept = send(client).json()
    assert [path.name for path in left_on_disk(tmp_path)] == [app.state.services.store.get_file(kept["id"]).sha256]


def test_a_second_server_on_the_same_home_is_refused(app, tmp_path):
    second = local_client(create_app(Settings(home=tmp_path), worker=False))
    with local_client(app), pytest.raises(Unavailable, match="Another server"), second:
        pass
    with local_client(create_app(Settings(home=tmp_path), worker=False)) as client:
        assert client.get("/v1/files").status_code == 200
