"""The only wiring: settings to use cases, use cases to verbs, verbs to a server. Nothing happens at import."""

from __future__ import annotations

from collections.abc import Sequence

from mcp.server import MCPServer
from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.mcpserver.tools import Tool

from opd_core import __version__
from server.home_use_cases import HomeUseCases
from server.prompts import add_prompts, plain_prompt_errors
from server.protocol.changes import RunChanges
from server.protocol.completions import add_completions
from server.protocol.gate import ArgumentGate
from server.protocol.run_tasks import RunTasks
from server.protocol.tasks import Tasks, TaskSource
from server.protocol.texts import INSTRUCTIONS
from server.resources import add_resources
from server.settings import Settings
from server.tools import tool
from server.use_cases import UseCases
from server.verbs import VERBS, Verbs

SERVER_NAME = "opd"
LISTS: tuple[CacheableMethod, ...] = ("tools/list", "prompts/list", "resources/list", "resources/templates/list")
LISTS_STAY_MS = 600_000
"""What is offered never changes while a server runs, so a client need not ask for it again and again."""


def build_server(settings: Settings) -> MCPServer:
    """The MCP server of one OPD_HOME; nothing under it is touched before a tool is called."""
    return server_for(HomeUseCases(settings))


def server_for(
    cases: UseCases, *, other_tools: Sequence[Tool] = (), other_tasks: Sequence[TaskSource] = ()
) -> MCPServer:
    """The MCP server in front of any use cases.

    Args:
        other_tools: tools that are not verbs, for servers made of the same parts.
        other_tasks: what else can be followed as tasks beside runs and jobs.
    """
    verbs = Verbs(cases)
    changes = RunChanges(cases.home.database)
    models = {name: verb.arguments for name, verb in VERBS.items()}
    server = MCPServer(
        SERVER_NAME,
        title="On-policy distillation",
        description="Improves a small local language model by on-policy distillation.",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=[*(tool(verbs, name) for name in VERBS), *other_tools],
        extensions=[Tasks([RunTasks(verbs), *other_tasks])],
        middleware=[ArgumentGate(models, frozenset(tool.name for tool in other_tools)), plain_prompt_errors],
        subscriptions=changes,
        cache_hints={method: CacheHint(LISTS_STAY_MS) for method in LISTS},
        lifespan=changes.lifespan,
        log_level="WARNING",  # stderr is the host's log; a refused call is not worth a line there
    )
    add_resources(server, verbs)
    add_prompts(server, cases)
    add_completions(server, cases)
    return server
