"""The schema of the run database, as steps applied in order; `PRAGMA user_version` counts those applied.

A step, once released, never changes: add another one at the end of MIGRATIONS.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from opd_core.errors import StoreError
from opd_core.paths import fsync_path

Migration = Callable[[sqlite3.Connection], None]
MAX_BACKUPS = 3


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


MONEY_GUARDS = (
    # `opd_core.money.postings` reads the texts of RAISE. Existing rows are looked for here and not left to the unique
    # indexes, because INSERT OR REPLACE would delete them without asking any DELETE trigger.
    "CREATE UNIQUE INDEX calls_one_open_per_key ON calls (request_key) WHERE state = 'open'",
    """CREATE TRIGGER calls_admission BEFORE INSERT ON calls BEGIN
        SELECT CASE
            WHEN NEW.state <> 'open' THEN RAISE(ABORT, 'money: a call begins open')
            WHEN EXISTS (SELECT 1 FROM calls WHERE call_id = NEW.call_id OR number = NEW.number)
                THEN RAISE(ABORT, 'money: this call exists')
            WHEN EXISTS (SELECT 1 FROM calls WHERE request_key = NEW.request_key AND state = 'open')
                THEN RAISE(ABORT, 'money: open')
            WHEN EXISTS (SELECT 1 FROM responses WHERE request_key = NEW.request_key)
                THEN RAISE(ABORT, 'money: stored')
            WHEN (SELECT COUNT(*) FROM budgets WHERE scope IN (NEW.run_id, NEW.month)) < 2
                THEN RAISE(ABORT, 'money: no budget')
            WHEN EXISTS (SELECT 1 FROM budgets WHERE scope IN (NEW.run_id, NEW.month) AND frozen)
                THEN RAISE(ABORT, 'money: frozen')
            WHEN EXISTS (SELECT 1 FROM budgets WHERE scope IN (NEW.run_id, NEW.month)
                    AND spent_pico + reserved_pico + NEW.reserved_pico > limit_pico)
                THEN RAISE(ABORT, 'money: over limit')
        END;
    END""",
    """CREATE TRIGGER calls_reserve AFTER INSERT ON calls BEGIN
        UPDATE budgets SET reserved_pico = reserved_pico + NEW.reserved_pico WHERE scope IN (NEW.run_id, NEW.month);
    END""",
    """CREATE TRIGGER calls_close_once BEFORE UPDATE ON calls BEGIN
        SELECT CASE
            WHEN OLD.state <> 'open' THEN RAISE(ABORT, 'money: a closed call never changes')
            WHEN (OLD.number, OLD.call_id, OLD.run_id, OLD.month, OLD.request_key, OLD.attempt, OLD.owner, OLD.model,
                    OLD.price_version, OLD.is_batch, OLD.reserved_pico, OLD.opened_at)
                IS NOT (NEW.number, NEW.call_id, NEW.run_id, NEW.month, NEW.request_key, NEW.attempt, NEW.owner,
                    NEW.model, NEW.price_version, NEW.is_batch, NEW.reserved_pico, NEW.opened_at)
                OR (OLD.batch_id IS NOT NULL AND NEW.batch_id IS NOT OLD.batch_id)
                THEN RAISE(ABORT, 'money: what was reserved never changes')
        END;
    END""",
    """CREATE TRIGGER calls_settle AFTER UPDATE OF state ON calls WHEN NEW.state <> 'open' BEGIN
        UPDATE budgets SET reserved_pico = reserved_pico - OLD.reserved_pico, spent_pico = spent_pico + NEW.actual_pico
            WHERE scope IN (NEW.run_id, NEW.month);
        INSERT INTO budget_changes (scope, at, limit_pico, frozen, why, by_whom)
            SELECT scope, NEW.closed_at, limit_pico, 1,
                'call ' || NEW.call_id || ' cost ' || NEW.actual_pico || ' of ' || NEW.reserved_pico || ' reserved',
                'ledger'
            FROM budgets
            WHERE scope IN (NEW.run_id, NEW.month) AND NOT frozen AND NEW.actual_pico > NEW.reserved_pico;
    END""",
    "CREATE TRIGGER calls_stay BEFORE DELETE ON calls BEGIN SELECT RAISE(ABORT, 'money: calls stay'); END",
    """CREATE TRIGGER budgets_follow_changes AFTER INSERT ON budget_changes BEGIN
        INSERT INTO budgets (scope, limit_pico, frozen) SELECT NEW.scope, NEW.limit_pico, NEW.frozen
            WHERE NOT EXISTS (SELECT 1 FROM budgets WHERE scope = NEW.scope);
        UPDATE budgets SET limit_pico = NEW.limit_pico, frozen = NEW.frozen WHERE scope = NEW.scope;
    END""",
    """CREATE TRIGGER budgets_begin BEFORE INSERT ON budgets BEGIN
        SELECT RAISE(ABORT, 'money: a budget begins empty, with a change') WHERE NEW.spent_pico OR NEW.reserved_pico
            OR EXISTS (SELECT 1 FROM budgets WHERE scope = NEW.scope)
            OR (NEW.limit_pico, NEW.frozen) IS NOT (SELECT limit_pico, frozen FROM budget_changes
                WHERE scope = NEW.scope ORDER BY number DESC LIMIT 1);
    END""",
    """CREATE TRIGGER budgets_change BEFORE UPDATE OF scope, limit_pico, frozen ON budgets BEGIN
        SELECT RAISE(ABORT, 'money: a limit changes through budget_changes') WHERE NEW.scope <> OLD.scope
            OR (NEW.limit_pico, NEW.frozen) IS NOT (SELECT limit_pico, frozen FROM budget_changes
                WHERE scope = NEW.scope ORDER BY number DESC LIMIT 1);
    END""",
    "CREATE TRIGGER budgets_stay BEFORE DELETE ON budgets BEGIN SELECT RAISE(ABORT, 'money: budgets stay'); END",
    """CREATE TRIGGER changes_append BEFORE INSERT ON budget_changes
        WHEN EXISTS (SELECT 1 FROM budget_changes WHERE number = NEW.number)
        BEGIN SELECT RAISE(ABORT, 'money: changes stay'); END""",
    """CREATE TRIGGER changes_never_change BEFORE UPDATE ON budget_changes
        BEGIN SELECT RAISE(ABORT, 'money: changes stay'); END""",
    """CREATE TRIGGER changes_stay BEFORE DELETE ON budget_changes
        BEGIN SELECT RAISE(ABORT, 'money: changes stay'); END""",
    """CREATE TRIGGER responses_belong_to_a_settled_call BEFORE INSERT ON responses BEGIN
        SELECT RAISE(ABORT, 'money: a response belongs to one settled call')
            WHERE EXISTS (SELECT 1 FROM responses WHERE request_key = NEW.request_key OR call_id = NEW.call_id)
            OR NOT EXISTS (SELECT 1 FROM calls
                WHERE call_id = NEW.call_id AND request_key = NEW.request_key AND state = 'settled');
    END""",
    """CREATE TRIGGER responses_never_change BEFORE UPDATE ON responses
        BEGIN SELECT RAISE(ABORT, 'money: responses stay'); END""",
    """CREATE TRIGGER responses_stay BEFORE DELETE ON responses
        BEGIN SELECT RAISE(ABORT, 'money: responses stay'); END""",
    """CREATE TRIGGER adjustments_check BEFORE INSERT ON adjustments BEGIN
        SELECT CASE
            WHEN EXISTS (SELECT 1 FROM adjustments WHERE number = NEW.number)
                THEN RAISE(ABORT, 'money: adjustments stay')
            WHEN NOT EXISTS (SELECT 1 FROM calls WHERE call_id = NEW.call_id AND state <> 'open')
                THEN RAISE(ABORT, 'money: not closed')
            WHEN NEW.delta_pico + (SELECT actual_pico FROM calls WHERE call_id = NEW.call_id)
                    + (SELECT COALESCE(SUM(delta_pico), 0) FROM adjustments WHERE call_id = NEW.call_id) < 0
                THEN RAISE(ABORT, 'money: below zero')
        END;
    END""",
    """CREATE TRIGGER adjustments_count AFTER INSERT ON adjustments BEGIN
        UPDATE budgets SET spent_pico = spent_pico + NEW.delta_pico WHERE scope IN
            (SELECT run_id FROM calls WHERE call_id = NEW.call_id
             UNION SELECT month FROM calls WHERE call_id = NEW.call_id);
    END""",
    """CREATE TRIGGER adjustments_never_change BEFORE UPDATE ON adjustments
        BEGIN SELECT RAISE(ABORT, 'money: adjustments stay'); END""",
    """CREATE TRIGGER adjustments_stay BEFORE DELETE ON adjustments
        BEGIN SELECT RAISE(ABORT, 'money: adjustments stay'); END""",
)
"""The statements that keep the ledger's promises even against wrong code; its rebuild check wants each one in place."""


def m002_money(connection: sqlite3.Connection) -> None:
    """The ledger: budgets, the calls under them, paid replies, corrections. Amounts are picodollars (1e12 a dollar)."""
    for statement in (
        """
        CREATE TABLE budgets (
            scope TEXT PRIMARY KEY,              -- a run id, or for the whole install a month of UTC: 'month:2026-11'
            limit_pico INTEGER NOT NULL CHECK (limit_pico >= 0),
            spent_pico INTEGER NOT NULL DEFAULT 0 CHECK (spent_pico >= 0),
            reserved_pico INTEGER NOT NULL DEFAULT 0 CHECK (reserved_pico >= 0),
            frozen INTEGER NOT NULL CHECK (frozen IN (0, 1)),
            cache_hits INTEGER NOT NULL DEFAULT 0
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE budget_changes (            -- append-only; the last one of a scope is what holds
            number INTEGER PRIMARY KEY,
            scope TEXT NOT NULL,
            at TEXT NOT NULL,
            limit_pico INTEGER NOT NULL,
            frozen INTEGER NOT NULL,
            why TEXT NOT NULL,
            by_whom TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX budget_changes_by_scope ON budget_changes (scope, number)",
        """
        CREATE TABLE calls (                     -- one row an HTTP attempt; an open one may be billed
            number INTEGER PRIMARY KEY,
            call_id TEXT NOT NULL UNIQUE,
            run_id TEXT NOT NULL REFERENCES budgets (scope) CHECK (run_id NOT LIKE 'month:%'),
            month TEXT NOT NULL REFERENCES budgets (scope) CHECK (month LIKE 'month:____-__'),
            request_key TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            owner TEXT NOT NULL,                 -- the worker instance whose lock proves that it lives
            model TEXT NOT NULL,
            price_version TEXT NOT NULL,
            is_batch INTEGER NOT NULL CHECK (is_batch IN (0, 1)),
            batch_id TEXT CHECK (batch_id IS NULL OR is_batch),
            state TEXT NOT NULL CHECK (state IN ('open', 'settled', 'released', 'forfeited')),
            reserved_pico INTEGER NOT NULL CHECK (reserved_pico > 0),
            actual_pico INTEGER CHECK (actual_pico >= 0),
            request_id TEXT,
            usage TEXT CHECK (usage IS NULL OR json_valid(usage)),
            reason TEXT,
            opened_at TEXT NOT NULL,
            closed_at TEXT,
            CHECK ((state = 'open') = (actual_pico IS NULL) AND (state = 'open') = (closed_at IS NULL)),
            CHECK (state <> 'released' OR actual_pico = 0),
            CHECK (state <> 'forfeited' OR actual_pico = reserved_pico)
        ) STRICT
        """,
        "CREATE INDEX calls_by_key ON calls (request_key)",
        "CREATE INDEX calls_by_run ON calls (run_id, state)",
        "CREATE INDEX calls_open ON calls (owner) WHERE state = 'open'",
        """
        CREATE TABLE responses (                 -- written in the transaction that settles the call
            request_key TEXT PRIMARY KEY,
            call_id TEXT NOT NULL UNIQUE REFERENCES calls (call_id),
            body TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            stored_at TEXT NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE adjustments (               -- a person's corrections of closed calls; append-only
            number INTEGER PRIMARY KEY,
            call_id TEXT NOT NULL REFERENCES calls (call_id),
            at TEXT NOT NULL,
            delta_pico INTEGER NOT NULL,
            why TEXT NOT NULL CHECK (trim(why) <> ''),
            by_whom TEXT NOT NULL CHECK (trim(by_whom) <> '')
        ) STRICT
        """,
        "CREATE INDEX adjustments_by_call ON adjustments (call_id)",
        *MONEY_GUARDS,
    ):
        connection.execute(statement)


def m003_feed(connection: sqlite3.Connection) -> None:
    """Events tell where their run stood, and metrics lines are events too: one sequence for whoever follows live."""
    for statement in (
        "ALTER TABLE events ADD COLUMN figures TEXT CHECK (figures IS NULL OR json_valid(figures))",
        "CREATE INDEX events_metrics ON events (run_id, sequence) WHERE kind = 'metrics'",
    ):
        connection.execute(statement)


MIGRATIONS: tuple[Migration, ...] = (m001_initial, m002_money, m003_feed)


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply the missing migrations in one transaction: a kill leaves the old schema or the new one, never half.

    A database that already holds something is first copied to `opd.db.v<version>.bak`; the newest few copies are kept.

    Raises:
        StoreError: the database was written by a newer version of this program.
    """
    if refuse_newer(connection, path, migrations) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = refuse_newer(connection, path, migrations)  # another process may have done it while we waited
        if 0 < version < len(migrations):
            _back_up(path, version)
        for migration in migrations[version:]:
            migration(connection)
        connection.execute(f"PRAGMA user_version={len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def refuse_newer(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """The schema's version; reads only.

    Raises:
        StoreError: the database was written by a newer version of this program.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        raise StoreError(
            f"The run database {path} has schema version {version}; this program knows versions up to "
            f"{len(migrations)}. Update this program, or set OPD_HOME to another folder. Nothing was changed."
        )
    return version


def _back_up(path: Path, version: int) -> None:
    """Copy the committed content while the caller holds the write lock (SQLite's own backup, never a file copy).

    The copy gets its name when it is complete and on the disk, so that a kill leaves no half of one under it.
    """
    target = path.with_name(f"{path.name}.v{version}.bak")
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(temporary)) as copy:
        source.backup(copy)
    fsync_path(temporary)
    temporary.replace(target)
    fsync_path(target.parent)
    for old in range(1, version - MAX_BACKUPS + 1):
        path.with_name(f"{path.name}.v{old}.bak").unlink(missing_ok=True)
