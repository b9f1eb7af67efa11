"""A quick, clean end: what still waits or streams when the server is told to stop is answered, not torn off."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import anyio
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.web.problems import PROBLEM_TYPE, RETRY_AFTER_SECONDS, problem_json

GRACE_SECONDS = 1.0


class Ending:
    """Around the guarded application. Once told to end, requests get a moment; then a wait is refused with 503 and a
    stream is closed as a stream ends."""

    def __init__(self, app: ASGIApp, grace_seconds: float = GRACE_SECONDS) -> None:
        self._app = app
        self._grace_seconds = grace_seconds
        self._open: set[anyio.CancelScope] = set()
        self._is_ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; complete the response when it was cut."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(send)
        with anyio.CancelScope() as room:
            self._open.add(room)
            try:
                await self._app(scope, receive, response.send)
            finally:
                self._open.discard(room)
        if self._is_ending:
            await response.complete()

    def begin(self) -> None:
        """From now on a response that was cut is completed."""
        self._is_ending = True

    async def end(self) -> None:
        """Wait a moment, then cut everything that is still open."""
        self.begin()
        await anyio.sleep(self._grace_seconds)
        for room in list(self._open):
            room.cancel()


class _Response:
    """A response on its way, which knows how far it is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = self._is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def complete(self) -> None:
        if self._is_complete:
            return
        body = b""
        if not self._has_begun:
            body = problem_json(503, "The server is stopping. Runs go on without it; start it again and ask again.")
            headers = {"content-type": PROBLEM_TYPE, "content-length": str(len(body)), "connection": "close"}
            headers["retry-after"] = str(RETRY_AFTER_SECONDS)
            sent = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": 503, "headers": sent})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class EndingServer(uvicorn.Server):
    """A server that tells its application when it shuts down."""

    def __init__(self, config: uvicorn.Config, ending: Ending) -> None:
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's; streams of the SDK end by themselves from here on, before `shutdown` is reached."""
        self._ending.begin()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with the application's own end beside it."""
        end = asyncio.create_task(self._ending.end())
        await super().shutdown(sockets)
        end.cancel()
