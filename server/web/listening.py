"""How uvicorn listens for us: what only the server under the guard can limit, and nothing of a request in any log.

uvicorn waits for ever for the rest of a request's head; `TimedProtocol` gives a head a few seconds (408). Proxy headers
are not believed, and there is no access log: an address may hold what a caller put there by mistake.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

import h11
from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.web.problems import PROBLEM_TYPE, problem_json
from server.web.stalls import Stalling, StallingSocketProtocol

HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 32_768  # h11 refuses above it; the guard's own caps lie below and tell more
MAX_CONNECTIONS = 512
MAX_SOCKET_MESSAGE_BYTES = 65_536
IDLE_SECONDS = 5


class TimedProtocol(Stalling, H11Protocol):
    """HTTP/1.1 in which the head of every request must be complete within `head_seconds` of the first wait for it."""

    head_seconds = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new connection owes its first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a head, stop it with the last."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the head."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        body = problem_json(408, f"The request's head did not arrive within {self.head_seconds:g} seconds.")
        head = (
            f"HTTP/1.1 408 {HTTPStatus(408).phrase}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def server_config(app: ASGIApp, host: str, port: int, **more: Any) -> Config:
    """uvicorn's configuration for a guarded application; `more` is handed on as it is."""
    return Config(
        app,
        host=host,
        port=port,
        http=TimedProtocol,
        ws=StallingSocketProtocol,
        ws_max_size=MAX_SOCKET_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # costs every reader memory and time, and most are on this machine
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level=logging.ERROR,  # a warning for each refused connection would let a stranger fill the log
        **more,
    )
