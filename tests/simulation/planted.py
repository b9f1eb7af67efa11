"""Wrong parts, one of each class of mistake: the simulation must find every one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.errors import StateError
from opd_core.money.ledger import Ledger
from opd_core.state.database import SqlValue
from opd_core.state.metrics import Series
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import JobKind, RunState
from opd_core.worker import Worker
from tests.simulation.job import Habits
from tests.simulation.schedule import Parts
from tests.simulation.system import FULL_RATES, SimKernel, Template


class UnfencedStore(RunStore):
    """Writes of a worker whose epoch has passed go through."""

    def heartbeat(self, run_id: str, epoch: int, **columns: SqlValue) -> RunRow:
        return super().heartbeat(run_id, self.get(run_id).epoch, **columns)

    def append_metrics(
        self, run_id: str, epoch: int, series: Series, line: Mapping[str, Any], **columns: SqlValue
    ) -> RunRow:
        return super().append_metrics(run_id, self.get(run_id).epoch, series, line, **columns)

    def transition(
        self, run_id: str, to: RunState, *, epoch: int | None = None, message: str = "", **columns: SqlValue
    ) -> RunRow:
        return super().transition(run_id, to, epoch=None, message=message, **columns)


class LifoStore(RunStore):
    """The newest run is the next."""

    def next_queued(self) -> RunRow | None:
        rows = self._database.read("SELECT run_id FROM runs WHERE state = 'queued' ORDER BY queue_order DESC LIMIT 1")
        return self.get(rows[0]["run_id"]) if rows else None

    def claim(self, run_id: str, *, if_first: bool = False) -> int:
        return super().claim(run_id)


class ForgetfulStore(RunStore):
    """Knows no request again."""

    def find_request(self, client_request_id: str | None) -> RunRow | None:
        return None

    def create(self, run_id: str, kind: JobKind, config: Mapping[str, Any], **rest: Any) -> RunRow:
        return super().create(run_id, kind, config, **{**rest, "client_request_id": None})


class UnguardedStore(RunStore):
    """Any state may follow any other, and nobody looks who asks."""

    def transition(
        self, run_id: str, to: RunState, *, epoch: int | None = None, message: str = "", **columns: SqlValue
    ) -> RunRow:
        with self._database.write() as connection:
            names = ", ".join(f"{name} = ?" for name in ("state", *columns))
            connection.execute(f"UPDATE runs SET {names} WHERE run_id = ?", (to, *columns.values(), run_id))
        return self.get(run_id)


class HeartbeatSupervisor(Supervisor):
    """Judges life by the age of the last sign of it."""

    def reconcile(self) -> None:
        for row in self._store.live():
            if (row.heartbeat_age_seconds or 0.0) > 60.0:
                self._record_death(row)
        self._ledger.recover(self._hold_owner)


class LazySupervisor(Supervisor):
    """Does not look whether workers live."""

    def reconcile(self) -> None:
        self._ledger.recover(self._hold_owner)


class HastySupervisor(Supervisor):
    """Charges the calls of workers without asking whether they are dead."""

    @contextlib.contextmanager
    def _hold_owner(self, owner: str) -> Iterator[bool]:
        yield True


class GenerousLedger(Ledger):
    """Takes an attempt of which nobody knows the outcome for one that costs nothing."""

    def forfeit(self, call_id: str, reason: str, *, freeze: bool = False) -> None:
        self.release(call_id, reason)


class GenerousHeir(Ledger):
    """Takes the open calls of the dead for calls that cost nothing."""

    def recover(self, hold_owner: Callable[[str], AbstractContextManager[bool]]) -> int:
        rows = self._database.read("SELECT call_id, owner FROM calls WHERE state = 'open'")
        for row in rows:
            with hold_owner(row["owner"]) as is_dead, contextlib.suppress(StateError):
                if is_dead:
                    self.release(row["call_id"], "its worker died")
        return len(rows)


class ForgetfulLedger(Ledger):
    """Leaves the calls of the dead open for ever."""

    def recover(self, hold_owner: Callable[[str], AbstractContextManager[bool]]) -> int:
        return 0


class BlindLedger(Ledger):
    """Does not look whether its guards are in place."""

    def rebuild_check(self) -> None:
        self._is_checked = True


class SharedDeviceKernel(SimKernel):
    """Everybody gets the machine's lock."""

    def take_lock(self, path: Path) -> int | None:
        lock = super().take_lock(path)
        if lock is None and path.name == "device.lock" and self.world.current is not None:
            return self.world.hold(self.world.current, path)
        return lock


class PidKernel(SimKernel):
    """Signals whatever process has the number."""

    def signal(self, pid: int | None, identity: str | None, number: signal.Signals) -> bool:
        return pid is not None and self.send(pid, number)


class HalfHeldKernel(SimKernel):
    """Counts a run's lock as held before it is taken."""

    def spawn(self, command: Any, log: Path, folder: Path, variables: Mapping[str, str], locks: Any) -> None:
        self.world.holders.get(self._held(locks[0]), {}).clear()
        super().spawn(command, log, folder, variables, locks)

    def _held(self, descriptor: int) -> Path:
        assert self.world.current is not None
        return self.world.current.locks[descriptor]


class _NoDrop:
    """The kernel for a worker that has closed this descriptor already."""

    def __init__(self, kernel: Any, gone: int) -> None:
        self._kernel, self._gone = kernel, gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def drop_lock(self, descriptor: int) -> None:
        if descriptor != self._gone:
            self._kernel.drop_lock(descriptor)


class UnlockingWorker(Worker):
    """Lets the run's lock go before it begins."""

    def own(self, run_id: str, epoch: int, pid: int, run_lock: int, device_lock: int) -> int:
        self.kernel.drop_lock(run_lock)
        spare = dataclasses.replace(self, kernel=_NoDrop(self.kernel, run_lock))  # type: ignore[arg-type]
        return Worker.own(spare, run_id, epoch, pid, run_lock, device_lock)


class StrandingWorker(Worker):
    """Gives the machine back before it begins."""

    def own(self, run_id: str, epoch: int, pid: int, run_lock: int, device_lock: int) -> int:
        self.kernel.drop_lock(device_lock)
        spare = dataclasses.replace(self, kernel=_NoDrop(self.kernel, device_lock))  # type: ignore[arg-type]
        return Worker.own(spare, run_id, epoch, pid, run_lock, device_lock)


class PushyRuns(Runs):
    """A resume goes to the head of the queue."""

    def resume(self, run_id: str | None = None, *arguments: Any, **more: Any) -> RunRow:
        row = super().resume(run_id, *arguments, **more)
        with self._store._database.write() as connection:
            connection.execute("UPDATE runs SET queue_order = -number WHERE run_id = ? AND state = 'queued'", (run_id,))
        return row


PLANTED: dict[str, Parts] = {
    "no epoch fence": Parts(store=UnfencedStore),
    "a queue from the wrong end": Parts(store=LifoStore),
    "a start that is not idempotent": Parts(store=ForgetfulStore),
    "states without a guard": Parts(store=UnguardedStore),
    "life judged by heartbeats": Parts(supervisor=HeartbeatSupervisor),
    "deaths not looked for": Parts(supervisor=LazySupervisor),
    "calls of the living charged": Parts(supervisor=HastySupervisor),
    "unknown outcomes released": Parts(ledger=GenerousLedger),
    "calls of the dead released": Parts(ledger=GenerousHeir, rates=FULL_RATES | {"kill": 0.06}),
    "calls of the dead left open": Parts(ledger=ForgetfulLedger),
    "budgets not enforced": Parts(ledger=BlindLedger, template=Template(without="calls_admission")),
    "the machine's lock not held": Parts(kernel=SharedDeviceKernel),
    "the machine given back too early": Parts(worker=StrandingWorker),
    "signals by number alone": Parts(kernel=PidKernel, rates=FULL_RATES | {"kill": 0.06, "stop": 0.06}),
    "the run's lock lost at the start": Parts(kernel=HalfHeldKernel),
    "the run's lock dropped by its worker": Parts(worker=UnlockingWorker),
    "the row before the rename": Parts(habits=Habits(row_first=True)),
    "publication in place": Parts(habits=Habits(in_place=True)),
    "retention that keeps only the oldest": Parts(habits=Habits(prunes_newest=True)),
    "a resume that pushes in": Parts(runs=PushyRuns),
    "files not cut back": Parts(habits=Habits(cuts_back=False)),
}
"""Each is a class of mistake; how many seeds it takes to find it is in the table of `python -m tests.simulation`."""
