"""The Tasks extension (`io.modelcontextprotocol/tasks`, SEP-2663) for clients that declare it.

A call of a long tool then answers at once with a handle, and the client asks `tasks/get` until the task has ended.
This file is the protocol; what a task *is*, a `TaskSource` says: `run_tasks.py` makes them from runs and jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ErrorData,
    InputRequests,
    RequestParams,
)

from opd_core.types import clean_text

EXTENSION_ID = "io.modelcontextprotocol/tasks"
VERSIONS = frozenset({"2026-07-28"})
POLL_INTERVAL_MS = 2000

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task as it is now. Times are ISO 8601.

    Attributes:
        result: of a completed task; an error of the tool itself is a completed task whose result says so.
        error: of a failed one: the protocol's own errors only.
        input_requests: what a task that needs input still waits for.
        ttl_ms: how long it can be asked for; None: always.
    """

    task_id: str
    status: Literal["working", "input_required", "completed", "failed", "cancelled"]
    created_at: str
    updated_at: str
    message: str | None = None
    result: CallToolResult | None = None
    error: ErrorData | None = None
    input_requests: InputRequests | None = None
    ttl_ms: int | None = None
    poll_interval_ms: int = POLL_INTERVAL_MS

    def handle(self) -> dict[str, Any]:
        """What a call answers with: the task without its outcome."""
        handle = {
            "taskId": self.task_id,
            "status": self.status,
            "createdAt": self.created_at,
            "lastUpdatedAt": self.updated_at,
            "ttlMs": self.ttl_ms,
            "pollIntervalMs": self.poll_interval_ms,
        }
        return handle | ({"statusMessage": self.message} if self.message else {})

    def detailed(self) -> dict[str, Any]:
        """What `tasks/get` answers with."""
        asked = self.input_requests or {}
        parts = {
            "result": None if self.result is None else _wire(self.result),
            "error": None if self.error is None else _wire(self.error),
            "inputRequests": {key: _wire(request) for key, request in asked.items()},
        }
        return self.handle() | {name: part for name, part in parts.items() if part}


class TaskSource(Protocol):
    """Something whose long work can be followed as tasks."""

    @property
    def tools(self) -> frozenset[str]:
        """The tools whose calls may become tasks."""
        ...

    @property
    def required(self) -> frozenset[str]:
        """Those among them that cannot be called in any other way."""
        ...

    async def start(self, params: CallToolRequestParams, ctx: Context, call_next: CallNext) -> Task | HandlerResult:
        """Begin a call of one of `tools`: a task that `read` knows already, or the call's ordinary result."""
        ...

    async def read(self, task_id: str) -> Task | None:
        """The task as it is now; None: there is none with exactly this id."""
        ...

    async def answer(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """Hand over answers to `input_requests`; keys that nothing waits for are ignored."""
        ...

    async def cancel(self, task_id: str) -> None:
        """Ask a task to end; one that has ended stays as it is."""
        ...


class TaskParams(RequestParams):
    """Params of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateParams(TaskParams):
    """Params of `tasks/update`."""

    input_responses: dict[str, Any]


class Tasks(Extension):
    """Serves the tasks of all sources, to clients that declared the extension alone."""

    identifier = EXTENSION_ID

    def __init__(self, sources: Sequence[TaskSource]) -> None:
        self._sources = sources

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Make a task of a call where source and client allow it; every other call passes."""
        source = next((source for source in self._sources if params.name in source.tools), None)
        if source is None:
            return await call_next(ctx)
        if params.name in source.required:
            require_client_extension(ctx, self.identifier)
        if not _is_declared(ctx):
            return await call_next(ctx)
        outcome = await source.start(params, ctx, call_next)
        return {"resultType": "task", **outcome.handle()} if isinstance(outcome, Task) else outcome

    def methods(self) -> Sequence[MethodBinding]:
        """The three requests about a task."""
        return (
            MethodBinding("tasks/get", TaskParams, self._get, VERSIONS),
            MethodBinding("tasks/update", UpdateParams, self._update, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, VERSIONS),
        )

    async def _get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        _, task = await self._find(ctx, params.task_id)
        return task.detailed()

    async def _update(self, ctx: Context, params: UpdateParams) -> HandlerResult:
        source, _ = await self._find(ctx, params.task_id)
        await source.answer(params.task_id, params.input_responses)
        return {}

    async def _cancel(self, ctx: Context, params: TaskParams) -> HandlerResult:
        source, _ = await self._find(ctx, params.task_id)
        await source.cancel(params.task_id)
        return {}

    async def _find(self, ctx: Context, task_id: str) -> tuple[TaskSource, Task]:
        require_client_extension(ctx, self.identifier)
        _check_routing(ctx, task_id)
        for source in self._sources:
            task = await source.read(task_id)
            if task is not None:
                return source, task
        raise MCPError(
            INVALID_PARAMS,
            f"There is no task {clean_text(task_id, 80)!r}. A task's id is the run_id or job_id; list_runs names them.",
        )


def _is_declared(ctx: Context) -> bool:
    capabilities = ctx.session.client_capabilities
    declared = capabilities.extensions if capabilities else None
    return ctx.protocol_version in VERSIONS and EXTENSION_ID in (declared or {})


def _check_routing(ctx: Context, task_id: str) -> None:
    """Over HTTP the header Mcp-Name names the task, so that a proxy can route by it; it must say what the body says."""
    headers: Mapping[str, str] | None = getattr(ctx.request, "headers", None)
    if headers is not None and decode_header_value(headers.get(MCP_NAME_HEADER)) != task_id:
        raise MCPError(
            HEADER_MISMATCH, f"{MCP_NAME_HEADER} header does not match the request body's 'taskId' parameter"
        )


def _wire(model: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return dumped
