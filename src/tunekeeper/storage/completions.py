"""The rows of stored completions: how they are found, and what makes room for new ones.

`completion_tags` is the index that a model or a pair of metadata is found by. Its rows are ordered by completion
within a name and value, so that a page of a filtered list, and each batch of a long read, starts where the one
before ended, however many completions there are. `completion_counts` holds running sums, kept in the same
transactions. Every function works within the caller's transaction; the methods of `Store` are the way in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as insert_or

from tunekeeper.storage.db import completion_counts, completion_tags, completions
from tunekeeper.types import CompletionFilter, CompletionTotals, Json, StoredCompletion

_FIELDS = tuple(f.name for f in fields(StoredCompletion))


def add(tx: Connection, completion: StoredCompletion) -> StoredCompletion:
    """Keep the completion; returned with its size."""
    completion = replace(completion, bytes=size_of(completion))
    result = tx.execute(insert(completions).values({name: getattr(completion, name) for name in _FIELDS}))
    assert result.inserted_primary_key is not None
    _tag(tx, result.inserted_primary_key[0], completion)
    _count(tx, _sums(1, completion.bytes, pinned=completion.pinned))
    return completion


def size_of(completion: StoredCompletion) -> int:
    """What it takes, in bytes; indexes and the file's own pages come on top."""
    return sum(_bytes(part) for part in (completion.request, completion.response, completion.metadata))


def relabel(tx: Connection, old: StoredCompletion, *, metadata: dict[str, str], pinned: bool) -> StoredCompletion:
    """Give a completion other metadata, and pin it or let it go."""
    new = replace(old, metadata=metadata, pinned=pinned, bytes=old.bytes + _bytes(metadata) - _bytes(old.metadata))
    seq: int = tx.execute(select(completions.c.seq).where(completions.c.id == old.id)).scalar_one()
    changed = {"metadata": new.metadata, "pinned": new.pinned, "bytes": new.bytes}
    tx.execute(update(completions).where(completions.c.seq == seq).values(changed))
    tx.execute(delete(completion_tags).where(completion_tags.c.completion == seq))
    _tag(tx, seq, new)
    _count(tx, _sums(-1, -old.bytes, pinned=old.pinned))
    _count(tx, _sums(1, new.bytes, pinned=new.pinned))
    return new


def pin(tx: Connection, ids: Sequence[str]) -> None:
    """Pin those of the completions that are there and not pinned yet."""
    unpinned = completions.c.id.in_(ids) & completions.c.pinned.is_(False)
    n, n_bytes = tx.execute(select(func.count(), func.coalesce(func.sum(completions.c.bytes), 0)).where(unpinned)).one()
    tx.execute(update(completions).where(unpinned).values(pinned=True))
    _count(tx, {"pinned": n, "pinned_bytes": n_bytes})


def forget(tx: Connection, completion: StoredCompletion) -> None:
    """Take a deleted completion out of the sums."""
    _count(tx, _sums(-1, -completion.bytes, pinned=completion.pinned))


def find(
    tx: Connection,
    filter_: CompletionFilter,
    *,
    position: int | None = None,
    up_to: int | None = None,
    limit: int,
    descending: bool = False,
) -> list[tuple[int, StoredCompletion]]:
    """The next completions that fit, each with its place in the list, after the place `position`."""
    query, seq = _fitting(filter_)
    if position is not None:
        query = query.where(seq < position if descending else seq > position)
    if up_to is not None:
        query = query.where(seq <= up_to)
    query = query.order_by(seq.desc() if descending else seq).limit(limit)
    rows = (tuple(row) for row in tx.execute(query))
    return [(row[0], StoredCompletion(**dict(zip(_FIELDS, row[1:], strict=True)))) for row in rows]


def newest(tx: Connection) -> int:
    """The place of the last completion."""
    return tx.scalar(select(func.max(completions.c.seq))) or 0


def totals(tx: Connection) -> CompletionTotals:
    """The sums."""
    rows = tx.execute(select(completion_counts.c.name, completion_counts.c.value))
    return CompletionTotals(**{row.name: row.value for row in rows})


def refuse(tx: Connection) -> None:
    """Count one that found no room."""
    _count(tx, {"refused": 1})


def evict(tx: Connection, *, n_bytes: int, limit: int | None = None) -> int:
    """Remove the oldest that are not pinned until so many bytes are free, `limit` at most; how many went."""
    gone: list[int] = []
    freed = 0
    for row in tx.execute(_oldest().limit(limit)):
        if freed >= n_bytes:
            break
        gone.append(row.seq)
        freed += row.bytes
    _remove(tx, gone, freed, "evicted")
    return len(gone)


def expire(tx: Connection, *, created_before: int, limit: int) -> int:
    """Remove those that are older and not pinned, `limit` at most; how many went."""
    rows = tx.execute(_oldest().where(completions.c.created < created_before).limit(limit)).all()
    _remove(tx, [row.seq for row in rows], sum(row.bytes for row in rows), "expired")
    return len(rows)


def _oldest() -> Select[tuple[int, int]]:
    # The literal 0, not a parameter, lets SQLite see that its partial index fits.
    table = completions.c
    return select(table.seq, table.bytes).where(text("completions.pinned = 0")).order_by(table.created, table.seq)


def _remove(tx: Connection, seqs: list[int], n_bytes: int, why: str) -> None:
    if seqs:
        tx.execute(delete(completions).where(completions.c.seq == bindparam("gone")), [{"gone": seq} for seq in seqs])
        _count(tx, {**_sums(-len(seqs), -n_bytes, pinned=False), why: len(seqs)})


def _fitting(filter_: CompletionFilter) -> tuple[Select[Any], ColumnElement[int]]:
    """The completions that fit, and the column that orders them: of the first tag, where one is asked for."""
    tags = [(f"metadata.{key}", value) for key, value in filter_.metadata.items()]
    if filter_.model is not None:
        tags.append(("model", filter_.model))
    query: Select[Any] = select(completions.c.seq, *(completions.c[name] for name in _FIELDS))
    seq: ColumnElement[int] = completions.c.seq
    for n, (name, value) in enumerate(tags):
        tag = completion_tags.alias(f"tag{n}")
        query = query.join(tag, tag.c.completion == completions.c.seq).where(tag.c.name == name, tag.c.value == value)
        seq = tag.c.completion if n == 0 else seq
    return query.where(*_conditions(filter_)), seq


def _conditions(filter_: CompletionFilter) -> list[ColumnElement[bool]]:
    table = completions.c
    found: list[ColumnElement[bool]] = []
    if filter_.created_after is not None:
        found.append(table.created >= filter_.created_after)
    if filter_.created_before is not None:
        found.append(table.created <= filter_.created_before)
    if filter_.source is not None:
        found.append(table.source == filter_.source)
    if filter_.pinned is not None:
        found.append(table.pinned.is_(filter_.pinned))
    if filter_.tools is not None:
        kinds = [func.json_array_length(table.request, f"$.{key}") for key in ("tools", "functions")]
        has = or_(*(func.coalesce(n, 0) > 0 for n in kinds))
        found.append(has if filter_.tools else and_(*(func.coalesce(n, 0) == 0 for n in kinds)))
    return found


def _tag(tx: Connection, seq: int, completion: StoredCompletion) -> None:
    asked = completion.request.get("model")
    names = {completion.model, asked} if isinstance(asked, str) else {completion.model}
    tags = [("model", name) for name in names]
    tags += [(f"metadata.{key}", value) for key, value in completion.metadata.items()]
    rows = [{"name": name, "value": value, "completion": seq} for name, value in tags]
    tx.execute(insert(completion_tags), rows)


def _sums(n: int, n_bytes: int, *, pinned: bool) -> dict[str, int]:
    sums = {"completions": n, "bytes": n_bytes}
    return {**sums, "pinned": n, "pinned_bytes": n_bytes} if pinned else sums


def _count(tx: Connection, changes: Mapping[str, int]) -> None:
    query = insert_or(completion_counts)
    grown = completion_counts.c.value + query.excluded.value
    query = query.on_conflict_do_update(index_elements=["name"], set_={"value": grown})
    tx.execute(query, [{"name": name, "value": value} for name, value in changes.items()])


def _bytes(part: Json) -> int:
    return len(json.dumps(part, separators=(",", ":")))
