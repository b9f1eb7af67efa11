from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from opd_core.errors import StoreError
from opd_core.state.database import Database
from opd_core.state.migrations import MAX_BACKUPS, MIGRATIONS, Migration, migrate
from opd_core.state.store import RunStore


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


# --- from every earlier schema, with rows in it


def fill_1(connection: sqlite3.Connection) -> None:
    for number, (run_id, state) in enumerate([("old", "completed"), ("cut", "running"), ("next", "queued")], start=1):
        connection.execute(
            "INSERT INTO runs (number, run_id, kind, state, config, created_at, queue_order, epoch, total_steps, step) "
            "VALUES (?, ?, 'distillation', ?, '{\"seed\": 1}', '2026-01-01T00:00:00.000Z', ?, 1, 30, 7)",
            (number, run_id, state, number),
        )
        connection.execute(
            "INSERT INTO events (run_id, at, kind, message) VALUES (?, 'now', 'state', ?)", (run_id, state)
        )
    connection.execute("INSERT INTO metric_series VALUES ('old', 'train', 1, 1)")
    connection.execute("INSERT INTO metric_points VALUES ('old', 'train', 0, 1, '{\"step\": 1}')")
    connection.execute("INSERT INTO facts VALUES ('speed', '3', 'now')")


def fill_2(connection: sqlite3.Connection) -> None:
    for scope in ("old", "month:2026-01"):
        connection.execute(
            "INSERT INTO budget_changes (scope, at, limit_pico, frozen, why, by_whom) "
            "VALUES (?, 'now', 100, 0, 'a', 'b')",
            (scope,),
        )
    for number in (1, 2):
        connection.execute(
            "INSERT INTO calls (number, call_id, run_id, month, request_key, attempt, owner, model, price_version, "
            "is_batch, state, reserved_pico, opened_at) "
            "VALUES (?, ?, 'old', 'month:2026-01', ?, 1, 'old:1', 'm', 'v', 0, 'open', 10, 'now')",
            (number, f"call {number}", f"key {number}"),
        )
    connection.execute("UPDATE calls SET state = 'settled', actual_pico = 7, closed_at = 'now' WHERE number = 1")
    connection.execute("INSERT INTO responses VALUES ('key 1', 'call 1', 'body', 'sha', 'now')")
    connection.execute(
        "INSERT INTO adjustments (call_id, at, delta_pico, why, by_whom) VALUES ('call 1', 'now', -2, 'bill', 'me')"
    )


def fill_3(connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO events (run_id, at, kind, message, figures) "
        "VALUES ('old', 'now', 'metrics', '', '{\"step\": 1, \"series\": \"train\", \"metrics\": {}}')"
    )


FILLS: dict[int, Callable[[sqlite3.Connection], None]] = {1: fill_1, 2: fill_2, 3: fill_3}
"""What a database of each version may hold; a new migration adds its own."""


def fill(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Make a database of an earlier version with rows in each of its tables."""
    migrate(connection, path, MIGRATIONS[:version])
    for step in range(1, version + 1):
        FILLS[step](connection)


def rows_of(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(tables(connection))}


def as_before(
    after: dict[str, list[tuple[object, ...]]], before: dict[str, list[tuple[object, ...]]]
) -> dict[str, list[tuple[object, ...]]]:
    """The tables there were, without the columns that came since; those must be empty."""
    widths = {name: len(rows[0]) for name, rows in before.items() if rows}
    assert all(value is None for name, width in widths.items() for row in after[name] for value in row[width:])
    return {name: [row[: widths.get(name)] for row in after[name]] for name in before}


def test_every_released_schema_has_rows_to_be_tested_with(connection: sqlite3.Connection, path: Path) -> None:
    assert set(FILLS) == set(range(1, len(MIGRATIONS) + 1))
    fill(connection, path, len(MIGRATIONS))
    assert [name for name, rows in rows_of(connection).items() if not rows] == []


@pytest.mark.parametrize("old", range(1, len(MIGRATIONS)))
def test_every_earlier_schema_comes_forward_with_all_its_rows(path: Path, old: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        fill(connection, path, old)
        before = rows_of(connection)
    store = RunStore(path)
    assert [row.run_id for row in store.live()] == ["cut"]
    assert store.finish("cut", "interrupted", "worker_died", epoch=1, message="").state == "interrupted"
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        after = rows_of(connection)
        assert version(connection) == len(MIGRATIONS)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    runs, events = after.pop("runs"), after.pop("events")
    assert [row[:2] for row in runs] == [row[:2] for row in before.pop("runs")]
    assert [row[:5] for row in events][: len(before["events"])] == [row[:5] for row in before.pop("events")]
    assert as_before(after, before) == before


def test_the_newest_schema_comes_forward_with_all_its_rows(connection: sqlite3.Connection, path: Path) -> None:
    """Of a migration that is still to be written: whatever stands in the money tables stays."""
    fill(connection, path, len(MIGRATIONS))
    before = rows_of(connection)
    migrate(connection, path, NEXT)
    after = rows_of(connection)
    assert {name: after[name] for name in set(after) - {"facts"}} == {
        name: before[name] for name in set(before) - {"facts"}
    }


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from opd_core.state.migrations import MIGRATIONS, migrate

class Dying(sqlite3.Connection):
    left = int(sys.argv[2])

    def execute(self, *arguments):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().execute(*arguments)

path = Path(sys.argv[1])
connection = sqlite3.connect(path, isolation_level=None, factory=Dying)
migrate(connection, path)
print("done")
"""


def test_a_kill_within_a_migration_leaves_the_old_schema_or_the_new_one(tmp_path: Path) -> None:
    """Killed before the first statement, before every third, and so on, until it gets through."""
    outcomes = []
    for statement in range(0, 1000, 3):
        path = tmp_path / f"{statement}.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            fill(connection, path, 1)
            before = rows_of(connection)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(statement)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            found = version(connection)
            after = rows_of(connection)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert as_before(after, before) == before
            assert ("calls" in after) is (found == len(MIGRATIONS)) and found in (1, len(MIGRATIONS))
            migrate(connection, path)
            assert version(connection) == len(MIGRATIONS)
        outcomes.append(found)
        if done.returncode == 0:
            break
    assert outcomes[0] == 1 and outcomes[-1] == len(MIGRATIONS) and len(outcomes) > 3


# --- copies, and schemas of the future


def test_a_copy_is_private_and_complete_or_not_there(
    connection: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: Path) -> None:
        raise OSError("no room")

    fill(connection, path, 1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr("opd_core.state.migrations.fsync_path", refuse)
        migrate(connection, path)
    assert not path.with_name("opd.db.v1.bak").exists() and version(connection) == 1
    migrate(connection, path)
    copy = path.with_name("opd.db.v1.bak")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["opd.db", "opd.db.v1.bak"]


def test_only_the_newest_few_copies_are_kept(connection: sqlite3.Connection, path: Path) -> None:
    for known in range(1, 8):
        migrate(connection, path, (*MIGRATIONS[:1], *[lambda connection: None] * (known - 1)))
    names = [f"opd.db.v{number}.bak" for number in range(7 - MAX_BACKUPS, 7)]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["opd.db", *names]


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_newer_schema_is_not_written_at_all(connection: sqlite3.Connection, path: Path, mode: str) -> None:
    """Not even its journal's mode, which another library may have had a reason for."""
    migrate(connection, path, NEXT)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"schema version {len(NEXT)}"):
        Database(path).read("SELECT * FROM runs")
    with pytest.raises(StoreError, match="Update this program"), Database(path).write():
        pass
    assert path.read_bytes() == before and [entry.name for entry in path.parent.iterdir()] == ["opd.db"]
