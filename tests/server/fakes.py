"""A house without a database: use cases that answer from what a test put in, and a way to call tools as a client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
from mcp.client import Client
from mcp_types import CallToolResult

from opd_core.config import RunConfig
from opd_core.control.diagnosis.diagnosing import diagnose
from opd_core.control.estimate.estimating import Estimate
from opd_core.control.evidence import RunEvidence
from opd_core.control.log_reading import LogPart
from opd_core.control.models import LocalModels
from opd_core.control.prompts.inspection import PromptInspection, inspect_prompts
from opd_core.control.report.writing import WrittenFile, WrittenReport
from opd_core.control.sessions import Session, sessions_of
from opd_core.control.setup_check import SetupReport
from opd_core.errors import RunNotFoundError
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.state.metrics import Series
from opd_core.state.rows import RunRow
from opd_core.types import RunState
from server.app import server_for
from server.arguments.jobs import CompareArguments
from server.arguments.studies import InspectArguments, LogArguments
from server.settings import Problem
from tests.server.records import make_estimate, make_report

Era = Literal["auto", "legacy"]
ERAS: tuple[Era, ...] = ("auto", "legacy")


@dataclass
class FakeUseCases:
    """`rows` are given out one after the other by `status` (the last one stays); `asked` records every call."""

    rows: list[RunRow] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    report: SetupReport = field(default_factory=make_report)
    models: LocalModels = field(default_factory=lambda: LocalModels((), ()))
    settings_problems: tuple[Problem, ...] = ()
    error: Exception | None = None
    next_cursor: str | None = None
    probe: dict[str, Any] = field(default_factory=dict)
    estimated: Estimate = field(default_factory=make_estimate)
    home: HomePaths = field(default_factory=lambda: HomePaths(Path("/nowhere/opd")))
    log: LogPart = LogPart(0, 0, (), (), None)  # noqa: RUF009 - frozen
    evals: list[dict[str, Any]] = field(default_factory=list)
    report_markdown: str = "# Distillation run opd_1\n"
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def _note(self, *call: Any) -> None:
        self.asked.append(call)
        if self.error is not None:
            raise self.error

    def _row(self) -> RunRow:
        if not self.rows:
            raise RunNotFoundError("There are no runs yet. start_distillation makes one.")
        return self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]

    def check_setup(self) -> SetupReport:
        self._note("check_setup")
        return self.report

    def list_models(self) -> LocalModels:
        self._note("list_models")
        return self.models

    def estimate(self, config: RunConfig) -> Estimate:
        self._note("estimate", config)
        return self.estimated

    def start(self, config: RunConfig) -> RunRow:
        self._note("start", config)
        return self._row()

    def status(self, run_id: str | None) -> RunRow:
        self._note("status", run_id)
        return self._row()

    def metrics(self, run_id: str, series: Series, since_step: int | None, points: int) -> Sequence[dict[str, Any]]:
        self._note("metrics", run_id, series, since_step, points)
        return self.lines if series == "train" or not self.evals else self.evals

    def rollouts(self, run_id: str, count: int) -> Sequence[dict[str, Any]]:
        self._note("rollouts", run_id, count)
        return self.written[-count:]

    def list(
        self, session_id: str | None, state: RunState | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[RunRow], str | None]:
        self._note("list", session_id, state, limit, cursor)
        return self.rows, self.next_cursor

    def sessions(self, rows: Sequence[RunRow]) -> Sequence[Session]:
        self._note("sessions", [row.run_id for row in rows])
        return sessions_of(rows, self.home, Roots(()))

    def stop(self, run_id: str | None, timeout_seconds: float) -> RunRow:
        self._note("stop", run_id, timeout_seconds)
        return self._row()

    def resume(
        self,
        run_id: str | None,
        num_training_steps: int | None,
        max_budget_usd: float | None,
        confirmed: bool,
        from_step: int | None,
        accept_changes: bool,
    ) -> RunRow:
        self._note("resume", run_id, num_training_steps, max_budget_usd, confirmed, from_step, accept_changes)
        return self._row()

    def start_comparison(self, arguments: CompareArguments) -> RunRow:
        self._note("start_comparison", arguments)
        return self.rows[0]

    def start_probe(self, config: RunConfig) -> RunRow:
        self._note("start_probe", config)
        return self.rows[0]

    def probe_result(self, job_id: str) -> dict[str, Any]:
        self._note("probe_result", job_id)
        return self.probe

    def comparison_result(self, job_id: str) -> dict[str, Any]:
        self._note("comparison_result", job_id)
        return self.result

    def inspect_prompts(self, arguments: InspectArguments) -> PromptInspection:
        self._note("inspect_prompts", arguments)
        given = (arguments.prompts_path, arguments.validation_prompts_path)
        return inspect_prompts(
            [Path(path) for path in given if path is not None],
            seed=arguments.seed,
            eval_max_samples=arguments.eval_max_samples,
            rollout_max_tokens=arguments.rollout_max_tokens,
            samples=arguments.samples,
        )

    def read_log(self, run_id: str, arguments: LogArguments) -> LogPart:
        self._note("read_log", run_id, arguments)
        return self.log

    def evidence(self, run_id: str | None) -> RunEvidence:
        self._note("evidence", run_id)
        return RunEvidence(self._row(), self.lines, self.evals)

    def export_report(self, evidence: RunEvidence) -> WrittenReport:
        self._note("export_report", evidence.row.run_id)
        name = f"/nowhere/opd/reports/{evidence.row.run_id}"
        html, markdown = (WrittenFile(Path(name + end), 10_000, "ab" * 32) for end in (".html", ".md"))
        return WrittenReport(html, markdown, ("Curves",), diagnose(evidence))

    def report_text(self, run_id: str) -> str:
        self._note("report_text", run_id)
        return self.report_markdown


Progress = Callable[[float, float | None, str | None], Any]


def call(cases: FakeUseCases, tool: str, arguments: dict[str, Any] | None = None, era: Era = "auto") -> CallToolResult:
    """Call one tool as a client of the given protocol era would."""

    async def go() -> CallToolResult:
        async with Client(server_for(cases), mode=era) as client:
            return await client.call_tool(tool, arguments or {})

    return anyio.run(go)


def text_of(result: CallToolResult) -> str:
    """The text of a result."""
    return "".join(block.text for block in result.content if block.type == "text")


def data_of(result: CallToolResult) -> dict[str, Any]:
    """The structured content of a result that is no error."""
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    return result.structured_content
