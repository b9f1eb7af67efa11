"""The verbs as MCP tools: a tool is its verb, its texts and the form its answer takes on the wire.

Arguments arrive checked (see `gate.py`). An error becomes the SDK's `ToolError`, whose text the model reads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import BaseModel

from opd_core.errors import OPDError
from server.arguments import input_schema, without_titles
from server.replies import reply
from server.texts import TOOLS
from server.verbs import VERBS, Verbs


class CheckedArguments(ArgModelBase):
    """What the SDK validates: nothing, since `ArgumentGate` has put the checked model in place of the arguments."""

    arguments: Any


class LazyTool(Tool):
    """A tool whose output schema is made when it is first listed, not while the server starts."""

    answer: type[BaseModel]

    @cached_property
    def output_schema(self) -> dict[str, Any] | None:
        """The schema of the answer's model."""
        schema: dict[str, Any] = without_titles(self.answer.model_json_schema(mode="serialization"))
        return schema


def tool(verbs: Verbs, name: str) -> Tool:
    """The MCP tool of one verb."""
    text, verb = TOOLS[name], VERBS[name]
    return LazyTool(
        fn=_function(verbs, name),
        name=name,
        title=text.title,
        description=text.description,
        parameters=input_schema(verb.arguments),
        fn_metadata=FuncMetadata(arg_model=CheckedArguments),
        is_async=True,
        context_kwarg="context",
        answer=verb.answer,
        annotations=ToolAnnotations(
            title=text.title,
            read_only_hint=text.read_only,
            destructive_hint=text.destructive,
            idempotent_hint=text.idempotent,
            open_world_hint=text.open_world,
        ),
    )


def _function(verbs: Verbs, name: str) -> Callable[..., Awaitable[CallToolResult]]:
    async def call(arguments: BaseModel, context: Context) -> CallToolResult:
        try:
            answer = await verbs.call(name, arguments, context.report_progress)
        except OPDError as error:
            raise ToolError(str(error)) from None
        return reply(answer, VERBS[name].facts(answer))

    return call
