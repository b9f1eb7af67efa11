"""What the tests of the ledger share: a clock that stands still, and a look into the file past all our code."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from opd_core.money.ledger import Ledger

MONTH = "month:2026-11"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def reserve(ledger: Ledger, key: str, amount: int = 100, run_id: str = "run", owner: str = "worker") -> str:
    return ledger.reserve(run_id, key, "claude-sonnet-5-5", "2026-10-25", amount, owner)


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Straight from the file, past all our code."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def hold(*dead: str) -> Callable[[str], contextlib.AbstractContextManager[bool]]:
    """Locks that only these owners have let go."""
    return lambda owner: contextlib.nullcontext(owner in dead)
