"""The schema of the run database, as steps applied in order; `PRAGMA user_version` counts those applied.

A step, once released, never changes: add another one at the end of MIGRATIONS.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from opd_core.errors import StoreError

Migration = Callable[[sqlite3.Connection], None]


def m001_initial(connection: sqlite3.Connection) -> None:
    """Runs, their events, the bounded metric series and measured facts about this machine."""
    for statement in (
        """
        CREATE TABLE runs (
            number INTEGER PRIMARY KEY,          -- order of creation
            run_id TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            session_id TEXT,
            client_request_id TEXT UNIQUE,
            state TEXT NOT NULL CHECK (state IN ('queued', 'preparing', 'running', 'waiting', 'stopping',
                'completed', 'stopped', 'failed', 'interrupted')),
            end_reason TEXT,
            config TEXT NOT NULL CHECK (json_valid(config)),
            created_at TEXT NOT NULL,
            started_at TEXT,
            finished_at TEXT,
            queue_order INTEGER NOT NULL,        -- lowest queued one runs next; a resumed run goes to the end
            epoch INTEGER NOT NULL DEFAULT 0,    -- +1 at each start; a write with an older one is refused
            pid INTEGER,
            process_identity TEXT,               -- boot and start time of that pid, so that a reused pid is known
            stop_requested INTEGER NOT NULL DEFAULT 0 CHECK (stop_requested IN (0, 1)),
            step INTEGER NOT NULL DEFAULT 0,
            total_steps INTEGER NOT NULL,
            steps_per_second REAL,
            phase TEXT,
            phase_detail TEXT,
            phase_fraction REAL,
            heartbeat_unix_seconds REAL,
            waiting_reason TEXT,
            wake_at TEXT,
            message TEXT NOT NULL DEFAULT '',
            error_message TEXT,
            latest_metrics TEXT,
            latest_eval TEXT,
            baseline_eval TEXT,
            best_eval TEXT,
            best_step INTEGER,
            checkpoint_path TEXT,
            final_adapter_path TEXT,
            result_path TEXT
        ) STRICT
        """,
        "CREATE INDEX runs_by_state ON runs (state, queue_order)",
        "CREATE INDEX runs_by_session ON runs (session_id, number)",
        """
        CREATE TABLE events (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            run_id TEXT NOT NULL REFERENCES runs (run_id),
            at TEXT NOT NULL,
            kind TEXT NOT NULL,
            message TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX events_by_run ON events (run_id, sequence)",
        """
        CREATE TABLE metric_series (
            run_id TEXT NOT NULL REFERENCES runs (run_id),
            series TEXT NOT NULL,
            stride INTEGER NOT NULL,             -- every stride-th line is kept, and always the last
            next_ordinal INTEGER NOT NULL,       -- how many lines were appended
            PRIMARY KEY (run_id, series)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE metric_points (
            run_id TEXT NOT NULL,
            series TEXT NOT NULL,
            ordinal INTEGER NOT NULL,
            step INTEGER NOT NULL,
            line TEXT NOT NULL CHECK (json_valid(line)),
            PRIMARY KEY (run_id, series, ordinal),
            FOREIGN KEY (run_id, series) REFERENCES metric_series (run_id, series)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE facts (
            name TEXT PRIMARY KEY,
            value TEXT NOT NULL CHECK (json_valid(value)),
            measured_at TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ):
        connection.execute(statement)


MIGRATIONS: tuple[Migration, ...] = (m001_initial,)


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply the missing migrations in one transaction: a kill leaves the old schema or the new one, never half.

    A database that already holds something is first copied to `opd.db.v<version>.bak`.

    Raises:
        StoreError: the database was written by a newer version of this program.
    """
    if _version(connection, path, migrations) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path, migrations)  # another process may have done it while we waited
        if 0 < version < len(migrations):
            _back_up(path, path.with_name(f"{path.name}.v{version}.bak"))
        for migration in migrations[version:]:
            migration(connection)
        connection.execute(f"PRAGMA user_version={len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        raise StoreError(
            f"The run database {path} has schema version {version}; this program knows versions up to "
            f"{len(migrations)}. Update this program, or set OPD_HOME to another folder. Nothing was changed."
        )
    return version


def _back_up(path: Path, target: Path) -> None:
    """Copy the committed content while the caller holds the write lock (SQLite's own backup, never a file copy)."""
    target.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    target.chmod(0o600)
