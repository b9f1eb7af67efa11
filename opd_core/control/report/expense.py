"""Sections about what a run took: money and time."""

from __future__ import annotations

from collections.abc import Sequence

from opd_core.control.evidence import RunEvidence
from opd_core.control.report.content import Facts, Paragraph, Section, Table
from opd_core.types import clean_text


def spending(evidence: RunEvidence) -> Section:
    """What the ledger has, and what each kind of text cost by the run's own record."""
    row = evidence.row
    if not row.is_paid:
        return Section("Money", (Paragraph("The teacher is a model on this machine; the run costs nothing."),))
    limit = row.budget_usd if row.budget_usd is not None else float(evidence.config.get("max_budget_usd") or 0.0)
    facts = [
        ("budget", f"${limit:.2f}"),
        ("spent, by the ledger", f"${row.spent_usd:.4f}"),
        ("reserved for calls under way", f"${row.reserved_usd:.4f}"),
    ]
    rows = tuple(
        (clean_text(entry.kind, 40), f"{entry.texts:,}", f"{entry.cache_hits:,}", f"{entry.input_tokens:,}",
         f"{entry.output_tokens:,}", f"${entry.cost_usd:.4f}")
        for entry in evidence.spend
    )  # fmt: skip
    kinds = Table(("kind", "texts", "from the cache", "tokens read", "tokens written", "cost"), rows)
    note = Paragraph(
        "Calls whose outcome is not known are charged in full by the ledger and are in no line of the table."
    )
    return Section("Money", (Facts(tuple(facts)), *((kinds, note) if rows else (Paragraph("No text was paid for."),))))


def time_by_phase(evidence: RunEvidence) -> Section:
    """Mean seconds of a step's phases, times the steps done; the evaluations' own."""
    names = {
        "writing (student)": "rollout_seconds",
        "scoring (teacher)": "teacher_seconds",
        "learning": "update_seconds",
        "the rest (files, database)": "other_seconds",
    }
    means = {name: _mean(evidence.series(metric)) for name, metric in names.items()}
    rows = [
        (name, f"{mean:.2f} s a step", _clock(mean * evidence.row.step))
        for name, mean in means.items()
        if mean is not None
    ]
    evals = [value for _, value in evidence.eval_series("eval_seconds")]
    rows += [("held-out evaluations", f"{len(evals)} evaluations", _clock(sum(evals)))] if evals else []
    if not rows:
        return Section("Time", (Paragraph("No time is recorded yet."),))
    note = Paragraph(
        "Of the recorded steps, over all steps done. Loading, checkpoints, waiting and a probe are not in it."
    )
    return Section("Time", (Table(("phase", "each", "about"), tuple(rows)), note))


def _mean(points: Sequence[tuple[int, float]]) -> float | None:
    return sum(value for _, value in points) / len(points) if points else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
