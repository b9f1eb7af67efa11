"""What happened to runs, in order: state changes, warnings, checkpoints. A reader follows by sequence number."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from opd_core.paths import iso_utc
from opd_core.state.database import Database

EventKind = Literal["state", "warning", "checkpoint"]


@dataclass(frozen=True)
class Event:
    """One entry; `sequence` only ever grows, over all runs of a home."""

    sequence: int
    run_id: str
    at: str
    kind: EventKind
    message: str


def add_event(connection: sqlite3.Connection, run_id: str, kind: EventKind, message: str, now: datetime) -> None:
    """Append inside the caller's transaction, so that the event stands if and only if the change does."""
    connection.execute(
        "INSERT INTO events (run_id, at, kind, message) VALUES (?, ?, ?, ?)",
        (run_id, iso_utc(now), kind, message),
    )


def read_events(database: Database, run_id: str | None = None, after: int = 0, limit: int = 100) -> list[Event]:
    """Up to `limit` events with a sequence number above `after`, oldest first; of one run or of all."""
    records = database.read(
        "SELECT sequence, run_id, at, kind, message FROM events "
        "WHERE sequence > ? AND (? IS NULL OR run_id = ?) ORDER BY sequence LIMIT ?",
        (after, run_id, run_id, limit),
    )
    return [Event(**dict(record)) for record in records]
