"""One short function a tool: call the use case in a thread, turn its answer into a typed result.

Arguments arrive checked (see `gate.py`). Every error of ours becomes the SDK's `ToolError`, whose text the model
reads; anything else becomes one plain sentence, and its traceback goes to a log file.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Concatenate, ParamSpec, TypeVar

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult

from opd_core.config import RunConfig
from opd_core.errors import OPDError
from opd_core.state.rows import RunRow
from server import answers, schemas
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
from server.present import run_status
from server.probes import probe_facts, probed
from server.replies import (
    estimate_facts,
    models_facts,
    reply,
    runs_facts,
    setup_facts,
    status_facts,
)
from server.use_cases import UseCases
from server.waiting import wait_for_end

P = ParamSpec("P")
T = TypeVar("T")


def plain_errors(
    tool: Callable[Concatenate[Tools, P], Awaitable[T]],
) -> Callable[Concatenate[Tools, P], Awaitable[T]]:
    """Let a tool fail only with a `ToolError` in plain words."""

    @functools.wraps(tool)
    async def call(self: Tools, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(self, *args, **kwargs)
        except OPDError as error:
            raise ToolError(str(error)) from None
        except Exception as error:
            where = await anyio.to_thread.run_sync(record_fault, self.cases.home, tool.__name__, error)
            raise ToolError(
                f"{tool.__name__} met an unexpected {type(error).__name__}; the details are in {where}. "
                "Call check_setup; if it names no problem, this is a fault of the server worth reporting."
            ) from None

    return call


class Tools:
    """The tools of one server; what each is for stands in `texts.TOOLS`.

    `cases` does the work, and nothing is kept between calls.
    """

    def __init__(self, cases: UseCases) -> None:
        self.cases = cases

    @plain_errors
    async def check_setup(self, arguments: NoArguments) -> Annotated[CallToolResult, schemas.SetupAnswer]:
        answer = answers.setup(await _thread(self.cases.check_setup), self.cases.settings_problems)
        return reply(answer, setup_facts(answer))

    @plain_errors
    async def list_models(self, arguments: ModelsArguments) -> Annotated[CallToolResult, schemas.ModelsAnswer]:
        answer = answers.models(await _thread(self.cases.list_models), arguments.contains)
        return reply(answer, models_facts(answer))

    @plain_errors
    async def estimate_cost(self, arguments: RunConfig) -> Annotated[CallToolResult, schemas.EstimateAnswer]:
        answer = answers.estimate(await _thread(self.cases.estimate, arguments))
        return reply(answer, estimate_facts(answer))

    @plain_errors
    async def probe_teacher(
        self, arguments: ProbeArguments, context: Context
    ) -> Annotated[CallToolResult, schemas.ProbeAnswer]:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        job_id = arguments.job_id or (await _thread(self.cases.start_probe, arguments.config)).run_id
        row = await self._wait(job_id, seconds, context)
        result = await _thread(self.cases.probe_result, row.run_id) if row.state == "completed" else None
        answer = probed(row, result, seconds)
        return reply(answer, probe_facts(answer))

    @plain_errors
    async def start_distillation(self, arguments: RunConfig) -> Annotated[CallToolResult, schemas.StartAnswer]:
        answer = answers.started(await _thread(self.cases.start, arguments))
        return reply(answer, [answer.message])

    @plain_errors
    async def get_status(self, arguments: RunArguments) -> Annotated[CallToolResult, schemas.RunStatus]:
        answer = run_status(await _thread(self.cases.status, arguments.run_id))
        return reply(answer, status_facts(answer))

    @plain_errors
    async def wait_for_run(
        self, arguments: WaitArguments, context: Context
    ) -> Annotated[CallToolResult, schemas.WaitAnswer]:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        answer = answers.waited(await self._wait(arguments.run_id, seconds, context), seconds)
        return reply(answer, status_facts(answer))

    @plain_errors
    async def get_metrics(self, arguments: MetricsArguments) -> Annotated[CallToolResult, schemas.MetricsAnswer]:
        row = await _thread(self.cases.status, arguments.run_id)
        lines = await _thread(self.cases.metrics, row.run_id, arguments.series, arguments.since_step, arguments.points)
        answer, facts = answers.metric_lines(row, arguments.series, lines)
        return reply(answer, facts)

    @plain_errors
    async def list_runs(self, arguments: ListRunsArguments) -> Annotated[CallToolResult, schemas.RunsAnswer]:
        rows, cursor = await _thread(
            self.cases.list, arguments.session_id, arguments.state, arguments.limit, arguments.cursor
        )
        answer = answers.runs(rows, cursor)
        return reply(answer, runs_facts(answer))

    @plain_errors
    async def stop_distillation(self, arguments: StopArguments) -> Annotated[CallToolResult, schemas.StopAnswer]:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        answer = answers.stopped(await _thread(self.cases.stop, arguments.run_id, seconds))
        return reply(answer, [answer.message])

    @plain_errors
    async def resume_distillation(self, arguments: ResumeArguments) -> Annotated[CallToolResult, schemas.ResumeAnswer]:
        row = await _thread(
            self.cases.resume,
            arguments.run_id,
            arguments.num_training_steps,
            arguments.max_budget_usd,
            arguments.confirmed,
            arguments.from_step,
            arguments.accept_changes,
        )
        answer = answers.resumed(row)
        return reply(answer, [answer.message])

    @plain_errors
    async def compare_adapters(
        self, arguments: CompareArguments, context: Context
    ) -> Annotated[CallToolResult, schemas.CompareAnswer]:
        seconds = min(arguments.timeout_seconds, MAX_WAIT_SECONDS)
        started = None if arguments.job_id else await _thread(self.cases.start_comparison, arguments)
        row = await self._wait(started.run_id if started else arguments.job_id, seconds, context)
        done = row.state == "completed"
        result = await _thread(self.cases.comparison_result, row.run_id) if done else None
        answer = compared(row, result, seconds, warnings=started.message if started else "")
        return reply(answer, comparison_facts(answer))

    async def _wait(self, run_id: str | None, seconds: float, context: Context) -> RunRow:
        first = await _thread(self.cases.status, run_id)
        # the id is fixed now: "the current run" may be another one later
        read = functools.partial(self.cases.status, first.run_id)
        return await wait_for_end(read, context.report_progress, seconds)


async def _thread(work: Callable[..., T], *values: object) -> T:
    """Run blocking work (SQLite, files) beside the event loop."""
    return await anyio.to_thread.run_sync(functools.partial(work, *values))
