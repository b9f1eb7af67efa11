"""One guard in front of every route and the socket: what does not belong is refused before anything else runs.

Pure ASGI, outermost. In this order: size and form of the request's head, Host, Origin, method, token, room for one
more, size and time of the body. What the application gets has its whole body in hand and no token in it, so that no
log or error further in can hold one. No CORS header is ever sent: a web page of another origin reads nothing.

A socket carries the token in the `Authorization` header or, from a browser, as a subprotocol: the client offers
`opd` and `opd.token.TOKEN`; the second is taken away here, so the application sees and may accept only `opd`.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.web.heads import TOKEN_PROTOCOL, GuardPolicy, Refusal, check_head, too_large
from server.web.problems import PROBLEM_TYPE, problem_json

Kind = Literal["request", "stream", "socket"]

SOCKET_PROTOCOL = "opd"

RETRY_AFTER_SECONDS = 1
POLICY_VIOLATION = 1008


class ClientGoneError(Exception):
    """The caller hung up before its body was complete: there is nobody to answer."""


class Guard:
    """The outermost ASGI application; the one it guards is called only with what the policy allows."""

    def __init__(self, app: ASGIApp, policy: GuardPolicy) -> None:
        self._app = app
        self._policy = policy
        self._inside: Counter[Kind] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on; the lifespan passes untouched."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            check_head(scope, self._policy)
            kind = self._enter(scope)
        except Refusal as refusal:
            await _answer(scope, receive, send, refusal)
            return
        try:
            whole = await self._with_body(receive) if scope["type"] == "http" else receive
            await self._app(_without_token(scope), whole, send)
        except Refusal as refusal:
            await _answer(scope, receive, send, refusal)
        except ClientGoneError:
            pass
        finally:
            self._inside[kind] -= 1

    def _enter(self, scope: Scope) -> Kind:
        policy, kind = self._policy, _kind(scope, self._policy)
        room = {"request": policy.max_requests, "stream": policy.max_streams, "socket": policy.max_sockets}[kind]
        if self._inside[kind] >= room:
            wait = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
            raise Refusal(503, f"The server is busy with {room} {kind}s. Try again in a second.", wait)
        self._inside[kind] += 1
        return kind

    async def _with_body(self, receive: Receive) -> Receive:
        """Read the whole body within its size and its time; the result gives it out again, then what follows."""
        limit, body, more = self._policy.max_body_bytes, bytearray(), True
        with anyio.move_on_after(self._policy.body_seconds) as in_time:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large(limit)
                more = message.get("more_body", False)
        if in_time.cancelled_caught:
            raise Refusal(408, f"The body did not arrive within {self._policy.body_seconds:g} seconds. Send it again.")
        waiting: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay


def _kind(scope: Scope, policy: GuardPolicy) -> Kind:
    if scope["type"] == "websocket":
        return "socket"
    return "stream" if scope["method"] == "GET" and scope["path"] in policy.stream_paths else "request"


def _without_token(scope: Scope) -> Scope:
    """The scope as the application may see it."""
    kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"authorization"]
    if scope["type"] == "http":
        return {**scope, "headers": kept}
    offered = [name for name in scope.get("subprotocols", ()) if not name.startswith(TOKEN_PROTOCOL)]
    kept = [(name, value) for name, value in kept if name.lower() != b"sec-websocket-protocol"]
    if offered:
        kept.append((b"sec-websocket-protocol", ", ".join(offered).encode()))
    return {**scope, "headers": kept, "subprotocols": offered}


async def _answer(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """Say no: a problem to a request and, where the server can, to a socket; else the socket is closed unopened."""
    prefix = "http"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
            return
        prefix = "websocket.http"
    body = problem_json(refusal.status, refusal.detail)
    headers = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),  # what is left of the request is not read
        *refusal.headers,
    ]
    await send({"type": f"{prefix}.response.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body})
