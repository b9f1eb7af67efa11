"""The typed answer of each tool, made from what the use cases returned; `present.py` does the run's own status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server import replies, schemas
from server.budgets import dollars
from server.present import checkpoint_step, duration, number, progress_line, run_entry, run_status, tidy
from server.session_answers import session_entries
from server.settings import Problem

if TYPE_CHECKING:
    from opd_core.blas import BlasReport
    from opd_core.control.estimate import Estimate
    from opd_core.control.estimate_paid import MethodCost, PaidEstimate
    from opd_core.control.sessions import Session
    from opd_core.control.setup_check import SetupProblem, SetupReport

# What a history line keeps; `final_metrics` has every field.
HISTORY_FIELDS = {
    "train": (
        *("step", "kl_loss", "sft_loss", "total_loss", "kl_divergence_mean", "kl_divergence_max", "student_entropy"),
        *("teacher_alignment_pct", "tokens_per_second", "kl_weight", "gradient_norm", "completion_tokens_mean"),
        *("truncation_rate", "repetition_rate", "cumulative_cost_usd", "is_best"),
    ),
    "eval": ("step", *schemas.EvalEntry.model_fields, "repetition_rate", "is_best"),
}


def setup(report: SetupReport, settings_problems: Sequence[Problem]) -> schemas.SetupAnswer:
    """What was found on this machine, with what is wrong in the settings."""
    found: list[Problem | SetupProblem] = [*report.problems, *settings_problems]
    problems = [
        schemas.ProblemEntry(what=tidy(problem.what, 400), fix=tidy(problem.fix, 400)) for problem in found[:20]
    ]
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}" if found else "no problem"
    verdict = "This machine can start a run" if report.ready else "No run can start yet"
    active = f" Run {report.active_run} is active." if report.active_run else ""
    next_step = "Call list_models to see which models and adapters are here."
    if not report.ready:
        next_step = "Tell the user the fix of each problem, then call check_setup again."
    elif not any(model.problem is None for model in report.models.models):
        next_step = "Tell the user how to get a model (see the problems), then call list_models."
    return schemas.SetupAnswer(
        summary=f"{verdict}: {count} found; device {report.device}{_blas(report.blas)}.{active}",
        next_step=next_step,
        ready=report.ready,
        problems=problems,
        facts=tidy(report.facts, 300),
    )


def _blas(blas: BlasReport | None) -> str:
    if blas is None or blas.gflops is None:
        return ""
    return f", {blas.source} BLAS at {number(blas.gflops)} GFLOP/s"


def estimate(found: Estimate, *, names_budget: bool = True) -> schemas.EstimateAnswer:
    """What a run would take.

    Args:
        names_budget: a budget was given; a paid run does not start without one.
    """
    paid = _paid(found.paid)
    own = set(schemas.EstimateAnswer.model_fields) - {"paid"}
    summary = (
        f"The run would take {duration(60 * found.minutes_expected)}, with {number(found.peak_memory_gb)} GB of memory "
        f"and {number(found.disk_gb)} GB of disk. {found.basis_sentence} "
    )
    if paid is None:
        summary += "It costs $0.00: its teacher is a local model."
        agreed = "if they agree"
    else:
        summary += (
            f"Its teacher {paid.model} is expected to cost {dollars(paid.pays_usd)}, at worst "
            f"{dollars(paid.pays_at_most_usd)}, of a budget of {dollars(paid.budget_usd)}. {paid.coverage}"
        )
        agreed = "if they agree to the cost and have checked the provider's terms themselves"
        if not names_budget:
            summary += " No max_budget_usd was given, so the most a run may have is shown; a start needs one."
            agreed += " and have named a budget (ask how many dollars the run may spend: max_budget_usd)"
    return schemas.EstimateAnswer(
        summary=summary,
        next_step=f"Tell the user; {agreed}, call start_distillation with the same arguments and a client_request_id.",
        paid=paid,
        **{name: tidy(getattr(found, name)) for name in own if hasattr(found, name)},
    )


def _paid(found: PaidEstimate | None) -> schemas.PaidEntry | None:
    """The paid teacher's part, rounded."""
    if found is None:
        return None
    own = set(schemas.PaidEntry.model_fields) - {"chosen", "methods"}
    return schemas.PaidEntry(
        **{name: tidy(getattr(found, name)) for name in own},
        chosen=_method_cost(found.chosen),
        methods=[_method_cost(method) for method in found.methods],
    )


def _method_cost(found: MethodCost) -> schemas.MethodCostEntry:
    return schemas.MethodCostEntry(
        **{name: tidy(getattr(found, name)) for name in schemas.MethodCostEntry.model_fields}
    )


def started(row: RunRow) -> schemas.StartAnswer:
    """A run that was just created (or found again by its client_request_id)."""
    summary = f"Run {row.run_id} is accepted with {row.total_steps} steps; it goes on in the background."
    if row.queue_position:
        summary += f" It is queued at position {row.queue_position}."
    if row.state in END_STATES:
        summary = f"Nothing new was started: this client_request_id belongs to run {row.run_id}, which is {row.state}."
    return schemas.StartAnswer(
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


def waited(row: RunRow, timeout_seconds: float) -> schemas.WaitAnswer:
    """The status after a wait."""
    status = run_status(row).model_dump()
    return schemas.WaitAnswer(**status, timed_out=row.state not in END_STATES, timeout_applied_s=timeout_seconds)


def metric_lines(
    row: RunRow, series: Literal["train", "eval"], lines: Sequence[Mapping[str, Any]]
) -> schemas.MetricsAnswer:
    """The thinned series."""
    full = [tidy(line, 200) for line in lines]
    history = [{name: line[name] for name in HISTORY_FIELDS[series] if line.get(name) is not None} for line in full]
    kept = replies.thin(history)
    cut = None
    if len(kept) < len(history):
        cut = f"{len(history) - len(kept)} of {len(history)} lines were left out; ask with since_step for a part."
    change = _change(kept, replies.MAIN_METRICS[series][0])
    return schemas.MetricsAnswer(
        summary=f"Run {row.run_id} has {len(kept)} {series} lines here, {progress_line(row)}{change}.",
        next_step=f"Call get_status with run_id {row.run_id} for the whole picture, or wait_for_run to follow it."
        if kept
        else f"No lines yet; call wait_for_run with run_id {row.run_id}.",
        run_id=row.run_id,
        series=series,
        metrics_history=kept,
        final_metrics=full[-1] if full else None,
        cut=cut,
    )


def _change(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    known = [value for line in lines if isinstance(value := line.get(name), float | int)]
    return f"; {name} went from {number(known[0])} to {number(known[-1])}" if len(known) > 1 else ""


def runs(
    rows: Sequence[RunRow],
    next_cursor: str | None,
    sessions: Sequence[Session] = (),
    *,
    whole_session: bool = False,
    has_older: bool = False,
) -> schemas.RunsAnswer:
    """Newest first, with the sessions they belong to; of the one that was asked for, all runs with their figures."""
    more = f" More are there: pass cursor {next_cursor}." if next_cursor else ""
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs, newest first"
    entries = [run_entry(row) for row in rows]
    room = replies.MAX_DATA_BYTES - sum(replies.data_bytes(entry.model_dump(mode="json")) for entry in entries)
    grouped, cut = session_entries(sessions, full=whole_session, has_older=has_older, limit_bytes=room)
    return schemas.RunsAnswer(
        summary=f"{count}.{more}" if rows else "There are no such runs.",
        next_step="Call get_status with a run_id for one of them."
        if rows
        else "Call check_setup, then estimate_cost and start_distillation.",
        runs=entries,
        next_cursor=next_cursor,
        sessions=grouped,
        sessions_cut=cut,
    )


def stopped(row: RunRow) -> schemas.StopAnswer:
    """A run that was asked to stop: ended, or about to."""
    status = run_status(row)
    return schemas.StopAnswer(
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


def resumed(row: RunRow) -> schemas.ResumeAnswer:
    """A run that goes on."""
    queued = f" It is queued at position {row.queue_position}." if row.queue_position else ""
    from_step = checkpoint_step(row)
    return schemas.ResumeAnswer(
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
