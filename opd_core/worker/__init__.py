"""The process that owns one job: started by the supervisor, ends with exactly one recorded result.

    supervisor: locks, claims the row, starts this with the locks and the epoch
    here:       adopt the row → run the job → record its end → let the locks go → start the next queued job → exit

Signals only set a flag, which the job asks for at every step. Whatever is printed goes to the run's log.
"""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from opd_core.allocator import give_back_memory
from opd_core.control.processes import KERNEL, Kernel
from opd_core.control.supervisor import WORKER_COMMAND, Supervisor
from opd_core.errors import (
    BudgetExceededError,
    BudgetFrozenError,
    OPDError,
    StaleWorkerError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
    TrainingError,
)
from opd_core.paths import HomePaths
from opd_core.seams import REAL, Seams
from opd_core.state.database import Database
from opd_core.state.recorder import RunRecorder
from opd_core.state.run_log import RunLog
from opd_core.state.store import RunStore
from opd_core.types import EndReason, JobKind, clean_text
from opd_core.worker.jobs import JOBS, WORKER_BUSY_SECONDS, Job, JobContext, JobEnd, published_adapter
from opd_core.worker.out_of_memory import out_of_memory_message

WAIT_SLICE_SECONDS = 0.25


def main(
    arguments: Sequence[str] | None = None,
    jobs: Mapping[JobKind, Job] = JOBS,
    command: Sequence[str] = WORKER_COMMAND,
) -> int:
    """Own one job from its claim to its end; returns the exit status.

    Args:
        jobs: what runs each kind of job.
        command: starts the worker of the next queued job.
    """
    os.umask(0o077)
    faulthandler.enable()
    options = parse(arguments)
    run_lock, device_lock = (int(number) for number in options.locks.split(","))
    for lock in (run_lock, device_lock):
        os.set_inheritable(lock, False)  # a child that kept a copy would keep this job "alive" after its end
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours already; fails if it was not handed over
    signals = _StopFlag()
    home = HomePaths(Path(options.home))
    RunLog(home.log(options.run_id)).watch()
    store = RunStore(Database(home.database, WORKER_BUSY_SECONDS))
    supervisor = Supervisor(home, store, command, leaves_keyless=True)
    worker = Worker(home, store, supervisor, jobs, signals.is_set)
    return worker.own(options.run_id, options.epoch, os.getpid(), run_lock, device_lock)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the supervisor put on the command line."""
    parser = argparse.ArgumentParser(prog="opd_core.worker", description="Started by the supervisor, not by hand.")
    parser.add_argument("run_id")
    parser.add_argument("--home", required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--locks", required=True, help="descriptors of the run lock and the device lock")
    return parser.parse_args(arguments)


class _StopFlag:
    """Set by SIGTERM or SIGINT; the handlers do nothing else."""

    def __init__(self) -> None:
        self._is_set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def is_set(self) -> bool:
        return self._is_set

    def _set(self, number: int, frame: object) -> None:
        self._is_set = True


class _Device:
    """The machine, held by one job at a time."""

    def __init__(self, lock: int, home: HomePaths, supervisor: Supervisor, kernel: Kernel) -> None:
        self._lock: int | None = lock
        self._home, self._supervisor, self._kernel = home, supervisor, kernel

    def give_back(self) -> None:
        """Let it go and start the next queued job on it."""
        if self._lock is not None:
            self._kernel.drop_lock(self._lock)
            self._lock = None
        self._supervisor.start_next_queued()

    def take(self) -> bool:
        """Get it again, if no other job has it."""
        self._lock = self._kernel.take_lock(self._home.device_lock)
        return self._lock is not None


def _free_memory() -> None:
    """Give the models' memory back: the next job needs it."""
    gc.collect()
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.clear_cache()
    give_back_memory()


@dataclass(frozen=True)
class Worker:
    """A worker's control of its one job, apart from the process it runs in.

    Attributes:
        jobs: what runs each kind of job.
        stop_signalled: whether this process was told to stop.
        free_memory: called before the machine is given back for a while.
    """

    home: HomePaths
    store: RunStore
    supervisor: Supervisor
    jobs: Mapping[JobKind, Job]
    stop_signalled: Callable[[], bool]
    kernel: Kernel = KERNEL
    seams: Seams = REAL
    free_memory: Callable[[], None] = _free_memory

    def own(self, run_id: str, epoch: int, pid: int, run_lock: int, device_lock: int) -> int:
        """Adopt the row, run the job, record its end, let the locks go, start the next one; the exit status."""
        device = _Device(device_lock, self.home, self.supervisor, self.kernel)
        try:
            row = self.store.adopt(run_id, epoch, pid, self.kernel.identity(pid))
            recorder = RunRecorder(self.store, self.home, row, self.stop_signalled, self.seams)
            status = _run(JobContext(row, self.home, self.store, recorder), self, device)
        except StaleWorkerError as error:
            print(f"this worker has no run any more: {error}", file=sys.stderr)
            return 0
        self.kernel.drop_lock(run_lock)
        device.give_back()
        return status


def _run(context: JobContext, worker: Worker, device: _Device) -> int:
    """Run the job and record its one end; StaleWorkerError passes through."""
    row, store = context.row, context.store
    context.recorder.log(f"{row.kind} {row.run_id}, epoch {row.epoch}, process {os.getpid()}")
    try:
        end = _work(context, worker, device)
    except StaleWorkerError:
        raise
    except BaseException as error:
        if isinstance(error, OPDError):
            context.recorder.log(f"failed: {error}")  # said in full already; a traceback would only bury it
        else:
            traceback.print_exc()
        reason: EndReason = "diverged" if isinstance(error, TrainingError) else "error"
        told = str(error) if isinstance(error, OPDError) else (out_of_memory_message(error) or _unexpected(error))
        store.finish(
            row.run_id, "failed", reason, epoch=row.epoch, message=told, error_message=told,
            **_known({"final_adapter_path": published_adapter(context)}),
        )  # fmt: skip
        return 1
    columns: dict[str, Any] = {
        "best_step": end.best_step, "final_adapter_path": end.final_adapter_path, "result_path": end.result_path,
    }  # fmt: skip
    context.recorder.log(f"{end.state}: {end.message}")
    store.finish(row.run_id, end.state, end.reason, epoch=row.epoch, message=end.message, **_known(columns))
    return 0


def _known(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that have a value, paths as text."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in columns.items() if value is not None
    }


def _work(context: JobContext, worker: Worker, device: _Device) -> JobEnd:
    """The job to its end. While its teacher cannot be asked for long, the machine belongs to the rest of the queue."""
    while True:
        try:
            return worker.jobs[context.row.kind](context)
        except (BudgetExceededError, BudgetFrozenError) as error:
            return JobEnd("stopped", "budget", str(error))
        except TeacherRefusedError as error:
            return JobEnd("stopped", "teacher_refused", str(error))
        except TeacherStoppedError:
            return JobEnd("stopped", "by_user", "Stopped by request.")
        except TeacherUnavailableError as error:
            if error.wake_in_seconds is None:
                raise
            reason, seconds = str(error), error.wake_in_seconds
        if not _sit_out(context, worker, device, reason, seconds):
            message = "Stopped by request while it waited for the teacher."
            return JobEnd("stopped", "by_user", message, final_adapter_path=published_adapter(context))


def _sit_out(context: JobContext, worker: Worker, device: _Device, reason: str, seconds: float) -> bool:
    """Wait without the machine, then get it again; False when a stop was asked for."""
    recorder, seams = context.recorder, worker.seams
    # Over when either clock says so: the calendar may be set back, the other one stands while a laptop sleeps.
    wake_at, wake_monotonic = seams.now() + timedelta(seconds=seconds), seams.monotonic() + seconds
    recorder.log(f"waiting {seconds:.0f} seconds: {reason}")
    recorder.waiting(reason, seconds)
    worker.free_memory()
    device.give_back()
    while (seams.now() < wake_at and seams.monotonic() < wake_monotonic) or not device.take():
        if recorder.should_stop():
            return False
        seams.sleep(WAIT_SLICE_SECONDS)
    recorder.waiting("", 0.0)
    return True


def _unexpected(error: BaseException) -> str:
    return (
        f"The worker met an unexpected {type(error).__name__}: {clean_text(str(error), 300)}. "
        "The whole traceback is in the run's log."
    )
