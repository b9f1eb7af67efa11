"""The only wiring: settings to use cases, use cases to verbs, verbs to a server. Nothing happens at import."""

from __future__ import annotations

from mcp.server import MCPServer

from opd_core import __version__
from server.gate import ArgumentGate
from server.settings import Settings
from server.texts import INSTRUCTIONS
from server.tools import tool
from server.use_cases import HomeUseCases, UseCases
from server.verbs import VERBS, Verbs

SERVER_NAME = "opd"


def build_server(settings: Settings) -> MCPServer:
    """The MCP server of one OPD_HOME; nothing under it is touched before a tool is called."""
    return server_for(HomeUseCases(settings))


def server_for(cases: UseCases) -> MCPServer:
    """The MCP server in front of any use cases."""
    verbs = Verbs(cases)
    return MCPServer(
        SERVER_NAME,
        title="On-policy distillation",
        description="Improves a small local language model by on-policy distillation.",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=[tool(verbs, name) for name in VERBS],
        middleware=[ArgumentGate({name: verb.arguments for name, verb in VERBS.items()})],
        log_level="WARNING",  # stderr is the host's log; a refused call is not worth a line there
    )
