"""The HTTP door: JSON routes, MCP and live events of one home in one ASGI application, the guard around all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.app import server_for
from server.guard import Guard
from server.live.streams import live_routes
from server.routes import verb_routes
from server.use_cases import UseCases
from server.verbs import Verbs
from server.web.docs_page import POLICY, docs_page
from server.web.heads import GuardPolicy
from server.web.openapi import document
from server.web.problems import on_fault, on_http_error

MAX_MCP_SESSIONS = 256
SESSION_IDLE_SECONDS = 300.0  # without any request; clients begin a new one when theirs has ended
SESSION_RETRY_AFTER_SECONDS = 30


def http_app(
    cases: UseCases, *, token: str, hosts: frozenset[str], origins: frozenset[str], server: MCPServer | None = None
) -> ASGIApp:
    """The guarded application.

    Args:
        token: what every request but those for /health must carry.
        hosts: the exact Host headers that are answered, port included.
        origins: the exact Origin headers that are; requests without one are, too.
        server: what answers at /mcp; left out: the server of `cases`.
    """
    server = server or server_for(cases)
    routes = [mcp_route(server, hosts, origins), *plain_routes(cases)]
    methods = {route.path: ", ".join(sorted(route.methods or ())) for route in routes if isinstance(route, Route)}
    policy = GuardPolicy(token=token, hosts=hosts, origins=origins, methods=methods)
    return Guard(_application(server, routes), policy)


def plain_routes(cases: UseCases) -> list[BaseRoute]:
    """All routes but that of MCP."""
    return [*verb_routes(Verbs(cases)), *live_routes(cases), *_own_routes()]


def mcp_route(server: MCPServer, hosts: frozenset[str], origins: frozenset[str]) -> Route:
    """MCP at /mcp; as a route of its own, not mounted, so that it swallows no other path and no method."""
    server.streamable_http_app(  # makes the session manager; the application around it is not used
        transport_security=TransportSecuritySettings(allowed_hosts=sorted(hosts), allowed_origins=sorted(origins)),
        max_sessions=MAX_MCP_SESSIONS,
        session_idle_timeout=SESSION_IDLE_SECONDS,
    )
    endpoint = StreamableHTTPASGIApp(server.session_manager)
    return Route("/mcp", endpoint=_SaysWhen(endpoint), methods=["GET", "POST", "DELETE"])


class _SaysWhen:
    """Around MCP: its refusal of one session too many says when to come again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 503:
                wait = (b"retry-after", str(SESSION_RETRY_AFTER_SECONDS).encode())
                message = {**message, "headers": [*message.get("headers", []), wait]}
            await send(message)

        await self._app(scope, receive, say)


def _own_routes() -> list[Route]:
    """What is no verb."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(_: Request) -> Response:
        return JSONResponse(document())

    async def docs(_: Request) -> Response:
        return HTMLResponse(docs_page(), headers={"Content-Security-Policy": POLICY})

    return [Route("/health", health), Route("/openapi.json", openapi), Route("/docs", docs)]


def _application(server: MCPServer, routes: list[BaseRoute]) -> Starlette:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with server.session_manager.run():
            yield

    handlers = {HTTPException: on_http_error, Exception: on_fault}
    application = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    application.router.redirect_slashes = False  # one spelling for one route
    return application
