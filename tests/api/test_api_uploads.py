import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes import FakeClock, local_client
from tunekeeper.api.app import create_app, expire
from tunekeeper.settings import Settings


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def app(tmp_path, clock):
    settings = Settings(home=tmp_path, max_part_bytes=1000, max_upload_bytes=10_000)
    return create_app(settings, clock=clock, worker=False)


@pytest.fixture
def client(app):
    with local_client(app) as client:
        yield client


def begin(client, size, **changes):
    body = {
        "filename": "big.bin",
        "purpose": "user_data",
        "bytes": size,
        "mime_type": "text/plain",
        **changes,
    }
    return client.post("/v1/uploads", json=body)


def add(client, upload, data):
    return client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("upload", data)})


def finish(client, upload, parts, **body):
    ids = [part["id"] for part in parts]
    return client.post(f"/v1/uploads/{upload['id']}/complete", json={"part_ids": ids, **body})


def left_on_disk(tmp_path):
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_part_ids_decide_the_order_and_the_parts_do_not_stay(client, tmp_path):
    upload = begin(client, 6).json()
    assert (upload["status"], upload["expires_at"] - upload["created_at"]) == ("pending", 3600)
    last, first = add(client, upload, b"def").json(), add(client, upload, b"abc").json()
    assert (first["object"], first["upload_id"]) == ("upload.part", upload["id"])
    done = finish(client, upload, [first, last], md5=hashlib.md5(b"abcdef").hexdigest().upper()).json()
    assert (done["status"], done["file"]["bytes"], done["file"]["filename"]) == ("completed", 6, "big.bin")
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == b"abcdef"
    assert len(left_on_disk(tmp_path)) == 1


def test_an_upload_of_one_part_keeps_its_bytes(client):
    upload = begin(client, 3).json()
    done = finish(client, upload, [add(client, upload, b"abc").json()]).json()
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == b"abc"


def test_a_part_that_was_sent_twice_may_be_left_out(client, tmp_path):
    upload = begin(client, 3).json()
    add(client, upload, b"abc")
    again = add(client, upload, b"abc").json()
    assert finish(client, upload, [again]).json()["status"] == "completed"
    assert len(left_on_disk(tmp_path)) == 1


def test_parts_of_the_same_bytes_may_stand_side_by_side(client):
    upload = begin(client, 4).json()
    parts = [add(client, upload, b"ab").json() for _ in range(2)]
    done = finish(client, upload, parts).json()
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == b"abab"


def test_parts_may_arrive_at_once(client):
    pieces = [bytes([n]) * 500 for n in range(8)]
    upload = begin(client, 4000).json()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda piece: add(client, upload, piece).json(), pieces))
    done = finish(client, upload, parts).json()
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == b"".join(pieces)


@pytest.mark.parametrize(
    ("ids", "body", "param"),
    [
        (["a"], {}, "part_ids"),  # too few bytes
        (["a", "a"], {}, "part_ids.1"),
        (["a", "none"], {}, "part_ids.1"),
        ([], {}, "part_ids"),
        (["a", "b"], {"md5": "0" * 32}, "md5"),
        (["a", "b"], {"md5": "no"}, "md5"),
        (["a", "b"], {"sha1": "x"}, "sha1"),
    ],
)
def test_a_wrong_completion_is_refused_and_can_be_corrected(client, ids, body, param):
    upload = begin(client, 6).json()
    parts = {
        "a": add(client, upload, b"abc").json(),
        "b": add(client, upload, b"def").json(),
        "none": {"id": "part_0"},
    }
    refused = finish(client, upload, [parts[name] for name in ids], **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert finish(client, upload, [parts["a"], parts["b"]]).json()["status"] == "completed"


def test_a_completed_upload_takes_nothing_more(client):
    upload = begin(client, 3).json()
    part = add(client, upload, b"abc").json()
    file = finish(client, upload, [part]).json()["file"]
    for response in (
        add(client, upload, b"x"),
        finish(client, upload, [part]),
        client.post(f"/v1/uploads/{upload['id']}/cancel"),
    ):
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_state"
        assert response.headers["x-should-retry"] == "false"
        assert file["id"] in response.json()["error"]["message"]


def test_completing_twice_at_once_makes_one_file(client, tmp_path):
    upload = begin(client, 3).json()
    part = add(client, upload, b"abc").json()
    barrier = threading.Barrier(2)

    def complete(_n: int) -> int:
        barrier.wait()
        return finish(client, upload, [part]).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(complete, range(2))) == [200, 400]
    (file,) = client.get("/v1/files").json()["data"]
    assert client.get(f"/v1/files/{file['id']}/content").content == b"abc"


def test_a_cancelled_upload_leaves_nothing(client, tmp_path):
    upload = begin(client, 3).json()
    add(client, upload, b"abc")
    cancelled = client.post(f"/v1/uploads/{upload['id']}/cancel", headers={"content-type": "application/json"})
    assert cancelled.json()["status"] == "cancelled"
    assert left_on_disk(tmp_path) == []
    assert add(client, upload, b"x").status_code == 400


def test_an_expired_upload_takes_nothing_and_leaves_nothing(client, app, clock, tmp_path):
    upload = begin(client, 3).json()
    part = add(client, upload, b"abc").json()
    clock.advance(3600)
    assert "expired" in finish(client, upload, [part]).json()["error"]["message"]
    expire(app.state.services)
    assert left_on_disk(tmp_path) == []


def test_the_finished_file_is_checked_and_expires_as_asked(client):
    line = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
    expiry = {"anchor": "created_at", "seconds": 3600}
    upload = begin(client, len(line), purpose="fine-tune", expires_after=expiry).json()
    file = finish(client, upload, [add(client, upload, line).json()]).json()["file"]
    assert file["expires_at"] == file["created_at"] + 3600
    client.app.state.services.checks.wait()
    assert client.get(f"/v1/files/{file['id']}").json()["status"] == "processed"


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"bytes": 10_001}, 413, "bytes"),
        ({"bytes": 0}, 400, "bytes"),
        ({"bytes": "3"}, 400, "bytes"),
        ({"purpose": "training"}, 400, "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after.seconds"),
        ({"md5": "x"}, 400, "md5"),
        ({"filename": ""}, 400, "filename"),
    ],
)
def test_a_bad_start_is_refused_by_name(client, changes, status, param):
    response = begin(client, 3) if not changes else begin(client, changes.pop("bytes", 3), **changes)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_a_part_over_the_limit_is_413_and_leaves_nothing(client, tmp_path):
    upload = begin(client, 5000).json()
    assert add(client, upload, b"x" * 1001).status_code == 413
    assert left_on_disk(tmp_path) == []


def test_an_unknown_upload_is_named(client):
    response = add(client, {"id": "upload_none"}, b"x")
    assert response.status_code == 404
    assert "upload_none" in response.json()["error"]["message"]
