"""The writes of `opd doctor --repair` on the run database: for one run whose lock the caller holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from opd_core.paths import iso_utc
from opd_core.seams import utc_moment
from opd_core.state.database import Database
from opd_core.state.events import add_event
from opd_core.state.jsonl import dump_line
from opd_core.state.rows import RunRow
from opd_core.state.transitions import Columns, next_queue_order
from opd_core.types import LIVE_STATES


@contextlib.contextmanager
def no_new_runs(database: Database) -> Iterator[frozenset[str]]:
    """The ids of all runs; until the block ends no start can add one, so a file without a run stays without one."""
    with database.write() as connection:
        yield frozenset(record["run_id"] for record in connection.execute("SELECT run_id FROM runs"))


def correct(database: Database, row: RunRow, columns: Columns, message: str) -> None:
    """Set columns of a run that no worker owns, with an event; nothing when it was started in the meantime."""
    live = ", ".join(f"'{state}'" for state in LIVE_STATES)
    names = ", ".join(f"{name} = ?" for name in columns)
    with database.write() as connection:
        changed = connection.execute(
            f"UPDATE runs SET {names} WHERE run_id = ? AND epoch = ? AND state NOT IN ({live})",
            (*columns.values(), row.run_id, row.epoch),
        ).rowcount
        if changed:
            add_event(connection, row.run_id, "warning", message, utc_moment())


def readmit(database: Database, run_id: str, config: Mapping[str, Any], step: int, path: str, message: str) -> None:
    """Record a distillation whose row was lost as `interrupted`, so that it can be resumed."""
    now = utc_moment()
    with database.write() as connection:
        connection.execute(
            "INSERT INTO runs (run_id, kind, session_id, state, end_reason, config, created_at, finished_at, "
            "total_steps, queue_order, step, checkpoint_path, message, error_message) "
            "VALUES (?, 'distillation', ?, 'interrupted', 'worker_died', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(run_id, config["session_id"], dump_line(config), iso_utc(now), iso_utc(now)),
                *(config["num_training_steps"], next_queue_order(connection), step, path, message, message),
            ),
        )
        add_event(connection, run_id, "state", f"interrupted: {message}", now)
