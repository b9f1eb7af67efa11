"""One SQLite file, driven by hand: how it is opened, locked, read and written.

Every write is one `BEGIN IMMEDIATE` transaction: a deferred one that reads first and writes later fails at once with
SQLITE_BUSY_SNAPSHOT instead of waiting. Several servers and one worker share the file, so nothing is cached.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from opd_core.errors import StoreError
from opd_core.state.migrations import migrate, refuse_newer

BUSY_TIMEOUT_SECONDS = 10.0
SqlValue = str | int | float | None

WAL_FIXED_FROM = (3, 51, 3)
WAL_BACKPORTS = {(3, 50): 7, (3, 44): 6}


def journal_mode(version: tuple[int, int, int]) -> str:
    """WAL where the library cannot lose committed data with it, else DELETE.

    SQLite 3.7.0 to 3.51.2 can corrupt a WAL file that several connections use (the WAL-reset bug); fixed in
    3.51.3 and in the backports 3.50.7 and 3.44.6.
    """
    backport = WAL_BACKPORTS.get(version[:2])
    fixed = version >= WAL_FIXED_FROM or (backport is not None and version[2] >= backport)
    return "wal" if fixed else "delete"


class _Handle:
    """A connection that is closed with the thread that opened it, and never by a forked child."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.pid = os.getpid()

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.connection.close()


class Database:
    """The run database at `path`: one connection for each thread and process, made when first needed.

    Args:
        busy_timeout_seconds: how long a call waits while another process holds the file; BUSY_TIMEOUT_SECONDS if None.
    """

    def __init__(self, path: Path, busy_timeout_seconds: float | None = None) -> None:
        self.path = path
        self._busy_timeout_seconds = BUSY_TIMEOUT_SECONDS if busy_timeout_seconds is None else busy_timeout_seconds
        self._local = threading.local()

    @staticmethod
    def at(place: Path | Database) -> Database:
        """The database of a path; one that is made already stays itself."""
        return place if isinstance(place, Database) else Database(place)

    def read(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[sqlite3.Row]:
        """The rows of one SELECT; none when there is no database yet (asking must not create one).

        Raises:
            StoreError: the database is busy, damaged or of a newer version.
        """
        if not self._exists():
            return []
        with self._plain_errors():
            return self._connection().execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One IMMEDIATE transaction: committed when the block ends, rolled back when it raises.

        Raises:
            StoreError: as `read`, and when the disk is full.
        """
        with self._plain_errors():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        self._local.__dict__.pop("handle", None)

    def _exists(self) -> bool:
        try:
            return self.path.exists()
        except OSError:  # a folder above it that may not be entered
            return False

    def _connection(self) -> sqlite3.Connection:
        handle: _Handle | None = getattr(self._local, "handle", None)
        if handle is None or handle.pid != os.getpid():
            handle = _Handle(_open(self.path, self._busy_timeout_seconds))
            self._local.handle = handle
        return handle.connection

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours; after one the connection is not trusted any more."""
        try:
            yield
        except sqlite3.Error as error:
            self.close()
            told = _reason(error, self._busy_timeout_seconds)
            raise StoreError(f"The run database {self.path} {told}") from error


def _open(path: Path, busy_timeout_seconds: float) -> sqlite3.Connection:
    """Connect, set what SQLite leaves off, and bring the schema up to date."""
    # SQLite would create the file with the process's umask; its journal copies this mode.
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # Connections stay in their thread; the check is off only because `_Handle` may be collected in another one.
    connection = sqlite3.connect(path, timeout=busy_timeout_seconds, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")  # macOS: through the drive's cache; nothing elsewhere
        refuse_newer(connection, path)  # before the journal's mode is changed: that is a write
        wanted = journal_mode(sqlite3.sqlite_version_info[:3])
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            connection.execute(f"PRAGMA journal_mode={wanted}")
        migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _reason(error: sqlite3.Error, busy_timeout_seconds: float) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"is busy: another process held it for over {busy_timeout_seconds:g} seconds. Call again."
    if "full" in text:
        return "cannot grow: the disk is full. Free some space and call again."
    if "readonly" in text or "unable to open" in text:
        return f"cannot be written ({text}). Make it and its folder writable, or set OPD_HOME to another folder."
    return (
        f"failed: {text}. If it is damaged, move it away; a new one is made at the next call, and "
        "`opd doctor --repair` records runs again from their configurations and checkpoints."
    )
