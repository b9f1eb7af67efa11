"""The status of a run or a job, whole, and after a wait.

A run's text never holds a rollout; log lines and error messages are escaped and capped.
"""

from __future__ import annotations

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES, clean_text
from server.answers.budgets import budget_entry, budget_lines
from server.answers.figures import evaluation, metrics, seconds_left, told
from server.answers.sentences import status_next_step, status_summary
from server.answers.words import moment, number, percent, tidy
from server.schemas.runs import EvalEntry, RunStatus, WaitAnswer

MAX_ERROR_CHARACTERS = 1500
MAX_LOG_LINES = 8
MAX_LOG_CHARACTERS = 240


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


def waited(row: RunRow, timeout_seconds: float) -> WaitAnswer:
    """The status after a wait."""
    status = run_status(row).model_dump()
    return WaitAnswer(**status, timed_out=row.state not in END_STATES, timeout_applied_s=timeout_seconds)


def status_facts(answer: RunStatus) -> list[str]:
    """State, figures, held-out evaluations, and where things lie."""
    now = answer.metrics
    lines = [f"- state: {answer.state}, step {now.step} of {now.total_steps}"]
    figures = {
        "KL loss": now.kl_loss,
        "reverse KL of the rollouts": now.kl_divergence_mean,
        "student entropy": now.student_entropy,
        "teacher agreement in percent": now.teacher_alignment_pct,
        "tokens per second": now.tokens_per_second,
    }
    known = [f"{name} {number(value)}" for name, value in figures.items() if value is not None]
    lines += ["- training: " + ", ".join(known)] if known else []
    if now.teacher_api_calls is not None and answer.budget is not None:
        lines.append(f"- teacher: {now.teacher_api_calls:,} calls, {now.teacher_cache_hits or 0:,} from the cache")
    lines += _evaluation_lines(answer)
    if answer.state == "waiting" and answer.wake_at:
        lines.append(f"- waiting until {moment(answer.wake_at)} for: {answer.waiting_reason or 'reason not recorded'}")
    lines += budget_lines(answer.budget, answer.budget_warning)
    lines += ["- budget: a call was refused for lack of it"] if answer.budget_exceeded else []
    lines += [f"- error: {answer.error_message}"] if answer.error_message else []
    lines += [f"- log (data): {line}" for line in answer.log_tail]
    lines += [f"- checkpoint: {answer.checkpoint_path}"] if answer.checkpoint_path else []
    lines += [f"- adapter, for mlx_lm --adapter-path: {answer.final_adapter_path}"] if answer.final_adapter_path else []
    lines += [f"- settings: {told(answer.settings)}"] if answer.settings else []
    return lines


def _evaluation_lines(answer: RunStatus) -> list[str]:
    """Before training, latest and best; evaluations that are the same one share a line."""
    names: dict[str, list[str]] = {}
    named = {"before training": answer.baseline, "latest": answer.latest_eval, "best": answer.best_eval}
    for name, entry in named.items():
        if entry is not None:
            names.setdefault(eval_line(entry), []).append(name)
    return [f"- held-out, {', '.join(shared)}: {line}" for line, shared in names.items()]


def eval_line(entry: EvalEntry) -> str:
    """One evaluation in words."""
    parts = [f"step {entry.step}"] if entry.step is not None else []
    parts += [f"reverse KL {number(entry.reverse_kl)}"] if entry.reverse_kl is not None else []
    parts += [f"task score {percent(entry.task_score)}"] if entry.task_score is not None else []
    agreement = entry.teacher_agreement_pct
    parts += [f"agreement {number(agreement)} %"] if agreement is not None else []
    parts += [f"{entry.held_out_prompts} prompts"] if entry.held_out_prompts is not None else []
    return ", ".join(parts)
