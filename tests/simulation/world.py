"""One machine in one thread: processes that take turns, time, locks, signals, and the faults that befall them.

A process is a greenlet. It runs until it meets a seam (a read, a transaction, a lock, a signal, a sleep, a flush, a
message to the teacher), where the seeded scheduler picks who goes on. A killed process is never resumed: no `finally`
of it runs, its locks go, its open transaction is rolled back, as the kernel and SQLite would do it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from opd_core.seams import Seams

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY_SECONDS = 86400.0
OVERSLEEPS = (1.0, 1.0, 40.0, 400.0)  # a sleep may take longer; fewer slices make a schedule shorter


class Violation(AssertionError):
    """A promise was broken; the schedule that led there is in `World.trace`."""


@dataclass(eq=False)
class Process:
    """One simulated process.

    Attributes:
        run: of a worker: the run and the epoch it was started for.
        uses_device: it computes now, and believes the machine to be its own.
        flag: it got SIGTERM.
    """

    number: int
    pid: int
    identity: str
    role: str
    body: Any = None
    run: tuple[str, int] | None = None
    wakes_at: float = 0.0
    is_stopped: bool = False
    is_dead: bool = False
    uses_device: bool = False
    flag: bool = False
    locks: dict[int, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.role}#{self.number}" + (f" {self.run[0]}:{self.run[1]}" if self.run else "")


class World:
    """The scheduler and what processes share.

    Args:
        seed: all that happens follows from it.
        on_death: told of every process that ends, however.
    """

    def __init__(self, seed: int, on_death: Callable[[Process], None]) -> None:
        self.random = random.Random(seed)
        self.seconds, self.calendar_seconds, self.boot = 0.0, 0.0, 1
        self.processes: list[Process] = []
        self.holders: dict[Path, dict[int, Process]] = {}
        self.takes: dict[Path, list[int]] = {}
        self.trace: list[tuple[str, str]] = []
        self.violation: str | None = None
        self.is_over = False
        self.steps = 0
        self.current: Process | None = None
        self._on_death = on_death
        self._hub = getcurrent()
        self._made = self._descriptors = 0
        self._bodies: list[Any] = []
        self.seams = Seams(self.now, lambda: self.seconds, self.sleep, self.token)

    # --- time and chance

    def now(self) -> datetime:
        """The calendar, which a person may set."""
        return START + timedelta(seconds=self.seconds + self.calendar_seconds)

    def token(self, size: int) -> str:
        """Random digits of this schedule."""
        return self.random.randbytes(size).hex()

    def sleep(self, seconds: float) -> None:
        """Let the present process wait at least that long."""
        if self.current is not None:
            self.current.wakes_at = self.seconds + seconds * self.random.choice(OVERSLEEPS)
        self.pause("sleep")

    # --- turns

    def start(
        self, role: str, work: Callable[[Process], None], run: tuple[str, int] | None = None, pid: int | None = None
    ) -> Process:
        """A new process, under a free number; it begins when its turn comes."""
        self._made += 1
        taken = {process.pid for process in self.processes}
        pid = pid or next(pid for pid in range(1, 2 + len(taken)) if pid not in taken)  # soon used again
        process = Process(self._made, pid, f"boot{self.boot} {self._made}", role, run=run)
        process.body = greenlet(lambda: self._live(process, work), self._hub)
        self._bodies.append(process.body)
        self.processes.append(process)
        self.note("started", process)
        return process

    def pause(self, what: str) -> None:
        """A seam: the scheduler decides who goes on, and whether the present process ever does."""
        if self.is_over:
            raise GreenletExit
        if self.current is None:
            return
        self.note(what)
        self._hub.switch()
        if self.is_over:
            raise GreenletExit

    def turn(self, process: Process) -> None:
        """Let a process go on to its next seam."""
        self.steps += 1
        self.current = process
        process.body.switch()
        self.current = None

    def ready(self) -> list[Process]:
        """Who could go on; time passes until somebody can. Empty when nobody ever will."""
        awake = [process for process in self.processes if not process.is_stopped]
        found = [process for process in awake if process.wakes_at <= self.seconds]
        if not found and awake:
            self.seconds = min(process.wakes_at for process in awake)
            found = [process for process in awake if process.wakes_at <= self.seconds]
        self.seconds += 0.02
        return found

    def fail(self, what: str) -> None:
        """A promise is broken: nothing runs after this."""
        if self.violation is None and not self.is_over:
            self.violation = what
            self.note(f"BROKEN: {what}")
            if self.current is not None:
                self._hub.switch()
                raise GreenletExit

    def note(self, what: str, process: Process | None = None) -> None:
        """Write down what happens, for a replay."""
        who = process or self.current
        self.trace.append((str(who) if who else "world", what))

    def end(self) -> None:
        """Unwind what never ended; whatever it tries to do is refused."""
        self.is_over, self.current = True, None
        for body in self._bodies:
            while body and not body.dead:
                body.throw(GreenletExit)

    def _live(self, process: Process, work: Callable[[Process], None]) -> None:
        try:
            work(process)
        except GreenletExit:
            raise
        except BaseException as error:
            if not self.is_over and self.violation is None:
                self.violation = f"{process} met an unexpected {type(error).__name__}: {error}"
        if not self.is_over and not process.is_dead:
            self.note("ended", process)
            self._bury(process)

    # --- deaths

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        if not process.is_dead:
            self.note("killed", process)
            self._bury(process)

    def die(self, what: str) -> None:
        """Kill the present process here; does not return."""
        assert self.current is not None
        self.note(what)
        self.kill(self.current)
        self._hub.switch()
        raise GreenletExit

    def reboot(self) -> None:
        """Every process dies and the machine comes up again."""
        self.note(f"reboot {self.boot}")
        self.boot += 1
        for process in list(self.processes):
            self.kill(process)

    def _bury(self, process: Process) -> None:
        process.is_dead = True
        self.processes.remove(process)
        for descriptor in list(process.locks):
            self._let_go(process, descriptor)
        self._on_death(process)

    # --- locks, as flock has them: they belong to open files, and copies share them

    def take(self, path: Path) -> int | None:
        """Take a lock for the present process, or None when it is held."""
        self.pause(f"lock {path.name}")
        if self.holders.get(path):
            return None
        assert self.current is not None
        self.takes.setdefault(path, []).append(self.current.number)
        return self.hold(self.current, path)

    def hold(self, process: Process, path: Path) -> int:
        """A descriptor of that lock for a process: a new one, or a copy."""
        self._descriptors += 1
        process.locks[self._descriptors] = path
        self.holders.setdefault(path, {})[self._descriptors] = process
        return self._descriptors

    def drop(self, descriptor: int) -> None:
        """Close the present process's descriptor."""
        process = self.current
        if process is not None and not self.is_over:
            self.note(f"unlock {process.locks[descriptor].name}")
            self._let_go(process, descriptor)

    def holds(self, process: Process, path: Path) -> bool:
        """Whether a process has a descriptor of that lock."""
        return path in process.locks.values()

    def forget_locks(self) -> None:
        """Somebody deletes the lock files: their holders hold nothing that others see."""
        self.note("the lock files are deleted")
        self.holders.clear()

    def _let_go(self, process: Process, descriptor: int) -> None:
        path = process.locks.pop(descriptor)
        self.holders.get(path, {}).pop(descriptor, None)
