from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from opd_core.errors import StoreError
from opd_core.state import database
from opd_core.state.database import Database, journal_mode


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "delete"),
        ((3, 44, 5), "delete"),
        ((3, 44, 6), "wal"),
        ((3, 45, 0), "delete"),
        ((3, 50, 6), "delete"),
        ((3, 50, 7), "wal"),
        ((3, 51, 2), "delete"),
        ((3, 51, 3), "wal"),
        ((3, 52, 0), "wal"),
        ((4, 0, 0), "wal"),
    ],
)
def test_wal_is_used_only_with_a_library_that_keeps_its_data(version: tuple[int, int, int], mode: str) -> None:
    assert journal_mode(version) == mode


def test_a_connection_is_set_up_for_safety(tmp_path: Path) -> None:
    with Database(tmp_path / "opd.db").write() as connection:
        answers = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("foreign_keys", "synchronous", "busy_timeout", "journal_mode")
        }
    wanted = journal_mode(sqlite3.sqlite_version_info[:3])
    assert answers == {"foreign_keys": 1, "synchronous": 2, "busy_timeout": 10_000, "journal_mode": wanted}


def test_asking_does_not_make_a_database(tmp_path: Path) -> None:
    assert Database(tmp_path / "opd.db").read("SELECT * FROM runs") == []
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    with Database(tmp_path / "opd.db").write():
        pass
    assert stat.S_IMODE((tmp_path / "opd.db").stat().st_mode) == 0o600


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = Database(tmp_path / "opd.db")
    with contextlib.suppress(KeyError), store.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('a', '1', 'now')")
        raise KeyError
    assert store.read("SELECT * FROM facts") == []
    with store.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('b', '2', 'now')")
    assert [record["name"] for record in store.read("SELECT name FROM facts")] == ["b"]


def test_a_held_database_is_reported_as_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.01)
    first, second = Database(tmp_path / "opd.db"), Database(tmp_path / "opd.db")
    assert second.read("SELECT * FROM runs") == []
    with first.write(), pytest.raises(StoreError, match="is busy"), second.write():
        pass
    with second.write():
        pass


def test_a_read_that_becomes_a_write_waits_its_turn_instead_of_failing(tmp_path: Path) -> None:
    """With a deferred BEGIN one of the two increments would fail with SQLITE_BUSY_SNAPSHOT or be lost."""
    store = Database(tmp_path / "opd.db")
    with store.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('count', '0', 'now')")

    def increment() -> None:
        for _ in range(10):
            with store.write() as connection:
                count = int(connection.execute("SELECT value FROM facts").fetchone()[0])
                connection.execute("UPDATE facts SET value = ?", (str(count + 1),))

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("SELECT value FROM facts")[0]["value"] == "40"


def test_a_damaged_file_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "opd.db").write_bytes(b"this is no database at all, not even close" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Database(tmp_path / "opd.db").read("SELECT * FROM runs")


def test_a_missing_folder_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="OPD_HOME"), Database(tmp_path / "none" / "opd.db").write():
        pass


def test_a_full_disk_is_a_plain_error_and_loses_nothing(tmp_path: Path) -> None:
    store = Database(tmp_path / "opd.db")
    with store.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('a', '1', 'now')")
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="disk is full"), store.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('b', ?, 'now')", (f'"{"x" * 100_000}"',))
    assert [record["name"] for record in store.read("SELECT name FROM facts")] == ["a"]
