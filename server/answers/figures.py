"""What a run's row holds: its newest line, its evaluations, how far it is, what is left, its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.reply import data_bytes
from server.answers.words import tidy
from server.schemas.runs import EvalEntry, RunMetrics

EVAL_FIELDS = tuple(EvalEntry.model_fields)


def evaluation(line: Mapping[str, Any] | None) -> EvalEntry | None:
    """The main figures of one held-out evaluation line."""
    return None if line is None else EvalEntry(**{name: tidy(line.get(name)) for name in EVAL_FIELDS})


def metrics(row: RunRow) -> RunMetrics:
    """The main figures of the newest training line; nulls before the first step."""
    line: dict[str, Any] = {name: tidy(value) for name, value in (row.latest_metrics or {}).items()}
    line |= {"step": row.step, "total_steps": row.total_steps}
    line["cumulative_cost_usd"] = line.get("cumulative_cost_usd") or 0.0
    figures: dict[str, Any] = {name: line.get(name) for name in RunMetrics.model_fields}
    return RunMetrics(**figures)


def seconds_left(row: RunRow) -> float | None:
    """Time to the last step at the measured speed; evaluations to come are not in it."""
    if row.state in END_STATES or not row.steps_per_second or row.step >= row.total_steps:
        return 0.0 if row.state in END_STATES else None
    return float(round((row.total_steps - row.step) / row.steps_per_second))


def progress(row: RunRow) -> tuple[float, float]:
    """How far a job is and its total: steps of a run, else the share done of 1."""
    return (float(row.step), float(row.total_steps)) if row.total_steps else (row.phase_fraction or 0.0, 1.0)


def checkpoint_step(row: RunRow) -> int:
    """The step a resumed run goes on from: that of its newest checkpoint, else 0."""
    name = row.checkpoint_path.rpartition("step_")[2] if row.checkpoint_path else ""
    return int(name) if name.isdecimal() else 0


MAX_SETTING_BYTES = 700
"""A longer value, such as a schema or examples, is shown as a text that is cut."""


def settings_of(row: RunRow) -> dict[str, Any]:
    """What of a run's configuration is no default; what is long is cut and says so."""
    from opd_core.control.sessions import chosen_settings

    settings: dict[str, Any] = tidy(chosen_settings(row), 200)
    return {name: _short(value) for name, value in settings.items()}


def told(settings: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())


def _short(value: Any) -> Any:
    return value if data_bytes(value) <= MAX_SETTING_BYTES else tidy(json.dumps(value, ensure_ascii=False), 300)
