"""Runs as recorded, for tests of what is concluded from them: a healthy one, changed where a test wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd_core.control.evidence import RunEvidence
from opd_core.state.rows import Line
from tests.server.records import completed

STEPS = 50


def train_lines(steps: int = STEPS, **series: Sequence[Any] | float | None) -> list[Line]:
    """One line a step: reverse KL falls from 1 to 0.3, everything else is steady; `series` replaces values."""
    usual: dict[str, Any] = {
        "kl_divergence_mean": [1.0 - 0.7 * step / max(1, steps - 1) for step in range(steps)],
        "total_loss": 0.5,
        "gradient_norm": 0.7,
        "student_entropy": 1.2,
        "completion_tokens_mean": 40.0,
        "truncation_rate": 0.1,
        "repetition_rate": 0.05,
        "step_seconds": 2.0,
        "update_skipped": False,
    }
    lines = []
    for index in range(steps):
        values = {**usual, **series}
        lines.append(
            {"step": index + 1}
            | {name: value[index] if isinstance(value, list | tuple) else value for name, value in values.items()}
        )
    return lines


def eval_lines(*scores: float, **figures: Sequence[Any] | float | None) -> list[Line]:
    """Evaluations every 25 steps whose primary metric is the task score."""
    usual: dict[str, Any] = {
        "held_out_prompts": 40,
        "reverse_kl": 0.5,
        "teacher_agreement_pct": 80.0,
        "completion_tokens_mean": 40.0,
        "truncation_rate": 0.1,
        "repetition_rate": 0.05,
        "primary_metric": "task_score",
        "method": "kl",
    }
    lines = []
    for index, score in enumerate(scores):
        values = {**usual, **figures}
        lines.append(
            {"step": 25 * index, "task_score": score}
            | {name: value[index] if isinstance(value, list | tuple) else value for name, value in values.items()}
        )
    return lines


def seen(
    train: list[Line] | None = None,
    evals: list[Line] | None = None,
    comparison: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **row: Any,
) -> RunEvidence:
    """A completed run that got better from 20 % to 60 %; anything may be replaced."""
    full = {"base_model_path": "/models/tiny", "learning_rate": 1e-4, "rollout_max_tokens": 64, **(config or {})}
    return RunEvidence(
        completed(config=full, **row),
        train_lines() if train is None else train,
        eval_lines(0.2, 0.4, 0.6) if evals is None else evals,
        comparison=comparison,
    )
