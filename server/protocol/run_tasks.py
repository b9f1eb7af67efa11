"""Runs and jobs as tasks: the task's id is the run's or job's own, so a task outlives the server that made it.

A run that was stopped by the user is a cancelled task. One that failed or was interrupted is a completed task whose
result is an error, since the protocol keeps "failed" for its own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver import Context as ToolContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolRequestParams, CallToolResult, TextContent
from pydantic import BaseModel

from opd_core.errors import OPDError, RunNotFoundError
from opd_core.paths import RUN_ID_PATTERN
from opd_core.state.rows import RunRow
from opd_core.types import END_STATES, JobKind
from server.answers.reply import reply
from server.answers.sentences import status_next_step, status_summary
from server.protocol.tasks import Context, Task
from server.tools import call_tool
from server.verbs import VERBS, Verbs

TOOL_OF: dict[JobKind, str] = {
    "distillation": "wait_for_run",
    "comparison": "compare_adapters",
    "probe": "probe_teacher",
}


class RunTasks:
    """The tasks of one home; nothing is kept between calls."""

    tools = frozenset(TOOL_OF.values())
    required: frozenset[str] = frozenset()

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    async def start(self, params: CallToolRequestParams, ctx: Context, call_next: CallNext) -> Task | HandlerResult:
        """Call the tool without a wait; what has not ended yet becomes a task.

        A caller that says how long it wants to wait gets that wait, not a task that lasts as long as the run.
        """
        (arguments,) = (params.arguments or {}).values()
        if "timeout_seconds" in arguments.model_fields_set:
            return await call_next(ctx)
        at_once = arguments.model_copy(update={"timeout_seconds": 0.0})
        context = ToolContext(request_context=ctx, input_params=params)
        try:
            result = await call_tool(self._verbs, params.name, at_once, context)
        except OPDError as error:
            return _refusal(f"Error executing tool {params.name}: {error}")
        if not isinstance(result, CallToolResult):
            return result
        answer = result.structured_content or {}
        row = await self._row(answer.get("job_id") or answer["run_id"])
        if row is None or row.state in END_STATES:
            return result
        if TOOL_OF[row.kind] != params.name:  # waiting for a job: its own tool reads the result
            return await call_next(ctx)
        return await self._task(row)

    async def read(self, task_id: str) -> Task | None:
        """The run or job with exactly this id."""
        row = await self._row(task_id) if RUN_ID_PATTERN.fullmatch(task_id) else None
        return None if row is None or row.run_id != task_id else await self._task(row)

    async def answer(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """A run asks nothing once it has begun."""

    async def cancel(self, task_id: str) -> None:
        """Stop the run as stop_distillation does, without waiting for its clean end."""
        await _thread(partial(self._verbs.cases.stop, task_id, 0.0))

    async def _row(self, run_id: str) -> RunRow | None:
        try:
            return await _thread(partial(self._verbs.cases.status, run_id))
        except RunNotFoundError:
            return None

    async def _task(self, row: RunRow) -> Task:
        describe = partial(
            Task,
            task_id=row.run_id,
            created_at=row.created_at,
            updated_at=row.finished_at or row.heartbeat_at or row.created_at,
            message=status_summary(row),
        )
        if row.state not in END_STATES:
            return describe(status="working")
        if row.state == "stopped" and row.end_reason == "by_user":
            return describe(status="cancelled")
        if row.state in ("failed", "interrupted"):
            return describe(
                status="completed", result=_refusal(f"{status_summary(row)}\nNext: {status_next_step(row)}")
            )
        return describe(status="completed", result=await self._result(row))

    async def _result(self, row: RunRow) -> CallToolResult:
        """What the tool of this kind answers now."""
        name = TOOL_OF[row.kind]
        try:
            answer = await self._verbs.call(name, _fetching(row))
        except OPDError as error:
            return _refusal(f"Error executing tool {name}: {error}")
        return reply(answer, VERBS[name].facts(answer))


def _fetching(row: RunRow) -> BaseModel:
    """What fetches the outcome of a run or job, without a wait."""
    model = VERBS[TOOL_OF[row.kind]].arguments
    name = "run_id" if row.kind == "distillation" else "job_id"
    return model.model_validate({name: row.run_id, "timeout_seconds": 0.0})


async def _thread(work: partial[RunRow]) -> RunRow:
    try:
        return await anyio.to_thread.run_sync(work)
    except RunNotFoundError:
        raise
    except OPDError as error:
        raise MCPError(INTERNAL_ERROR, str(error)) from None


def _refusal(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)
