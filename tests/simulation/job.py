"""A worker's process and its job: the real control of a run, and a training whose weights are a step number."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from opd_core.checkpoint_files import checkpoint_step, discard, list_checkpoints
from opd_core.control.supervisor import owner_name, run_of_owner
from opd_core.errors import TeacherUnavailableError
from opd_core.money.amounts import pico_from_usd
from opd_core.money.ledger import Ledger
from opd_core.state.database import Database
from opd_core.training.checkpoint import discard_after, load_checkpoint, prune_checkpoints, save_checkpoint
from opd_core.worker.jobs import JobContext, JobEnd
from tests.simulation.provider import Clerk, Provider
from tests.simulation.system import Faults, SimKernel
from tests.simulation.world import Process

CHECKPOINT_EVERY = 2
PROMPTS = 3  # few, so that runs ask the same


@dataclass(frozen=True)
class Habits:
    """How a job keeps its files; a planted fault has others.

    Attributes:
        prunes_newest: retention removes the wrong ones.
        row_first: tells of a checkpoint before it stands.
        in_place: writes a checkpoint under its own name.
        cuts_back: returns the files to the checkpoint it goes on from.
    """

    prunes_newest: bool = False
    row_first: bool = False
    in_place: bool = False
    cuts_back: bool = True


@dataclass
class Trainer:
    """The job of one worker process.

    Attributes:
        on_files: told of the run and a step whenever its checkpoints changed; the step once it is published.
    """

    process: Process
    kernel: SimKernel
    faults: Faults
    provider: Provider
    database: Database
    ledger: Ledger
    habits: Habits
    on_files: Callable[[str, int | None], None]
    on_device: Callable[[Process], None]

    def __call__(self, context: JobContext) -> JobEnd:
        """Train to the end, from the newest checkpoint."""
        self.process.uses_device = True
        self.on_device(self.process)
        try:
            return self._train(context)
        finally:
            self.process.uses_device = False

    def _train(self, context: JobContext) -> JobEnd:
        row, recorder, world = context.row, context.recorder, self.kernel.world
        folder = context.home.checkpoints(row.run_id)
        recorder.phase("preparing", "loading")
        clerk = self._hire(context) if row.is_paid else None
        step = saved = self._restore(context, folder)
        recorder.phase("rollout")
        while step < row.total_steps:
            if recorder.should_stop():
                self._save(context, folder, step, saved)
                return JobEnd("stopped", "by_user", f"Stopped after step {step}.")
            recorder.phase("rollout", f"step {step + 1}")
            world.sleep(1.0)
            try:
                if clerk is not None:
                    clerk.ask(f"prompt {step % PROMPTS}")
            except TeacherUnavailableError:
                self._save(context, folder, step, saved)
                raise
            step += 1
            recorder.train_metrics({"step": step, "kl_loss": 1.0 / step})
            if step % CHECKPOINT_EVERY == 0:
                saved = self._save(context, folder, step, saved)
        self._save(context, folder, step, saved)
        return JobEnd("completed", "finished", f"All {step} steps are done.")

    def _restore(self, context: JobContext, folder: Path) -> int:
        found = list_checkpoints(folder)
        if not found:
            discard_after(folder, -1)
            if self.habits.cuts_back:
                context.recorder.cut_back({})
            return 0
        saved = load_checkpoint(found[-1])
        step = checkpoint_step(found[-1])
        discard_after(folder, step)
        if self.habits.cuts_back:
            context.recorder.cut_back(saved.state["positions"])
        return step

    def _save(self, context: JobContext, folder: Path, step: int, saved: int) -> int:
        if step == saved:
            return saved
        run_id, recorder = context.row.run_id, context.recorder
        recorder.phase("checkpoint", f"step {step}")
        weights, state = {"step": mx.array([float(step)])}, {"positions": recorder.positions()}
        if self.habits.row_first:
            recorder.checkpoint(step, folder / f"step_{step:06d}", False)
        if self.habits.in_place:
            (folder / f"step_{step:06d}").mkdir(parents=True)
            self._flush(folder)
        path = save_checkpoint(folder, step, weights, {}, weights, state, self._flush)
        self.on_files(run_id, step)
        prune_checkpoints(folder, None)
        if self.habits.prunes_newest:
            for newest in list_checkpoints(folder)[1:]:
                discard(newest)
        self.on_files(run_id, None)
        self.kernel.world.pause("pruned")
        if not self.habits.row_first:
            recorder.checkpoint(step, path, False)
        return step

    def _flush(self, path: Path) -> None:
        world = self.kernel.world
        if self.process.run is not None:
            self.on_files(self.process.run[0], None)
        world.pause("flush" if path.name.startswith(".tmp") else f"flush {path.name}")  # its name is not of this seed
        if world.random.random() < self.faults.flush:
            world.note("the disk is full")
            raise OSError(errno.ENOSPC, "No space left on device")

    def _hire(self, context: JobContext) -> Clerk:
        """As `worker.jobs._hire` and `teachers.hired`: charge what the dead left open, open the budget."""
        row, kernel = context.row, self.kernel
        owner = owner_name(row.run_id, row.epoch)

        @contextlib.contextmanager
        def hold_owner(other: str) -> Iterator[bool]:
            if run_of_owner(other) == row.run_id:
                yield other != owner
                return
            lock = kernel.take_lock(context.home.run_lock(run_of_owner(other)))
            try:
                yield lock is not None
            finally:
                if lock is not None:
                    kernel.drop_lock(lock)

        self.ledger.recover(hold_owner)
        self.ledger.open_budget(row.run_id, pico_from_usd(row.config["max_budget_usd"]))
        return Clerk(self.provider, context.home, self.database, self.ledger, row.run_id, owner)
