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
from server import answers, schemas, study_answers, study_schemas
from server.arguments import (
    MAX_WAIT_SECONDS,
    CompareArguments,
    ListRunsArguments,
    MetricsArguments,
    ModelsArguments,
    NoArguments,
    ProbeArguments,
    ResumeArguments,
    RunArguments,
    StopArguments,
    WaitArguments,
)
from server.comparisons import compared, comparison_facts
from server.faults import record_fault
from server.models_answers import models, models_facts
from server.present import run_status
from server.probes import probe_facts, probed
from server.replies import estimate_facts, metrics_facts, runs_facts, setup_facts, status_facts
from server.session_answers import MAX_SESSION_RUNS, session_facts, settings_of, told
from server.study_answers import diagnosis_facts, inspection_facts, log_facts, report_facts
from server.study_arguments import (
    DiagnoseArguments,
    InspectArguments,
    LogArguments,
    PlotArguments,
    ReportArguments,
)
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

    async def call(self, name: str, arguments: BaseModel, report: Report = no_report) -> schemas.Answer:
        """Carry out one verb of VERBS.

        Args:
            arguments: an instance of the verb's argument model.
            report: told of progress while a verb waits.

        Raises:
            OPDError: the only kind; anything unexpected becomes an UnexpectedError and its traceback goes to a log.
        """
        try:
            answer: schemas.Answer = await getattr(self, name)(arguments, report)
        except OPDError:
            raise
        except Exception as error:
            where = await anyio.to_thread.run_sync(record_fault, self.cases.home, name, error)
            raise UnexpectedError(
                f"{name} met an unexpected {type(error).__name__}; the details are in {where}. "
                "Call check_setup; if it names no problem, this is a fault of the server worth reporting."
            ) from None
        return answer

    async def check_setup(self, arguments: NoArguments, report: Report) -> schemas.SetupAnswer:
        return answers.setup(await _thread(self.cases.check_setup), self.cases.settings_problems)

    async def list_models(self, arguments: ModelsArguments, report: Report) -> schemas.ModelsAnswer:
        return models(await _thread(self.cases.list_models), arguments.contains)

    async def estimate_cost(self, arguments: RunConfig, report: Report) -> schemas.EstimateAnswer:
        names_budget = "max_budget_usd" in arguments.model_fields_set
        return answers.estimate(await _thread(self.cases.estimate, arguments), names_budget=names_budget)

    async def probe_teacher(self, arguments: ProbeArguments, report: Report) -> schemas.ProbeAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        job_id = arguments.job_id or (await _thread(self.cases.start_probe, arguments.config)).run_id
        row = await self._wait(job_id, seconds, report)
        result = await _thread(self.cases.probe_result, row.run_id) if row.state == "completed" else None
        return probed(row, result, seconds)

    async def start_distillation(self, arguments: RunConfig, report: Report) -> schemas.StartAnswer:
        return answers.started(await _thread(self.cases.start, arguments))

    async def get_status(self, arguments: RunArguments, report: Report) -> schemas.RunStatus:
        row = await _thread(self.cases.status, arguments.run_id)
        return run_status(row).model_copy(update={"settings": settings_of(row)})

    async def wait_for_run(self, arguments: WaitArguments, report: Report) -> schemas.WaitAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        return answers.waited(await self._wait(arguments.run_id, seconds, report), seconds)

    async def get_metrics(self, arguments: MetricsArguments, report: Report) -> schemas.MetricsAnswer:
        row = await _thread(self.cases.status, arguments.run_id)
        lines = await _thread(self.cases.metrics, row.run_id, arguments.series, arguments.since_step, arguments.points)
        return answers.metric_lines(row, arguments.series, lines)

    async def list_runs(self, arguments: ListRunsArguments, report: Report) -> schemas.RunsAnswer:
        rows, cursor = await _thread(
            self.cases.list, arguments.session_id, arguments.state, arguments.limit, arguments.cursor
        )
        wanted = arguments.session_id
        if wanted is None:
            return answers.runs(rows, cursor, await _thread(self.cases.sessions, rows))
        members, older = await _thread(self.cases.list, wanted, None, MAX_SESSION_RUNS, None)
        sessions = await _thread(self.cases.sessions, members)
        return answers.runs(rows, cursor, sessions, whole_session=True, has_older=older is not None)

    async def stop_distillation(self, arguments: StopArguments, report: Report) -> schemas.StopAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        row = await _thread(self.cases.stop, arguments.run_id, 0.0)
        if row.state == "stopping":  # the wait holds no thread: others need them for their calls
            row = await self._wait(row.run_id, seconds, report)
        return answers.stopped(row)

    async def resume_distillation(self, arguments: ResumeArguments, report: Report) -> schemas.ResumeAnswer:
        row = await _thread(
            self.cases.resume,
            arguments.run_id,
            arguments.num_training_steps,
            arguments.max_budget_usd,
            arguments.confirmed,
            arguments.from_step,
            arguments.accept_changes,
        )
        return answers.resumed(row)

    async def compare_adapters(self, arguments: CompareArguments, report: Report) -> schemas.CompareAnswer:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        started = None if arguments.job_id else await _thread(self.cases.start_comparison, arguments)
        row = await self._wait(started.run_id if started else arguments.job_id, seconds, report)
        done = row.state == "completed"
        result = await _thread(self.cases.comparison_result, row.run_id) if done else None
        return compared(row, result, seconds, warnings=started.message if started else "")

    async def inspect_prompts(self, arguments: InspectArguments, report: Report) -> study_schemas.InspectAnswer:
        return study_answers.inspected(await _thread(self.cases.inspect_prompts, arguments))

    async def plot_metrics(self, arguments: PlotArguments, report: Report) -> study_schemas.PlotAnswer:
        from server.plot_answers import MAX_POINTS, plotted

        asked = arguments.run_ids or (None,)
        run_ids = [(await _thread(self.cases.status, run_id)).run_id for run_id in asked]

        def read(run_id: str, series: Series) -> Sequence[dict[str, Any]]:
            return self.cases.metrics(run_id, series, None, MAX_POINTS)

        return await _thread(plotted, list(dict.fromkeys(run_ids)), arguments.keys, arguments.series, read)

    async def read_log(self, arguments: LogArguments, report: Report) -> study_schemas.LogAnswer:
        row = await _thread(self.cases.status, arguments.run_id)
        part = await _thread(self.cases.read_log, row.run_id, arguments)
        return study_answers.log_read(row, arguments.mode, part, arguments.pattern)

    async def diagnose_run(self, arguments: DiagnoseArguments, report: Report) -> study_schemas.DiagnosisAnswer:
        from opd_core.control.diagnosis import diagnose

        evidence = await _thread(self.cases.evidence, arguments.run_id)
        return study_answers.diagnosed(evidence.row, await _thread(diagnose, evidence))

    async def export_report(self, arguments: ReportArguments, report: Report) -> study_schemas.ReportAnswer:
        evidence = await _thread(self.cases.evidence, arguments.run_id)
        return study_answers.reported(evidence, await _thread(self.cases.export_report, evidence))

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
    answer: type[schemas.Answer]
    facts: Callable[[Any], list[str]]
    shows_image: bool = False
    """The tool answers with a picture and text, and so has no output schema; the route gives the answer as it is."""


def _verb(name: str, facts: Callable[[Any], list[str]]) -> Verb:
    hints = get_type_hints(getattr(Verbs, name))
    return Verb(hints["arguments"], hints["return"], facts, shows_image=hints["return"] is study_schemas.PlotAnswer)


def _message(answer: schemas.StartAnswer | schemas.StopAnswer | schemas.ResumeAnswer) -> list[str]:
    return [] if answer.message == answer.summary else [answer.message]


def _status_facts(answer: schemas.RunStatus) -> list[str]:
    settings = [f"- settings: {told(answer.settings)}"] if answer.settings else []
    return [*status_facts(answer), *settings]


def _plot_facts(answer: study_schemas.PlotAnswer) -> list[str]:
    from server.plot_answers import plot_facts

    return plot_facts(answer)


def _runs_facts(answer: schemas.RunsAnswer) -> list[str]:
    cut = [answer.sessions_cut] if answer.sessions_cut else []
    return [*runs_facts(answer), *session_facts(answer.sessions), *cut]


VERBS: dict[str, Verb] = {
    name: _verb(name, facts)
    for name, facts in (
        ("check_setup", setup_facts),
        ("list_models", models_facts),
        ("inspect_prompts", inspection_facts),
        ("estimate_cost", estimate_facts),
        ("probe_teacher", probe_facts),
        ("start_distillation", _message),
        ("get_status", _status_facts),
        ("wait_for_run", status_facts),
        ("get_metrics", metrics_facts),
        ("plot_metrics", _plot_facts),
        ("read_log", log_facts),
        ("diagnose_run", diagnosis_facts),
        ("list_runs", _runs_facts),
        ("stop_distillation", _message),
        ("resume_distillation", _message),
        ("compare_adapters", comparison_facts),
        ("export_report", report_facts),
    )
}
"""Every verb by its name, which is its tool's name too."""
