"""What the house can be asked, once: behind each tool and each route stands the verb of the same name.

A verb gets its checked arguments, does the blocking work in a thread and returns a typed answer. `call` is how the
front doors come in: whatever goes wrong leaves it as an `OPDError` in plain words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

import anyio.to_thread
from pydantic import BaseModel

from opd_core.config import RunConfig
from opd_core.errors import OPDError
from opd_core.state.metrics import Series
from opd_core.state.rows import RunRow
from server.answers.comparisons import compared, comparison_facts
from server.answers.diagnoses import diagnosed, diagnosis_facts
from server.answers.estimates import estimate, estimate_facts
from server.answers.figures import settings_of
from server.answers.logs import log_facts, log_read
from server.answers.models import models, models_facts
from server.answers.probes import probe_facts, probed
from server.answers.prompt_files import inspected, inspection_facts
from server.answers.reports import report_facts, reported
from server.answers.runs import message_facts, resumed, runs, runs_facts, started, stopped
from server.answers.series import metric_lines, metrics_facts
from server.answers.sessions import MAX_SESSION_RUNS
from server.answers.setup import setup, setup_facts
from server.answers.status import run_status, status_facts, waited
from server.arguments.jobs import CompareArguments, ProbeArguments
from server.arguments.runs import (
    MAX_WAIT_SECONDS,
    ListRunsArguments,
    MetricsArguments,
    ModelsArguments,
    NoArguments,
    ResumeArguments,
    RunArguments,
    StopArguments,
    WaitArguments,
)
from server.arguments.studies import DiagnoseArguments, InspectArguments, LogArguments, PlotArguments, ReportArguments
from server.faults import record_fault
from server.schemas.base import Answer
from server.schemas.jobs import CompareAnswer, ProbeAnswer
from server.schemas.planning import EstimateAnswer, ModelsAnswer, SetupAnswer
from server.schemas.runs import MetricsAnswer, ResumeAnswer, RunsAnswer, RunStatus, StartAnswer, StopAnswer, WaitAnswer
from server.schemas.studies import DiagnosisAnswer, InspectAnswer, LogAnswer, PlotAnswer, ReportAnswer
from server.use_cases import UseCases
from server.waiting import Report, wait_for_end

T = TypeVar("T")


class UnexpectedError(OPDError):
    """A fault of the server itself; its details are in a log, its text names the log."""


async def no_report(progress: float, total: float | None = None, message: str | None = None) -> None:
    """For callers that cannot be told of progress."""


class Verbs:
    """The verbs of one home; nothing is kept between calls."""

    def __init__(self, cases: UseCases) -> None:
        self.cases = cases

    async def call(self, name: str, arguments: BaseModel, report: Report = no_report) -> Answer:
        """Carry out one verb of VERBS.

        Args:
            arguments: an instance of the verb's argument model.
            report: told of progress while a verb waits.

        Raises:
            OPDError: the only kind; anything unexpected becomes an UnexpectedError and its traceback goes to a log.
        """
        try:
            answer: Answer = await getattr(self, name)(arguments, report)
        except OPDError:
            raise
        except Exception as error:
            where = await anyio.to_thread.run_sync(record_fault, self.cases.home, name, error)
            raise UnexpectedError(
                f"{name} met an unexpected {type(error).__name__}; the details are in {where}. "
                "Call check_setup; if it names no problem, this is a fault of the server worth reporting."
            ) from None
        return answer

    async def check_setup(self, arguments: NoArguments, report: Report) -> SetupAnswer:
        return setup(await _thread(self.cases.check_setup), self.cases.settings_problems)

    async def list_models(self, arguments: ModelsArguments, report: Report) -> ModelsAnswer:
        return models(await _thread(self.cases.list_models), arguments.contains)

    async def estimate_cost(self, arguments: RunConfig, report: Report) -> EstimateAnswer:
        names_budget = "max_budget_usd" in arguments.model_fields_set
        return estimate(await _thread(self.cases.estimate, arguments), names_budget=names_budget)

    async def probe_teacher(self, arguments: ProbeArguments, report: Report) -> ProbeAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        job_id = arguments.job_id or (await _thread(self.cases.start_probe, arguments.config)).run_id
        row = await self._wait(job_id, seconds, report)
        result = await _thread(self.cases.probe_result, row.run_id) if row.state == "completed" else None
        return probed(row, result, seconds)

    async def start_distillation(self, arguments: RunConfig, report: Report) -> StartAnswer:
        return started(await _thread(self.cases.start, arguments))

    async def get_status(self, arguments: RunArguments, report: Report) -> RunStatus:
        row = await _thread(self.cases.status, arguments.run_id)
        return run_status(row).model_copy(update={"settings": settings_of(row)})

    async def wait_for_run(self, arguments: WaitArguments, report: Report) -> WaitAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        return waited(await self._wait(arguments.run_id, seconds, report), seconds)

    async def get_metrics(self, arguments: MetricsArguments, report: Report) -> MetricsAnswer:
        row = await _thread(self.cases.status, arguments.run_id)
        lines = await _thread(self.cases.metrics, row.run_id, arguments.series, arguments.since_step, arguments.points)
        return metric_lines(row, arguments.series, lines)

    async def list_runs(self, arguments: ListRunsArguments, report: Report) -> RunsAnswer:
        rows, cursor = await _thread(
            self.cases.list, arguments.session_id, arguments.state, arguments.limit, arguments.cursor
        )
        wanted = arguments.session_id
        if wanted is None:
            return runs(rows, cursor, await _thread(self.cases.sessions, rows))
        members, older = await _thread(self.cases.list, wanted, None, MAX_SESSION_RUNS, None)
        sessions = await _thread(self.cases.sessions, members)
        return runs(rows, cursor, sessions, whole_session=True, has_older=older is not None)

    async def stop_distillation(self, arguments: StopArguments, report: Report) -> StopAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        row = await _thread(self.cases.stop, arguments.run_id, 0.0)
        if row.state == "stopping":  # the wait holds no thread: others need them for their calls
            row = await self._wait(row.run_id, seconds, report)
        return stopped(row)

    async def resume_distillation(self, arguments: ResumeArguments, report: Report) -> ResumeAnswer:
        row = await _thread(
            self.cases.resume,
            arguments.run_id,
            arguments.num_training_steps,
            arguments.max_budget_usd,
            arguments.confirmed,
            arguments.from_step,
            arguments.accept_changes,
        )
        return resumed(row)

    async def compare_adapters(self, arguments: CompareArguments, report: Report) -> CompareAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        job = None if arguments.job_id else await _thread(self.cases.start_comparison, arguments)
        row = await self._wait(job.run_id if job else arguments.job_id, seconds, report)
        done = row.state == "completed"
        result = await _thread(self.cases.comparison_result, row.run_id) if done else None
        return compared(row, result, seconds, warnings=job.message if job else "")

    async def inspect_prompts(self, arguments: InspectArguments, report: Report) -> InspectAnswer:
        return inspected(await _thread(self.cases.inspect_prompts, arguments))

    async def plot_metrics(self, arguments: PlotArguments, report: Report) -> PlotAnswer:
        from server.answers.plots import MAX_POINTS, plotted

        asked = arguments.run_ids or (None,)
        run_ids = [(await _thread(self.cases.status, run_id)).run_id for run_id in asked]

        def read(run_id: str, series: Series) -> Sequence[dict[str, Any]]:
            return self.cases.metrics(run_id, series, None, MAX_POINTS)

        return await _thread(plotted, list(dict.fromkeys(run_ids)), arguments.keys, arguments.series, read)

    async def read_log(self, arguments: LogArguments, report: Report) -> LogAnswer:
        row = await _thread(self.cases.status, arguments.run_id)
        part = await _thread(self.cases.read_log, row.run_id, arguments)
        return log_read(row, arguments.mode, part, arguments.pattern)

    async def diagnose_run(self, arguments: DiagnoseArguments, report: Report) -> DiagnosisAnswer:
        from opd_core.control.diagnosis.diagnosing import diagnose

        evidence = await _thread(self.cases.evidence, arguments.run_id)
        return diagnosed(evidence.row, await _thread(diagnose, evidence))

    async def export_report(self, arguments: ReportArguments, report: Report) -> ReportAnswer:
        evidence = await _thread(self.cases.evidence, arguments.run_id)
        return reported(evidence, await _thread(self.cases.export_report, evidence))

    async def _wait(self, run_id: str | None, seconds: float, report: Report) -> RunRow:
        first = await _thread(self.cases.status, run_id)
        # the id is fixed now: "the current run" may be another one later
        read = functools.partial(self.cases.status, first.run_id)
        return await wait_for_end(read, report, seconds)


async def _thread(work: Callable[..., T], *values: object) -> T:
    """Run blocking work (SQLite, files) beside the event loop."""
    return await anyio.to_thread.run_sync(functools.partial(work, *values))


@dataclass(frozen=True)
class Verb:
    """The models of one verb, and its answer's key facts for the text that is read aloud, one a line."""

    arguments: type[BaseModel]
    answer: type[Answer]
    facts: Callable[[Any], list[str]]
    shows_image: bool = False
    """The tool answers with a picture and text, and so has no output schema; the route gives the answer as it is."""


def _verb(name: str, facts: Callable[[Any], list[str]]) -> Verb:
    hints = get_type_hints(getattr(Verbs, name))
    return Verb(hints["arguments"], hints["return"], facts, shows_image=hints["return"] is PlotAnswer)


def _plot_facts(answer: PlotAnswer) -> list[str]:
    from server.answers.plots import plot_facts

    return plot_facts(answer)


VERBS: dict[str, Verb] = {
    name: _verb(name, facts)
    for name, facts in (
        ("check_setup", setup_facts),
        ("list_models", models_facts),
        ("inspect_prompts", inspection_facts),
        ("estimate_cost", estimate_facts),
        ("probe_teacher", probe_facts),
        ("start_distillation", message_facts),
        ("get_status", status_facts),
        ("wait_for_run", status_facts),
        ("get_metrics", metrics_facts),
        ("plot_metrics", _plot_facts),
        ("read_log", log_facts),
        ("diagnose_run", diagnosis_facts),
        ("list_runs", runs_facts),
        ("stop_distillation", message_facts),
        ("resume_distillation", message_facts),
        ("compare_adapters", comparison_facts),
        ("export_report", report_facts),
    )
}
"""Every verb by its name, which is its tool's name too."""
