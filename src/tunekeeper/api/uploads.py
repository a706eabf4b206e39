"""/uploads: a large file in parts that may arrive in any order, at once, and more than once."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from tunekeeper.api import files
from tunekeeper.api.multipart import receive_form
from tunekeeper.api.pagination import known_query
from tunekeeper.api.services import Services, ServicesDep
from tunekeeper.errors import InvalidRequest, InvalidState, NotFound, TooLarge
from tunekeeper.storage.blobs import PIECE_BYTES
from tunekeeper.types import File, Json, Upload, UploadPart, new_id

router = APIRouter()

_LIFETIME_S = 3600


class ExpiresAfter(BaseModel):
    """When the finished file expires."""

    model_config = ConfigDict(extra="forbid")
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=files.MIN_EXPIRY_S, le=files.MAX_EXPIRY_S)]


class CreateUpload(BaseModel):
    """The body that starts an upload."""

    model_config = ConfigDict(extra="forbid")
    filename: Annotated[str, Field(min_length=1, max_length=255)]
    purpose: str
    bytes: Annotated[int, Field(ge=1, strict=True)]
    mime_type: Annotated[str, Field(min_length=1, max_length=255)]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    """The body that ends an upload: its parts in their order."""

    model_config = ConfigDict(extra="forbid")
    part_ids: Annotated[list[str], Field(min_length=1)]
    md5: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{32}$")] = None


@router.post("/uploads", dependencies=[known_query()])
def create(body: CreateUpload, services: ServicesDep) -> Json:
    """Start an upload."""
    if body.bytes > services.settings.max_upload_bytes:
        raise TooLarge(
            f"bytes is {body.bytes:,}; a file may have {services.settings.max_upload_bytes:,} at most.",
            param="bytes",
        )
    now = int(services.clock.now())
    upload = Upload(
        id=new_id("upload_"),
        created_at=now,
        filename=body.filename,
        bytes=body.bytes,
        purpose=files.checked_purpose(body.purpose),
        mime_type=body.mime_type,
        status="pending",
        expires_at=now + _LIFETIME_S,
        file_expires_after_s=body.expires_after.seconds if body.expires_after else None,
    )
    return _wire(services.store.add_upload(upload))


@router.post("/uploads/{upload_id}/parts", dependencies=[known_query()])
async def add_part(upload_id: str, request: Request, services: ServicesDep) -> Json:
    """Store one part."""
    _pending(await run_sync(services.store.get_upload, upload_id))
    async with receive_form(
        request,
        file_field="data",
        fields=(),
        blobs=services.blobs,
        max_bytes=services.settings.max_part_bytes,
    ) as form:
        sha256, size = await form.store()
    part = UploadPart(
        id=new_id("part_"),
        upload_id=upload_id,
        created_at=int(services.clock.now()),
        bytes=size,
        sha256=sha256,
    )
    try:
        await run_sync(lambda: services.store.add_part(part, blob_exists=services.blobs.exists))
    except (InvalidState, NotFound):  # it was completed, cancelled or expired while the part came in
        await run_sync(services.drop_blob, sha256)
        raise
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.created_at,
        "upload_id": upload_id,
    }


@router.post("/uploads/{upload_id}/complete", dependencies=[known_query()])
def complete(upload_id: str, body: CompleteUpload, services: ServicesDep) -> Json:
    """Join the parts into a file."""
    upload = services.store.get_upload(upload_id)
    _pending(upload)
    parts = _in_order(services.store.get_parts(upload_id), body.part_ids)
    size = sum(part.bytes for part in parts)
    if size != upload.bytes:
        raise InvalidRequest(
            f"The parts have {size:,} bytes together; the upload was created with bytes={upload.bytes:,}.",
            param="part_ids",
        )
    sha256 = _join(services, parts, md5=body.md5)
    file = files.new_file(
        services,
        filename=upload.filename,
        purpose=upload.purpose,
        sha256=sha256,
        size=size,
        expires_after_s=upload.file_expires_after_s,
    )
    try:
        upload, stored = services.store.complete_upload(upload_id, file, blob_exists=services.blobs.exists)
    except InvalidState:  # another request completed or cancelled it first
        services.drop_blob(sha256)
        raise
    _drop_parts(services, stored)
    files.begin_check(services, file)
    return _wire(upload, file)


@router.post("/uploads/{upload_id}/cancel", dependencies=[known_query()])
def cancel(upload_id: str, services: ServicesDep) -> Json:
    """Give an upload up."""
    upload, parts = services.store.cancel_upload(upload_id)
    _drop_parts(services, parts)
    return _wire(upload)


def _wire(upload: Upload, file: File | None = None) -> Json:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "expires_at": upload.expires_at,
        "file": None if file is None else files.wire(file),
    }


def _pending(upload: Upload) -> None:
    if upload.status != "pending":
        result = f" Its file is {upload.file_id}." if upload.file_id else " Start a new upload."
        raise InvalidState(f"The upload {upload.id} is {upload.status}.{result}", param="upload_id")


def _in_order(stored: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    by_id = {part.id: part for part in stored}
    seen: set[str] = set()
    for index, part_id in enumerate(part_ids):
        param = f"part_ids.{index}"
        if part_id not in by_id:
            raise InvalidRequest(f"The upload has no part {part_id!r}.", param=param)
        if part_id in seen:
            raise InvalidRequest(f"The part {part_id!r} is named twice.", param=param)
        seen.add(part_id)
    return [by_id[part_id] for part_id in part_ids]


def _join(services: Services, parts: Sequence[UploadPart], *, md5: str | None) -> str:
    """Write the parts one after another as a new blob; memory holds one piece at a time."""
    digest = hashlib.md5(usedforsecurity=False)
    with services.blobs.writer() as writer:
        for part in parts:
            with services.blobs.open(part.sha256) as stream:
                while piece := stream.read(PIECE_BYTES):
                    digest.update(piece)
                    writer.write(piece)
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise InvalidRequest(
                f"The file's MD5 is {digest.hexdigest()}, not {md5.lower()} as given: "
                "a part is damaged, or the order of part_ids is wrong.",
                param="md5",
                code="checksum_mismatch",
            )
        return writer.commit()[0]


def _drop_parts(services: Services, parts: Sequence[UploadPart]) -> None:
    for sha256 in {part.sha256 for part in parts}:
        services.drop_blob(sha256)
