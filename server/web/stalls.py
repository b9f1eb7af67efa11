"""Connections whose other end takes nothing any more: cut after a while, so that none of them holds memory for ever.

uvicorn waits without end for a peer to take what was written, also after it has closed the connection. Here the
transport says at once when the system takes no more, and from then on a clock runs until it does again. It also waits
without end for a handshake that can never come: what `websockets` refuses by itself (a body, another method than GET)
reaches neither the guard nor the caller.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

REFUSED_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 55\r\n"
    b"connection: close\r\n\r\nA WebSocket begins with a plain GET that has no body.\r\n"
)
HANDSHAKE_SECONDS = 10.0
STALL_SECONDS = 20.0
"""Longer than a reader of the live feed has until it is told that it is too slow."""


class StallClock:
    """One connection's clock."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        transport.set_write_buffer_limits(high=0)  # anything that waits counts as waiting
        self._transport, self._seconds = transport, seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The system takes no more."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def stop(self) -> None:
        """It takes again, or the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Stalling(asyncio.Protocol):
    """Stands before a protocol of uvicorn and gives its connection such a clock."""

    stall_seconds = STALL_SECONDS
    _stall: StallClock | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to watch."""
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self._stall = StallClock(transport, self.stall_seconds)

    def pause_writing(self) -> None:
        """The other end takes nothing: it has a while to take it."""
        super().pause_writing()
        if self._stall is not None:
            self._stall.start()

    def resume_writing(self) -> None:
        """It takes again."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        if self._stall is not None:
            self._stall.stop()
        super().connection_lost(exc)


class StallingSocketProtocol(Stalling, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with that clock, and one for the handshake."""

    handshake_seconds = HANDSHAKE_SECONDS
    _handshake_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake."""
        super().connection_made(transport)
        self._handshake_timer = self.loop.call_later(self.handshake_seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Answer the handshake that `websockets` refuses without a word."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.close_sent:
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()) or REFUSED_HANDSHAKE)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the handshake."""
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not (self.handshake_complete or self.close_sent):
            self.transport.abort()
