"""Gathers what is recorded about a run: row, series, events, newest comparison, what its teacher's texts cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from opd_core.control.evidence import RunEvidence, SpendEntry
from opd_core.errors import OPDError, StateError
from opd_core.paths import HomePaths
from opd_core.state.events import Event
from opd_core.state.jsonl import read_beginning
from opd_core.state.metrics import MAX_POINTS, Series
from opd_core.state.rows import RunRow
from opd_core.types import RunState

PAGE = 50
MAX_PAGES = 10
"""A comparison is looked for among the newest 500 jobs."""
MAX_EVENTS = 200
"""The newest ones."""
MAX_COMPLETIONS_BYTES = 256 * 1024 * 1024


class RunRecords(Protocol):
    """What is asked of `runs.Runs`."""

    def status(self, run_id: str | None = None) -> RunRow: ...
    def metrics(
        self, run_id: str | None, series: Series, since_step: int | None, points: int
    ) -> list[dict[str, Any]]: ...
    def events(self, run_id: str | None, limit: int) -> list[Event]: ...
    def list(
        self, session_id: str | None, state: RunState | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[RunRow], str | None]: ...
    def comparison_result(self, job_id: str) -> dict[str, Any]: ...


def gather(runs: RunRecords, home: HomePaths, run_id: str | None) -> RunEvidence:
    """Everything about one distillation.

    Raises:
        RunNotFoundError: no such run.
        StateError: it is a comparison or a probe.
    """
    row = runs.status(run_id)
    if row.kind != "distillation":
        raise StateError(
            f"{row.run_id} is a {row.kind}, and this is about training runs. Call get_status with it, or leave run_id "
            "out for the latest run."
        )
    return RunEvidence(
        row=row,
        train=runs.metrics(row.run_id, "train", None, MAX_POINTS),
        evals=runs.metrics(row.run_id, "eval", None, MAX_POINTS),
        events=runs.events(row.run_id, MAX_EVENTS),
        comparison=newest_comparison(runs, row),
        spend=spend_by_kind(home.completions(row.run_id)) if row.is_paid else (),
    )


def newest_comparison(runs: RunRecords, row: RunRow) -> dict[str, Any] | None:
    """The result of the newest completed comparison of this run; only jobs younger than the run are looked at."""
    cursor = None
    for _ in range(MAX_PAGES):
        rows, cursor = runs.list(None, None, PAGE, cursor)
        for job in rows:
            if job.kind == "comparison" and job.state == "completed" and job.config.get("run_id") == row.run_id:
                try:
                    return runs.comparison_result(job.run_id)
                except OPDError:
                    continue  # its file is gone; an older one may be there
        if cursor is None or (rows and rows[-1].number < row.number):
            return None
    return None


def spend_by_kind(path: Path) -> list[SpendEntry]:
    """Cost of a run's teacher texts by what was asked for, the dearest first; of the file's first 256 MB."""
    sums: dict[str, list[float]] = {}
    for record in read_beginning(path, MAX_COMPLETIONS_BYTES):
        kind = str(record.get("kind"))[:40]
        entry = sums.setdefault(kind, [0, 0, 0, 0, 0])
        hit = bool(record.get("cache_hit"))
        for index, value in enumerate((1, hit, record.get("input_tokens"), record.get("output_tokens"))):
            entry[index] += _number(value)
        entry[4] += 0 if hit else _number(record.get("cost_pico"))
    found = [
        SpendEntry(kind, int(texts), int(hits), int(read), int(written), pico / 1e12)
        for kind, (texts, hits, read, written, pico) in sums.items()
    ]
    return sorted(found, key=lambda entry: -entry.cost_usd)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
