"""From what the use cases return to what a person or an assistant reads: rounded, escaped, capped, with a next step.

A run's text never holds a rollout; log lines and error messages are escaped and capped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES, clean_text
from server.budgets import JOB_TOOLS, after_the_budget, budget_entry, money_sentence, why_stopped
from server.schemas import EvalEntry, RunEntry, RunMetrics, RunStatus

KIND_NAMES = {"distillation": "Run", "comparison": "Comparison", "probe": "Probe"}
MAX_ERROR_CHARACTERS = 1500
MAX_LOG_LINES = 8
MAX_LOG_CHARACTERS = 240
EVAL_FIELDS = tuple(EvalEntry.model_fields)


def tidy(value: Any, limit: int = 500) -> Any:
    """Plain data fit to leave: numbers of four significant digits, no NaN, text escaped and capped."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_text(str(key), 100): tidy(inner, limit) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(inner, limit) for inner in value]
    return clean_text(str(value), limit)


def number(value: float | None, unit: str = "") -> str:
    """A number for a sentence: `0.8312` is `0.831`."""
    return "unknown" if value is None else f"{value:,.3g}{unit}"


def percent(share: float | None) -> str:
    """A share of 0 to 1 for a sentence."""
    return "unknown" if share is None else f"{100 * share:.3g} %"


def duration(seconds: float | None) -> str:
    """`about 4 minutes`, in words."""
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return "about a second" if seconds < 1.5 else f"about {round(seconds)} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def moment(iso: str) -> str:
    """`2026-11-23T13:00:00Z` for the ear: `13:00 UTC on 23 November`."""
    try:
        at = datetime.fromisoformat(iso).astimezone(UTC)
    except ValueError:
        return clean_text(iso, 40)
    return f"{at:%H:%M} UTC on {at.day} {at:%B}"


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


def run_status(row: RunRow) -> RunStatus:
    """The whole status of a run or a job."""
    return RunStatus(
        summary=status_summary(row),
        next_step=status_next_step(row),
        run_id=row.run_id,
        kind=row.kind,
        state=row.state,
        end_reason=row.end_reason,
        phase=row.phase,
        metrics=metrics(row),
        baseline=evaluation(row.baseline_eval),
        latest_eval=evaluation(row.latest_eval),
        best_eval=evaluation(row.best_eval),
        estimated_time_remaining_seconds=seconds_left(row),
        queue_position=row.queue_position,
        waiting_reason=tidy(row.waiting_reason),
        wake_at=row.wake_at,
        heartbeat_age_seconds=tidy(row.heartbeat_age_seconds),
        budget=budget_entry(row),
        budget_warning=row.budget_warning,
        budget_exceeded=row.budget_exceeded,
        error_message=tidy(row.error_message, MAX_ERROR_CHARACTERS),
        log_tail=[clean_text(line, MAX_LOG_CHARACTERS) for line in row.last_log_lines[-MAX_LOG_LINES:]],
        checkpoint_path=row.checkpoint_path,
        final_adapter_path=row.final_adapter_path,
    )


def progress(row: RunRow) -> tuple[float, float]:
    """How far a job is and its total: steps of a run, else the share done of 1."""
    return (float(row.step), float(row.total_steps)) if row.total_steps else (row.phase_fraction or 0.0, 1.0)


def progress_line(row: RunRow) -> str:
    """One short line for a progress bar; at most 200 characters."""
    loss = metrics(row).kl_loss
    parts = [
        f"step {row.step} of {row.total_steps}" if row.total_steps else "",
        tidy(row.phase or row.state).replace("_", " "),
        tidy(row.phase_detail) if row.phase_detail and row.phase_fraction is not None else "",
        "" if loss is None else f"KL loss {number(loss)}",
    ]
    return ", ".join(part for part in parts if part)[:200]


def status_summary(row: RunRow) -> str:
    """What a run is doing or how it ended, in one or two sentences."""
    name = f"{KIND_NAMES[row.kind]} {row.run_id}"
    where = f" at step {row.step} of {row.total_steps}" if row.total_steps else ""
    sentences = {
        "queued": f"{name} waits in the queue at position {row.queue_position or 1}.",
        "preparing": f"{name} is being prepared ({row.phase or 'starting'}).",
        "running": f"{name} is running{where} ({row.phase or 'working'}){_time_left(row)}.",
        "waiting": f"{name} waits: {_waiting_reason(row)}{_wake(row)}. It goes on by itself.",
        "stopping": f"{name} is stopping{where}.",
        "completed": f"{name} completed{where}{_early(row)}{_gain(row)}.",
        "stopped": f"{name} stopped{where} {why_stopped(row)}{_gain(row)}.",
        "failed": f"{name} failed{where}: {_why_failed(row)}.",
        "interrupted": f"{name} was interrupted{where}: its worker process died.",
    }
    return sentences[row.state] + _stalled(row) + money_sentence(row)


def _stalled(row: RunRow) -> str:
    """That a living worker shows no progress, and for how long."""
    if not row.is_stalled:
        return ""
    return (
        f" It is stalled: its worker lives, but has shown no progress for {duration(row.heartbeat_age_seconds)}. The "
        "worker may be suspended, or the machine slept; it goes on by itself when it can."
    )


def _early(row: RunRow) -> str:
    """Why a run completed before its last step."""
    return f", stopped early: {tidy(row.message).rstrip('.')}" if row.end_reason == "early_stop" else ""


def _waiting_reason(row: RunRow) -> str:
    return (tidy(row.waiting_reason) or "reason not recorded").rstrip(".")


def _why_failed(row: RunRow) -> str:
    return (tidy(row.error_message) or "no message was recorded").rstrip(".")


def _time_left(row: RunRow) -> str:
    left = seconds_left(row)
    return "" if left is None else f", {duration(left)} left"


def _wake(row: RunRow) -> str:
    return f", until {moment(row.wake_at)}" if row.wake_at else ""


def _gain(row: RunRow) -> str:
    """Held-out figures before and at the best step, when both are known."""
    before, best = evaluation(row.baseline_eval), evaluation(row.best_eval)
    if before is None or best is None:
        return ""
    if best.step == before.step:
        return "; no later evaluation on the held-out prompts was better than the one before training"
    parts = []
    if before.reverse_kl is not None and best.reverse_kl is not None:
        parts.append(f"reverse KL {number(before.reverse_kl)} to {number(best.reverse_kl)} nats a token")
    if before.task_score is not None and best.task_score is not None:
        parts.append(f"task score {percent(before.task_score)} to {percent(best.task_score)}")
    return f"; on held-out prompts {' and '.join(parts)}" if parts else ""


def status_next_step(row: RunRow) -> str:
    """The call that makes sense now."""
    if row.state not in END_STATES:
        return f"Call wait_for_run with run_id {row.run_id} to follow it; stop_distillation ends it."
    tool = JOB_TOOLS.get(row.kind)
    if tool is not None and row.state == "completed":
        return f"Call {tool} with job_id {row.run_id} to read the result."
    if row.state == "completed":
        return f"Call compare_adapters with run_id {row.run_id} to see whether the adapter is better than the base."
    if row.end_reason == "budget":
        return after_the_budget(row)
    if row.end_reason == "teacher_refused":
        return (
            "Tell the user what the message says. Do not resume it as it is: a new run with a local teacher needs "
            "nobody's permission."
        )
    if tool is not None:
        return f"Correct what the error names, then call {tool} again."
    correct = "Correct what the error names, then call" if row.state == "failed" else "Call"
    where = "from its last checkpoint" if row.checkpoint_path else "from the start; it has no checkpoint yet"
    return f"{correct} resume_distillation with run_id {row.run_id} to go on {where}."


def checkpoint_step(row: RunRow) -> int:
    """The step a resumed run goes on from: that of its newest checkpoint, else 0."""
    name = row.checkpoint_path.rpartition("step_")[2] if row.checkpoint_path else ""
    return int(name) if name.isdecimal() else 0


def run_entry(row: RunRow) -> RunEntry:
    """One line of the list of runs."""
    best = row.best_eval or {}
    return RunEntry(
        run_id=row.run_id,
        kind=row.kind,
        state=row.state,
        end_reason=row.end_reason,
        step=row.step,
        total_steps=row.total_steps,
        base_model=tidy(row.config.get("base_model_path"), 200),
        session_id=tidy(row.session_id),
        created_at=row.created_at,
        best_task_score=tidy(best.get("task_score")),
        best_reverse_kl=tidy(best.get("reverse_kl")),
        final_adapter_path=row.final_adapter_path,
    )
