"""The tools that the official tasks-* conformance scenarios call, on the same seam as runs: `TaskSource`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import (
    INTERNAL_ERROR,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ErrorData,
    InputRequests,
    InputRequiredResult,
    TextContent,
)

from opd_core.paths import iso_utc
from server.protocol.tasks import Context, Task

LATER_SECONDS = 0.5


def _form(name: str) -> ElicitRequest:
    kind = "boolean" if name == "confirm" else "string"
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return ElicitRequest(params=ElicitRequestFormParams(message=f"Please give {name}.", requested_schema=schema))


def _text(text: str, is_error: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=is_error)


@dataclass
class Entry:
    """One task: it ends by itself at `ends_at`, or, when it asks for input, with the last answer."""

    task_id: str
    created_at: str
    ends_at: float
    outcome: CallToolResult | ErrorData
    waits_for: InputRequests = field(default_factory=dict)
    cancelled: bool = False


class FixtureTasks:
    """Tasks in memory. `entries` are all of them."""

    tools = frozenset(
        {"slow_compute", "failing_job", "protocol_error_job", "confirm_delete", "multi_input", "test_tool_with_task"}
    )
    required = frozenset({"failing_job", "test_tool_with_task"})

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    async def start(self, params: CallToolRequestParams, ctx: Context, call_next: CallNext) -> Task | HandlerResult:
        given = params.arguments or {}
        if params.name == "test_tool_with_task":
            answer: Any = (params.input_responses or {}).get("user_name")
            if answer is None:
                return InputRequiredResult(input_requests={"user_name": _form("name")}, request_state="asked")
            return self._task(self._add(LATER_SECONDS, _text(f"Hello, {(answer.content or {}).get('name')}!")))
        if params.name == "slow_compute":
            return self._task(self._add(float(given.get("seconds", 1)), _text(f"computed {given.get('label', '')}")))
        if params.name == "failing_job":
            return self._task(self._add(LATER_SECONDS, _text("the job failed", is_error=True)))
        if params.name == "protocol_error_job":
            return self._task(self._add(LATER_SECONDS, ErrorData(code=INTERNAL_ERROR, message="it broke")))
        keys = ("confirm",) if params.name == "confirm_delete" else ("first", "second")
        entry = self._add(0.0, _text("done as you said"))
        entry.waits_for = {key: _form(key) for key in keys}
        return self._task(entry)

    async def read(self, task_id: str) -> Task | None:
        entry = self.entries.get(task_id)
        return None if entry is None else self._task(entry)

    async def answer(self, task_id: str, responses: Mapping[str, Any]) -> None:
        waits = self.entries[task_id].waits_for
        self.entries[task_id].waits_for = {key: form for key, form in waits.items() if key not in responses}

    async def cancel(self, task_id: str) -> None:
        entry = self.entries[task_id]
        entry.cancelled = entry.cancelled or self._task(entry).status in ("working", "input_required")

    def _add(self, seconds: float, outcome: CallToolResult | ErrorData) -> Entry:
        entry = Entry(secrets.token_hex(8), iso_utc(datetime.now(UTC)), anyio.current_time() + seconds, outcome)
        return self.entries.setdefault(entry.task_id, entry)

    def _task(self, entry: Entry) -> Task:
        task = partial(Task, task_id=entry.task_id, created_at=entry.created_at, updated_at=entry.created_at)
        if entry.cancelled:
            return task(status="cancelled")
        if entry.waits_for:
            return task(status="input_required", input_requests=entry.waits_for)
        if anyio.current_time() < entry.ends_at:
            return task(status="working")
        if isinstance(entry.outcome, ErrorData):
            return task(status="failed", error=entry.outcome)
        return task(status="completed", result=entry.outcome)


async def greet(name: str = "World") -> str:
    """Says hello, at once."""
    return f"Hello, {name}!"


async def slow_compute(seconds: float = 1.0, label: str = "") -> str:
    """Takes a while."""
    await anyio.sleep(seconds)
    return f"computed {label}"


async def failing_job() -> str:
    """Fails."""
    raise ToolError("the job failed")


async def protocol_error_job() -> str:
    """Breaks."""
    raise RuntimeError("it broke")


async def confirm_delete(filename: str = "") -> str:
    """Asks before it ends."""
    return f"kept {filename}"


async def multi_input() -> str:
    """Asks two things."""
    return "nothing was asked"


async def tool_with_task() -> str:
    """Asks for a name, then goes on as a task."""
    return "Hello!"


def fixture_tools() -> list[Tool]:
    """The seven tools, for clients without tasks too."""
    named: tuple[Callable[..., Any], ...] = (greet, slow_compute, failing_job, protocol_error_job, confirm_delete)
    return [Tool.from_function(function) for function in (*named, multi_input)] + [
        Tool.from_function(tool_with_task, name="test_tool_with_task")
    ]
