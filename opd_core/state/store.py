"""The run store: every question to and every change of the runs of one home, in hand-written SQL.

Three rules keep it true under several servers, a worker and kills at any moment. A change of state is believed only
when its guarded UPDATE touched one row. What a worker writes carries its epoch, and a worker whose epoch has passed
gets StaleWorkerError. Nothing is remembered between calls.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from opd_core.errors import RunNotFoundError, StateError
from opd_core.paths import iso_utc
from opd_core.seams import REAL, Seams
from opd_core.state.database import Database, SqlValue
from opd_core.state.events import Event, EventKind, add_event, add_metrics_event, read_newest_events
from opd_core.state.jsonl import dump_line
from opd_core.state.metrics import MAX_POINTS, Series, append_point, cut_points, read_points
from opd_core.state.rows import SELECT_RUNS, Line, RunRow, to_row
from opd_core.state.transitions import get_run, move, next_queue_order, not_found, write_fenced
from opd_core.types import END_STATES, LIVE_STATES, EndReason, JobKind, RunState


def _nothing() -> None:
    return None


class RunStore:
    """Runs, events, metric series and facts of one home. Cheap to make; opens its file when first used.

    Every method raises StoreError when the database is busy, damaged, full or of a newer version.
    """

    def __init__(self, database: Path | Database, seams: Seams = REAL) -> None:
        self._database, self._now = Database.at(database), seams.now

    def close(self) -> None:
        """Close this thread's connection."""
        self._database.close()

    def create(
        self,
        run_id: str,
        kind: JobKind,
        config: Mapping[str, Any],
        *,
        total_steps: int = 0,
        session_id: str | None = None,
        client_request_id: str | None = None,
        warnings: Iterable[str] = (),
        before_commit: Callable[[], None] = _nothing,
    ) -> RunRow:
        """Add a queued run, or return the one that `client_request_id` already made.

        `before_commit` writes what must exist whenever the row does; when it raises, there is no row.

        Raises:
            StateError: `run_id` is taken.
        """
        with self._database.write() as connection:
            repeated = connection.execute(f"{SELECT_RUNS} WHERE client_request_id = ?", (client_request_id,)).fetchone()
            if repeated is not None:
                return to_row(repeated, self._now())
            if connection.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
                raise StateError(f"run_id {run_id!r} is taken. Choose another one or leave it out.")
            connection.execute(
                "INSERT INTO runs (run_id, kind, session_id, client_request_id, state, config, created_at, "
                "total_steps, queue_order) VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
                (run_id, kind, session_id, client_request_id, dump_line(config), iso_utc(self._now()), total_steps,
                 next_queue_order(connection)),
            )  # fmt: skip
            add_event(connection, run_id, "state", "queued", self._now())
            for warning in warnings:
                add_event(connection, run_id, "warning", warning, self._now())
            before_commit()
            return get_run(connection, run_id, self._now())

    def find_request(self, client_request_id: str | None) -> RunRow | None:
        """The run that an earlier start with the same client_request_id made."""
        records = self._database.read(f"{SELECT_RUNS} WHERE client_request_id = ?", (client_request_id,))
        return to_row(records[0], self._now()) if records else None

    def get(self, run_id: str) -> RunRow:
        """The run with exactly this id.

        Raises:
            RunNotFoundError: there is none; names recent ones.
        """
        records = self._database.read(f"{SELECT_RUNS} WHERE run_id = ?", (run_id,))
        if not records:
            raise not_found(run_id, [row.run_id for row in self.list(limit=5)])
        return to_row(records[0], self._now())

    def resolve(self, run_id: str | None = None) -> RunRow:
        """A run by its id or a unique beginning of it; None or "latest": the current distillation, else the latest.

        Raises:
            RunNotFoundError: none fits, or several do.
        """
        if run_id is None or run_id == "latest":
            current = ", ".join(f"'{state}'" for state in LIVE_STATES)
            records = self._database.read(
                f"{SELECT_RUNS} WHERE kind = 'distillation' ORDER BY state IN ({current}) DESC, number DESC LIMIT 1"
            )
            if not records:
                raise RunNotFoundError("There are no runs yet. start_distillation makes one.")
            return to_row(records[0], self._now())
        records = self._database.read(
            f"{SELECT_RUNS} WHERE substr(run_id, 1, ?) = ? ORDER BY run_id = ? DESC, number DESC LIMIT 6",
            (len(run_id), run_id, run_id),
        )
        if not records:
            raise not_found(run_id, [row.run_id for row in self.list(limit=5)])
        if len(records) > 1 and records[0]["run_id"] != run_id:
            names = ", ".join(record["run_id"] for record in records)
            raise RunNotFoundError(f"run_id {run_id!r} fits several runs: {names}. Give more of it.")
        return to_row(records[0], self._now())

    def list(
        self,
        *,
        session_id: str | None = None,
        state: RunState | None = None,
        limit: int = 10,
        before_number: int | None = None,
    ) -> builtins.list[RunRow]:
        """The newest runs first, at most `limit`; `before_number` goes on where an earlier list ended."""
        records = self._database.read(
            f"{SELECT_RUNS} WHERE session_id IS COALESCE(?, session_id) AND state = COALESCE(?, state) "
            "AND number < COALESCE(?, number + 1) ORDER BY number DESC LIMIT ?",
            (session_id, state, before_number, limit),
        )
        return [to_row(record, self._now()) for record in records]

    def live(self) -> builtins.list[RunRow]:
        """The runs a worker is said to be working on."""
        marks = ", ".join("?" for _ in LIVE_STATES)
        records = self._database.read(f"{SELECT_RUNS} WHERE state IN ({marks})", LIVE_STATES)
        return [to_row(record, self._now()) for record in records]

    def next_queued(self) -> RunRow | None:
        """The run whose turn it is."""
        records = self._database.read(f"{SELECT_RUNS} WHERE state = 'queued' ORDER BY queue_order LIMIT 1")
        return to_row(records[0], self._now()) if records else None

    def transition(
        self, run_id: str, to: RunState, *, epoch: int | None = None, message: str = "", **columns: SqlValue
    ) -> RunRow:
        """Move a run to state `to`, setting `columns` with it.

        Args:
            epoch: only when the run is still in this epoch (a worker, or whoever judges one, gives it).
            message: one plain sentence for the row and the event.

        Raises:
            RunNotFoundError: no such run.
            StaleWorkerError: the run is in another epoch.
            StateError: ALLOWED_CHANGES has no way from the present state.
        """
        with self._database.write() as connection:
            return move(connection, run_id, to, {"message": message, **columns}, self._now(), epoch)

    def claim(self, run_id: str, *, if_first: bool = False) -> int:
        """Take a queued run for a new worker: queued to preparing; returns the new epoch.

        Args:
            if_first: only when it is (still) the first in the queue: since it was looked at it may have been cancelled
                and resumed, and stand at the end.

        Raises:
            StateError: it is not queued (any more), or not the first.
        """
        with self._database.write() as connection:
            row = get_run(connection, run_id, self._now())
            if if_first and row.queue_position is not None and row.queue_position > 1:
                raise StateError(f"Run {run_id} is number {row.queue_position} in the queue; the first one is next.")
            epoch = row.epoch + 1
            columns: dict[str, SqlValue] = {
                "epoch": epoch, "started_at": iso_utc(self._now()), "heartbeat_unix_seconds": self._now().timestamp(),
                "phase": "preparing", "message": "", "steps_per_second": None,
            }  # fmt: skip
            move(connection, run_id, "preparing", columns, self._now())
            return epoch

    def finish(
        self, run_id: str, to: RunState, reason: EndReason, *, epoch: int, message: str, **columns: SqlValue
    ) -> RunRow:
        """Record how a run ended; a second ending is refused like any other change that is not allowed."""
        return self.transition(
            run_id, to, epoch=epoch, message=message, end_reason=reason, finished_at=iso_utc(self._now()),
            pid=None, process_identity=None, phase=None, phase_detail=None, phase_fraction=None,
            waiting_reason=None, wake_at=None, **columns,
        )  # fmt: skip

    def requeue(
        self,
        run_id: str,
        *,
        config: Mapping[str, Any],
        total_steps: int,
        before_commit: Callable[[], None] = _nothing,
        **changed: SqlValue,
    ) -> RunRow:
        """Put an ended run at the end of the queue with a (perhaps changed) configuration.

        Raises:
            StateError: the run is not stopped, failed or interrupted.
        """
        with self._database.write() as connection:
            columns: dict[str, SqlValue] = {
                "config": dump_line(config), "total_steps": total_steps, "queue_order": next_queue_order(connection),
                "stop_requested": 0, "end_reason": None, "error_message": None, "finished_at": None, "message": "",
                **changed,
            }  # fmt: skip
            row = move(connection, run_id, "queued", columns, self._now())
            before_commit()
            return row

    def request_stop(self, run_id: str) -> RunRow:
        """Ask for a stop: a queued run is stopped at once, a live one becomes `stopping`, an ended one stays."""
        with self._database.write() as connection:
            row = get_run(connection, run_id, self._now())
            if row.state in END_STATES or row.state == "stopping":
                return row
            columns: dict[str, SqlValue] = {"stop_requested": 1, "message": "Stopping after the step in progress."}
            if row.state == "queued":
                columns |= {"end_reason": "by_user", "finished_at": iso_utc(self._now())}
                columns["message"] = f"Cancelled in the queue at step {row.step}."
            return move(connection, run_id, "stopped" if row.state == "queued" else "stopping", columns, self._now())

    def adopt(self, run_id: str, epoch: int, pid: int, process_identity: str | None) -> RunRow:
        """The worker's first write: who it is.

        Raises:
            StaleWorkerError: the run is not this worker's; it must exit without a trace.
        """
        return self.heartbeat(run_id, epoch, pid=pid, process_identity=process_identity)

    def heartbeat(self, run_id: str, epoch: int, **columns: SqlValue) -> RunRow:
        """A worker's sign of progress with whatever columns changed; the returned row tells it of a stop request.

        Raises:
            StaleWorkerError: the worker's epoch has passed.
        """
        with self._database.write() as connection:
            return write_fenced(connection, run_id, epoch, columns, self._now())

    def append_metrics(
        self, run_id: str, epoch: int, series: Series, line: Mapping[str, Any], **columns: SqlValue
    ) -> RunRow:
        """A worker's metrics line (it has "step") into series and events, `columns` into the row, in one transaction.

        Raises:
            StaleWorkerError: the worker's epoch has passed.
        """
        with self._database.write() as connection:
            append_point(connection, run_id, series, line)
            now = self._now()
            row = write_fenced(connection, run_id, epoch, columns, now)
            add_metrics_event(connection, run_id, series, line, now)
            return row

    def cut_metrics(
        self, run_id: str, epoch: int, series: Series, last_line: Mapping[str, Any] | None, **columns: SqlValue
    ) -> RunRow:
        """On resume: forget what came after `last_line` in a series, and set the row's columns accordingly.

        Raises:
            StaleWorkerError: the worker's epoch has passed.
        """
        with self._database.write() as connection:
            cut_points(connection, run_id, series, last_line)
            return write_fenced(connection, run_id, epoch, columns, self._now())

    def metrics(
        self, run_id: str, series: Series = "train", since_step: int | None = None, points: int = MAX_POINTS
    ) -> builtins.list[Line]:
        """Up to `points` lines after `since_step`, evenly spread over the run, the last one always there."""
        return read_points(self._database, run_id, series, since_step, points)

    def events(self, run_id: str | None = None, limit: int = 100) -> builtins.list[Event]:
        """The newest `limit` events other than metrics, oldest first."""
        return read_newest_events(self._database, run_id, limit)

    def add_event(self, run_id: str, kind: EventKind, message: str) -> None:
        """Append an event that belongs to no other change."""
        with self._database.write() as connection:
            add_event(connection, run_id, kind, message, self._now())

    def get_fact(self, name: str) -> Any:
        """A measured fact about this machine, as it was set; None when there is none."""
        records = self._database.read("SELECT value FROM facts WHERE name = ?", (name,))
        return json.loads(records[0]["value"]) if records else None

    def set_fact(self, name: str, value: Any) -> None:
        """Remember a measured fact, such as the BLAS report; JSON data without NaN."""
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO facts VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
                "SET value = excluded.value, measured_at = excluded.measured_at",
                (name, json.dumps(value, allow_nan=False), iso_utc(self._now())),
            )
