"""Whole runs that learn from a scripted text teacher, on a few prompts and a model of no size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.errors import BudgetExceededError, OPDError
from opd_core.teachers import build_teacher
from opd_core.teachers.coach import build_coach
from opd_core.training.probe import Probe, ProbeReport
from opd_core.training.trainer import TrainingOutcome, train
from opd_core.types import Rollout
from tests.opd_core.training.conftest import example
from tests.opd_core.training.scripted_teacher import ScriptedTeacher

TRAIN = [example(f"train {index}") for index in range(6)]
HELD_OUT = [example(f"held {index}") for index in range(3)]
CHECK = {"kind": "regex", "pattern": ".*", "must_match": "search"}


@dataclass
class Recorder:
    """An observer that remembers; `stop_after` asks for a stop once that many steps are recorded."""

    stop_after: int | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self.phases.append(name)

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None: ...

    def train_metrics(self, line: dict[str, object]) -> None:
        self.lines.append(line)

    def eval_metrics(self, line: dict[str, object]) -> None:
        self.evaluations.append(line)

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None: ...

    def log(self, message: str) -> None:
        self.messages.append(message)

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.lines) >= self.stop_after

    def positions(self) -> dict[str, int]:
        return {}

    def cut_back(self, positions: dict[str, int]) -> None: ...


def settings(model: Path, method: str, **more: object) -> RunConfig:
    """Six short steps on `TRAIN`, with an evaluation every third."""
    values: dict[str, object] = {
        "base_model_path": str(model),
        "prompts_path": "train.jsonl",
        "method": method,
        "num_rollouts_per_prompt": 2,
        "batch_size": 3,
        "rollout_max_tokens": 10,
        "num_training_steps": 6,
        "learning_rate": 5e-3,
        "lr_warmup_steps": 0,
        "lora_rank": 4,
        "kl_schedule": "constant",
        "eval_every_steps": 3,
        "checkpoint_every_steps": 2,
        "num_guidance_examples": 2,
    }
    return parse_config({**values, **more})


def run(
    config: RunConfig, folder: Path, recorder: Recorder, teacher: ScriptedTeacher | None = None, resume: bool = False
) -> TrainingOutcome:
    """Train as the worker would, with the scripted teacher in the place of a paid one."""
    text = teacher or ScriptedTeacher()
    return train(
        config, folder, TRAIN, HELD_OUT, build_teacher, recorder,
        resume=resume, text_teacher=text, build_coach=build_coach,
    )  # fmt: skip


def after(calls: int, error: OPDError) -> Callable[[int], None]:
    """What a teacher does before each call: raise this once so many were made."""

    def before_call(made: int) -> None:
        if made >= calls:
            raise error

    return before_call


BUDGET = BudgetExceededError("The run's budget is used up.", scope="run", left_pico=0, needed_pico=1)


def decide(
    monkeypatch: pytest.MonkeyPatch, method: str, level: str | None, *, is_complete: bool = True
) -> list[tuple[str, ...]]:
    """Let every probe find this; returns the levels that each probe was asked for."""
    asked: list[tuple[str, ...]] = []

    def probed(self: Probe, levels: Sequence[str]) -> ProbeReport:
        asked.append(tuple(levels))
        reason = "method so and so, since so."
        return ProbeReport("task_score", 3, method, level, reason, 0.0, (), is_complete)  # type: ignore[arg-type]

    monkeypatch.setattr(Probe, "run", probed)
    return asked
