"""The database: its tables, how its schema grows, and how a connection to it behaves.

`MIGRATIONS` is only ever appended to: migration n takes the schema from version n to n + 1, and the version
lies in SQLite's own `user_version`. The `Table`s below describe the newest version; a test holds the two
against each other. Every table has a `seq`, which rises with each row: lists are ordered and continued by
it, never by the clock.

    engine = connect(home)
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Dialect,
    Engine,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.engine import URL

from tunekeeper.errors import Unavailable

BUSY_TIMEOUT_S = 30.0


class JsonText(TypeDecorator[Any]):
    """JSON in a text column; None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Write the value as compact JSON."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Read the value back."""
        return None if value is None else json.loads(value)


metadata = MetaData()


def _table(name: str, *columns: Column[Any]) -> Table:
    return Table(name, metadata, Column("seq", Integer, primary_key=True), *columns)


files = _table(
    "files",
    Column("id", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("status_details", Text),
    Column("expires_at", Integer),
)
uploads = _table(
    "uploads",
    Column("id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("file_id", Text),
    Column("file_expires_after_s", Integer),
)
upload_parts = _table(
    "upload_parts",
    Column("id", Text, nullable=False),
    Column("upload_id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
)
models = _table(
    "models",
    Column("id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("owned_by", Text, nullable=False),
    Column("parent", Text),
    Column("job_id", Text),
    Column("step", Integer),
    Column("info", JsonText, nullable=False),
)
jobs = _table(
    "jobs",
    Column("id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("training_file", Text, nullable=False),
    Column("method", JsonText, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("validation_file", Text),
    Column("suffix", Text),
    Column("metadata", JsonText),
    Column("integrations", JsonText),
    Column("resolved", JsonText),
    Column("estimate", JsonText),
    Column("finished_at", Integer),
    Column("fine_tuned_model", Text),
    Column("result_file", Text),
    Column("trained_tokens", Integer),
    Column("error", JsonText),
    Column("estimated_finish", Integer),
    Column("request", Text),
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("lease_expires_at", Float),
    Column("extra", JsonText, nullable=False),
)
events = _table(
    "events",
    Column("id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", JsonText),
    Column("key", Text),
)
checkpoints = _table(
    "checkpoints",
    Column("id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("metrics", JsonText, nullable=False),
)
permissions = _table(
    "permissions",
    Column("id", Text, nullable=False),
    Column("checkpoint", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("project_id", Text, nullable=False),
)
api_keys = _table(
    "api_keys",
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("hash", Text, nullable=False),
    Column("hint", Text, nullable=False),
)
# What sources say about models' lives: a log, never changed; see lifecycle/catalog.py.
claims = Table(
    "claims",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("publisher", Text, nullable=False),
    Column("field", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("date", Text),
    Column("qualifier", Text),
    Column("origin", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("line", Integer),
    Column("said_at", Integer, nullable=False),
)
evals = _table(
    "evals",
    Column("id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("data_source_config", JsonText, nullable=False),
    Column("testing_criteria", JsonText, nullable=False),
    Column("metadata", JsonText),
    Column("revision", Integer, nullable=False),
)
eval_runs = _table(
    "eval_runs",
    Column("id", Text, nullable=False),
    Column("eval_id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("data_source", JsonText, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("total", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("metadata", JsonText),
    Column("status", Text, nullable=False),
    Column("error", JsonText),
    Column("finished_at", Integer),
    Column("tally", JsonText, nullable=False),
)
eval_items = _table(
    "eval_items",
    Column("id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("eval_id", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("datasource_item_id", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("datasource_item", JsonText, nullable=False),
    Column("results", JsonText, nullable=False),
    Column("sample", JsonText, nullable=False),
    Column("usage", JsonText, nullable=False),
    Column("latency_s", Float),
)
completions = _table(
    "completions",
    Column("id", Text, nullable=False),
    Column("created", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("request_id", Text),
    Column("latency_s", Float),
    Column("bytes", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("metadata", JsonText, nullable=False),
    Column("request", JsonText, nullable=False),
    Column("response", JsonText, nullable=False),
)
# What completions are found by: "model" (who answered, who was asked for) and "metadata.KEY".
completion_tags = Table(
    "completion_tags",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("completion", Integer, primary_key=True),
)
# Running sums, so that neither a new completion nor a look at the totals reads all the others.
completion_counts = Table(
    "completion_counts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)
# Where a deleted row stood in its list, so that a client who deletes while it pages can go on after it.
tombstones = Table(
    "tombstones",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seq", Integer, nullable=False),
)

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL, sha256 TEXT NOT NULL,
        status TEXT NOT NULL, status_details TEXT, expires_at INTEGER
    );
    CREATE INDEX files_sha256 ON files (sha256);
    CREATE INDEX files_expires_at ON files (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE uploads (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL,
        filename TEXT NOT NULL, bytes INTEGER NOT NULL, purpose TEXT NOT NULL, mime_type TEXT NOT NULL,
        status TEXT NOT NULL, expires_at INTEGER NOT NULL, file_id TEXT, file_expires_after_s INTEGER
    );
    CREATE TABLE upload_parts (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        upload_id TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
        created_at INTEGER NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL
    );
    CREATE INDEX upload_parts_upload_id ON upload_parts (upload_id);
    CREATE INDEX upload_parts_sha256 ON upload_parts (sha256);
    CREATE TABLE models (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL,
        kind TEXT NOT NULL, path TEXT NOT NULL, base TEXT NOT NULL, owned_by TEXT NOT NULL, parent TEXT,
        job_id TEXT, step INTEGER, info TEXT NOT NULL
    );
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL, model
        TEXT NOT NULL, training_file TEXT NOT NULL, method TEXT NOT NULL, seed INTEGER NOT NULL, status TEXT
        NOT NULL, validation_file TEXT, suffix TEXT, metadata TEXT, integrations TEXT, resolved TEXT,
        estimate TEXT, finished_at INTEGER, fine_tuned_model TEXT, result_file TEXT, trained_tokens INTEGER,
        error TEXT, estimated_finish INTEGER, request TEXT, step INTEGER NOT NULL, total_steps INTEGER,
        attempts INTEGER NOT NULL, lease_owner TEXT, lease_expires_at REAL, extra TEXT NOT NULL
    );
    CREATE INDEX jobs_status ON jobs (status);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL REFERENCES jobs
        (id) ON DELETE CASCADE, created_at INTEGER NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL,
        type TEXT NOT NULL, data TEXT, key TEXT, UNIQUE (job_id, key)
    );
    CREATE INDEX events_job_id ON events (job_id, seq);
    CREATE TABLE checkpoints (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        created_at INTEGER NOT NULL, model TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL,
        UNIQUE (job_id, step)
    );
    CREATE TABLE permissions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, checkpoint TEXT NOT NULL,
        created_at INTEGER NOT NULL, project_id TEXT NOT NULL, UNIQUE (checkpoint, project_id)
    );
    CREATE TABLE api_keys (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        created_at INTEGER NOT NULL, hash TEXT NOT NULL UNIQUE, hint TEXT NOT NULL
    );
    CREATE TABLE tombstones (id TEXT PRIMARY KEY, seq INTEGER NOT NULL);
    """,
    """
    CREATE TABLE claims (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, version TEXT NOT NULL, publisher TEXT NOT NULL,
        field TEXT NOT NULL, text TEXT NOT NULL, date TEXT, qualifier TEXT, origin TEXT NOT NULL,
        source TEXT NOT NULL, line INTEGER, said_at INTEGER NOT NULL
    );
    """,
    """
    CREATE TABLE completions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created INTEGER NOT NULL, model TEXT NOT NULL,
        source TEXT NOT NULL, request_id TEXT, latency_s REAL, bytes INTEGER NOT NULL, pinned BOOLEAN NOT NULL,
        metadata TEXT NOT NULL, request TEXT NOT NULL, response TEXT NOT NULL
    );
    CREATE INDEX completions_evictable ON completions (created) WHERE pinned = 0;
    CREATE TABLE completion_tags (
        name TEXT NOT NULL, value TEXT NOT NULL,
        completion INTEGER NOT NULL REFERENCES completions (seq) ON DELETE CASCADE,
        PRIMARY KEY (name, value, completion)
    ) WITHOUT ROWID;
    CREATE INDEX completion_tags_completion ON completion_tags (completion);
    CREATE TABLE completion_counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    """,
    """
    CREATE TABLE evals (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL,
        name TEXT NOT NULL, data_source_config TEXT NOT NULL, testing_criteria TEXT NOT NULL, metadata TEXT,
        revision INTEGER NOT NULL
    );
    CREATE TABLE eval_runs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        eval_id TEXT NOT NULL REFERENCES evals (id) ON DELETE CASCADE, created_at INTEGER NOT NULL,
        name TEXT NOT NULL, data_source TEXT NOT NULL, sha256 TEXT NOT NULL, total INTEGER NOT NULL,
        model TEXT NOT NULL, metadata TEXT, status TEXT NOT NULL, error TEXT, finished_at INTEGER,
        tally TEXT NOT NULL
    );
    CREATE INDEX eval_runs_eval_id ON eval_runs (eval_id, seq);
    CREATE INDEX eval_runs_status ON eval_runs (status);
    CREATE INDEX eval_runs_sha256 ON eval_runs (sha256);
    CREATE TABLE eval_items (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        run_id TEXT NOT NULL REFERENCES eval_runs (id) ON DELETE CASCADE, eval_id TEXT NOT NULL,
        created_at INTEGER NOT NULL, datasource_item_id INTEGER NOT NULL, status TEXT NOT NULL,
        datasource_item TEXT NOT NULL, results TEXT NOT NULL, sample TEXT NOT NULL, usage TEXT NOT NULL,
        latency_s REAL, UNIQUE (run_id, datasource_item_id)
    );
    CREATE INDEX eval_items_run_id ON eval_items (run_id, seq);
    """,
)


def connect(home: Path) -> Engine:
    """Open `home`/tunekeeper.db, made or brought to the newest schema; raises Unavailable for a newer one."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "tunekeeper.db"
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    try:
        _migrate(engine, path)
    except BaseException:
        engine.dispose()
        raise
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, whose transactions take SQLite's write lock at their start.

    A transaction that reads first and takes the lock later can lose it to another process and fail in the
    middle.
    """
    return engine.execution_options(tunekeeper_writes=True)


def _set_up_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions are ours: see _begin
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("tunekeeper_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine, path: Path) -> None:
    # The version is read under the write lock: server, worker and job may all open a new home at once.
    with writing(engine).begin() as connection:
        version: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version > len(MIGRATIONS):
            raise Unavailable(
                f"{path} was written by a newer Tunekeeper (schema {version}; "
                f"this one knows {len(MIGRATIONS)}). Install that version, or use another home directory.",
                code="schema_too_new",
            )
        for migration in MIGRATIONS[version:]:
            for statement in filter(str.strip, migration.split(";")):
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql(f"PRAGMA user_version = {len(MIGRATIONS)}")
