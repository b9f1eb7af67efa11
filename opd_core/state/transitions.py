"""The two guarded writes on a run, inside the caller's transaction: a change of state, and a worker's fenced write.

Both believe only an UPDATE that touched exactly one row; everything else is told apart afterwards and raised.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime

from opd_core.errors import RunNotFoundError, StaleWorkerError, StateError
from opd_core.state.database import SqlValue
from opd_core.state.events import add_event
from opd_core.state.rows import ALLOWED_CHANGES, SELECT_RUNS, RunRow, to_row
from opd_core.types import LIVE_STATES, RunState, clean_text

Columns = Mapping[str, SqlValue]
"""Column name to new value; the names are written in this package, never taken from outside."""


def get_run(connection: sqlite3.Connection, run_id: str, now: datetime) -> RunRow:
    """The run with exactly this id.

    Raises:
        RunNotFoundError: there is none; names recent ones.
    """
    record = connection.execute(f"{SELECT_RUNS} WHERE run_id = ?", (run_id,)).fetchone()
    if record is None:
        records = connection.execute("SELECT run_id FROM runs ORDER BY number DESC LIMIT 5").fetchall()
        raise not_found(run_id, [recent["run_id"] for recent in records])
    return to_row(record, now)


def not_found(run_id: str, recent: list[str]) -> RunNotFoundError:
    """The error for an id that no run has."""
    known = f"Recent ones: {', '.join(recent)}; list_runs shows all." if recent else "There are no runs yet."
    return RunNotFoundError(f"There is no run or job {clean_text(run_id, 80)!r}. {known}")


def move(
    connection: sqlite3.Connection,
    run_id: str,
    to: RunState,
    columns: Columns,
    now: datetime,
    epoch: int | None = None,
) -> RunRow:
    """Change the state, and `columns` with it, if ALLOWED_CHANGES has the way and the epoch (when given) still holds.

    Raises:
        RunNotFoundError, StaleWorkerError, StateError: as `RunStore.transition`.
    """
    sources = [state for state, targets in ALLOWED_CHANGES.items() if to in targets]
    updated = connection.execute(
        f"UPDATE runs SET {_assignments(['state', *columns])} "
        f"WHERE run_id = ? AND state IN ({_marks(sources)}) AND epoch = COALESCE(?, epoch)",
        (to, *columns.values(), run_id, *sources, epoch),
    ).rowcount
    row = get_run(connection, run_id, now)
    if updated != 1:
        _check_epoch(row, epoch)
        reachable = ", ".join(sorted(ALLOWED_CHANGES[row.state])) or "nothing else"
        raise StateError(
            f"Run {run_id} is {row.state} and cannot become {to}; from {row.state} it can become {reachable}."
        )
    add_event(connection, run_id, "state", f"{to}: {row.message}" if row.message else to, now)
    return row


def write_fenced(connection: sqlite3.Connection, run_id: str, epoch: int, columns: Columns, now: datetime) -> RunRow:
    """A worker's write of `columns` and its heartbeat, only while the run is live in the worker's epoch.

    Raises:
        StaleWorkerError: another worker has the run, or its end is recorded already.
    """
    values: dict[str, SqlValue] = {"heartbeat_unix_seconds": now.timestamp(), **columns}
    updated = connection.execute(
        f"UPDATE runs SET {_assignments(values)} WHERE run_id = ? AND epoch = ? AND state IN ({_marks(LIVE_STATES)})",
        (*values.values(), run_id, epoch, *LIVE_STATES),
    ).rowcount
    row = get_run(connection, run_id, now)
    if updated != 1:
        _check_epoch(row, epoch)
        raise StaleWorkerError(f"Run {run_id} is {row.state}: this worker's part in it is over.")
    return row


def next_queue_order(connection: sqlite3.Connection) -> int:
    """The place behind everything that was ever queued; a counter, so that clock changes cannot reorder the queue."""
    return int(connection.execute("SELECT COALESCE(MAX(queue_order), 0) + 1 FROM runs").fetchone()[0])


def _check_epoch(row: RunRow, epoch: int | None) -> None:
    if epoch is not None and row.epoch != epoch:
        raise StaleWorkerError(
            f"Run {row.run_id} is in epoch {row.epoch}; the worker of epoch {epoch} no longer owns it."
        )


def _assignments(names: list[str] | Columns) -> str:
    return ", ".join(f"{name} = ?" for name in names)


def _marks(values: list[RunState] | tuple[RunState, ...]) -> str:
    return ", ".join("?" for _ in values)
