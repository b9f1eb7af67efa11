"""The answers of the tools that start, stop, resume and list runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.figures import checkpoint_step
from server.answers.reply import MAX_DATA_BYTES, data_bytes
from server.answers.sessions import session_entries, session_facts
from server.answers.status import run_status
from server.answers.words import number, percent, tidy
from server.schemas.runs import ResumeAnswer, RunEntry, RunsAnswer, StartAnswer, StopAnswer

if TYPE_CHECKING:
    from opd_core.control.sessions import Session


def started(row: RunRow) -> StartAnswer:
    """A run that was just created (or found again by its client_request_id)."""
    summary = f"Run {row.run_id} is accepted with {row.total_steps} steps; it goes on in the background."
    if row.queue_position:
        summary += f" It is queued at position {row.queue_position}."
    if row.state in END_STATES:
        summary = f"Nothing new was started: this client_request_id belongs to run {row.run_id}, which is {row.state}."
    return StartAnswer(
        status="success",
        summary=summary,
        next_step=run_status(row).next_step
        if row.state in END_STATES
        else f"Call wait_for_run with run_id {row.run_id} until it has ended.",
        run_id=row.run_id,
        state=row.state,
        queue_position=row.queue_position,
        total_steps=row.total_steps,
        message=tidy(row.message) or f"State: {row.state}.",
    )


def stopped(row: RunRow) -> StopAnswer:
    """A run that was asked to stop: ended, or about to."""
    status = run_status(row)
    return StopAnswer(
        status="success",
        summary=status.summary,
        next_step=status.next_step,
        run_id=row.run_id,
        state=row.state,
        message=status.summary
        if row.state != "stopping"
        else "The run ends after the work in hand; its state is kept.",
        final_step=row.step,
        checkpoint_path=row.checkpoint_path,
        final_adapter_path=row.final_adapter_path,
    )


def resumed(row: RunRow) -> ResumeAnswer:
    """A run that goes on."""
    queued = f" It is queued at position {row.queue_position}." if row.queue_position else ""
    from_step = checkpoint_step(row)
    return ResumeAnswer(
        status="success",
        summary=f"Run {row.run_id} goes on from step {from_step} of {row.total_steps} in the background.{queued}",
        next_step=f"Call wait_for_run with run_id {row.run_id} until it has ended.",
        run_id=row.run_id,
        state=row.state,
        from_step=from_step,
        queue_position=row.queue_position,
        total_steps=row.total_steps,
        message=tidy(row.message) or f"State: {row.state}.",
    )


def message_facts(answer: StartAnswer | StopAnswer | ResumeAnswer) -> list[str]:
    """What the message says beyond the summary."""
    return [] if answer.message == answer.summary else [answer.message]


def runs(
    rows: Sequence[RunRow],
    next_cursor: str | None,
    sessions: Sequence[Session] = (),
    *,
    whole_session: bool = False,
    has_older: bool = False,
) -> RunsAnswer:
    """Newest first, with the sessions they belong to; of the one that was asked for, all runs with their figures."""
    more = f" More are there: pass cursor {next_cursor}." if next_cursor else ""
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs, newest first"
    entries = [run_entry(row) for row in rows]
    room = MAX_DATA_BYTES - sum(data_bytes(entry) for entry in entries)
    grouped, cut = session_entries(sessions, full=whole_session, has_older=has_older, limit_bytes=room)
    return RunsAnswer(
        summary=f"{count}.{more}" if rows else "There are no such runs.",
        next_step="Call get_status with a run_id for one of them."
        if rows
        else "Call check_setup, then estimate_cost and start_distillation.",
        runs=entries,
        next_cursor=next_cursor,
        sessions=grouped,
        sessions_cut=cut,
    )


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


def runs_facts(answer: RunsAnswer) -> list[str]:
    """One line a run, then the sessions."""
    lines = []
    for run in answer.runs:
        best = f", best reverse KL {number(run.best_reverse_kl)}" if run.best_reverse_kl is not None else ""
        best += f", best task score {percent(run.best_task_score)}" if run.best_task_score is not None else ""
        step = f", step {run.step} of {run.total_steps}" if run.total_steps else ""
        base = f", base {PurePath(run.base_model).name[:60]}" if run.base_model and run.kind == "distillation" else ""
        lines.append(f"- {run.run_id}: {run.kind}, {run.state}{step}{base}{best}")
    return [*lines, *session_facts(answer.sessions), *([answer.sessions_cut] if answer.sessions_cut else [])]
