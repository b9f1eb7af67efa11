"""Live events over HTTP: `WS /opd/ws`, its twin in server-sent events `GET /opd/events`, and figures at `GET /metrics`.

Both streams carry the messages of `progress.py`, fed by `feed.py`, and take the same arguments: `run_id` (one
run; left out: all) and `after` (the sequence of the last message that is known; left out: begin now). A browser's
event stream sends the last id again by itself, which wins over `after`.

A reader that takes nothing for `SEND_SECONDS` while there is something to send is dropped and told so, as far as it
still listens. What a client sends on the socket is read and ignored; the server below pings it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable

import anyio
import anyio.lowlevel
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from opd_core.errors import ConfigError, OPDError
from server.guard import SOCKET_PROTOCOL
from server.live.feed import Feed, Messages
from server.live.progress import FollowArguments, Message
from server.live.prometheus import metrics_endpoint
from server.use_cases import UseCases
from server.web.arguments import parsed_query, query_arguments
from server.web.problems import problem, problem_of

SEND_SECONDS = 10.0
FAREWELL_SECONDS = 5.0
LEAVE_SECONDS = 30.0
TRY_AGAIN_LATER = 1013
SERVER_FAULT = 1011
EVENT_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
RETRY_MILLISECONDS = 2000


def live_routes(cases: UseCases, *, feed: Feed | None = None, send_seconds: float = SEND_SECONDS) -> list[BaseRoute]:
    """The live routes of one home; nothing is looked at before somebody listens."""
    shared = feed or Feed(cases.home, lambda: cases.status(None))

    async def socket(websocket: WebSocket) -> None:
        try:
            asked = parsed_query(websocket.scope["query_string"], FollowArguments)
            assert isinstance(asked, FollowArguments)
            run_id = await _run_of(cases, asked)
            async with shared.reader(run_id, asked.after) as messages:
                offered = websocket.scope.get("subprotocols", [])
                await websocket.accept(subprotocol=SOCKET_PROTOCOL if SOCKET_PROTOCOL in offered else None)
                await _Socket(websocket, send_seconds).run(messages)
        except OPDError as error:
            await websocket.send_denial_response(problem_of(error))
        except HTTPException as error:  # the framework's own handler knows only requests
            await websocket.send_denial_response(problem(error.status_code, error.detail))

    async def events(request: Request) -> Response:
        try:
            asked = await query_arguments(request, FollowArguments)
            assert isinstance(asked, FollowArguments)
            run_id, after = await _run_of(cases, asked), _last_event_id(request, asked.after)
        except OPDError as error:
            return problem_of(error)
        if request.method == "HEAD":
            return Response(headers=EVENT_HEADERS, media_type="text/event-stream")
        return EventStream(shared, run_id, after, send_seconds)

    return [
        WebSocketRoute("/opd/ws", socket),
        Route("/opd/events", events),
        Route("/metrics", metrics_endpoint(cases, shared)),
    ]


class _Socket:
    """One accepted socket."""

    def __init__(self, websocket: WebSocket, send_seconds: float) -> None:
        self._websocket = websocket
        self._send_seconds = send_seconds
        self._last: int | None = None

    async def run(self, messages: Messages) -> None:
        """Send until the client leaves, or is too slow, or the feed fails."""
        with anyio.CancelScope() as room:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, room)
                end = await self._send_all(messages)
                tasks.cancel_scope.cancel()
        if not room.cancelled_caught and end is not None:
            with anyio.move_on_after(FAREWELL_SECONDS):
                await _unless_gone(self._websocket.close(*end))

    async def _listen(self, room: anyio.CancelScope) -> None:
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass
        room.cancel()

    async def _send_all(self, messages: Messages) -> tuple[int, str] | None:
        """The code and reason to close with; None: the client has gone."""
        try:
            async for message in messages:
                if message is None:
                    continue
                with anyio.move_on_after(self._send_seconds) as room:
                    if not await _unless_gone(self._websocket.send_text(message.text)):
                        return None
                if room.cancelled_caught:
                    return TRY_AGAIN_LATER, _slow(self._last)
                self._last = message.sequence
                await anyio.lowlevel.checkpoint()  # a send that need not wait lets nobody else run
        except OPDError as error:
            return SERVER_FAULT, _reason(str(error))
        return None


class EventStream(Response):
    """The feed as server-sent events, until the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, run_id: str | None, after: int | None, send_seconds: float) -> None:
        super().__init__(headers=EVENT_HEADERS)
        del self.headers["content-length"]
        self._feed, self._run_id, self._after, self._send_seconds = feed, run_id, after, send_seconds
        self._last = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            async with self._feed.reader(self._run_id, self._after) as messages:
                await self._run(messages, receive, send)
        except OPDError as error:
            await problem_of(error)(scope, receive, send)

    async def _run(self, messages: Messages, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as room:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_gone, receive, room)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                end = await self._send_all(messages, send)
                tasks.cancel_scope.cancel()
        if room.cancelled_caught:
            return
        with anyio.move_on_after(FAREWELL_SECONDS) as farewell:
            await send({"type": "http.response.body", "body": end, "more_body": False})
        if farewell.cancelled_caught:  # the server below cuts a connection that takes nothing
            with anyio.move_on_after(LEAVE_SECONDS) as leaving:
                await _until_gone(receive, leaving)

    async def _send_all(self, messages: Messages, send: Send) -> bytes:
        """The last event, which says why this is the end."""
        body = f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        try:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            async for message in messages:
                with anyio.move_on_after(self._send_seconds) as room:
                    await send({"type": "http.response.body", "body": _event(message), "more_body": True})
                if room.cancelled_caught:
                    return _last_event(_slow(self._last), self._last)
                self._last = message.sequence if message else self._last
                await anyio.lowlevel.checkpoint()
        except OPDError as error:
            return _last_event(str(error), self._last)
        return b""


def _event(message: Message | None) -> bytes:
    if message is None:
        return b": still here\n\n"
    return f"id: {message.sequence}\nevent: opd_progress\ndata: {message.text}\n\n".encode()


def _last_event(reason: str, last: int | None) -> bytes:
    return f"event: dropped\ndata: {json.dumps({'reason': reason, 'after': last})}\n\n".encode()


def _slow(last: int | None) -> str:
    return f"You read too slowly. Connect again with after={last or 0}; nothing that is kept is lost."


def _reason(text: str) -> str:
    """A close frame carries 123 bytes."""
    return text.encode()[:120].decode(errors="ignore")


async def _run_of(cases: UseCases, asked: FollowArguments) -> str | None:
    """The exact id of the run asked for."""
    if asked.run_id is None:
        return None
    return (await anyio.to_thread.run_sync(cases.status, asked.run_id)).run_id


def _last_event_id(request: Request, after: int | None) -> int | None:
    given = request.headers.get("last-event-id")
    if given is None:
        return after
    if not given.isascii() or not given.isdecimal() or len(given) > 15:
        raise ConfigError("Last-Event-ID is none of this stream's ids, which are whole numbers.", field="after")
    return int(given)


async def _unless_gone(sending: Awaitable[None]) -> bool:
    """Whether it was sent; a client that has left is no error."""
    try:
        await sending
    except (WebSocketDisconnect, RuntimeError):  # RuntimeError: Starlette's word for a socket that is closed already
        return False
    return True


async def _until_gone(receive: Receive, room: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    room.cancel()
