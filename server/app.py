"""The only wiring: settings to use cases, use cases to tools, tools to a server. Nothing happens at import."""

from __future__ import annotations

from functools import cached_property
from typing import Any, get_type_hints

from mcp.server import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from opd_core import __version__
from server.arguments import input_schema, without_titles
from server.gate import ArgumentGate
from server.settings import Settings
from server.texts import INSTRUCTIONS, TOOLS
from server.tools import Tools
from server.use_cases import HomeUseCases, UseCases

SERVER_NAME = "opd"


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


def build_server(settings: Settings) -> MCPServer:
    """The MCP server of one OPD_HOME; nothing under it is touched before a tool is called."""
    return server_for(HomeUseCases(settings))


def server_for(cases: UseCases) -> MCPServer:
    """The MCP server in front of any use cases."""
    tools = Tools(cases)
    taken = {name: argument_model(name) for name in TOOLS}
    return MCPServer(
        SERVER_NAME,
        title="On-policy distillation",
        description="Improves a small local language model by on-policy distillation.",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=[_tool(tools, name, taken[name]) for name in TOOLS],
        middleware=[ArgumentGate(taken)],
        log_level="WARNING",  # stderr is the host's log; a refused call is not worth a line there
    )


def argument_model(name: str) -> type[BaseModel]:
    """The model of a tool's arguments, as its function names it."""
    model: type[BaseModel] = get_type_hints(getattr(Tools, name))["arguments"]
    return model


def _tool(tools: Tools, name: str, model: type[BaseModel]) -> Tool:
    text, function = TOOLS[name], getattr(tools, name)
    hints = get_type_hints(function, include_extras=True)
    return LazyTool(
        fn=function,
        name=name,
        title=text.title,
        description=text.description,
        parameters=input_schema(model),
        fn_metadata=FuncMetadata(arg_model=CheckedArguments),
        is_async=True,
        context_kwarg="context" if "context" in hints else None,
        answer=hints["return"].__metadata__[0],
        annotations=ToolAnnotations(
            title=text.title,
            read_only_hint=text.read_only,
            destructive_hint=text.destructive,
            idempotent_hint=text.idempotent,
            open_world_hint=text.open_world,
        ),
    )
