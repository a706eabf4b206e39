"""/chat/completions, stored: list, look at, label, pin, delete and export what `recording` kept.

OpenAI's five routes, and of our own: `pinned` in an update, `stats` and `export`.
"""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, StrictBool

from tunekeeper.api import files
from tunekeeper.api.pagination import After, Order, known_query, limit, list_body, metadata_pairs
from tunekeeper.api.services import ServicesDep
from tunekeeper.errors import InvalidRequest
from tunekeeper.inference.request import Metadata, Timestamp
from tunekeeper.jobs.export import Exported, Format, export
from tunekeeper.types import CompletionFilter, Json, StoredCompletion

router = APIRouter(prefix="/chat/completions")

_PURPOSES: dict[Format, str] = {"chat": "fine-tune", "eval": "evals"}
_SHOWN_OF_REQUEST = (
    "seed",
    "top_p",
    "temperature",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "response_format",
)


class UpdateBody(BaseModel):
    """What POST /chat/completions/{id} takes."""

    model_config = ConfigDict(extra="forbid")

    metadata: Metadata | None = None
    pinned: StrictBool | None = None


class FilterBody(BaseModel):
    """Which completions are meant: those that fit everything that is given."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    metadata: Metadata | None = None
    created_after: Timestamp | None = None
    created_before: Timestamp | None = None
    source: str | None = None
    tools: StrictBool | None = None
    pinned: StrictBool | None = None

    def filter(self) -> CompletionFilter:
        """The same in the words of the store."""
        return CompletionFilter(
            **{**{name: getattr(self, name) for name in type(self).model_fields}, "metadata": self.metadata or {}}
        )


class ExportBody(BaseModel):
    """What POST /chat/completions/export takes."""

    model_config = ConfigDict(extra="forbid")

    filter: FilterBody = FilterBody()
    format: Format = "chat"


@router.get("", dependencies=[known_query("model", "metadata[]", "after", "limit", "order")])
def list_completions(
    request: Request,
    services: ServicesDep,
    model: Annotated[str | None, Query()] = None,
    n: Annotated[int, limit(100)] = 20,
    order: Order = "asc",
    after: After = None,
) -> Json:
    """List stored completions, oldest first."""
    wanted = CompletionFilter(model=model, metadata=metadata_pairs(request.query_params))
    page = services.store.list_completions(wanted, after=after, limit=n, order=order)
    return list_body([wire(completion) for completion in page.data], has_more=page.has_more)


@router.get("/stats", dependencies=[known_query()])
def stats(services: ServicesDep) -> Json:
    """Say how much is kept, and what became of the rest."""
    recorder = services.recorder
    return {
        "object": "chat.completion.stats",
        **asdict(services.store.completion_totals()),
        "max_bytes": services.settings.recording.max_bytes,
        "retention_days": services.settings.recording.retention_days,
        "recorded_models": list(services.settings.recording.models),
        "since_start": {"failed": recorder.failed, "unfinished": recorder.unfinished},
    }


@router.post("/export", dependencies=[known_query()])
def export_completions(body: ExportBody, services: ServicesDep) -> Json:
    """Write completions to a file of the server, as training data or for evals."""
    with services.blobs.writer() as writer:
        found = export(services.store.iter_completions(body.filter.filter()), writer, body.format)
        if not found.lines:
            raise _nothing(found)
        name = f"stored-completions.{body.format}.jsonl"
        file = files.written(services, writer, filename=name, purpose=_PURPOSES[body.format])
    files.begin_check(services, file)
    return {
        "object": "chat.completion.export",
        "id": file.id,
        "file": files.wire(file),
        "format": body.format,
        "exported": found.lines,
        "choices_left_out": found.choices_left_out,
        "left_out": dict(found.left_out),
        "left_out_completions": found.listed,
    }


@router.get("/{completion_id}", dependencies=[known_query()])
def retrieve(completion_id: str, services: ServicesDep) -> Json:
    """Show a stored completion."""
    return wire(services.store.get_completion(completion_id))


@router.post("/{completion_id}", dependencies=[known_query()])
def update(completion_id: str, body: UpdateBody, services: ServicesDep) -> Json:
    """Add to the metadata (null or {}: empty it), pin or unpin."""
    if not body.model_fields_set:
        raise InvalidRequest(
            "Missing required parameter: 'metadata' (or 'pinned').",
            param="metadata",
            code="missing_required_parameter",
        )
    metadata = (body.metadata or {}) if "metadata" in body.model_fields_set else None
    return wire(services.store.update_completion(completion_id, metadata=metadata, pinned=body.pinned))


@router.delete("/{completion_id}", dependencies=[known_query()])
def delete(completion_id: str, services: ServicesDep) -> Json:
    """Forget a stored completion."""
    services.store.delete_completion(completion_id)
    return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}


@router.get("/{completion_id}/messages", dependencies=[known_query("after", "limit", "order")])
def list_messages(
    completion_id: str,
    services: ServicesDep,
    n: Annotated[int, limit(100)] = 20,
    order: Order = "asc",
    after: After = None,
) -> Json:
    """List the messages that were asked with."""
    completion = services.store.get_completion(completion_id)
    messages = [wire_message(completion, index) for index in range(len(completion.request["messages"]))]
    if order == "desc":
        messages.reverse()
    if after is not None:
        places = [place for place, message in enumerate(messages) if message["id"] == after]
        if not places:
            raise InvalidRequest(
                f"There is no {after!r} in this list to go on after. Use the `last_id` of the page before.",
                param="after",
            )
        messages = messages[places[0] + 1 :]
    return list_body(messages[:n], has_more=len(messages) > n)


def wire(completion: StoredCompletion) -> Json:
    """A stored completion as OpenAI and Azure show it, with `pinned`, `source`, `latency_s`, `bytes` of our own."""
    request = completion.request
    return {
        "object": "chat.completion",
        "id": completion.id,
        "created": completion.created,
        "model": completion.model,
        **completion.response,
        **{key: request.get(key) for key in _SHOWN_OF_REQUEST},
        "input_user": request.get("user"),
        "request_id": completion.request_id,
        "metadata": completion.metadata,
        "source": completion.source,
        "latency_s": completion.latency_s,
        "bytes": completion.bytes,
        "pinned": completion.pinned,
    }


def wire_message(completion: StoredCompletion, index: int) -> Json:
    """A message of the request; content in parts stands in `content_parts`."""
    message = completion.request["messages"][index]
    content = message.get("content")
    in_parts = isinstance(content, list)
    return {
        "refusal": None,
        "name": None,
        **message,
        "id": f"{completion.id}-{index}",
        "content": None if in_parts else content,
        "content_parts": content if in_parts else None,
    }


def _nothing(found: Exported) -> InvalidRequest:
    n = sum(found.left_out.values())
    if n == 0:
        return InvalidRequest("No stored completion fits the filter.", param="filter")
    reasons = ", ".join(f"{count} {code}" for code, count in found.left_out.most_common())
    return InvalidRequest(
        f"All {n} stored completions that fit the filter were left out: {reasons}.",
        param="filter",
        details=found.listed,
    )
