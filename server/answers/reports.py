"""The answer of `export_report`: where the pages lie and what they conclude."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_core.types import END_STATES, clean_text
from server.answers.sentences import status_next_step
from server.answers.words import number
from server.schemas.studies import ReportAnswer

if TYPE_CHECKING:
    from opd_core.control.evidence import RunEvidence
    from opd_core.control.report.writing import WrittenReport


def reported(evidence: RunEvidence, written: WrittenReport) -> ReportAnswer:
    """Where the report lies and what it concludes."""
    row = evidence.row
    has_comparison = evidence.comparison is not None and row.state == "completed"
    unfinished = "" if row.state in END_STATES else f" The run is {row.state}, so it shows what there is so far."
    return ReportAnswer(
        summary=f"The report of run {row.run_id} is written to {written.html.path}, with a Markdown twin beside it."
        f"{unfinished} Its verdict is {written.diagnosis.verdict.replace('_', ' ')}: "
        f"{clean_text(written.diagnosis.summary, 800)}",
        next_step="Tell the user the path of the page; it opens in any browser and loads nothing from elsewhere. "
        + ("Call diagnose_run for what to change." if has_comparison else status_next_step(row)),
        run_id=row.run_id,
        state=row.state,
        verdict=written.diagnosis.verdict,
        html_path=str(written.html.path),
        html_bytes=written.html.bytes,
        html_sha256=written.html.sha256,
        markdown_path=str(written.markdown.path),
        markdown_bytes=written.markdown.bytes,
        markdown_sha256=written.markdown.sha256,
        sections=list(written.sections),
    )


def report_facts(answer: ReportAnswer) -> list[str]:
    """Files and sections."""
    return [
        f"- page: {answer.html_path} ({number(answer.html_bytes / 1000)} kB, sha256 {answer.html_sha256})",
        f"- Markdown: {answer.markdown_path} ({number(answer.markdown_bytes / 1000)} kB)",
        f"- sections: {', '.join(answer.sections)}",
    ]
