"""The sessions of `list_runs`: a fine-tune and the distillation runs that belong to it, cut to what an answer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opd_core.state.rows import RunRow
from server.answers.figures import evaluation, metrics, settings_of, told
from server.answers.models import adapter_entry
from server.answers.reply import data_bytes
from server.answers.words import tidy
from server.schemas.runs import SessionEntry, SessionRun

if TYPE_CHECKING:
    from opd_core.control.sessions import Session


MAX_SESSION_RUNS = 50
"""Newest runs of one session that are read to show it."""


def session_entries(
    sessions: Sequence[Session], *, full: bool, has_older: bool, limit_bytes: int
) -> tuple[list[SessionEntry], str | None]:
    """The sessions, and a sentence that says what was left out, if anything was.

    Args:
        full: with each run's settings and figures; else its id, state and adapter alone.
        has_older: the session has older runs than those given.
        limit_bytes: room for all of them; the oldest runs of the last session go first.
    """
    entries: list[SessionEntry] = []
    left_out = 0
    for session in sessions:
        fine_tune = None if session.sft_run is None else adapter_entry(session.sft_run)
        empty = SessionEntry(session_id=tidy(session.session_id, 128), sft_run=fine_tune, opd_runs=[])
        limit_bytes -= data_bytes(empty)
        kept: list[SessionRun] = []
        for row in session.runs:
            entry = _full(row) if full else _brief(row)
            limit_bytes -= data_bytes(entry)
            if limit_bytes < 0:
                break
            kept.append(entry)
        left_out += len(session.runs) - len(kept)
        if kept:
            entries.append(empty.model_copy(update={"opd_runs": kept}))
    if not left_out and not has_older:
        return entries, None
    which = f"{left_out} runs" if not full else "Older runs" if has_older else f"The {left_out} oldest runs"
    return entries, f"{which} are not shown in `sessions`, to keep this short; the pages of `runs` have all of them."


def _brief(row: RunRow) -> SessionRun:
    return SessionRun(run_id=row.run_id, state=row.state, final_adapter_path=row.final_adapter_path)


def _full(row: RunRow) -> SessionRun:
    return SessionRun(
        run_id=row.run_id,
        state=row.state,
        config=settings_of(row),
        metrics=metrics(row),
        baseline=evaluation(row.baseline_eval),
        best_eval=evaluation(row.best_eval),
        final_adapter_path=row.final_adapter_path,
    )


def session_facts(entries: Sequence[SessionEntry]) -> list[str]:
    """One line a session: where it began and which runs it holds."""
    lines = []
    for entry in entries:
        began = "began with the base model alone"
        if entry.sft_run is not None:
            base = f" for {entry.sft_run.base_model}" if entry.sft_run.base_model else ""
            began = f"began with the adapter {entry.sft_run.path} (rank {entry.sft_run.rank}{base})"
            began += f"; cannot be used: {entry.sft_run.problem}" if entry.sft_run.problem else ""
        lines.append(f"- session {entry.session_id}: {began}; runs {', '.join(run.run_id for run in entry.opd_runs)}")
        lines += [f"- settings of {run.run_id}: {told(run.config)}" for run in entry.opd_runs if run.config]
    return lines
