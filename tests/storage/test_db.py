import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import inspect

from tunekeeper.errors import Unavailable
from tunekeeper.storage import db


def schema_of(path: Path) -> dict[str, set[tuple[str, str, bool]]]:
    connection = sqlite3.connect(path)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {
        table: {
            (name, kind, bool(not_null or key))
            for _, name, kind, not_null, _, key in connection.execute(f"PRAGMA table_info({table})")
        }
        for table in tables
        if not table.startswith("sqlite_")
    }
    connection.close()
    return columns


def test_the_migrations_lead_to_the_tables_that_the_store_uses(tmp_path):
    engine = db.connect(tmp_path)
    migrated = schema_of(tmp_path / "tunekeeper.db")
    declared = {
        table.name: {
            (
                column.name,
                str(column.type.compile(engine.dialect)).replace("FLOAT", "REAL"),
                not column.nullable,
            )
            for column in table.columns
        }
        for table in db.metadata.tables.values()
    }
    assert migrated == declared
    engine.dispose()


def test_a_connection_survives_power_loss_and_keeps_references(tmp_path):
    engine = db.connect(tmp_path)
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    engine.dispose()


def test_opening_again_migrates_nothing(tmp_path):
    db.connect(tmp_path).dispose()
    before = schema_of(tmp_path / "tunekeeper.db")
    db.connect(tmp_path).dispose()
    assert schema_of(tmp_path / "tunekeeper.db") == before


def test_the_schema_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    db.connect(tmp_path).dispose()
    connection = sqlite3.connect(tmp_path / "tunekeeper.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(Unavailable, match="newer Tunekeeper"):
        db.connect(tmp_path)
    connection = sqlite3.connect(tmp_path / "tunekeeper.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (999,)
    connection.close()


def open_home(home: str) -> int:
    engine = db.connect(Path(home))
    count = len(inspect(engine).get_table_names())
    engine.dispose()
    return count


def test_processes_that_open_a_new_home_at_once_all_find_it_whole(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        counts = pool.map(open_home, [str(tmp_path)] * 3)
    assert counts == [len(db.metadata.tables)] * 3
