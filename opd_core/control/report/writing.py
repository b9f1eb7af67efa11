"""A report of one run as a self-contained page and its Markdown twin under OPD_HOME/reports, finished or not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from opd_core.control.diagnosis.diagnosing import diagnose
from opd_core.control.diagnosis.finding import Diagnosis
from opd_core.control.evidence import RunEvidence
from opd_core.control.report import expense, origin, outcome
from opd_core.control.report.content import Report
from opd_core.control.report.html_page import html_page
from opd_core.control.report.markdown_page import markdown_page
from opd_core.control.report.samples import samples
from opd_core.errors import HomeError
from opd_core.paths import HomePaths, utc_now, write_whole


@dataclass(frozen=True)
class WrittenFile:
    """One file of a report."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WrittenReport:
    """Where a report lies, and what it concludes."""

    html: WrittenFile
    markdown: WrittenFile
    sections: tuple[str, ...]
    diagnosis: Diagnosis


def make_report(evidence: RunEvidence, home: HomePaths, diagnosis: Diagnosis) -> Report:
    """What the report says, in the order in which a reader asks; reads and hashes the files of the run."""
    row = evidence.row
    found, source = samples(evidence, home)
    return Report(
        title=f"Distillation run {row.run_id}",
        summary=f"Written {utc_now()}. State {row.state}, step {row.step} of {row.total_steps}. {diagnosis.summary}",
        sections=(
            outcome.before_and_after(evidence),
            outcome.diagnosed(diagnosis),
            outcome.curves(evidence),
            outcome.side_by_side(found, source),
            outcome.how_to_load(evidence),
            expense.spending(evidence),
            expense.time_by_phase(evidence),
            origin.asked_and_resolved(evidence),
            origin.provenance(evidence, home),
            origin.history(evidence),
        ),
    )


def write_report(evidence: RunEvidence, home: HomePaths) -> WrittenReport:
    """Write both files, each replaced whole and readable by its owner alone.

    Returns:
        Paths, sizes and hashes of what was written, the titles of its sections, and the diagnosis in it.

    Raises:
        HomeError: the disk refuses.
    """
    diagnosis = diagnose(evidence)
    report = make_report(evidence, home, diagnosis)
    try:
        html = _write(home.report(evidence.row.run_id, "html"), html_page(report))
        markdown = _write(home.report(evidence.row.run_id, "md"), markdown_page(report))
    except OSError as error:
        raise HomeError(
            f"The report cannot be written to {home.report(evidence.row.run_id, 'html').parent}: {error.strerror}. "
            "Make room or make the folder writable, then call export_report again."
        ) from error
    return WrittenReport(html, markdown, tuple(section.title for section in report.sections), diagnosis)


def _write(path: Path, text: str) -> WrittenFile:
    data = text.encode("utf-8", errors="backslashreplace")
    write_whole(path, data.decode("utf-8"))
    return WrittenFile(path, len(data), hashlib.sha256(data).hexdigest())
