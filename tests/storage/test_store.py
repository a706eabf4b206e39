import io
import threading
from dataclasses import replace

import pytest

from fakes import FakeClock
from tunekeeper.errors import InvalidRequest, InvalidState, ModelNotFound, NotFound, Unavailable
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import Checkpoint, File, Job, Model, Upload, UploadPart

SHA = "ab" * 32


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(tmp_path, clock):
    store = Store(connect(tmp_path), clock)
    yield store
    store.close()


def file(name: str, **changes: object) -> File:
    made = File(id=f"file-{name}", bytes=1, created_at=1, filename=f"{name}.jsonl", purpose="fine-tune", sha256=SHA)
    return replace(made, **changes)


def job(name: str, **changes: object) -> Job:
    made = Job(
        id=f"ftjob-{name}",
        created_at=1,
        model="base",
        training_file="file-a",
        method={"type": "supervised"},
        seed=1,
        status="queued",
    )
    return replace(made, **changes)


def model(name: str, **changes: object) -> Model:
    made = Model(id=name, created_at=1, kind="adapter", path=f"models/{name}", base="base", parent="base")
    return replace(made, **changes)


def upload(**changes: object) -> Upload:
    made = Upload(
        id="upload_1",
        created_at=1,
        filename="f.jsonl",
        bytes=2,
        purpose="fine-tune",
        mime_type="text/jsonl",
        status="pending",
        expires_at=1_800_003_600,
    )
    return replace(made, **changes)


def part(name: str, **changes: object) -> UploadPart:
    made = UploadPart(id=f"part_{name}", upload_id="upload_1", created_at=1, bytes=1, sha256=SHA)
    return replace(made, **changes)


def pages(fetch, limit):
    """All ids that paging to the end gives."""
    ids, after = [], None
    while True:
        page = fetch(after=after, limit=limit)
        ids += [item.id for item in page.data]
        if not page.has_more:
            return ids
        after = page.data[-1].id


def test_every_field_of_a_job_comes_back_as_it_went_in(store):
    full = job(
        "full",
        metadata={'a "quoted" key': "värde"},
        integrations=[{"type": "x"}],
        resolved={"n_epochs": 3},
        estimate={"cost": 0.5},
        error={"code": "c", "message": "m", "param": None},
        extra={"trainingType": "standard"},
        lease_expires_at=1.5,
        request="pause",
    )
    store.add_job(full)
    assert store.get_job("ftjob-full") == full


def test_files_are_listed_newest_first_and_in_order_of_arrival_within_a_second(store):
    for name in "abc":
        store.add_file(file(name))
    assert [f.id for f in store.list_files().data] == ["file-c", "file-b", "file-a"]
    assert [f.id for f in store.list_files(order="asc").data] == ["file-a", "file-b", "file-c"]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_paging_gives_each_file_once_and_ends(store, order, limit):
    names = [f"file-{n}" for n in range(4)]
    for n in range(4):
        store.add_file(file(str(n)))
    found = pages(lambda after, limit: store.list_files(after=after, limit=limit, order=order), limit)
    assert found == (names if order == "asc" else names[::-1])


def test_files_that_arrive_while_a_client_pages_do_not_disturb_it(store):
    for name in "abc":
        store.add_file(file(name))
    page = store.list_files(limit=2)
    store.add_file(file("d"))
    assert [f.id for f in store.list_files(after=page.data[-1].id, limit=2).data] == ["file-a"]


def test_a_client_may_delete_what_it_pages_through(store):
    for n in range(5):
        store.add_file(file(str(n)))
    seen, after = [], None
    while True:
        page = store.list_files(after=after, limit=2)
        for item in page.data:
            seen.append(item.id)
            store.delete_file(item.id)
        if not page.has_more:
            break
        after = page.data[-1].id
    assert len(seen) == 5
    assert store.list_files().data == []


def test_an_unknown_cursor_is_refused_by_name(store):
    with pytest.raises(InvalidRequest) as caught:
        store.list_files(after="file-nowhere")
    assert caught.value.param == "after"


def test_a_list_may_be_filtered_by_purpose(store):
    store.add_file(file("a"))
    store.add_file(file("b", purpose="batch"))
    assert [f.id for f in store.list_files(purpose="batch").data] == ["file-b"]


def test_the_same_file_again_is_one_file_and_another_under_its_id_is_refused(store):
    first = store.add_file(file("a"))
    assert store.add_file(file("a", created_at=99)) == first
    with pytest.raises(InvalidState):
        store.add_file(file("a", sha256="cd" * 32))


def test_an_expired_file_is_not_listed_and_is_then_forgotten(store, clock):
    store.add_file(file("a", expires_at=1_800_000_010))
    assert store.expire_files() == []
    clock.advance(10)
    assert store.list_files().data == []
    assert [f.id for f in store.expire_files()] == ["file-a"]
    with pytest.raises(NotFound):
        store.get_file("file-a")


def test_a_file_that_an_unfinished_job_needs_neither_goes_nor_expires(store, clock):
    store.add_file(file("a", expires_at=1_800_000_010))
    store.add_job(job("1"))
    clock.advance(20)
    with pytest.raises(InvalidState, match="ftjob-1"):
        store.delete_file("file-a")
    assert store.expire_files() == []
    store.update_job("ftjob-1", status="succeeded")
    assert store.delete_file("file-a").id == "file-a"


def test_a_validation_file_is_held_too(store):
    store.add_file(file("v"))
    store.add_job(job("1", validation_file="file-v", status="paused"))
    with pytest.raises(InvalidState):
        store.delete_file("file-v")


def test_an_unknown_field_is_our_own_mistake(store):
    store.add_file(file("a"))
    with pytest.raises(TypeError, match="colour"):
        store.update_file("file-a", colour="red")


def test_bytes_are_in_use_while_any_file_or_part_holds_them(store):
    assert not store.blob_in_use(SHA)
    store.add_file(file("a"))
    store.add_file(file("b"))
    store.delete_file("file-a")
    assert store.blob_in_use(SHA)
    store.delete_file("file-b")
    assert not store.blob_in_use(SHA)
    store.add_upload(upload())
    store.add_part(part("1"))
    assert store.blob_in_use(SHA)
    assert store.used_blobs() == {SHA}


def test_a_file_whose_bytes_were_just_deleted_is_refused(store, tmp_path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    sha256, _ = blobs.put(io.BytesIO(b"x"))
    store.delete_blob_if_unused(sha256, blobs.delete)
    with pytest.raises(Unavailable, match="again"):
        store.add_file(file("a", sha256=sha256), blob_exists=blobs.exists)
    assert store.list_files().data == []


def test_no_file_ever_loses_its_bytes_to_the_deletion_of_another(store, tmp_path):
    """Two threads upload and delete the same content over and over; each row must have its bytes."""
    blobs = DirectoryBlobs(tmp_path / "blobs")
    lost = []

    def churn(who: int) -> None:
        for n in range(15):
            sha256, _ = blobs.put(io.BytesIO(b"shared"))
            try:
                kept = store.add_file(file(f"{who}-{n}", sha256=sha256), blob_exists=blobs.exists)
            except Unavailable:
                continue
            if not blobs.exists(sha256):
                lost.append(kept.id)
            store.delete_file(kept.id)
            store.delete_blob_if_unused(sha256, blobs.delete)

    threads = [threading.Thread(target=churn, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []


def test_a_completed_upload_has_its_file_and_no_parts(store):
    store.add_upload(upload())
    store.add_part(part("1"))
    done, parts = store.complete_upload("upload_1", file("a"))
    assert (done.status, done.file_id) == ("completed", "file-a")
    assert store.get_upload("upload_1") == done
    assert [p.id for p in parts] == ["part_1"]
    assert store.get_parts("upload_1") == []


def test_an_upload_is_completed_once(store):
    store.add_upload(upload())
    store.complete_upload("upload_1", file("a"))
    with pytest.raises(InvalidState, match="file-a"):
        store.complete_upload("upload_1", file("b"))
    assert [f.id for f in store.list_files().data] == ["file-a"]


def test_a_cancelled_upload_takes_no_more_parts(store):
    store.add_upload(upload())
    store.add_part(part("1"))
    _, parts = store.cancel_upload("upload_1")
    assert [p.id for p in parts] == ["part_1"]
    with pytest.raises(InvalidState, match="cancelled"):
        store.add_part(part("2"))


def test_an_upload_expires_by_the_clock_before_anyone_marks_it(store, clock):
    store.add_upload(upload())
    store.add_part(part("1"))
    clock.advance(3600)
    assert store.get_upload("upload_1").status == "expired"
    with pytest.raises(InvalidState, match="expired"):
        store.complete_upload("upload_1", file("a"))
    assert [p.id for p in store.expire_uploads()] == ["part_1"]
    assert store.expire_uploads() == []
    assert not store.blob_in_use(SHA)


def test_a_model_is_found_under_its_checkpoints_id(store):
    store.add_job(job("1"))
    store.add_model(model("ft:x:ckpt-step-2"))
    store.add_checkpoint(
        Checkpoint(id="ftckpt_1", job_id="ftjob-1", created_at=1, model="ft:x:ckpt-step-2", step=2, metrics={})
    )
    assert store.get_model("ftckpt_1").id == "ft:x:ckpt-step-2"
    assert store.get_checkpoint("ft:x:ckpt-step-2").id == "ftckpt_1"


def test_an_unknown_model_is_named(store):
    with pytest.raises(ModelNotFound, match="gpt-9") as caught:
        store.get_model("gpt-9")
    assert caught.value.param == "model"


def test_the_same_model_again_is_one_and_another_under_its_id_is_refused(store):
    first = store.add_model(model("m"))
    assert store.add_model(model("m", created_at=9)) == first
    with pytest.raises(InvalidState):
        store.add_model(model("m", path="elsewhere"))


def test_a_model_with_children_or_an_unfinished_job_stays(store):
    store.add_model(model("parent"))
    store.add_model(model("child", parent="parent"))
    with pytest.raises(InvalidState, match="child"):
        store.delete_model("parent")
    store.delete_model("child")
    store.add_job(job("1", model="parent"))
    with pytest.raises(InvalidState, match="ftjob-1"):
        store.delete_model("parent")
    store.update_job("ftjob-1", status="failed")
    store.delete_model("parent")
    assert store.list_models() == []


def test_jobs_are_filtered_by_all_pairs_of_their_metadata(store):
    store.add_job(job("1", metadata={"team": "a", "it's": '"odd"'}))
    store.add_job(job("2", metadata={"team": "a"}))
    store.add_job(job("3", metadata={}))
    store.add_job(job("4"))

    def ids(metadata):
        return [j.id[-1] for j in store.list_jobs(metadata=metadata).data]

    assert ids(None) == ["4", "3", "2", "1"]
    assert ids({"team": "a"}) == ["2", "1"]
    assert ids({"team": "a", "it's": '"odd"'}) == ["1"]
    assert ids({"team": "b", "it's": '"odd"'}) == []
    assert ids({"it's": '"odd"', "team": "b"}) == []
    assert ids({"team": "b"}) == []
    assert ids("null") == ["4", "3"]


def test_the_oldest_waiting_job_is_claimed_and_only_once(store):
    store.add_job(job("done", status="succeeded"))
    store.add_job(job("paused", status="paused"))
    store.add_job(job("1"))
    store.add_job(job("2", status="validating_files"))
    first = store.claim_job("w1", 30)
    second = store.claim_job("w2", 30)
    assert first is not None
    assert second is not None
    assert (first.id, first.lease_owner, first.attempts) == ("ftjob-1", "w1", 1)
    assert second.id == "ftjob-2"
    assert store.claim_job("w3", 30) is None


def test_workers_that_claim_at_once_get_different_jobs(store):
    for n in range(6):
        store.add_job(job(str(n)))
    claimed = []

    def claim(owner: str) -> None:
        while (found := store.claim_job(owner, 30)) is not None:
            claimed.append(found.id)

    threads = [threading.Thread(target=claim, args=(f"w{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [f"ftjob-{n}" for n in range(6)]


def test_the_job_of_a_silent_worker_goes_to_the_next_and_the_first_learns_it(store, clock):
    store.add_job(job("1", status="running"))
    store.claim_job("w1", 30)
    clock.advance(20)
    assert store.renew_lease("ftjob-1", "w1", 30)
    clock.advance(29)
    assert store.claim_job("w2", 30) is None
    clock.advance(1)
    again = store.claim_job("w2", 30)
    assert again is not None
    assert again.attempts == 2
    assert not store.renew_lease("ftjob-1", "w1", 30)
    store.release_lease("ftjob-1", "w1")
    assert store.get_job("ftjob-1").lease_owner == "w2"


def test_a_released_job_can_be_claimed_at_once(store):
    store.add_job(job("1"))
    store.claim_job("w1", 30)
    store.release_lease("ftjob-1", "w1")
    assert store.claim_job("w2", 30) is not None


def test_a_transition_happens_only_from_the_states_that_it_names(store):
    store.add_job(job("1", status="running"))
    done = store.transition("ftjob-1", "succeeded", from_={"running"}, finished_at=7)
    assert (done.status, done.finished_at) == ("succeeded", 7)
    with pytest.raises(InvalidState, match="is succeeded"):
        store.transition("ftjob-1", "cancelled", from_={"running", "queued"})


def test_a_deleted_job_takes_its_events_and_checkpoints_along(store):
    store.add_job(job("1"))
    store.add_event("ftjob-1", "info", "hello")
    with pytest.raises(InvalidState):
        store.delete_job("ftjob-1")
    store.update_job("ftjob-1", status="cancelled")
    store.delete_job("ftjob-1")
    with pytest.raises(NotFound):
        store.list_events("ftjob-1")


def test_events_come_newest_first_and_a_key_counts_once(store):
    store.add_job(job("1"))
    for n in range(3):
        store.add_event("ftjob-1", "info", f"step {n}", type="metrics", data={"n": n}, key=f"step-{n}")
    store.add_event("ftjob-1", "info", "again", key="step-1")
    store.add_event("ftjob-1", "info", "no key")
    store.add_event("ftjob-1", "info", "no key")
    found = store.list_events("ftjob-1").data
    assert [e.message for e in found] == ["no key", "no key", "step 2", "step 1", "step 0"]
    assert found[2].data == {"n": 2}
    assert len(pages(lambda after, limit: store.list_events("ftjob-1", after=after, limit=limit), 2)) == 5


def test_the_events_of_a_job_are_its_own(store):
    for name in "12":
        store.add_job(job(name))
        store.add_event(f"ftjob-{name}", "info", "hello")
    with pytest.raises(NotFound):
        store.list_events("ftjob-3")
    assert len(store.list_events("ftjob-1").data) == 1


def test_a_checkpoint_of_a_step_is_kept_once(store):
    store.add_job(job("1"))
    first = Checkpoint(id="ftckpt_1", job_id="ftjob-1", created_at=1, model="m", step=2, metrics={"train_loss": 0.5})
    assert store.add_checkpoint(first) == first
    assert store.add_checkpoint(replace(first, id="ftckpt_2")) == first
    assert store.list_checkpoints("ftjob-1").data == [first]
    with pytest.raises(NotFound):
        store.get_checkpoint("ftckpt_2")


def test_a_permission_is_given_once_and_belongs_to_its_checkpoint(store):
    given = store.add_permissions("ckpt", ["p1", "p2"])
    assert store.add_permissions("ckpt", ["p1"]) == given[:1]
    assert [p.project_id for p in store.list_permissions("ckpt").data] == ["p2", "p1"]
    assert [p.project_id for p in store.list_permissions("ckpt", order="asc", limit=1).data] == ["p1"]
    assert [p.project_id for p in store.list_permissions("ckpt", project_id="p2").data] == ["p2"]
    with pytest.raises(NotFound):
        store.delete_permission("other", given[0].id)
    store.delete_permission("ckpt", given[0].id)
    assert len(store.list_permissions("ckpt").data) == 1


def test_a_key_is_found_by_its_secret_which_is_not_stored(store, tmp_path):
    key, secret = store.add_key("laptop")
    assert secret.startswith("sk-tk-")
    assert store.find_key(secret) == key
    assert store.find_key(secret[:-1]) is None
    assert store.count_keys() == 1
    store.close()
    assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("tunekeeper.db*"))
    store.delete_key(key.id)
    assert store.find_key(secret) is None
