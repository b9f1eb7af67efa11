"""One run as it stands in the database, and which state may follow which."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from opd_core.paths import iso_utc
from opd_core.types import LIVE_STATES, EndReason, JobKind, RunState

Line = dict[str, Any]
"""One metrics line: metric name to a number, text, flag or None."""

ALLOWED_CHANGES: dict[RunState, frozenset[RunState]] = {
    "queued": frozenset({"preparing", "stopped"}),
    "preparing": frozenset({"running", "waiting", "stopping", "completed", "stopped", "failed", "interrupted"}),
    "running": frozenset({"waiting", "stopping", "completed", "stopped", "failed", "interrupted"}),
    "waiting": frozenset({"running", "stopping", "stopped", "failed", "interrupted"}),
    "stopping": frozenset({"completed", "stopped", "failed", "interrupted"}),
    "completed": frozenset(),
    "stopped": frozenset({"queued"}),
    "failed": frozenset({"queued"}),
    "interrupted": frozenset({"queued"}),
}
"""State to the states that may follow it; whatever is not here is refused."""


@dataclass(frozen=True)
class RunRow:
    """One run or job. Times are ISO 8601 in UTC; `None` means not known or not yet."""

    number: int
    """Order of creation in this home."""
    run_id: str
    kind: JobKind
    session_id: str | None
    client_request_id: str | None
    state: RunState
    end_reason: EndReason | None
    config: dict[str, Any]
    """The resolved configuration in its flat form (a comparison's specification for a comparison)."""
    created_at: str
    started_at: str | None
    finished_at: str | None
    step: int
    total_steps: int
    """Zero for a job that has no steps."""
    steps_per_second: float | None
    """Over the present process's training steps, evaluations and checkpoints included."""
    phase: str | None
    phase_detail: str | None
    phase_fraction: float | None
    heartbeat_at: str | None
    heartbeat_age_seconds: float | None
    """Time since the worker last wrote; a hint of progress, never the proof of life. `None` when no worker is due."""
    waiting_reason: str | None
    wake_at: str | None
    message: str
    error_message: str | None
    epoch: int
    pid: int | None
    process_identity: str | None
    stop_requested: bool
    queue_position: int | None
    """1 for the next to run; `None` unless queued."""
    latest_metrics: Line | None
    latest_eval: Line | None
    baseline_eval: Line | None
    best_eval: Line | None
    best_step: int | None
    checkpoint_path: str | None
    """The newest checkpoint that was published."""
    final_adapter_path: str | None
    result_path: str | None
    last_log_lines: tuple[str, ...] = ()
    """The end of the worker's log, filled in for failed and interrupted runs; text to show, not to trust."""
    budget_usd: float | None = None
    """The limit for paid calls; `None` for a job that makes none. This and what follows comes from the ledger."""
    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    """What calls under way may still cost."""
    budget_warning: bool = False
    """80 % of the limit are spent or reserved."""
    budget_exceeded: bool = False
    """The run stopped because its next call did not fit into what was left."""
    frozen_budgets: tuple[str, ...] = ()
    """Its own id or a month (`month:2026-11`) whose freeze keeps it from its next paid call until a person has looked:
    a call cost more than was reserved, or could not be priced."""
    stopped_by_freeze: bool = False
    """It stopped because paid calls were frozen then."""

    @property
    def is_paid(self) -> bool:
        """Whether the job may ask a teacher that costs money."""
        return self.config.get("teacher_kind") == "claude" or bool(self.config.get("judge"))

    @property
    def needs_api_key(self) -> bool:
        """Whether it can do anything without a key."""
        return self.is_paid and not self.config.get("teacher_cache_only")


SELECT_RUNS = """
    SELECT runs.*, CASE state WHEN 'queued' THEN
        (SELECT COUNT(*) FROM runs AS ahead WHERE ahead.state = 'queued' AND ahead.queue_order <= runs.queue_order)
        END AS queue_position
    FROM runs
"""
"""SELECT with every column `to_row` needs; the caller adds WHERE and ORDER BY."""

_JSON_COLUMNS = ("config", "latest_metrics", "latest_eval", "baseline_eval", "best_eval")
_HIDDEN_COLUMNS = ("queue_order", "heartbeat_unix_seconds")


def to_row(record: sqlite3.Row, now_unix_seconds: float | None = None) -> RunRow:
    """A `SELECT_RUNS` record as a RunRow."""
    values: dict[str, Any] = {name: record[name] for name in record.keys() if name not in _HIDDEN_COLUMNS}  # noqa: SIM118
    for name in _JSON_COLUMNS:
        values[name] = None if values[name] is None else json.loads(values[name])
    values["stop_requested"] = bool(values["stop_requested"])
    heartbeat: float | None = record["heartbeat_unix_seconds"]
    now = time.time() if now_unix_seconds is None else now_unix_seconds
    is_live = values["state"] in LIVE_STATES
    values["heartbeat_at"] = None if heartbeat is None else _iso(heartbeat)
    values["heartbeat_age_seconds"] = max(0.0, now - heartbeat) if is_live and heartbeat is not None else None
    return RunRow(**values)


def _iso(unix_seconds: float) -> str:
    return iso_utc(datetime.fromtimestamp(unix_seconds, UTC))
