"""Calling an ASGI application by hand, so that a test can send what no client library would."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Scope

TOKEN = "t" * 43
HOST = "127.0.0.1:8765"
ORIGIN = "http://127.0.0.1:8765"
JSON_TYPE = ("content-type", "application/json")
Headers = Iterable[tuple[str, str]]


@dataclass
class Reply:
    """What an application sent; `closed` is the code a socket was closed with."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    closed: int | None = None
    is_complete: bool = False

    @property
    def problem(self) -> dict[str, Any]:
        """The body of a problem+json answer."""
        assert self.headers["content-type"] == "application/problem+json", self
        value: dict[str, Any] = json.loads(self.body)
        return value


def head(
    path: str = "/opd/status",
    method: str = "GET",
    headers: Headers | None = None,
    *,
    token: str | None = TOKEN,
    raw_path: bytes | None = None,
    **more: Any,
) -> Scope:
    """The scope of a request that is let in unless the arguments say otherwise."""
    given = [("host", HOST)] if headers is None else list(headers)
    if token is not None:
        given.append(("authorization", f"Bearer {token}"))
    plain, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": plain,
        "raw_path": plain.encode() if raw_path is None else raw_path,
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8765),
        "state": {},
        **more,
    }


def socket_head(headers: Headers | None = None, *, subprotocols: Iterable[str] = (), **more: Any) -> Scope:
    """The scope of a socket's handshake."""
    offered = list(subprotocols)
    given = [("host", HOST)] if headers is None else list(headers)
    given += [("sec-websocket-protocol", ", ".join(offered))] if offered else []
    scope = head("/opd/ws", headers=given, token=more.pop("token", None), **more)
    del scope["method"]
    return {**scope, "type": "websocket", "scheme": "ws", "subprotocols": offered}


async def ask(app: ASGIApp, scope: Scope, body: Iterable[bytes] = (b"",), *, then_hangs: bool = False) -> Reply:
    """Send one request and collect the answer.

    Args:
        body: the parts of the body, one message each.
        then_hangs: the last part says that more comes, and nothing does.
    """
    parts, reply = list(body), Reply()
    if scope["type"] == "websocket":
        messages: list[Message] = [{"type": "websocket.connect"}]
    else:
        messages = [
            {"type": "http.request", "body": part, "more_body": then_hangs or number < len(parts)}
            for number, part in enumerate(parts, start=1)
        ]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        if then_hangs:
            await anyio.sleep_forever()
        return {"type": "websocket.disconnect" if scope["type"] == "websocket" else "http.disconnect", "code": 1001}

    async def send(message: Message) -> None:
        kind = message["type"].removeprefix("websocket.").removeprefix("http.")
        if kind == "response.start":
            reply.status = message["status"]
            reply.headers = {name.decode().lower(): value.decode() for name, value in message.get("headers", [])}
        elif kind == "response.body":
            reply.body += message.get("body", b"")
            reply.is_complete = not message.get("more_body", False)
        elif kind == "accept":
            reply.status, reply.headers["subprotocol"] = 101, str(message.get("subprotocol"))
        elif kind == "close":
            reply.closed = message.get("code", 1000)

    await app(scope, receive, send)
    return reply


def fetch(app: ASGIApp, scope: Scope, body: Iterable[bytes] = (b"",), *, then_hangs: bool = False) -> Reply:
    """`ask` from a test that is not asynchronous."""

    async def go() -> Reply:
        with anyio.fail_after(30):
            return await ask(app, scope, body, then_hangs=then_hangs)

    return anyio.run(go)
