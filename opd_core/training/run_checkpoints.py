"""A run's checkpoints as the trainer uses them: what goes into one, and what must hold before a run goes on from one.

Everything a run remembers is in them. No random state is: none lives from one step to the next, since every draw is
made from (seed, step) and the order of the prompts from (seed, pass). The same goes for the schedules and the place in
the prompts, which follow from the step. Replies that were asked for ahead are back before a step ends, so none is in
flight when a checkpoint is written.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from opd_core.checkpoint_files import newest_sound_checkpoint, verify_checkpoint
from opd_core.config import RunConfig
from opd_core.errors import CheckpointError
from opd_core.run_inputs import Inputs, read_accepted, refuse_changes
from opd_core.training.checkpoint import (
    Checkpoint,
    check_fits,
    discard_after,
    load_checkpoint,
    publish_best,
    save_checkpoint,
)
from opd_core.training.lora import Student
from opd_core.training.methods import Method
from opd_core.training.run_memory import RunMemory
from opd_core.training.run_records import RunObserver

METHOD_ARRAYS = "method/"
"""Prefix of a method's own arrays in a checkpoint's optimizer file."""
NO_INPUTS: Mapping[str, str] = MappingProxyType({})
VERSIONED_PACKAGES = ("opd-server", "mlx", "mlx-lm", "transformers", "tokenizers")


class RunCheckpoints:
    """Writes and takes back the checkpoints of one run.

    Args:
        config: as it was asked for, before a probe decided anything.
        inputs: hashes of what the run is trained from.
    """

    def __init__(self, folder: Path, config: RunConfig, inputs: Inputs, observer: RunObserver) -> None:
        self.folder, self._config, self._inputs, self._observer = folder, config, inputs, observer

    def save(self, memory: RunMemory, student: Student, method: Method, prompts: int) -> None:
        """Publish the checkpoint of `memory.step`; `prompts` is how many there are to train on.

        Raises:
            CheckpointError: the disk refused; earlier checkpoints are untouched.
        """
        try:
            positions = self._observer.positions()
        except OSError as error:
            raise CheckpointError(
                f"There is no checkpoint of step {memory.step}: the run's files could not be put on the disk ({error})."
            ) from error
        state = {
            "memory": memory.as_record(),
            "positions": positions,
            "random": {"seed": self._config.seed, "drawn_from": "seed and step; no state is carried over"},
            "data": {"prompts": prompts, "prompts_drawn": memory.step * self._config.batch_size},
            "config": self._config.model_dump(mode="json"),
            "inputs": dict(self._inputs),
            "versions": _versions(),
        }
        arrays = method.updater.optimizer.arrays()
        arrays |= {METHOD_ARRAYS + name: value for name, value in method.arrays().items()}
        config = student.adapter_config or {}
        save_checkpoint(self.folder, memory.step, student.adapter_weights(), config, arrays, state)

    def restore(self, student: Student) -> tuple[Checkpoint, RunMemory] | None:
        """Load the newest checkpoint into the student, and cut everything that came after it; None without one.

        Raises:
            CheckpointError: it is damaged, does not fit the student, or belongs to another configuration or other
                inputs; nothing was changed.
        """
        newest = newest_sound_checkpoint(self.folder)
        if newest is None:
            self._observer.log("no checkpoint to resume from: starting from the first step")
            return None
        saved = load_checkpoint(newest)
        refuse_changes(saved.state, self._config, self._inputs, read_accepted(self.folder))
        check_fits(saved, student.adapter_weights())
        memory = RunMemory.from_record(saved.state["memory"])
        self._tell_other_versions(saved.state)
        student.load_adapter_weights(saved.adapter)
        if memory.best_key is not None:
            self._publish_best_again(memory.best_step)
        discard_after(self.folder, memory.step)
        self._observer.cut_back(saved.state["positions"])
        self._observer.log(f"resumed from {newest.name}")
        return saved, memory

    def load_method(self, method: Method, saved: Checkpoint) -> None:
        """Give the method and its optimizer what the checkpoint holds for them."""
        own = {name: value for name, value in saved.optimizer.items() if name.startswith(METHOD_ARRAYS)}
        rest = {name: value for name, value in saved.optimizer.items() if name not in own}
        method.updater.optimizer.load_arrays(rest)
        method.load_arrays({name.removeprefix(METHOD_ARRAYS): value for name, value in own.items()})

    def _publish_best_again(self, step: int) -> None:
        """A kill may have come between the best checkpoint and the publication of its adapter."""
        best = self.folder / f"step_{step:06d}"
        try:
            verify_checkpoint(best)
        except CheckpointError as error:
            self._observer.log(f"warning: the best adapter stays as it was published: {error}")
            return
        publish_best(self.folder, best)

    def _tell_other_versions(self, state: Mapping[str, Any]) -> None:
        before, now = state.get("versions") or {}, _versions()
        other = [f"{name} {before.get(name)} → {now[name]}" for name in now if before and before.get(name) != now[name]]
        if other:
            self._observer.log(
                f"warning: other versions than before ({', '.join(other)}): the run goes on, though not to the last "
                "bit as it would have"
            )


def _versions() -> dict[str, str]:
    """What the numbers depend on beside the inputs."""
    found = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
