"""/files: data files in, out and away; their content is checked in the background (`checks`)."""

from typing import Annotated, get_args
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from tunekeeper.api.azure import AzureStyle
from tunekeeper.api.checks import CHECKED_PURPOSES
from tunekeeper.api.multipart import receive_form
from tunekeeper.api.pagination import After, Order, known_query, limit, list_body
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.datasets.formats import detect_method
from tunekeeper.datasets.validate import check
from tunekeeper.errors import InvalidRequest, NotFound
from tunekeeper.storage.blobs import BlobWriter
from tunekeeper.types import File, Json, Purpose, new_id

router = APIRouter()

UPLOAD_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_EXPIRY_FIELDS = ("expires_after[anchor]", "expires_after[seconds]")
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
_BATCH_EXPIRY_S = 30 * 86400


@router.post("/files", dependencies=[known_query()])
async def create(request: Request, response: Response, services: ServicesDep, style: AzureStyle) -> Json:
    """Store a file."""
    async with receive_form(
        request,
        file_field="file",
        fields={"purpose", *_EXPIRY_FIELDS},
        blobs=services.blobs,
        max_bytes=services.settings.max_file_bytes,
    ) as form:
        purpose = checked_purpose(form.fields.get("purpose"))
        expires_after_s = _expiry(form.fields)
        if form.size == 0:
            raise InvalidRequest(f"The file {form.filename!r} is empty.", param="file", code="empty_file")
        sha256, size = await form.store()
    file = new_file(
        services,
        filename=form.filename,
        purpose=purpose,
        sha256=sha256,
        size=size,
        expires_after_s=expires_after_s,
    )
    await run_sync(lambda: services.store.add_file(file, blob_exists=services.blobs.exists))
    begin_check(services, file)
    style.created(response, f"{request.url.path}/{file.id}")
    return wire(file)


@router.get("/files", dependencies=[known_query("purpose", "limit", "order", "after")])
def list_files(
    services: ServicesDep,
    n: Annotated[int, limit(10_000)] = 10_000,
    order: Order = "desc",
    purpose: Annotated[str | None, Query()] = None,
    after: After = None,
) -> Json:
    """List files, newest first."""
    page = services.store.list_files(purpose=purpose, after=after, limit=n, order=order)
    return list_body([wire(file) for file in page.data], has_more=page.has_more)


@router.get("/files/{file_id}", dependencies=[known_query()])
def retrieve(file_id: str, services: ServicesDep) -> Json:
    """Show one file."""
    return wire(_file(services, file_id))


@router.delete("/files/{file_id}", dependencies=[known_query()])
def delete(file_id: str, services: ServicesDep) -> Json:
    """Delete a file, unless a job needs it."""
    file = services.store.delete_file(file_id)
    services.drop_blob(file.sha256)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/files/{file_id}/content", dependencies=[known_query()])
def content(file_id: str, services: ServicesDep) -> Response:
    """Send a file's bytes."""
    file = _file(services, file_id)
    path = services.blobs.path(file.sha256)
    if not path.exists():
        raise NotFound(f"The content of {file_id} is gone from the server's disk.", param="id")
    disposition = f"attachment; filename*=utf-8''{quote(file.filename, safe='')}"
    return FileResponse(path, media_type="application/octet-stream", headers={"content-disposition": disposition})


@router.post("/files/{file_id}/validate", dependencies=[known_query("method")])
def validate(file_id: str, services: ServicesDep, method: Annotated[str | None, Query()] = None) -> Json:
    """Check a file as training data, and say all that was found; without a method, for the one that it looks like."""
    file = _file(services, file_id)
    with services.blobs.open(file.sha256) as stream:
        method = method or detect_method(stream)
        report = check(stream, method=method, min_examples=services.settings.min_examples)
    return {**report.to_json(), "file_id": file_id}


def wire(file: File) -> Json:
    """A file as OpenAI shows it."""
    shown: Json = {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
    }
    if file.expires_at is not None:
        shown["expires_at"] = file.expires_at
    return shown


def new_file(
    services: Services, *, filename: str, purpose: str, sha256: str, size: int, expires_after_s: int | None
) -> File:
    """A file made now, of bytes that are stored."""
    now = int(services.clock.now())
    if expires_after_s is None and purpose == "batch":
        expires_after_s = _BATCH_EXPIRY_S
    return File(
        id=new_id("file-"),
        bytes=size,
        created_at=now,
        filename=filename,
        purpose=purpose,
        sha256=sha256,
        status="uploaded" if purpose in CHECKED_PURPOSES else "processed",
        expires_at=None if expires_after_s is None else now + expires_after_s,
    )


def written(services: Services, writer: BlobWriter, *, filename: str, purpose: str) -> File:
    """A file of this server's own making: keep what the writer was given."""
    sha256, size = writer.commit()
    file = new_file(services, filename=filename, purpose=purpose, sha256=sha256, size=size, expires_after_s=None)
    services.store.add_file(file, blob_exists=services.blobs.exists)
    return file


def begin_check(services: Services, file: File) -> None:
    """Have the file's content checked, if its purpose asks for it."""
    if file.status == "uploaded":
        services.checks.submit(file)


def checked_purpose(purpose: str | None) -> str:
    """The purpose, if clients may upload files for it; raises InvalidRequest."""
    known = ", ".join(UPLOAD_PURPOSES)
    if purpose is None:
        raise InvalidRequest(
            f"Missing required parameter: 'purpose'. It is one of {known}.",
            param="purpose",
            code="missing_required_parameter",
        )
    if purpose not in UPLOAD_PURPOSES:
        made_here = " Files of this purpose are made by the server." if purpose in get_args(Purpose) else ""
        raise InvalidRequest(f"'{purpose}' is not one of {known}.{made_here}", param="purpose")
    return purpose


def _expiry(fields: dict[str, str]) -> int | None:
    anchor, seconds = (fields.get(name) for name in _EXPIRY_FIELDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest(
            f"expires_after[anchor] is {anchor!r}; the only anchor is 'created_at'.",
            param="expires_after.anchor",
        )
    in_bounds = seconds is not None and seconds.isascii() and seconds.isdigit() and len(seconds) < 10
    if seconds is None or not in_bounds or not MIN_EXPIRY_S <= int(seconds) <= MAX_EXPIRY_S:
        raise InvalidRequest(
            f"expires_after[seconds] is {seconds!r}; it must be from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}.",
            param="expires_after.seconds",
        )
    return int(seconds)


def _file(services: Services, file_id: str) -> File:
    file = services.store.get_file(file_id)
    if file.expires_at is not None and file.expires_at <= services.clock.now():
        raise NotFound(f"The File object {file_id} has expired.", param="id")
    return file
