"""What happened to runs, in order: state changes, warnings, checkpoints, metrics. A reader follows by sequence number.

A sequence number is given inside the transaction that makes the change true, and SQLite has one writer at a time:
whoever has seen a number has been able to see every smaller one.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from opd_core.paths import iso_utc
from opd_core.state.database import Database

EventKind = Literal["state", "warning", "checkpoint", "metrics"]

FOLLOWED_METRICS = (
    *("kl_loss", "sft_loss", "total_loss", "kl_divergence_mean", "student_entropy", "teacher_alignment_pct"),
    *("tokens_per_second", "completion_tokens_mean", "truncation_rate", "cumulative_cost_usd"),
    *("held_out_prompts", "task_score", "reverse_kl", "teacher_agreement_pct", "reference_nll", "is_best"),
)
"""What of a metrics line goes into its event: the figures worth watching, so that a step writes some 300 bytes."""
KEPT_METRICS = 512
"""Metrics events kept of a run, the newest; the metric series has the whole curve, thinned."""
PRUNE_EVERY_STEPS = 64


@dataclass(frozen=True)
class Event:
    """One entry; `sequence` only ever grows, over all runs of a home."""

    sequence: int
    run_id: str
    at: str
    kind: EventKind
    message: str
    figures: dict[str, Any] | None = None
    """The run's state, end_reason, step and total_steps at that moment; of metrics also `series` and `metrics`, and
    `earlier_pruned` on the oldest one kept of those that were more. None: written before there were any."""


def add_event(
    connection: sqlite3.Connection,
    run_id: str,
    kind: EventKind,
    message: str,
    now: datetime,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Append inside the caller's transaction, so that the event stands if and only if the change does."""
    connection.execute(
        """
        INSERT INTO events (run_id, at, kind, message, figures) VALUES (?, ?, ?, ?, (
            SELECT json_patch(json_object('state', state, 'end_reason', end_reason, 'step', step,
                'total_steps', total_steps), ?) FROM runs WHERE run_id = ?))
        """,
        (run_id, iso_utc(now), kind, message, json.dumps(figures or {}, allow_nan=False), run_id),
    )


def add_metrics_event(
    connection: sqlite3.Connection, run_id: str, series: str, line: Mapping[str, Any], now: datetime
) -> None:
    """Append the main figures of a metrics line (it has "step"), after the row has got its step; forget old ones."""
    known = {name: _short(line.get(name)) for name in FOLLOWED_METRICS}
    metrics = {name: value for name, value in known.items() if value is not None}
    add_event(connection, run_id, "metrics", "", now, {"step": line["step"], "series": series, "metrics": metrics})
    if line["step"] % PRUNE_EVERY_STEPS == 0:
        _prune(connection, run_id)


def read_newest_events(database: Database, run_id: str | None, limit: int) -> list[Event]:
    """The newest `limit` events other than metrics, oldest first; of one run or all."""
    which, values = ("", ()) if run_id is None else ("run_id = ? AND", (run_id,))
    records = database.read(
        f"SELECT sequence, run_id, at, kind, message, figures FROM events "
        f"WHERE {which} kind <> 'metrics' ORDER BY sequence DESC LIMIT ?",
        (*values, limit),
    )
    return [_event(record) for record in reversed(records)]


def read_feed(database: Database, run_id: str | None, after: int, up_to: int, limit: int) -> list[Event]:
    """Up to `limit` events of every kind, `after` < sequence ≤ `up_to`, oldest first; of one run or all."""
    which, values = ("", ()) if run_id is None else ("run_id = ? AND", (run_id,))
    records = database.read(
        f"SELECT sequence, run_id, at, kind, message, figures FROM events "
        f"WHERE {which} sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
        (*values, after, up_to, limit),
    )
    return [_event(record) for record in records]


def _event(record: sqlite3.Row) -> Event:
    values = dict(record)
    figures = values.pop("figures")
    return Event(**values, figures=None if figures is None else json.loads(figures))


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if isinstance(value, int | bool) else None


def _prune(connection: sqlite3.Connection, run_id: str) -> None:
    """Forget all but the newest metrics events of a run; the oldest one left says so."""
    oldest = connection.execute(
        "SELECT sequence FROM events WHERE run_id = ? AND kind = 'metrics' ORDER BY sequence DESC LIMIT 1 OFFSET ?",
        (run_id, KEPT_METRICS - 1),
    ).fetchone()
    if oldest is None:
        return
    gone = connection.execute(
        "DELETE FROM events WHERE run_id = ? AND kind = 'metrics' AND sequence < ?", (run_id, oldest[0])
    ).rowcount
    if gone:
        connection.execute(
            "UPDATE events SET figures = json_set(figures, '$.earlier_pruned', json('true')) WHERE sequence = ?",
            (oldest[0],),
        )
