"""The answer of `get_metrics`: a series, thinned to what an answer holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd_core.state.metrics import Series
from opd_core.state.rows import RunRow
from server.answers.reply import MAX_DATA_BYTES, thin
from server.answers.sentences import progress_line
from server.answers.words import number, tidy
from server.schemas.runs import EvalEntry, MetricsAnswer

MAIN_METRICS = {
    "train": ("kl_loss", "kl_divergence_mean", "student_entropy", "teacher_alignment_pct", "tokens_per_second"),
    "eval": ("reverse_kl", "task_score", "teacher_agreement_pct", "completion_tokens_mean"),
}

# What a history line keeps; `final_metrics` has every field.
HISTORY_FIELDS: dict[Series, tuple[str, ...]] = {
    "train": (
        *("step", "kl_loss", "sft_loss", "total_loss", "kl_divergence_mean", "kl_divergence_max", "student_entropy"),
        *("teacher_alignment_pct", "tokens_per_second", "kl_weight", "gradient_norm", "completion_tokens_mean"),
        *("truncation_rate", "repetition_rate", "cumulative_cost_usd", "is_best"),
    ),
    "eval": ("step", *EvalEntry.model_fields, "repetition_rate", "is_best"),
}


def metric_lines(row: RunRow, series: Series, lines: Sequence[Mapping[str, Any]]) -> MetricsAnswer:
    """The thinned series."""
    full = [tidy(line, 200) for line in lines]
    history = [{name: line[name] for name in HISTORY_FIELDS[series] if line.get(name) is not None} for line in full]
    kept = thin(history, MAX_DATA_BYTES)
    cut = None
    if len(kept) < len(history):
        cut = f"{len(history) - len(kept)} of {len(history)} lines were left out; ask with since_step for a part."
    change = _change(kept, MAIN_METRICS[series][0])
    return MetricsAnswer(
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


def metrics_facts(answer: MetricsAnswer) -> list[str]:
    """A short table: step and the main figures of at most twelve lines."""
    lines = answer.metrics_history
    stride = max(1, -(-len(lines) // 12))
    shown = [*lines[:-1:stride], lines[-1]] if lines else []
    table = [
        f"- step {line.get('step')}: "
        + ", ".join(f"{name} {line[name]}" for name in MAIN_METRICS[answer.series] if line.get(name) is not None)
        for line in shown
    ]
    return [*table, *([answer.cut] if answer.cut else [])]
