"""The verbs as MCP tools: a tool is its verb, its texts and the form its answer takes on the wire.

Arguments arrive checked (see `protocol/gate.py`). An error becomes the SDK's `ToolError`, whose text the model reads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import BaseModel

from opd_core.errors import OPDError
from server.answers.reply import reply
from server.protocol.confirm import confirmed_call
from server.protocol.texts import TOOLS
from server.protocol.tool_schemas import offered_input, offered_output
from server.schemas.studies import PlotAnswer
from server.verbs import VERBS, Verbs


class CheckedArguments(ArgModelBase):
    """What the SDK validates: nothing, since `ArgumentGate` has put the checked model in place of the arguments."""

    arguments: Any


class LazyTool(Tool):
    """A tool whose output schema is made when it is first listed, not while the server starts."""

    answer: type[BaseModel] | None

    @cached_property
    def output_schema(self) -> dict[str, Any] | None:
        """The schema of the answer's model; none for a tool that shows a picture."""
        if self.answer is None:
            return None
        return offered_output(self.answer)


def tool(verbs: Verbs, name: str) -> Tool:
    """The MCP tool of one verb."""
    text, verb = TOOLS[name], VERBS[name]
    return LazyTool(
        fn=_function(verbs, name),
        name=name,
        title=text.title,
        description=text.description,
        parameters=offered_input(name, verb.arguments),
        fn_metadata=FuncMetadata(arg_model=CheckedArguments),
        is_async=True,
        context_kwarg="context",
        answer=None if verb.shows_image else verb.answer,
        annotations=ToolAnnotations(
            read_only_hint=text.read_only,
            destructive_hint=text.destructive,
            idempotent_hint=text.idempotent,
            open_world_hint=text.open_world,
        ),
    )


async def call_tool(
    verbs: Verbs, name: str, arguments: BaseModel, context: Context
) -> CallToolResult | InputRequiredResult:
    """Carry out one call: the verb's answer as a result, or a question to the user that comes first.

    Raises:
        OPDError: what the verb refused, or the user.
    """
    answer = await confirmed_call(verbs, name, arguments, context)
    if isinstance(answer, InputRequiredResult):
        return answer
    if isinstance(answer, PlotAnswer):
        from server.answers.plots import image_reply

        return image_reply(answer, VERBS[name].facts(answer))
    return reply(answer, VERBS[name].facts(answer))


def _function(verbs: Verbs, name: str) -> Callable[..., Awaitable[CallToolResult | InputRequiredResult]]:
    async def call(arguments: BaseModel, context: Context) -> CallToolResult | InputRequiredResult:
        try:
            return await call_tool(verbs, name, arguments, context)
        except OPDError as error:
            raise ToolError(str(error)) from None

    return call
