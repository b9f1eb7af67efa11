from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from opd_core.errors import StoreError
from opd_core.state.migrations import MIGRATIONS, Migration, migrate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "opd.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def tables(connection: sqlite3.Connection) -> set[str]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {str(name) for (name,) in names}


def add_column(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE facts ADD COLUMN unit TEXT NOT NULL DEFAULT 's'")


NEXT: tuple[Migration, ...] = (*MIGRATIONS, add_column)


def test_an_empty_file_gets_the_whole_schema(connection: sqlite3.Connection, path: Path) -> None:
    migrate(connection, path)
    assert version(connection) == len(MIGRATIONS)
    assert tables(connection) == {
        *("runs", "events", "metric_series", "metric_points", "facts"),
        *("budgets", "budget_changes", "calls", "responses", "adjustments"),
    }


def test_every_table_is_strict(connection: sqlite3.Connection, path: Path) -> None:
    migrate(connection, path)
    strict = {row[1]: row[5] for row in connection.execute("PRAGMA table_list")}
    assert {name: strict[name] for name in tables(connection)} == dict.fromkeys(tables(connection), 1)


def test_an_old_database_keeps_its_rows_and_a_copy_of_itself(connection: sqlite3.Connection, path: Path) -> None:
    migrate(connection, path)
    connection.execute("INSERT INTO facts VALUES ('a', '1', 'now')")
    migrate(connection, path, NEXT)
    assert connection.execute("SELECT * FROM facts").fetchall() == [("a", "1", "now", "s")]
    with closing(sqlite3.connect(path.with_name(f"opd.db.v{len(MIGRATIONS)}.bak"))) as copy:
        assert copy.execute("SELECT * FROM facts").fetchall() == [("a", "1", "now")]


def test_a_migration_that_fails_leaves_the_old_schema(connection: sqlite3.Connection, path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        add_column(connection)
        raise KeyboardInterrupt

    migrate(connection, path)
    with pytest.raises(KeyboardInterrupt):
        migrate(connection, path, (*MIGRATIONS, half))
    assert version(connection) == len(MIGRATIONS)
    assert [row[1] for row in connection.execute("PRAGMA table_info(facts)")] == ["name", "value", "measured_at"]


def test_a_newer_schema_is_refused_by_its_version_and_left_alone(connection: sqlite3.Connection, path: Path) -> None:
    migrate(connection, path, NEXT)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"schema version {len(NEXT)}.*up to {len(MIGRATIONS)}"):
        migrate(connection, path)
    assert path.read_bytes() == before


def test_applying_again_changes_nothing(connection: sqlite3.Connection, path: Path) -> None:
    migrate(connection, path)
    before = path.read_bytes()
    migrate(connection, path)
    assert path.read_bytes() == before
