"""All rows that Tunekeeper keeps, as plain methods that take and give the dataclasses of `types.py`.

Each method is one short transaction; whatever must hold together is checked and changed in the same one.
The store knows no HTTP, no files and no weights. It may be used from several threads and several processes
at once.

    store = Store(connect(home))
    job = store.get_job("ftjob-…")
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    union,
    update,
)
from sqlalchemy.dialects.sqlite import insert as insert_or

from tunekeeper.errors import InvalidRequest, InvalidState, ModelNotFound, NotFound, Unavailable
from tunekeeper.lifecycle.catalog import Catalog, Claim, unsaid
from tunekeeper.ports import Clock
from tunekeeper.storage import completions, db
from tunekeeper.types import (
    TERMINAL,
    ApiKey,
    Checkpoint,
    CompletionFilter,
    CompletionTotals,
    Eval,
    EvalItem,
    EvalItemStatus,
    EvalRun,
    EvalRunStatus,
    Event,
    EventLevel,
    File,
    Job,
    JobStatus,
    Json,
    Model,
    Permission,
    StoredCompletion,
    Upload,
    UploadPart,
    new_id,
)

T = TypeVar("T")
Order = Literal["asc", "desc"]
_READ_BATCH, _REMOVE_BATCH = 100, 1000
"""Rows that one transaction reads, or removes, where there may be very many."""
MAX_PAIRS = 16
"""Pairs in the metadata of a stored completion."""
_EVERY = CompletionFilter()
_CLAIMABLE: tuple[JobStatus, ...] = ("validating_files", "queued", "running")
_HOLDERS = (db.files, db.upload_parts, db.eval_runs)
"""The tables whose rows hold blobs."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, and whether another follows."""

    data: list[T]
    has_more: bool


class SystemClock:
    """The time of this machine."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()


class Store:
    """Everything in the database; see the module's docstring."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._writer = db.writing(engine)
        self._clock = clock or SystemClock()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()

    def now(self) -> int:
        """The clock's present second, as rows carry it."""
        return int(self._clock.now())

    # Files

    def add_file(self, file: File, *, blob_exists: Callable[[str], bool] | None = None) -> File:
        """Keep the file. The same id with the same content again is no fault and changes nothing.

        With `blob_exists`, the row is refused when its bytes were deleted since they were put: the last
        other file that held them may have gone in between.
        """
        with self._write() as tx:
            present = _find(tx, db.files, File, file.id)
            if present is not None and present.sha256 == file.sha256:
                return present
            if present is not None:
                raise InvalidState(f"There is another file with the id {file.id}.", param="id")
            if blob_exists is not None and not blob_exists(file.sha256):
                raise Unavailable("The same bytes were being deleted while they arrived. Send the file again.")
            _insert(tx, db.files, file)
        return file

    def get_file(self, file_id: str) -> File:
        """The file, expired or not; raises NotFound."""
        with self._read() as tx:
            return _get(tx, db.files, File, file_id, "File")

    def list_files(
        self, purpose: str | None = None, after: str | None = None, limit: int = 10_000, order: Order = "desc"
    ) -> Page[File]:
        """The files that have not expired, newest first unless `order` is asc."""
        where: list[ColumnElement[bool]] = [or_(db.files.c.expires_at.is_(None), db.files.c.expires_at > self.now())]
        if purpose is not None:
            where.append(db.files.c.purpose == purpose)
        with self._read() as tx:
            return _page(tx, db.files, File, after=after, limit=limit, order=order, where=where)

    def unchecked_files(self) -> list[File]:
        """The files whose content nobody has checked yet, oldest first."""
        query = select(db.files).where(db.files.c.status == "uploaded").order_by(db.files.c.seq)
        with self._read() as tx:
            return _load_all(tx, query, File)

    def update_file(self, file_id: str, **changes: Any) -> File:
        """Change fields of the file; raises NotFound."""
        with self._write() as tx:
            _update(tx, db.files, File, file_id, changes)
            return _get(tx, db.files, File, file_id, "File")

    def delete_file(self, file_id: str) -> File:
        """Forget the file, return what it was; raises InvalidState while an unfinished job needs it."""
        with self._write() as tx:
            file = _get(tx, db.files, File, file_id, "File")
            job = _job_using_file(tx, file_id)
            if job is not None:
                raise InvalidState(
                    f"File {file_id} is used by the job {job}, which is not finished. "
                    "Cancel the job, or delete the file when it has ended.",
                    param="file_id",
                    code="file_in_use",
                )
            _delete(tx, db.files, file_id)
        return file

    def expire_files(self) -> list[File]:
        """Forget every file that has expired and that no unfinished job needs; return them."""
        now = self.now()
        with self._write() as tx:
            expired = _load_all(tx, select(db.files).where(db.files.c.expires_at <= now), File)
            gone = [file for file in expired if _job_using_file(tx, file.id) is None]
            for file in gone:
                _delete(tx, db.files, file.id)
        return gone

    def blob_in_use(self, sha256: str) -> bool:
        """Whether a file, a part of a pending upload or an eval run holds these bytes."""
        with self._read() as tx:
            return _blob_in_use(tx, sha256)

    def used_blobs(self) -> set[str]:
        """The SHA-256 of everything that `blob_in_use` is true of."""
        with self._read() as tx:
            held = (select(table.c.sha256) for table in _HOLDERS)
            return set(tx.scalars(union(*held)))

    def delete_blob_if_unused(self, sha256: str, delete_blob: Callable[[str], None]) -> None:
        """Call `delete_blob` unless the bytes are in use; no row can come to hold them meanwhile."""
        with self._write() as tx:
            if not _blob_in_use(tx, sha256):
                delete_blob(sha256)

    # Uploads

    def add_upload(self, upload: Upload) -> Upload:
        """Keep the upload."""
        with self._write() as tx:
            _insert(tx, db.uploads, upload)
        return upload

    def get_upload(self, upload_id: str) -> Upload:
        """The upload; raises NotFound. One whose time is over reads as expired."""
        with self._read() as tx:
            return self._present(_get(tx, db.uploads, Upload, upload_id, "Upload"))

    def update_upload(self, upload_id: str, **changes: Any) -> Upload:
        """Change fields of the upload; raises NotFound."""
        with self._write() as tx:
            _update(tx, db.uploads, Upload, upload_id, changes)
            return self._present(_get(tx, db.uploads, Upload, upload_id, "Upload"))

    def add_part(self, part: UploadPart, *, blob_exists: Callable[[str], bool] | None = None) -> UploadPart:
        """Keep the part; raises InvalidState unless its upload is pending. `blob_exists`: as for add_file."""
        with self._write() as tx:
            self._pending_upload(tx, part.upload_id)
            if blob_exists is not None and not blob_exists(part.sha256):
                raise Unavailable("The same bytes were being deleted while they arrived. Send the part again.")
            _insert(tx, db.upload_parts, part)
        return part

    def get_parts(self, upload_id: str) -> list[UploadPart]:
        """The parts of an upload, as they arrived."""
        table = db.upload_parts
        with self._read() as tx:
            return _load_all(tx, select(table).where(table.c.upload_id == upload_id).order_by(table.c.seq), UploadPart)

    def complete_upload(
        self, upload_id: str, file: File, *, blob_exists: Callable[[str], bool] | None = None
    ) -> tuple[Upload, list[UploadPart]]:
        """Keep the file that the parts came to and mark the upload completed, both or neither.

        Also returns the parts, which are forgotten. Raises InvalidState unless the upload is pending.
        """
        with self._write() as tx:
            upload = self._pending_upload(tx, upload_id)
            if blob_exists is not None and not blob_exists(file.sha256):
                raise Unavailable("The same bytes were being deleted while they were stored. Try again.")
            _insert(tx, db.files, file)
            _update(tx, db.uploads, Upload, upload_id, {"status": "completed", "file_id": file.id})
            parts = _take_parts(tx, db.upload_parts.c.upload_id == upload_id)
        return replace(upload, status="completed", file_id=file.id), parts

    def cancel_upload(self, upload_id: str) -> tuple[Upload, list[UploadPart]]:
        """Mark a pending upload cancelled, else raise InvalidState; also return its parts, now forgotten."""
        with self._write() as tx:
            upload = self._pending_upload(tx, upload_id)
            _update(tx, db.uploads, Upload, upload_id, {"status": "cancelled"})
            parts = _take_parts(tx, db.upload_parts.c.upload_id == upload_id)
        return replace(upload, status="cancelled"), parts

    def expire_uploads(self) -> list[UploadPart]:
        """Mark uploads whose time is over as expired; return the parts that are forgotten with them."""
        late = and_(db.uploads.c.status == "pending", db.uploads.c.expires_at <= self.now())
        with self._write() as tx:
            parts = _take_parts(tx, db.upload_parts.c.upload_id.in_(select(db.uploads.c.id).where(late)))
            tx.execute(update(db.uploads).where(late).values(status="expired"))
        return parts

    # Models

    def add_model(self, model: Model) -> Model:
        """Keep the model. The same model of the same job again is no fault and changes nothing."""
        with self._write() as tx:
            present = _find(tx, db.models, Model, model.id)
            if present is None:
                _insert(tx, db.models, model)
                return model
        if replace(present, created_at=model.created_at, info=model.info) == model:
            return present
        raise InvalidState(f"There is another model with the id {model.id}.", param="model")

    def get_model(self, model_id: str) -> Model:
        """The model under its id, or under the id of the checkpoint that it is; raises ModelNotFound."""
        with self._read() as tx:
            model = _find(tx, db.models, Model, model_id)
            if model is None:
                name = tx.scalar(select(db.checkpoints.c.model).where(db.checkpoints.c.id == model_id))
                model = None if name is None else _find(tx, db.models, Model, name)
        if model is None:
            raise ModelNotFound(
                f"The model {model_id!r} does not exist. GET /models lists those that do.", param="model"
            )
        return model

    def list_models(self) -> list[Model]:
        """Every model, oldest first."""
        with self._read() as tx:
            return _load_all(tx, select(db.models).order_by(db.models.c.seq), Model)

    def children_of(self, model_id: str) -> list[Model]:
        """The models that were trained on top of this one."""
        with self._read() as tx:
            return _children(tx, model_id)

    def delete_model(self, model_id: str) -> Model:
        """Forget the model, return what it was; raises InvalidState while a model or a live job needs it."""
        with self._write() as tx:
            model = _find(tx, db.models, Model, model_id)
            if model is None:
                raise ModelNotFound(f"The model {model_id!r} does not exist.", param="model")
            children = _children(tx, model_id)
            if children:
                names = ", ".join(child.id for child in children[:5])
                raise InvalidState(
                    f"{len(children)} model(s) were trained on {model_id}: {names}. Delete those first.",
                    param="model",
                    code="model_in_use",
                )
            job = tx.scalar(select(db.jobs.c.id).where(db.jobs.c.model == model_id, _unfinished()))
            if job is not None:
                raise InvalidState(
                    f"The job {job} starts from {model_id} and is not finished. Cancel it first.",
                    param="model",
                    code="model_in_use",
                )
            tx.execute(delete(db.models).where(db.models.c.id == model_id))
        return model

    # Jobs

    def add_job(self, job: Job) -> Job:
        """Keep the job."""
        with self._write() as tx:
            _insert(tx, db.jobs, job)
        return job

    def get_job(self, job_id: str) -> Job:
        """The job; raises NotFound."""
        with self._read() as tx:
            return _get(tx, db.jobs, Job, job_id, "FineTuningJob")

    def list_jobs(
        self,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | Literal["null"] | None = None,
    ) -> Page[Job]:
        """The jobs, newest first; those that carry all pairs of `metadata`, or none at all for "null"."""
        where: list[ColumnElement[bool]] = []
        if metadata == "null":
            where.append(or_(db.jobs.c.metadata.is_(None), text("jobs.metadata = '{}'")))
        elif metadata is not None:
            where.extend(_has_pair(key, value) for key, value in metadata.items())
        with self._read() as tx:
            return _page(tx, db.jobs, Job, after=after, limit=limit, where=where)

    def update_job(self, job_id: str, **changes: Any) -> Job:
        """Change fields of the job; raises NotFound."""
        with self._write() as tx:
            _update(tx, db.jobs, Job, job_id, changes)
            return _get(tx, db.jobs, Job, job_id, "FineTuningJob")

    def delete_job(self, job_id: str) -> Job:
        """Forget the job, its events and its checkpoints; raises InvalidState while it is not finished."""
        with self._write() as tx:
            job = _get(tx, db.jobs, Job, job_id, "FineTuningJob")
            if job.status not in TERMINAL:
                raise InvalidState(f"The job {job_id} is {job.status}. Cancel it first.", param="id")
            _delete(tx, db.jobs, job_id)
        return job

    def unfinished_jobs(self) -> list[Job]:
        """Every job that has not ended, oldest first."""
        with self._read() as tx:
            return _load_all(tx, select(db.jobs).where(_unfinished()).order_by(db.jobs.c.seq), Job)

    def claim_job(self, owner: str, lease_s: float, *, statuses: Iterable[JobStatus] = _CLAIMABLE) -> Job | None:
        """Take the oldest job of these states that nobody holds, or whose holder fell silent; or None."""
        now = self._clock.now()
        jobs = db.jobs.c
        free = or_(jobs.lease_expires_at.is_(None), jobs.lease_expires_at <= now)
        with self._write() as tx:
            query = select(jobs.id).where(jobs.status.in_(list(statuses)), free).order_by(jobs.seq).limit(1)
            job_id = tx.scalar(query)
            if job_id is None:
                return None
            lease = {"lease_owner": owner, "lease_expires_at": now + lease_s, "attempts": jobs.attempts + 1}
            tx.execute(update(db.jobs).where(jobs.id == job_id).values(lease))
            return _get(tx, db.jobs, Job, job_id, "FineTuningJob")

    def renew_lease(self, job_id: str, owner: str, lease_s: float) -> bool:
        """Hold the job for longer; False: another worker has it, or it is gone."""
        mine = and_(db.jobs.c.id == job_id, db.jobs.c.lease_owner == owner)
        with self._write() as tx:
            result = tx.execute(update(db.jobs).where(mine).values(lease_expires_at=self._clock.now() + lease_s))
            return result.rowcount == 1

    def release_lease(self, job_id: str, owner: str) -> None:
        """Let the job go, if `owner` still holds it."""
        mine = and_(db.jobs.c.id == job_id, db.jobs.c.lease_owner == owner)
        with self._write() as tx:
            tx.execute(update(db.jobs).where(mine).values(lease_owner=None, lease_expires_at=None))

    def transition(
        self, job_id: str, to: JobStatus, *, from_: Iterable[JobStatus], event: Json | None = None, **changes: Any
    ) -> Job:
        """Move the job to another state, with other changes, if it is in one of `from_`; or InvalidState.

        `event`: what `add_event` is given, stored with the state or not at all.
        """
        with self._write() as tx:
            job = _get(tx, db.jobs, Job, job_id, "FineTuningJob")
            if job.status not in set(from_):
                raise InvalidState(f"The job {job_id} is {job.status}, so it cannot become {to}.", param="id")
            if event is not None:
                self._add_event(tx, job_id, **event)
            _update(tx, db.jobs, Job, job_id, {**changes, "status": to})
            return _get(tx, db.jobs, Job, job_id, "FineTuningJob")

    # Events and checkpoints of a job

    def add_event(
        self,
        job_id: str,
        level: EventLevel,
        message: str,
        *,
        type: Literal["message", "metrics"] = "message",
        data: Json | None = None,
        key: str | None = None,
    ) -> None:
        """Add a line to the job's history; a second one with the same `key` is left out."""
        with self._write() as tx:
            _get(tx, db.jobs, Job, job_id, "FineTuningJob")
            self._add_event(tx, job_id, level, message, type=type, data=data, key=key)

    def _add_event(
        self,
        tx: Connection,
        job_id: str,
        level: EventLevel,
        message: str,
        *,
        type: Literal["message", "metrics"] = "message",
        data: Json | None = None,
        key: str | None = None,
    ) -> None:
        row = {
            "id": new_id("ftevent-"),
            "job_id": job_id,
            "created_at": self.now(),
            "level": level,
            "message": message,
            "type": type,
            "data": data,
            "key": key,
        }
        tx.execute(insert_or(db.events).values(row).on_conflict_do_nothing(index_elements=["job_id", "key"]))

    def list_events(self, job_id: str, after: str | None = None, limit: int = 20) -> Page[Event]:
        """The job's events, newest first; raises NotFound for an unknown job."""
        with self._read() as tx:
            _get(tx, db.jobs, Job, job_id, "FineTuningJob")
            where = [db.events.c.job_id == job_id]
            return _page(tx, db.events, Event, after=after, limit=limit, where=where)

    def add_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Keep the checkpoint; where the job has one of this step, that one stays and is returned."""
        table = db.checkpoints
        same = and_(table.c.job_id == checkpoint.job_id, table.c.step == checkpoint.step)
        with self._write() as tx:
            _get(tx, db.jobs, Job, checkpoint.job_id, "FineTuningJob")
            tx.execute(
                insert_or(table).values(_values(checkpoint)).on_conflict_do_nothing(index_elements=["job_id", "step"])
            )
            return _load_all(tx, select(table).where(same), Checkpoint)[0]

    def list_checkpoints(self, job_id: str, after: str | None = None, limit: int = 10) -> Page[Checkpoint]:
        """The job's checkpoints, newest first; raises NotFound for an unknown job."""
        with self._read() as tx:
            _get(tx, db.jobs, Job, job_id, "FineTuningJob")
            where = [db.checkpoints.c.job_id == job_id]
            return _page(tx, db.checkpoints, Checkpoint, after=after, limit=limit, where=where)

    def get_checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """The checkpoint under its id, or under the id of its model; raises NotFound."""
        table = db.checkpoints
        query = select(table).where(or_(table.c.id == checkpoint_id, table.c.model == checkpoint_id))
        with self._read() as tx:
            found = _load_all(tx, query.limit(1), Checkpoint)
        if not found:
            raise NotFound(f"No such checkpoint: {checkpoint_id}", param="id")
        return found[0]

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Forget the checkpoint; the model that it names is another matter."""
        with self._write() as tx:
            _delete(tx, db.checkpoints, checkpoint_id)

    # Models' lives

    def catalog(self) -> Catalog:
        """What is known about when models end."""
        with self._read() as tx:
            return Catalog(_claims(tx))

    def add_claims(self, claims: Iterable[Claim]) -> int:
        """Log what tells something new; how many did. All are logged, or none."""
        with self._write() as tx:
            fresh = unsaid(claims, _claims(tx))
            if fresh:
                tx.execute(insert(db.claims), [_values(claim) for claim in fresh])
            return len(fresh)

    # Evals

    def add_eval(self, eval_: Eval) -> Eval:
        """Keep the eval."""
        with self._write() as tx:
            eval_ = replace(eval_, revision=_next_revision(tx))
            _insert(tx, db.evals, eval_)
        return eval_

    def get_eval(self, eval_id: str) -> Eval:
        """The eval; raises NotFound."""
        with self._read() as tx:
            return _get(tx, db.evals, Eval, eval_id, "Eval")

    def list_evals(
        self, after: str | None = None, limit: int = 20, order: Order = "asc", *, by_change: bool = False
    ) -> Page[Eval]:
        """The evals by time of creation, or of their last change."""
        by = db.evals.c.revision if by_change else None
        with self._read() as tx:
            return _page(tx, db.evals, Eval, after=after, limit=limit, order=order, by=by)

    def update_eval(self, eval_id: str, **changes: Any) -> Eval:
        """Change fields of the eval; raises NotFound."""
        with self._write() as tx:
            _update(tx, db.evals, Eval, eval_id, {**changes, "revision": _next_revision(tx)})
            return _get(tx, db.evals, Eval, eval_id, "Eval")

    def delete_eval(self, eval_id: str) -> list[EvalRun]:
        """Forget the eval, its runs and their items; return the runs that were."""
        with self._write() as tx:
            _get(tx, db.evals, Eval, eval_id, "Eval")
            runs = _load_all(tx, select(db.eval_runs).where(db.eval_runs.c.eval_id == eval_id), EvalRun)
            _delete(tx, db.evals, eval_id)
        return runs

    def add_eval_run(self, run: EvalRun, *, blob_exists: Callable[[str], bool] | None = None) -> EvalRun:
        """Keep the run; raises NotFound where its eval has gone. `blob_exists`: as for add_file."""
        with self._write() as tx:
            _get(tx, db.evals, Eval, run.eval_id, "Eval")
            if blob_exists is not None and not blob_exists(run.sha256):
                raise Unavailable("The same data was being deleted while it was stored. Create the run again.")
            _insert(tx, db.eval_runs, run)
        return run

    def add_ended_eval_run(self, run: EvalRun, items: Sequence[EvalItem]) -> None:
        """Keep a run with all of its items; one that is there already stays. Raises NotFound without its eval."""
        with self._write() as tx:
            _get(tx, db.evals, Eval, run.eval_id, "Eval")
            if _find(tx, db.eval_runs, EvalRun, run.id) is None:
                _insert(tx, db.eval_runs, run)
                for item in items:
                    _insert(tx, db.eval_items, item)

    def get_eval_run(self, run_id: str) -> EvalRun:
        """The run; raises NotFound."""
        with self._read() as tx:
            return _get(tx, db.eval_runs, EvalRun, run_id, "EvalRun")

    def list_eval_runs(
        self,
        eval_id: str,
        after: str | None = None,
        limit: int = 20,
        order: Order = "asc",
        status: EvalRunStatus | None = None,
    ) -> Page[EvalRun]:
        """The runs of an eval, oldest first unless `order` is desc; raises NotFound for an unknown eval."""
        where: list[ColumnElement[bool]] = [db.eval_runs.c.eval_id == eval_id]
        if status is not None:
            where.append(db.eval_runs.c.status == status)
        with self._read() as tx:
            _get(tx, db.evals, Eval, eval_id, "Eval")
            return _page(tx, db.eval_runs, EvalRun, after=after, limit=limit, order=order, where=where)

    def next_eval_run(self) -> EvalRun | None:
        """The oldest run that has not ended, or None."""
        table = db.eval_runs
        unended = table.c.status.in_(["queued", "in_progress"])
        with self._read() as tx:
            found = _load_all(tx, select(table).where(unended).order_by(table.c.seq).limit(1), EvalRun)
        return found[0] if found else None

    def move_eval_run(
        self, run_id: str, to: EvalRunStatus, *, from_: Iterable[EvalRunStatus], **changes: Any
    ) -> EvalRun:
        """Move the run to another state, with other changes, if it is in one of `from_`; or InvalidState."""
        with self._write() as tx:
            run = _get(tx, db.eval_runs, EvalRun, run_id, "EvalRun")
            if run.status not in set(from_):
                raise InvalidState(f"The run {run_id} is {run.status}, so it cannot become {to}.", param="run_id")
            _update(tx, db.eval_runs, EvalRun, run_id, {**changes, "status": to})
            return _get(tx, db.eval_runs, EvalRun, run_id, "EvalRun")

    def delete_eval_run(self, run_id: str) -> EvalRun:
        """Forget the run and its items; return what it was."""
        with self._write() as tx:
            run = _get(tx, db.eval_runs, EvalRun, run_id, "EvalRun")
            _delete(tx, db.eval_runs, run_id)
        return run

    def add_eval_items(
        self, run_id: str, items: Sequence[EvalItem], add_up: Callable[[Json, EvalItem], Json], *, seconds: float = 0.0
    ) -> bool:
        """Keep items of a run and add them up in its tally, all or none; False: the run is not in progress any more.

        An item that is stored already stays as it is and counts once. `seconds` are those that the run has worked
        since the last call.
        """
        table = db.eval_items
        with self._write() as tx:
            run = _find(tx, db.eval_runs, EvalRun, run_id)
            if run is None or run.status != "in_progress":
                return False
            tally = {**run.tally, "seconds": run.tally.get("seconds", 0.0) + seconds}
            for item in items:
                new = insert_or(table).values(_values(item))
                if tx.execute(new.on_conflict_do_nothing(index_elements=["run_id", "datasource_item_id"])).rowcount:
                    tally = add_up(tally, item)
            _update(tx, db.eval_runs, EvalRun, run_id, {"tally": tally})
        return True

    def eval_item_numbers(self, run_id: str) -> set[int]:
        """The lines of the run's data whose items are stored."""
        table = db.eval_items
        with self._read() as tx:
            return set(tx.scalars(select(table.c.datasource_item_id).where(table.c.run_id == run_id)))

    def get_eval_item(self, item_id: str) -> EvalItem:
        """The item; raises NotFound."""
        with self._read() as tx:
            return _get(tx, db.eval_items, EvalItem, item_id, "EvalRunOutputItem")

    def list_eval_items(
        self,
        run_id: str,
        after: str | None = None,
        limit: int = 20,
        order: Order = "asc",
        status: EvalItemStatus | None = None,
    ) -> Page[EvalItem]:
        """The items of a run as they were finished, oldest first unless `order` is desc."""
        where: list[ColumnElement[bool]] = [db.eval_items.c.run_id == run_id]
        if status is not None:
            where.append(db.eval_items.c.status == status)
        with self._read() as tx:
            return _page(tx, db.eval_items, EvalItem, after=after, limit=limit, order=order, where=where)

    # Permissions

    def add_permissions(self, checkpoint: str, project_ids: Sequence[str]) -> list[Permission]:
        """Let the projects use the checkpoint; one that may already keeps its permission."""
        table = db.permissions
        with self._write() as tx:
            for project_id in project_ids:
                row = Permission(id=new_id("cp_"), checkpoint=checkpoint, created_at=self.now(), project_id=project_id)
                tx.execute(insert_or(table).values(asdict(row)).on_conflict_do_nothing())
            query = select(table).where(table.c.checkpoint == checkpoint, table.c.project_id.in_(project_ids))
            return _load_all(tx, query.order_by(table.c.seq), Permission)

    def list_permissions(
        self,
        checkpoint: str,
        after: str | None = None,
        limit: int = 10,
        order: Order = "desc",
        project_id: str | None = None,
    ) -> Page[Permission]:
        """The permissions of a checkpoint, newest first unless `order` is asc."""
        where: list[ColumnElement[bool]] = [db.permissions.c.checkpoint == checkpoint]
        if project_id is not None:
            where.append(db.permissions.c.project_id == project_id)
        with self._read() as tx:
            return _page(tx, db.permissions, Permission, after=after, limit=limit, order=order, where=where)

    def delete_permission(self, checkpoint: str, permission_id: str) -> Permission:
        """Take the permission back; raises NotFound."""
        with self._write() as tx:
            permission = _get(tx, db.permissions, Permission, permission_id, "checkpoint permission")
            if permission.checkpoint != checkpoint:
                raise NotFound(f"No such checkpoint permission: {permission_id} of {checkpoint}", param="id")
            _delete(tx, db.permissions, permission_id)
        return permission

    # Stored completions

    def add_completion(self, completion: StoredCompletion, *, max_bytes: int = 0) -> int:
        """Keep the completion; how many of the oldest made room for it, so that all fit into `max_bytes`.

        0: no limit. Where another completion has the id (not all upstreams give each answer its own), the new one is
        kept under a fresh id. Raises Unavailable where there is no room, and what is pinned makes none.
        """
        size = completions.size_of(completion)
        with self._write() as tx:
            totals = completions.totals(tx)
            fits = not max_bytes or totals.pinned_bytes + size <= max_bytes
            n_evicted = 0
            if fits:
                if max_bytes and totals.bytes + size > max_bytes:
                    n_evicted = completions.evict(tx, n_bytes=totals.bytes + size - max_bytes)
                if tx.scalar(select(db.completions.c.seq).where(db.completions.c.id == completion.id)) is not None:
                    completion = replace(completion, id=new_id("chatcmpl-"))
                completions.add(tx, completion)
            else:
                completions.refuse(tx)
        if not fits:
            raise Unavailable(
                f"There is no room for a completion of {size:,} bytes: of the {max_bytes:,} that may be kept, "
                f"{totals.pinned_bytes:,} are pinned. Unpin or delete some, or raise max_bytes.",
                code="recording_full",
            )
        return n_evicted

    def get_completion(self, completion_id: str) -> StoredCompletion:
        """The completion; raises NotFound."""
        with self._read() as tx:
            return _get(tx, db.completions, StoredCompletion, completion_id, "stored chat completion")

    def list_completions(
        self,
        filter_: CompletionFilter = _EVERY,
        after: str | None = None,
        limit: int = 20,
        order: Order = "asc",
    ) -> Page[StoredCompletion]:
        """The completions that fit, oldest first unless `order` is desc."""
        with self._read() as tx:
            position = None if after is None else _position(tx, db.completions, after)
            found = completions.find(tx, filter_, position=position, limit=limit + 1, descending=order == "desc")
        return Page([completion for _, completion in found[:limit]], len(found) > limit)

    def iter_completions(self, filter_: CompletionFilter = _EVERY) -> Iterator[StoredCompletion]:
        """Every completion that fits, oldest first, in constant memory; those that come meanwhile are not read.

        Each batch is a transaction of its own: a slow reader holds nobody up.
        """
        with self._read() as tx:
            end = completions.newest(tx)
        position = 0
        while True:
            with self._read() as tx:
                found = completions.find(tx, filter_, position=position, up_to=end, limit=_READ_BATCH)
            yield from (completion for _, completion in found)
            if len(found) < _READ_BATCH:
                return
            position = found[-1][0]

    def update_completion(
        self,
        completion_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        pinned: bool | None = None,
    ) -> StoredCompletion:
        """Add to the metadata ({}: empty it), pin (it then makes no room) or unpin; raises NotFound."""
        with self._write() as tx:
            old = _get(tx, db.completions, StoredCompletion, completion_id, "stored chat completion")
            labels = {**old.metadata, **metadata} if metadata else old.metadata if metadata is None else {}
            if len(labels) > MAX_PAIRS:
                raise InvalidRequest(
                    f"metadata would have {len(labels)} pairs; at most {MAX_PAIRS} are kept. Empty it first.",
                    param="metadata",
                )
            return completions.relabel(tx, old, metadata=labels, pinned=old.pinned if pinned is None else pinned)

    def pin_completions(self, ids: Sequence[str]) -> None:
        """Pin those that are still there."""
        for first in range(0, len(ids), _READ_BATCH):
            with self._write() as tx:
                completions.pin(tx, ids[first : first + _READ_BATCH])

    def delete_completion(self, completion_id: str) -> StoredCompletion:
        """Forget the completion, return what it was; raises NotFound."""
        with self._write() as tx:
            completion = _get(tx, db.completions, StoredCompletion, completion_id, "stored chat completion")
            _delete(tx, db.completions, completion_id)
            completions.forget(tx, completion)
        return completion

    def completion_totals(self) -> CompletionTotals:
        """How many completions are kept, and what became of others."""
        with self._read() as tx:
            return completions.totals(tx)

    def evict_completions(self, max_bytes: int) -> int:
        """Remove the oldest that are not pinned until the rest fits into `max_bytes`; how many went. 0: no limit."""
        n_gone = 0
        while max_bytes:
            with self._write() as tx:
                surplus = completions.totals(tx).bytes - max_bytes
                n = completions.evict(tx, n_bytes=surplus, limit=_REMOVE_BATCH) if surplus > 0 else 0
            n_gone += n
            if n == 0:
                break
        return n_gone

    def expire_completions(self, created_before: int) -> int:
        """Remove those that are older (Unix seconds) and not pinned; how many went."""
        n_gone = 0
        while True:
            with self._write() as tx:
                n = completions.expire(tx, created_before=created_before, limit=_REMOVE_BATCH)
            n_gone += n
            if n < _REMOVE_BATCH:
                return n_gone

    # API keys

    def add_key(self, name: str) -> tuple[ApiKey, str]:
        """Make a key; the secret is returned this once and kept nowhere."""
        secret = new_id("sk-tk-", 40)
        key = ApiKey(
            id=new_id("key_"),
            name=name,
            created_at=self.now(),
            hash=_hash(secret),
            hint=f"{secret[:9]}…{secret[-4:]}",
        )
        with self._write() as tx:
            _insert(tx, db.api_keys, key)
        return key, secret

    def find_key(self, secret: str) -> ApiKey | None:
        """The key that this secret is, or None."""
        digest = _hash(secret)
        found: ApiKey | None = None
        for key in self.list_keys():
            # Every key is compared, in constant time: how long it takes tells nothing.
            if hmac.compare_digest(key.hash, digest):
                found = key
        return found

    def list_keys(self) -> list[ApiKey]:
        """Every key, oldest first."""
        with self._read() as tx:
            return _load_all(tx, select(db.api_keys).order_by(db.api_keys.c.seq), ApiKey)

    def delete_key(self, key_id: str) -> ApiKey:
        """Revoke the key; raises NotFound."""
        with self._write() as tx:
            key = _get(tx, db.api_keys, ApiKey, key_id, "API key")
            tx.execute(delete(db.api_keys).where(db.api_keys.c.id == key_id))
        return key

    def count_keys(self) -> int:
        """How many keys there are."""
        with self._read() as tx:
            return tx.scalar(select(func.count()).select_from(db.api_keys)) or 0

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._writer.begin() as connection:
            yield connection

    def _present(self, upload: Upload) -> Upload:
        late = upload.status == "pending" and upload.expires_at <= self.now()
        return replace(upload, status="expired") if late else upload

    def _pending_upload(self, tx: Connection, upload_id: str) -> Upload:
        upload = self._present(_get(tx, db.uploads, Upload, upload_id, "Upload"))
        if upload.status != "pending":
            result = f" Its file is {upload.file_id}." if upload.file_id else " Start a new upload."
            raise InvalidState(f"The upload {upload_id} is {upload.status}.{result}", param="upload_id")
        return upload


def _hash(secret: str) -> str:
    # The secret is 40 random characters, so one fast hash is enough: there is no dictionary to try.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _values(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item)}


def _load(row: Row[Any], kind: type[T]) -> T:
    mapping = row._mapping
    return kind(**{f.name: mapping[f.name] for f in fields(kind)})  # type: ignore[arg-type]


def _load_all(tx: Connection, query: Select[Any], kind: type[T]) -> list[T]:
    return [_load(row, kind) for row in tx.execute(query)]


def _claims(tx: Connection) -> list[Claim]:
    return _load_all(tx, select(db.claims).order_by(db.claims.c.seq), Claim)


def _find(tx: Connection, table: Table, kind: type[T], item_id: str) -> T | None:
    row = tx.execute(select(table).where(table.c.id == item_id)).one_or_none()
    return None if row is None else _load(row, kind)


def _get(tx: Connection, table: Table, kind: type[T], item_id: str, noun: str) -> T:
    found = _find(tx, table, kind, item_id)
    if found is None:
        raise NotFound(f"No such {noun} object: {item_id}", param="id")
    return found


def _insert(tx: Connection, table: Table, item: Any) -> None:
    tx.execute(insert(table).values(_values(item)))


def _update(tx: Connection, table: Table, kind: type[Any], item_id: str, changes: Mapping[str, Any]) -> None:
    unknown = set(changes) - {f.name for f in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    if changes:
        tx.execute(update(table).where(table.c.id == item_id).values(dict(changes)))


def _delete(tx: Connection, table: Table, item_id: str) -> None:
    seq = tx.scalar(select(table.c.seq).where(table.c.id == item_id))
    tx.execute(delete(table).where(table.c.id == item_id))
    tx.execute(insert_or(db.tombstones).values(id=item_id, seq=seq).on_conflict_do_nothing())


def _page(
    tx: Connection,
    table: Table,
    kind: type[T],
    *,
    after: str | None,
    limit: int,
    order: Order = "desc",
    where: Sequence[ColumnElement[bool]] = (),
    by: Column[int] | None = None,
) -> Page[T]:
    """The rows after the cursor; one more than asked is read, to know whether there is another page."""
    query = select(table).where(*where)
    column = table.c.seq if by is None else by
    if after is not None:
        position = _position(tx, table, after, by)
        query = query.where(column > position if order == "asc" else column < position)
    query = query.order_by(column if order == "asc" else column.desc()).limit(limit + 1)
    rows = _load_all(tx, query, kind)
    return Page(rows[:limit], len(rows) > limit)


def _position(tx: Connection, table: Table, item_id: str, by: Column[int] | None = None) -> int:
    places = [(table, table.c.seq), (db.tombstones, db.tombstones.c.seq)] if by is None else [(table, by)]
    for place, column in places:
        position: int | None = tx.scalar(select(column).where(place.c.id == item_id))
        if position is not None:
            return position
    raise InvalidRequest(
        f"There is no {item_id!r} in this list to go on after. Use the `last_id` of the page before.",
        param="after",
    )


def _next_revision(tx: Connection) -> int:
    return (tx.scalar(select(func.max(db.evals.c.revision))) or 0) + 1


def _unfinished() -> ColumnElement[bool]:
    return db.jobs.c.status.not_in(sorted(TERMINAL))


def _job_using_file(tx: Connection, file_id: str) -> str | None:
    uses = or_(db.jobs.c.training_file == file_id, db.jobs.c.validation_file == file_id)
    job_id: str | None = tx.scalar(select(db.jobs.c.id).where(uses, _unfinished()).limit(1))
    return job_id


def _take_parts(tx: Connection, where: ColumnElement[bool]) -> list[UploadPart]:
    parts = _load_all(tx, select(db.upload_parts).where(where), UploadPart)
    tx.execute(delete(db.upload_parts).where(where))
    return parts


def _blob_in_use(tx: Connection, sha256: str) -> bool:
    held = or_(*(exists().where(table.c.sha256 == sha256) for table in _HOLDERS))
    return bool(tx.scalar(select(held)))


def _children(tx: Connection, model_id: str) -> list[Model]:
    table = db.models
    on_top = and_(or_(table.c.parent == model_id, table.c.base == model_id), table.c.id != model_id)
    return _load_all(tx, select(table).where(on_top).order_by(table.c.seq), Model)


def _has_pair(key: str, value: str) -> ColumnElement[bool]:
    pair = text("EXISTS (SELECT 1 FROM json_each(jobs.metadata) WHERE key = :k AND value = :v)")
    # Unique names: a query has several pairs.
    given = pair.bindparams(bindparam("k", key, unique=True), bindparam("v", value, unique=True))
    return given.self_group()  # type: ignore[return-value]
