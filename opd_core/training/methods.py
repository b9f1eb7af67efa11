"""From a method's name to the object that updates the student, and what the method needs beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from opd_core.config import RunConfig
from opd_core.errors import ConfigError
from opd_core.prompt_files import PromptExample
from opd_core.training.ahead import Wanted
from opd_core.training.coach_update import LEVELS, BuildCoach, CoachUpdater
from opd_core.training.contrast import ContrastUpdater
from opd_core.training.kl_update import KlUpdater
from opd_core.training.lora import LoadedBase, Student, initial_student
from opd_core.training.references import References
from opd_core.training.sft_targets import SFT_ARRAYS, SftTargets
from opd_core.training.sft_update import SftUpdater
from opd_core.training.teaching import TextTeacher, TokenTeacher
from opd_core.training.updates import Updater

BuildTeacher = Callable[[RunConfig, LoadedBase], TokenTeacher]


@dataclass(frozen=True)
class Teachers:
    """What a run may learn from; handed in, since training knows no teacher by name.

    Attributes:
        build_token: makes the token-level teacher of `kl`.
        text: the text teacher of `coach`, `contrast` and `sft`.
        build_coach: makes the student guided by it.
    """

    build_token: BuildTeacher
    text: TextTeacher | None = None
    build_coach: BuildCoach | None = None


@dataclass(frozen=True)
class Method:
    """A method ready to train.

    Attributes:
        held_out_teacher: scores held-out answers token by token; None where the method has no such teacher, or one
            whose context belongs to single rollouts.
        asks_for: what every update asks the text teacher for, and may be asked ahead.
        written: the token-level teacher's own answers, where the mix-in learns from them.
    """

    updater: Updater
    teacher_name: str
    held_out_teacher: TokenTeacher | None = None
    asks_for: Wanted = "nothing"
    written: SftTargets | None = None

    def arrays(self) -> dict[str, mx.array]:
        """What the method keeps over a restart, by name; the optimizer's state is not part of it."""
        return self.updater.arrays() | (self.written.arrays() if self.written is not None else {})

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `arrays` gave."""
        written = {name: value for name, value in arrays.items() if name.startswith(SFT_ARRAYS)}
        if self.written is not None:
            self.written.load_arrays(written)
        self.updater.load_arrays({name: value for name, value in arrays.items() if name not in written})


def build_method(
    config: RunConfig,
    base: LoadedBase,
    student: Student,
    teachers: Teachers,
    references: References,
    train_examples: Sequence[PromptExample],
) -> Method:
    """Make the updater that `config.method` names; `auto` has been decided before, or means `kl`.

    Raises:
        ConfigError: the method needs a teacher that this run has not, or is not in this version.
        OPDError: the teacher cannot be used or asked.
    """
    if config.method in ("auto", "kl"):
        token = teachers.build_token(config, base)
        answers = SftTargets(student, token, config.rollout_max_tokens)
        kl = KlUpdater(student, token, config, answers.pairs, _anchor(config, base))
        return Method(kl, token.name, token, written=answers)
    text = teachers.text
    if text is None:
        raise ConfigError(
            f"method {config.method!r} learns from a teacher that writes text, and this run has none. Set "
            "teacher_kind, or use method kl.",
            field="method",
        )
    if config.method == "coach" and teachers.build_coach is not None:
        level = config.guidance_level or LEVELS[0]
        coach = teachers.build_coach(config, base, text, references, train_examples, level)
        # a coach with one context for all prompts writes its own answers, which cost no call
        own = SftTargets(student, coach, config.rollout_max_tokens)
        targets = own.pairs if coach.is_fixed else references.pairs
        updater = CoachUpdater(student, coach, config, targets, _anchor(config, base))
        asks: Wanted = "guidance" if level in ("critique", "reference") else "nothing"
        held_out_teacher = coach if coach.is_fixed else None
        return Method(updater, f"{text.name}, {coach.name}", held_out_teacher, asks, own if coach.is_fixed else None)
    if config.method == "contrast":
        start = initial_student(config, base)
        contrast = ContrastUpdater(student, start, references, config, len(train_examples))
        return Method(contrast, text.name, asks_for="references")
    if config.method == "sft":
        sft = SftUpdater(student, text, references, config)
        return Method(sft, text.name, asks_for="guidance" if sft.needs_rollouts(1) else "nothing")
    raise ConfigError(f"method {config.method!r} is not in this version.", field="method")


def _anchor(config: RunConfig, base: LoadedBase) -> Student | None:
    return initial_student(config, base, is_trained=False) if config.anchor_weight > 0 else None
