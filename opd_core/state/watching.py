"""Noticing that another process changed the run database, for next to nothing, and seeing which runs it changed."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from opd_core.state.database import Database, SqlValue

BUSY_TIMEOUT_SECONDS = 0.2
MAX_WATCHED = 200

Mark = tuple[SqlValue, ...]
"""What moves in a run's row: two equal marks mean that nothing to tell has happened."""

_MARKS = """
    SELECT run_id, config, state, step, total_steps, epoch, phase, waiting_reason, message, best_step, checkpoint_path
    FROM runs ORDER BY number DESC LIMIT ?
"""


class ChangeWatch:
    """Asks SQLite's `data_version`, which another connection's commit changes, on a connection of its own.

    Never creates the database. One thread at a time.
    """

    def __init__(self, database: Path) -> None:
        self._path = database
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._version: int | None = None

    def changed(self) -> bool:
        """Whether there was a commit since the last time this was asked; the first look at a database says yes."""
        try:
            found = self._path.stat()
            if (found.st_dev, found.st_ino) != self._file:
                self.close()
                self._connection = _open(self._path)
                self._file = (found.st_dev, found.st_ino)
            assert self._connection is not None
            version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        except (OSError, sqlite3.Error):  # there is none (any more), or it is busy; the next look will tell
            self.close()
            return False
        before, self._version = self._version, version
        return version != before

    def close(self) -> None:
        """Forget the connection."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = self._file = self._version = None


def run_marks(database: Database) -> dict[str, Mark]:
    """The newest runs and what moves in them.

    Raises:
        StoreError: as any read.
    """
    return {record["run_id"]: tuple(record)[1:] for record in database.read(_MARKS, (MAX_WATCHED,))}


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False
    )
