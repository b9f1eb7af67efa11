"""What a run remembers from step to step and over restarts, beside its weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from opd_core.errors import CheckpointError, TrainingError
from opd_core.training.evaluator import Evaluation
from opd_core.training.meter import Figures
from opd_core.training.stop_rules import PrimaryMetric, Standing, falls_off, standing


@dataclass
class RunMemory:
    """Plain data, kept in every checkpoint.

    Attributes:
        method, guidance_level, probe: what the run trains with; chosen by the probe's findings when `auto` probed.
        best, baseline: the standings that the stop rules compare with.
        fell_off: why the run should end, once it should.
        empty_steps: steps in a row without anything to learn from.
        teacher: totals of the text teacher.
    """

    step: int = 0
    best_step: int = 0
    best_key: tuple[float, ...] | None = None
    best_value: float | None = None
    baseline_value: float | None = None
    evaluations_without_better: int = 0
    last_evaluated_step: int = -1
    method: str | None = None
    guidance_level: str | None = None
    probe: dict[str, Any] | None = None
    best: Standing | None = None
    baseline: Standing | None = None
    fell_off: str | None = None
    empty_steps: int = 0
    teacher: Figures = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @staticmethod
    def from_record(saved: dict[str, Any]) -> RunMemory:
        """Take back what `as_record` gave; what makes a run end is forgotten, since resuming asks it to go on.

        So is the choice of a probe that its budget cut short, as long as nothing was trained with it: `method` is None.

        Raises:
            CheckpointError: the checkpoint is of another version.
        """
        try:
            memory = RunMemory(**saved)
            memory.best = Standing(**saved["best"]) if saved.get("best") else None
            memory.baseline = Standing(**saved["baseline"]) if saved.get("baseline") else None
        except TypeError as error:
            raise CheckpointError(f"The checkpoint's state is of another version: {error}. Start a new run.") from error
        memory.best_key = tuple(memory.best_key) if memory.best_key is not None else None
        memory.fell_off, memory.empty_steps = None, 0
        if memory.step == 0 and memory.probe is not None and not memory.probe.get("is_complete", True):
            memory.method = memory.guidance_level = memory.probe = None
        return memory

    def take(self, found: Evaluation, primary: PrimaryMetric, seed: int) -> bool:
        """Take in an evaluation of the present step; True when its primary metric is the best so far.

        Raises:
            TrainingError: a figure is not a finite number.
        """
        summary = found.summary()
        values = {name: summary[name] for name in ("task_score", "reverse_kl", "reference_nll")}
        for name, figure in values.items():
            if figure is not None and not math.isfinite(figure):
                raise TrainingError(
                    f"The held-out {name.replace('_kl', ' KL')} at step {self.step} is not a finite number: model or "
                    "teacher is damaged or training went astray. Check both with list_models, or start again with a "
                    "lower learning_rate."
                )
        value, score = float(values[primary] or 0.0), float(values["task_score"] or 0.0)
        # the other figure breaks a tie: a score that stands at its ceiling still has a divergence to lower
        key = (score, -float(values["reverse_kl"] or 0.0)) if primary == "task_score" else (-value, score)
        now = standing(found, primary)
        self.last_evaluated_step = self.step
        if self.baseline is None:
            self.baseline_value, self.baseline = value, now
        if self.best_key is not None and key <= self.best_key:
            self.evaluations_without_better += 1
            self.fell_off = falls_off(now, self.best or self.baseline, self.baseline, primary, seed)
            return False
        self.best_key, self.best_value, self.best_step, self.best = key, value, self.step, now
        self.evaluations_without_better = 0
        return True
