"""A run from the loaded models to the best adapter: baseline, steps, evaluations, checkpoints, the end.

Returns values and calls an observer; it opens no database and knows no server. Everything random is drawn from
(seed, step), so a run resumed from a checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import mlx.core as mx
from mlx.utils import tree_unflatten

from opd_core.config import RunConfig
from opd_core.errors import CheckpointError, TrainingError
from opd_core.prompt_files import PromptExample
from opd_core.training import checkpoint as checkpoints
from opd_core.training.arrays import flat
from opd_core.training.evaluator import Evaluation, evaluate
from opd_core.training.lora import LoadedBase, NewAdapter, Student, load_base, make_student
from opd_core.training.step import Updater, batch_for_step, draw_rollouts, step_line
from opd_core.training.teaching import TokenTeacher
from opd_core.types import EndReason, Rollout

MAX_SKIPPED_IN_A_ROW = 3
PrimaryMetric = Literal["task_score", "reverse_kl"]
BuildTeacher = Callable[[RunConfig, LoadedBase], TokenTeacher]


class RunObserver(Protocol):
    """Who records what the trainer does. Calls come often and must return quickly."""

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None: ...

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None: ...

    def train_metrics(self, line: dict[str, object]) -> None: ...

    def eval_metrics(self, line: dict[str, object]) -> None: ...

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None: ...

    def log(self, message: str) -> None: ...

    def should_stop(self) -> bool: ...

    def positions(self) -> dict[str, int]: ...

    def cut_back(self, positions: dict[str, int]) -> None: ...


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended; `message` is one sentence for people."""

    end_reason: EndReason
    final_step: int
    best_step: int
    best_value: float | None
    primary_metric: str
    adapter_path: Path
    message: str


@dataclass
class _Memory:
    """What must survive a restart beside the weights."""

    step: int = 0
    best_step: int = 0
    best_key: tuple[float, float] | None = None
    best_value: float | None = None
    baseline_value: float | None = None
    evaluations_without_better: int = 0
    last_evaluated_step: int = -1


def train(
    config: RunConfig,
    folder: Path,
    train_examples: Sequence[PromptExample],
    held_out_examples: Sequence[PromptExample],
    build_teacher: BuildTeacher,
    observer: RunObserver,
    *,
    resume: bool,
) -> TrainingOutcome:
    """Run the configured distillation; checkpoints and the best adapter go to `folder`.

    Raises:
        ModelFileError, CompatibilityError, ConfigError: model, adapter and teacher do not fit; nothing was trained.
        CheckpointError: a checkpoint could not be written or, on resume, read.
        TrainingError: the loss stopped being finite; the last good checkpoint stands.
    """
    observer.phase("preparing", "loading the student")
    base = load_base(Path(config.base_model_path))
    for note in base.notes:
        observer.log(note)
    adapter = Path(config.student_adapter_path) if config.student_adapter_path else None
    new = None if adapter else NewAdapter(
        config.lora_rank or 32, config.lora_scale or 2.0, config.lora_keys, config.use_dora
    )  # fmt: skip
    student = make_student(base, adapter, new, config.seed)
    observer.phase("preparing", "loading the teacher")
    teacher = build_teacher(config, base)
    observer.log(f"student {base.path.name}, teacher {teacher.name}, device {mx.default_device()}")
    held_out = list(held_out_examples)[: config.eval_max_samples]
    return _Run(config, folder, list(train_examples), held_out, student, teacher, observer).run(resume)


class _Run:
    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        train_examples: list[PromptExample],
        held_out: list[PromptExample],
        student: Student,
        teacher: TokenTeacher,
        observer: RunObserver,
    ) -> None:
        self.config, self.folder, self.observer = config, folder, observer
        self.train_examples, self.held_out = train_examples, held_out
        self.student, self.teacher = student, teacher
        self.updater = Updater(student, teacher, config)
        self.primary: PrimaryMetric = "task_score" if config.primary_metric == "task_score" else "reverse_kl"
        self.memory = _Memory()
        self.saved_step = -1

    def run(self, resume: bool) -> TrainingOutcome:
        self._restore() if resume else self.observer.cut_back({})
        memory, config = self.memory, self.config
        skipped = 0
        while True:
            if self._evaluation_owed() and not self._evaluate():
                return self._outcome("by_user", f"Stopped by request after step {memory.step}.")
            if self._out_of_patience():
                return self._outcome(
                    "early_stop", f"No better {self.primary} in {memory.evaluations_without_better} evaluations."
                )
            if memory.step >= config.num_training_steps:
                return self._outcome("finished", f"All {memory.step} steps are done.")
            if memory.step and memory.step % config.checkpoint_every_steps == 0:
                self._save()
            line = self._step(memory.step + 1)
            if line is None:
                return self._outcome("by_user", f"Stopped by request after step {memory.step}.")
            skipped = skipped + 1 if line["update_skipped"] else 0
            if skipped >= MAX_SKIPPED_IN_A_ROW:
                raise TrainingError(
                    f"The loss was not finite for {skipped} steps in a row, up to step {memory.step}; the adapter "
                    f"of step {memory.best_step} is kept. Start again with a lower learning_rate."
                )

    def _evaluation_owed(self) -> bool:
        """At the start, every `eval_every_steps` and at the end; also after a stop that cut one short."""
        step = self.memory.step
        due = step % self.config.eval_every_steps == 0 or step >= self.config.num_training_steps
        return due and self.memory.last_evaluated_step != step

    def _step(self, step: int) -> dict[str, object] | None:
        """One training step; None when a stop was asked for before it was complete."""
        config, observer = self.config, self.observer
        if observer.should_stop():
            return None
        observer.phase("rollout", f"step {step}")
        examples = batch_for_step(self.train_examples, step, config.batch_size, config.seed)
        started = time.perf_counter()
        rollouts = draw_rollouts(self.student, examples, config, step, observer.should_stop)
        rollout_seconds = time.perf_counter() - started
        if not rollouts:
            return None
        observer.rollouts("train", step, rollouts)
        observer.phase("update", f"step {step}")
        result = self.updater.update(rollouts, examples if config.use_sft_mixup else (), step)
        self.memory.step = step
        line = step_line(step, rollouts, result, config, rollout_seconds)
        line["checkpoint_path"] = str(self.folder / f"step_{self.memory.best_step:06d}")
        line["is_best"] = False
        line["peak_memory_gb"] = mx.get_peak_memory() / 1e9
        observer.train_metrics(line)
        return line

    def _evaluate(self) -> bool:
        """Evaluate, and publish the adapter when it is the best so far; False when stopped on the way."""
        observer, memory = self.observer, self.memory
        is_last = memory.step >= self.config.num_training_steps
        phase = "baseline_eval" if memory.step == 0 else "final_eval" if is_last else "evaluation"
        started = time.perf_counter()
        found = evaluate(
            self.student,
            self.teacher,
            self.held_out,
            max_tokens=self.config.rollout_max_tokens,
            check=self.config.check,
            extractor=self.config.extractor,
            step=memory.step,
            on_progress=lambda done, total: observer.phase(phase, f"{done} of {total} held-out prompts", done / total),
            should_stop=observer.should_stop,
        )
        if found is None:
            return False
        observer.rollouts("val", memory.step, found.rollouts)
        is_best = self._remember(found)
        line: dict[str, object] = {"step": memory.step, **found.summary(), "primary_metric": self.primary}
        line |= {"is_best": is_best, "best_step": memory.best_step, "best_value": memory.best_value}
        line["eval_seconds"] = time.perf_counter() - started
        observer.eval_metrics(line)
        if is_best:
            self._save(is_best)
        return True

    def _remember(self, found: Evaluation) -> bool:
        """Take an evaluation into the run's memory; True when its primary metric is the best so far."""
        memory, summary = self.memory, found.summary()
        reverse_kl = float(summary["reverse_kl"] or 0.0)
        if not math.isfinite(reverse_kl):
            raise TrainingError(
                f"The held-out reverse KL at step {memory.step} is not a finite number: model or teacher is damaged "
                "or training went astray. Check both with list_models, or start again with a lower learning_rate."
            )
        score = float(summary["task_score"] or 0.0)
        # the other figure breaks a tie: a score that stands at its ceiling still has a divergence to lower
        key = (score, -reverse_kl) if self.primary == "task_score" else (-reverse_kl, score)
        value = score if self.primary == "task_score" else reverse_kl
        memory.last_evaluated_step = memory.step
        if memory.baseline_value is None:
            memory.baseline_value = value
        if memory.best_key is not None and key <= memory.best_key:
            memory.evaluations_without_better += 1
            return False
        memory.best_key, memory.best_value, memory.best_step = key, value, memory.step
        memory.evaluations_without_better = 0
        return True

    def _save(self, is_best: bool = False) -> None:
        """Publish a checkpoint of this step, unless it stands already."""
        if self.saved_step == self.memory.step:
            return
        self.observer.phase("checkpoint", f"step {self.memory.step}")
        state = {
            "memory": asdict(self.memory),
            "positions": self.observer.positions(),
            "versions": {name: version(name) for name in ("mlx", "mlx-lm")} | {"python": platform.python_version()},
        }
        optimizer = flat(self.updater.optimizer.state)
        path = checkpoints.save_checkpoint(
            self.folder,
            self.memory.step,
            self.student.adapter_weights(),
            self.student.adapter_config or {},
            optimizer,
            state,
        )
        if is_best:
            checkpoints.publish_best(self.folder, path)
        if self.config.save_best_only:
            checkpoints.prune_checkpoints(self.folder, self.folder / f"step_{self.memory.best_step:06d}")
        self.saved_step = self.memory.step
        self.observer.checkpoint(self.memory.step, path, is_best)

    def _restore(self) -> None:
        found = checkpoints.list_checkpoints(self.folder)
        if not found:
            self.observer.log("no checkpoint to resume from: starting from the first step")
            checkpoints.discard_after(self.folder, -1)
            self.observer.cut_back({})
            return
        saved = checkpoints.load_checkpoint(found[-1])
        self.student.load_adapter_weights(saved.adapter)
        self.updater.optimizer.state = tree_unflatten(list(saved.optimizer.items()))
        self.memory = _memory_from(saved.state["memory"])
        self.saved_step = self.memory.step
        checkpoints.discard_after(self.folder, self.memory.step)
        self.observer.cut_back(saved.state["positions"])
        self.observer.log(f"resumed from {found[-1].name}")

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.memory.evaluations_without_better >= patience

    def _outcome(self, reason: EndReason, message: str) -> TrainingOutcome:
        self._save()
        memory = self.memory
        return TrainingOutcome(
            end_reason=reason,
            final_step=memory.step,
            best_step=memory.best_step,
            best_value=memory.best_value,
            primary_metric=self.primary,
            adapter_path=self.folder,
            message=message,
        )


def _memory_from(saved: dict[str, Any]) -> _Memory:
    try:
        memory = _Memory(**saved)
    except TypeError as error:
        raise CheckpointError(f"The checkpoint's state is of another version: {error}. Start a new run.") from error
    memory.best_key = tuple(memory.best_key) if memory.best_key is not None else None  # type: ignore[assignment]
    return memory
