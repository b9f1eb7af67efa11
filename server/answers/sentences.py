"""What a run is doing or how it ended, in words, and the call that makes sense next."""

from __future__ import annotations

from typing import Any

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.budgets import JOB_TOOLS, after_the_budget, money_sentence, why_stopped
from server.answers.figures import evaluation, metrics, seconds_left
from server.answers.words import duration, moment, number, percent, tidy

KIND_NAMES = {"distillation": "Run", "comparison": "Comparison", "probe": "Probe"}


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


def unfinished(row: RunRow) -> dict[str, Any]:
    """What the answer of a comparison or a probe says when there is no result: how it stands, and how to fetch it."""
    ended = row.state in END_STATES
    again = f"Call {JOB_TOOLS[row.kind]} with job_id {row.run_id} to fetch the result."
    return {
        "status": "failed" if ended else "pending",
        "summary": status_summary(row),
        "next_step": status_next_step(row) if ended else again,
        "job_id": row.run_id,
        "state": row.state,
    }


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
