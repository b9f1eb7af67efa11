"""Starting, judging and stopping workers. One job runs per home; the rest wait in order.

A starter takes the device lock and the run's lock itself and hands both to the worker as open descriptors, so that
there is no moment in which a claimed run has no living owner. Only then is the row claimed. Whoever finds a live row
whose run lock is free knows that its worker is dead. No clock and no process number takes part in that judgement.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from opd_core.control.processes import KERNEL, Kernel
from opd_core.errors import StaleWorkerError, StateError
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.seams import REAL, Seams
from opd_core.settings import KEY_VARIABLE, find_api_key
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore

WORKER_COMMAND = (sys.executable, "-P", "-m", "opd_core.worker")
POLL_SECONDS = 0.05
STOP_SECONDS = 20.0
SAVE_SECONDS = 20.0
MAX_GRACE_SECONDS = 600.0
KILL_WAIT_SECONDS = 5.0
# Whoever judges a run holds its lock for a moment; a starter waits that out.
RUN_LOCK_WAIT_SECONDS = 2.0
PASSED_VARIABLES = frozenset(
    {
        *("HOME", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ"),
        *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"),
        *("LD_LIBRARY_PATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
        *("CUDA_HOME", "CUDA_PATH"),  # MLX compiles kernels with what it finds there
    }
)


def owner_name(run_id: str, epoch: int) -> str:
    """The worker instance that calls in the ledger belong to."""
    return f"{run_id}:{epoch}"


def run_of_owner(owner: str) -> str:
    """The run whose lock such an instance holds for as long as it lives."""
    return owner.rpartition(":")[0]


class Supervisor:
    """Workers of one home. Several may exist at once, in several processes; no truth lives in one.

    Args:
        command: starts a worker; the run and its options are appended.
        leaves_keyless: a job that needs an API key which is not to be had here stays queued. For a worker, which
            has a key only when its own job needed one; a server's next look at the queue starts that job.
        ledger: of the same home; it makes no reservation here.
    """

    def __init__(
        self,
        home: HomePaths,
        store: RunStore,
        command: Sequence[str] = WORKER_COMMAND,
        *,
        leaves_keyless: bool = False,
        ledger: Ledger | None = None,
        kernel: Kernel = KERNEL,
        seams: Seams = REAL,
    ) -> None:
        self._home, self._store, self._command = home, store, tuple(command)
        self._kernel, self._seams = kernel, seams
        self._leaves_keyless = leaves_keyless
        # only a reservation needs the month's limit, and none is made here
        self._ledger = ledger or Ledger(home.database, month_limit_pico=0)

    def reconcile(self) -> None:
        """Record every live run whose worker is dead as `interrupted`, and charge the calls it left open in full."""
        for row in self._store.live():
            lock = self._kernel.take_lock(self._home.run_lock(row.run_id))
            if lock is not None:
                try:
                    self._record_death(row)
                finally:
                    self._kernel.drop_lock(lock)
        self._ledger.recover(self._hold_owner)  # after the deaths: whoever is told of one finds its calls charged

    def start_next_queued(self) -> None:
        """Start the first queued job unless one is running; at most one of any number of racing callers does."""
        while self._store.next_queued() is not None:
            device = self._kernel.take_lock(self._home.device_lock)
            if device is None:
                return  # its holder looks at the queue again after letting go
            try:
                is_over = self._start_first(device)
            finally:
                self._kernel.drop_lock(device)
            if is_over:
                return

    def stop(self, run_id: str, timeout_seconds: float | None = None, force: bool = False) -> RunRow:
        """Ask a run to stop and wait; the row says how far it got (perhaps `stopping`).

        A worker stops at the end of its step with a checkpoint. With `force` it is killed when the time is up, and
        the work since its last checkpoint is lost.

        Args:
            timeout_seconds: how long to wait; None: with `force` as long as a clean stop may take, else 20 seconds.
        """
        if timeout_seconds is None:
            timeout_seconds = self.grace_seconds(run_id) if force else STOP_SECONDS
        row = self._store.request_stop(run_id)
        deadline = self._seams.monotonic() + timeout_seconds
        is_signalled = False
        while row.state == "stopping":
            is_signalled = is_signalled or self._kernel.signal(row.pid, row.process_identity, signal.SIGTERM)
            if self._seams.monotonic() >= deadline:
                return self._kill(row, timeout_seconds) if force else row
            self._seams.sleep(min(POLL_SECONDS, max(0.0, deadline - self._seams.monotonic())))
            self.reconcile()
            row = self._store.get(run_id)
        return row

    def grace_seconds(self, run_id: str) -> float:
        """What a clean stop may take: twice the slowest step so far, and the time to save."""
        slowest = max((line.get("step_seconds") or 0.0 for line in self._store.metrics(run_id)), default=0.0)
        return min(2 * slowest + SAVE_SECONDS, MAX_GRACE_SECONDS)

    def _start_first(self, device: int) -> bool:
        """Claim and start the first queued run, holding the device; False when the queue must be looked at again."""
        row = self._store.next_queued()
        if row is None:
            return False
        if self._leaves_keyless and row.needs_api_key and find_api_key(self._home) is None:
            return True
        run_lock = self._wait_for_lock(row.run_id, RUN_LOCK_WAIT_SECONDS)
        if run_lock is None:
            return True  # somebody holds on to it; a later call tries again
        try:
            epoch = self._store.claim(row.run_id, if_first=True)
            return self._spawn(row, epoch, run_lock, device)
        except StateError:
            return False  # cancelled in the meantime
        finally:
            self._kernel.drop_lock(run_lock)

    def _spawn(self, row: RunRow, epoch: int, run_lock: int, device: int) -> bool:
        """Start the worker in its own session; a failure to start is the end of the run."""
        run_id = row.run_id
        options = ["--home", str(self._home.home), "--epoch", str(epoch), "--locks", f"{run_lock},{device}"]
        try:
            self._kernel.spawn(
                [*self._command, run_id, *options],
                self._home.log(run_id),
                self._home.home,
                self._environment(row),
                (run_lock, device),
            )
        except OSError as error:
            problem = f"The worker could not be started: {error}."
            self._store.finish(run_id, "failed", "error", epoch=epoch, message=problem, error_message=problem)
            return False
        return True

    def _environment(self, row: RunRow) -> dict[str, str]:
        passed = PASSED_VARIABLES | {KEY_VARIABLE} if row.needs_api_key else PASSED_VARIABLES
        kept = {name: value for name, value in os.environ.items() if name in passed or name.startswith("OPD_")}
        own = {"OPD_HOME": str(self._home.home), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        return kept | own

    @contextlib.contextmanager
    def _hold_owner(self, owner: str) -> Iterator[bool]:
        """Hold the lock that the worker of these calls held for life, when it is free: see `Ledger.recover`."""
        lock = self._kernel.take_lock(self._home.run_lock(run_of_owner(owner)))
        try:
            yield lock is not None
        finally:
            if lock is not None:
                self._kernel.drop_lock(lock)

    def _record_death(self, row: RunRow) -> None:
        """Write `interrupted`; the caller holds the run's lock. A worker that recorded its end just before wins."""
        where = f" at step {row.step} of {row.total_steps}" if row.total_steps else ""
        problem = f"The worker process ended{where} without recording a result: {self._why_dead(row)}."
        with contextlib.suppress(StateError, StaleWorkerError):
            self._store.finish(
                row.run_id, "interrupted", "worker_died",
                epoch=row.epoch, message=problem, error_message=problem,
            )  # fmt: skip

    def _why_dead(self, row: RunRow) -> str:
        """As much as can be known: a killed process leaves no word."""
        if row.process_identity is not None and self._kernel.is_of_another_boot(row.process_identity):
            return "the machine was started again in the meantime"
        peak = (row.latest_metrics or {}).get("peak_memory_gb")
        used = f" (at its last step MLX had used up to {peak:.1f} GB)" if isinstance(peak, float) else ""
        return f"it was killed, ran out of memory{used}, or the machine went down"

    def _kill(self, row: RunRow, waited_seconds: float) -> RunRow:
        is_killed = self._kernel.signal(row.pid, row.process_identity, signal.SIGKILL)
        lock = self._wait_for_lock(row.run_id, KILL_WAIT_SECONDS)
        if lock is not None:
            try:
                if is_killed:
                    self._record_kill(row, waited_seconds)
                else:  # its lock is free and nobody was there to kill
                    self._record_death(row)
            finally:
                self._kernel.drop_lock(lock)
            self.start_next_queued()
        return self._store.get(row.run_id)

    def _record_kill(self, row: RunRow, waited_seconds: float) -> None:
        message = f"Killed: it did not stop within {waited_seconds:g} seconds. Work since the last checkpoint is lost."
        with contextlib.suppress(StateError, StaleWorkerError):
            self._store.finish(row.run_id, "stopped", "by_user", epoch=row.epoch, message=message)

    def _wait_for_lock(self, run_id: str, timeout_seconds: float) -> int | None:
        deadline = self._seams.monotonic() + timeout_seconds
        while True:
            lock = self._kernel.take_lock(self._home.run_lock(run_id))
            if lock is not None or self._seams.monotonic() >= deadline:
                return lock
            self._seams.sleep(POLL_SECONDS / 5)
