"""A guard in front of an application that answers everything."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from server.guard import Guard
from server.web.heads import GuardPolicy
from tests.server.asgi import HOST, ORIGIN, TOKEN, Reply

POLICY = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}), origins=frozenset({ORIGIN}))
JSON = ("content-type", "application/json")
OUR_HOST = ("host", HOST)


class Echo:
    """Answers 200 with the body it got; remembers every scope it saw, and may wait for a word first."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.go_on: anyio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
            return
        if self.go_on is not None:
            await self.go_on.wait()
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})


def guarded(**changes: Any) -> tuple[Guard, Echo]:
    """A guard whose policy is changed so, and the application behind it."""
    echo = Echo()
    return Guard(echo, dataclasses.replace(POLICY, **changes)), echo


def refused(reply: Reply, echo: Echo, status: int) -> str:
    """The detail of a refusal that never reached the application."""
    assert (reply.status, echo.scopes) == (status, [])
    assert reply.problem["status"] == status
    assert reply.headers["connection"] == "close"
    assert not [name for name in reply.headers if name.startswith("access-control")]
    detail: str = reply.problem["detail"]
    return detail
