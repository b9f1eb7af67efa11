"""The answer of `diagnose_run`: the verdict, the figures behind it, and what to change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES, clean_text
from server.answers.reply import first_that_fit
from server.answers.sentences import status_next_step
from server.answers.words import tidy
from server.schemas.studies import DiagnosisAnswer, FindingEntry, SuggestionEntry

if TYPE_CHECKING:
    from opd_core.control.diagnosis.finding import Diagnosis


DIAGNOSIS_BYTES = 6_000
SHOWN_SUGGESTIONS = 6


def diagnosed(row: RunRow, found: Diagnosis) -> DiagnosisAnswer:
    """Verdict, the figures behind it, and what to change."""
    evidence = [clean_text(text, 700) for finding in found.findings for text in finding.evidence]
    kept = first_that_fit(evidence, DIAGNOSIS_BYTES)
    suggestions = [
        SuggestionEntry(change=each.change, why=each.why, settings=tidy(each.settings))
        for each in found.suggestions[:SHOWN_SUGGESTIONS]
    ]
    others = [finding.name for finding in found.findings if finding.name != found.verdict]
    more = f" Also found: {', '.join(name.replace('_', ' ') for name in others)}." if others else ""
    hidden = len(found.suggestions) - len(suggestions) + len(evidence) - len(kept)
    return DiagnosisAnswer(
        summary=f"Run {row.run_id}, {found.verdict.replace('_', ' ')}: {clean_text(found.summary, 1200)}{more}",
        next_step=_diagnosis_next(row, found),
        run_id=row.run_id,
        state=row.state,
        verdict=found.verdict,
        evidence=kept,
        suggestions=suggestions,
        findings=[
            FindingEntry(name=each.name, severity=each.severity, sentence=clean_text(each.sentence, 700))
            for each in found.findings[:12]
        ],
        cut=f"{hidden} entries were left out; export_report has all of them." if hidden else None,
    )


def _diagnosis_next(row: RunRow, found: Diagnosis) -> str:
    grave = found.findings and found.findings[0].severity
    if found.suggestions and grave in ("stops", "harms"):
        first = found.suggestions[0].change.rstrip(".")
        running = "" if row.state in END_STATES else f" Call stop_distillation with run_id {row.run_id} first."
        return f"Tell the user the verdict and propose the first change: {first}.{running}"
    if found.suggestions:
        return f"Tell the user the verdict and the changes it offers. {status_next_step(row)}"
    return status_next_step(row)


def diagnosis_facts(answer: DiagnosisAnswer) -> list[str]:
    """Findings, figures, changes with their settings."""
    lines = [f"- {entry.name} ({entry.severity}): {entry.sentence}" for entry in answer.findings]
    lines += [f"- evidence: {text}" for text in answer.evidence]
    for entry in answer.suggestions:
        settings = f" [{json.dumps(entry.settings)}]" if entry.settings else ""
        lines.append(f"- change: {entry.change} Why: {entry.why}{settings}")
    return lines + ([f"- {answer.cut}"] if answer.cut else [])
