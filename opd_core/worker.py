"""The process that owns one job: started by the supervisor, ends with exactly one recorded result.

    supervisor: locks, claims the row, starts this with the locks and the epoch
    here:       adopt the row → run the job → record its end → let the locks go → start the next queued job → exit

Signals only set a flag, which the job asks for at every step. Whatever is printed goes to the run's log.
"""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_core import blas
from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.control.processes import process_identity
from opd_core.control.supervisor import WORKER_COMMAND, Supervisor
from opd_core.errors import OPDError, StaleWorkerError, TrainingError
from opd_core.paths import HomePaths, write_json
from opd_core.run_prompts import load_run_prompts
from opd_core.state.recorder import RunRecorder
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import EndReason, JobKind, RunState, clean_text

if TYPE_CHECKING:
    from opd_core.training.trainer import TrainingOutcome


@dataclass(frozen=True)
class JobContext:
    """What a job gets: its row, the home, the store for other runs' rows, and who records what it does."""

    row: RunRow
    home: HomePaths
    store: RunStore
    recorder: RunRecorder


@dataclass(frozen=True)
class JobEnd:
    """How a job ended when it did not fail."""

    state: RunState
    reason: EndReason
    message: str
    best_step: int | None = None
    final_adapter_path: Path | None = None
    result_path: Path | None = None


Job = Callable[[JobContext], JobEnd]


def distil(context: JobContext) -> JobEnd:
    """Run a distillation from its resolved configuration; goes on from the newest checkpoint when there is one."""
    config = parse_config(context.row.config)
    folder = checkpoint_folder(context.home, context.row.run_id, config)
    context.recorder.phase("preparing", "reading prompts")
    prompts = load_run_prompts(config)
    _load_blas(context.recorder)
    from opd_core.teachers import build_teacher
    from opd_core.training.trainer import train

    resume = any(folder.glob("step_*/MANIFEST.json"))
    outcome = train(config, folder, prompts.train, prompts.held_out, build_teacher, context.recorder, resume=resume)
    return _training_end(outcome)


def compare(context: JobContext) -> JobEnd:
    """Evaluate several adapters on the same held-out prompts; the result is one JSON file."""
    spec = ComparisonSpec.model_validate(context.row.config)
    config = parse_config(context.store.get(spec.run_id).config)
    _load_blas(context.recorder)
    from opd_core.teachers import build_teacher
    from opd_core.training import compare as comparing

    result = comparing.compare(spec, config, build_teacher, context.recorder)
    if result is None:
        return JobEnd("stopped", "by_user", "Stopped by request; there is no result.")
    path = context.home.result(context.row.run_id)
    write_json(path, result)
    return JobEnd("completed", "finished", f"Compared {len(spec.candidates)} adapters.", result_path=path)


JOBS: Mapping[JobKind, Job] = {"distillation": distil, "comparison": compare}


def checkpoint_folder(home: HomePaths, run_id: str, config: RunConfig) -> Path:
    """Where a run's adapter and checkpoints lie: under OPD_HOME, or in a folder that a person allowed."""
    return Path(config.checkpoint_dir) / run_id if config.checkpoint_dir else home.checkpoints(run_id)


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
    options = _parse(arguments)
    locks = [int(number) for number in options.locks.split(",")]
    for lock in locks:
        os.set_inheritable(lock, False)  # a child that kept a copy would keep this job "alive" after its end
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours already; fails if it was not handed over
    signals = _StopFlag()
    home = HomePaths(Path(options.home))
    store = RunStore(home.database)
    identity = process_identity(os.getpid())
    try:
        row = store.adopt(options.run_id, options.epoch, os.getpid(), identity)
        status = _run(JobContext(row, home, store, RunRecorder(store, home, row, signals.is_set)), jobs)
    except StaleWorkerError as error:
        print(f"this worker has no run any more: {error}", file=sys.stderr)
        return 0
    for lock in locks:
        os.close(lock)
    Supervisor(home, store, command).start_next_queued()
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
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


def _run(context: JobContext, jobs: Mapping[JobKind, Job]) -> int:
    """Run the job and record its one end; StaleWorkerError passes through."""
    row, store = context.row, context.store
    context.recorder.log(f"{row.kind} {row.run_id}, epoch {row.epoch}, process {os.getpid()}")
    try:
        end = jobs[row.kind](context)
    except StaleWorkerError:
        raise
    except BaseException as error:
        traceback.print_exc()
        reason: EndReason = "diverged" if isinstance(error, TrainingError) else "error"
        told = str(error) if isinstance(error, OPDError) else _unexpected(error)
        store.finish(row.run_id, "failed", reason, epoch=row.epoch, message=told, error_message=told)
        return 1
    columns: dict[str, Any] = {
        "best_step": end.best_step, "final_adapter_path": end.final_adapter_path, "result_path": end.result_path,
    }  # fmt: skip
    known = {
        name: str(value) if isinstance(value, Path) else value for name, value in columns.items() if value is not None
    }
    context.recorder.log(f"{end.state}: {end.message}")
    store.finish(row.run_id, end.state, end.reason, epoch=row.epoch, message=end.message, **known)
    return 0


def _training_end(outcome: TrainingOutcome) -> JobEnd:
    is_complete = outcome.end_reason in ("finished", "early_stop")
    path = outcome.adapter_path
    return JobEnd(
        state="completed" if is_complete else "stopped",
        reason=outcome.end_reason,
        message=outcome.message,
        best_step=outcome.best_step,
        # a run stopped before its first evaluation has published nothing
        final_adapter_path=path if (path / "adapters.safetensors").exists() else None,
    )


def _unexpected(error: BaseException) -> str:
    return (
        f"The worker met an unexpected {type(error).__name__}: {clean_text(str(error), 300)}. "
        "The whole traceback is in the run's log."
    )


def _load_blas(recorder: RunRecorder) -> None:
    """Before anything imports MLX, else its slow reference BLAS stays."""
    found = blas.load_fast_blas()
    recorder.log(f"BLAS: {found.source} ({found.reason})")


if __name__ == "__main__":
    sys.exit(main())
