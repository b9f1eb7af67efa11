"""`coach`: the exact divergence from the student to itself, guided by a text teacher.

    y ~ student(·|x)      c = the text teacher's guidance      teacher_t = frozen student(·|T(x, c), y_<t)
    loss                  as `kl_update`: reverse KL over the full vocabulary, at the ids y

Only text crosses the teacher's API; the distributions are the student's own family, so nothing is approximated. The
frozen student is the one the run began with; `teacher_ema` and `teacher_refresh_steps` let it follow.
(On-policy context distillation; OPCD, SDFT, SDPO and Experiential Learning are of this kind.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import mlx.core as mx

from opd_core.config import RunConfig
from opd_core.prompt_files import PromptExample
from opd_core.training.kl_update import KlUpdater, MixinTargets
from opd_core.training.lora import LoadedBase, Student
from opd_core.training.references import References
from opd_core.training.rollouts import Decoded
from opd_core.training.teaching import TextTeacher, TokenTeacher
from opd_core.training.updates import StepResult
from opd_core.types import Rollout

GuidanceLevel = Literal["examples", "lesson", "critique", "reference"]
LEVELS: tuple[GuidanceLevel, ...] = ("examples", "lesson", "critique", "reference")
"""From cheap to rich: calls a run, calls a batch, calls a rollout, two calls a rollout."""


class GuidedTeacher(TokenTeacher, Protocol):
    """A frozen student that reads a text teacher's guidance before it scores.

    Attributes:
        level: what kind of guidance.
        is_fixed: whether the context is the same for all prompts and the whole run; then held-out answers can be
            scored as well.
    """

    level: GuidanceLevel
    is_fixed: bool

    def guide(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample]) -> list[bool]:
        """Get the guidance on these rollouts, for `states` and `answers`; False where there is none to learn from.

        `examples` holds the prompts of the rollouts, in any order.

        Raises:
            OPDError: the text teacher cannot be asked (budget, refusal, outage, stop).
        """
        ...

    def answers(
        self, rollouts: Sequence[Rollout], max_tokens: int, should_stop: Callable[[], bool] = ...
    ) -> list[Decoded]:
        """Greedy answers of the guided student to the prompts of guided rollouts; empty when stopped on the way."""
        ...

    def follow(self, step: int, adapter: dict[str, mx.array]) -> None:
        """Let the frozen student follow the student, whose adapter after `step` this is."""
        ...

    def arrays(self) -> dict[str, mx.array]:
        """See `updates.Updater.arrays`."""
        ...

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """See `updates.Updater.load_arrays`."""
        ...


BuildCoach = Callable[
    [RunConfig, LoadedBase, TextTeacher, References, Sequence[PromptExample], GuidanceLevel], GuidedTeacher
]
"""Makes the guided teacher of a level; the examples are the training prompts."""


class CoachUpdater:
    """Guidance, then a `KlUpdater` on the rollouts that got some; an `updates.Updater`."""

    def __init__(
        self,
        student: Student,
        coach: GuidedTeacher,
        config: RunConfig,
        mixin_targets: MixinTargets,
        anchor: Student | None = None,
    ) -> None:
        self._student, self._coach = student, coach
        self._inner = KlUpdater(student, coach, config, mixin_targets, anchor)
        self.optimizer = self._inner.optimizer

    def needs_rollouts(self, step: int) -> bool:
        """See `Updater.needs_rollouts`."""
        return True

    def update(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], step: int) -> StepResult:
        """See `Updater.update`."""
        asked = time.perf_counter()
        guided = self._coach.guide(rollouts, examples)
        waited = time.perf_counter() - asked
        kept = [rollout for rollout, has_guidance in zip(rollouts, guided, strict=True) if has_guidance]
        result = self._inner.update(kept, examples, step) if kept else StepResult()
        result.teacher_seconds += waited
        result.extras["rollouts_without_guidance"] = len(rollouts) - len(kept)
        if result.applied:
            self._coach.follow(step, self._student.adapter_weights())
        return result

    def arrays(self) -> dict[str, mx.array]:
        """See `Updater.arrays`."""
        return self._coach.arrays()

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """See `Updater.load_arrays`."""
        self._coach.load_arrays(arrays)
