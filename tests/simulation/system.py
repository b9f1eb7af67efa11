"""The seams of the real code, in a simulated machine: its kernel, and its database with faults."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_core.control.processes import Kernel
from opd_core.errors import StoreError
from opd_core.state.database import BUSY_TIMEOUT_SECONDS, Database, SqlValue
from opd_core.state.migrations import migrate
from tests.simulation.world import World


@dataclass
class Faults:
    """How likely each fault is, at each chance it has; all 0 when the storm is over.

    Attributes:
        kill, stop, reboot, clock, locks: at every turn. `locks`: somebody deletes the lock files.
        commit: a process dies with its transaction written and not committed.
        full, busy: of a transaction. spawn: of a start. flush: of a flush of a checkpoint's file.
        outage: of a call: the teacher goes away for long. lost: of a call: it is billed, and no reply comes.
        again: a request is delivered twice.
    """

    kill: float = 0.0
    stop: float = 0.0
    reboot: float = 0.0
    clock: float = 0.0
    locks: float = 0.0
    commit: float = 0.0
    full: float = 0.0
    busy: float = 0.0
    spawn: float = 0.0
    flush: float = 0.0
    outage: float = 0.0
    lost: float = 0.0
    again: float = 0.0


FULL_RATES = {
    **{"kill": 0.02, "stop": 0.01, "reboot": 0.004, "clock": 0.01, "locks": 0.004, "commit": 0.02, "full": 0.02},
    **{"busy": 0.02, "spawn": 0.15, "flush": 0.04, "outage": 0.15, "lost": 0.15, "again": 0.3},
}
"""A schedule has each kind or not, so that every mixture comes to pass."""


class SimKernel(Kernel):
    """Locks, signals and starts in a World.

    Args:
        begin: makes the process of a worker out of its command line and copies of its locks.
        may_signal: told the target of each signal.
    """

    def __init__(
        self,
        world: World,
        faults: Faults,
        begin: Callable[[Sequence[str], Sequence[int]], None],
        may_signal: Callable[[int], bool],
    ) -> None:
        self.world, self._faults, self._begin, self._may_signal = world, faults, begin, may_signal

    def take_lock(self, path: Path) -> int | None:
        return self.world.take(path)

    def drop_lock(self, descriptor: int) -> None:
        self.world.drop(descriptor)

    def identity(self, pid: int) -> str | None:
        return next((process.identity for process in self.world.processes if process.pid == pid), None)

    def send(self, pid: int, number: signal.Signals) -> bool:
        target = next((process for process in self.world.processes if process.pid == pid), None)
        if target is None:
            return False
        self.world.note(f"{number.name} to {target}")
        if not self._may_signal(pid):
            self.world.fail(f"{number.name} was sent to {target}, which nobody asked to stop")
        if number == signal.SIGKILL:
            self.world.kill(target)
        else:
            target.flag = True
        return True

    def spawn(
        self, command: Sequence[str], log: Path, folder: Path, variables: Mapping[str, str], locks: Sequence[int]
    ) -> None:
        self.world.pause("spawn")
        if self.world.random.random() < self._faults.spawn:
            self.world.note("spawn failed")
            raise OSError("no more processes")
        self._begin(command, locks)
        self.world.pause("spawned")


class SimDatabase(Database):
    """One process's connection; all share one file in memory, and no turn ends inside a transaction.

    Args:
        check: called after every commit, before anything else happens.
    """

    def __init__(self, world: World, connection: sqlite3.Connection, faults: Faults, check: Callable[[], None]) -> None:
        super().__init__(Path("opd.db"))
        self._world, self._shared, self._faults, self._check = world, connection, faults, check

    def read(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[sqlite3.Row]:
        world = self._world
        world.pause("read")
        if self._faults.busy and world.random.random() < self._faults.busy / 10:
            world.sleep(BUSY_TIMEOUT_SECONDS)
            world.note("the database is busy")
            raise StoreError("The run database is busy. Call again.")
        return super().read(sql, parameters)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        world = self._world
        world.pause("write")
        drawn, faults = world.random.random(), self._faults
        is_busy, is_full = drawn < faults.busy, faults.busy <= drawn < faults.busy + faults.full
        if is_busy:
            world.sleep(BUSY_TIMEOUT_SECONDS)
        with super().write() as connection:
            if is_busy:
                world.note("the database is busy")
                raise sqlite3.OperationalError("database is locked")
            yield connection
            if is_full:
                world.note("the disk is full")
                raise sqlite3.OperationalError("database or disk is full")
            if world.current is not None and world.random.random() < faults.commit:
                world.die("died before its commit")
        self._check()
        world.pause("committed")

    def close(self) -> None:
        """The shared connection stays."""

    def _exists(self) -> bool:
        return True

    def _connection(self) -> sqlite3.Connection:
        return self._shared


class Template:
    """An empty database of the real schema; each schedule begins with a copy."""

    def __init__(self, without: str | None = None) -> None:
        """`without`: a trigger to leave out."""
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self._connection, Path(":memory:"))
        if without is not None:
            self._connection.execute(f"DROP TRIGGER {without}")

    def fresh(self) -> sqlite3.Connection:
        """A copy, opened as `state.database` opens a file."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.backup(connection)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys=ON")
        return connection
