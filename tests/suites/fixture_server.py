"""The server of any home plus what the conformance suite calls by name: same factory, same door, same guard.

Run as `python -m tests.suites.fixture_server`; it says where it serves as `opd serve --http` does.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp_types import EmptyResult, SetLevelRequestParams, SubscribeRequestParams, UnsubscribeRequestParams

from server.app import server_for
from server.home_use_cases import HomeUseCases
from server.serving import listen
from server.settings import read_settings
from server.use_cases import UseCases
from server.web.app import http_app
from server.web.binding import bind
from server.web.listening import server_config
from server.web.token import read_or_make_token
from tests.server.protocol.task_fixtures import FixtureTasks, fixture_tools
from tests.suites.fixture_content import add_content, content_tools
from tests.suites.fixture_questions import add_question, question_tools


def fixture_server(cases: UseCases) -> MCPServer:
    """The server of `cases` with the suite's tools, tasks, resources and prompts beside ours."""
    tools = [*fixture_tools(), *content_tools(), *question_tools()]
    server = server_for(cases, other_tools=tools, other_tasks=[FixtureTasks()])
    add_content(server)
    add_question(server)
    _add_requests_of_2025(server)
    return server


def _add_requests_of_2025(server: MCPServer) -> None:
    """What the SDK's MCPServer does not serve, its low-level server can: levels of a log, subscriptions by request."""

    async def accept(ctx: Any, params: Any) -> EmptyResult:
        return EmptyResult()

    below = server._lowlevel_server
    below.add_request_handler("logging/setLevel", SetLevelRequestParams, accept)
    below.add_request_handler("resources/subscribe", SubscribeRequestParams, accept)
    below.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, accept)


def main() -> int:
    """Serve on a free port until a signal."""
    settings = read_settings()
    with listen("127.0.0.1", 0) as listener:
        binding = bind("127.0.0.1", listener.getsockname()[1])
        cases = HomeUseCases(settings, is_local=False)
        app = http_app(
            cases,
            token=read_or_make_token(settings.home),
            hosts=binding.hosts,
            origins=binding.origins,
            server=fixture_server(cases),
        )
        print(f"Serving on {binding.url}; for the conformance suite.", file=sys.stderr, flush=True)
        uvicorn.Server(server_config(app, binding.host, binding.port, lifespan="on")).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
