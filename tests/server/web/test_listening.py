"""Connections without a wire: heads and handshakes that never end or can never be, and a quiet log."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from server.guard import Guard
from server.web.listening import TimedProtocol, server_config
from server.web.stalls import StallingSocketProtocol
from tests.server.asgi import HOST, TOKEN
from tests.server.guarded import POLICY, Echo


class EchoSocket:
    """Accepts a socket and stays."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await anyio.sleep_forever()


class FakeTransport(asyncio.Transport):
    """A connection without a wire."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.is_closed, self.is_aborted = b"", False, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def test_a_connection_that_is_refused_writes_no_log() -> None:
    server_config(Guard(Echo(), POLICY), "127.0.0.1", 8765)
    log = logging.getLogger("uvicorn.error")
    assert not log.isEnabledFor(logging.WARNING) and log.isEnabledFor(logging.ERROR)


def upgrade(head: bytes, app: ASGIApp | None = None) -> tuple[FakeTransport, FakeTransport]:
    """A connection that begins a socket: as it is at once, and after its time for the handshake."""
    from uvicorn.server import ServerState

    transport, later = FakeTransport(), FakeTransport()

    async def go() -> None:
        state = ServerState()
        config = server_config(app or Guard(Echo(), POLICY), "127.0.0.1", 8765)
        TimedProtocol(config, state, {}).connection_made(transport)
        (http,) = state.connections
        http.data_received(head)
        await asyncio.sleep(0)
        await anyio.wait_all_tasks_blocked()
        later.written, later.is_closed = transport.written, transport.is_closed
        (socket,) = state.connections
        assert isinstance(socket, StallingSocketProtocol) and socket._handshake_timer is not None
        assert socket._handshake_timer.when() <= asyncio.get_running_loop().time() + 10
        if later.is_closed:
            socket.shutdown()  # as Ctrl-C does; a fault would show here
        socket._handshake_timer._run()
        socket.connection_lost(None)
        for task in state.tasks:
            task.cancel()

    asyncio.run(go())
    return later, transport


UPGRADE = (
    f"GET /opd/ws HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
).encode()


@pytest.mark.parametrize("extra", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("begin", [UPGRADE, UPGRADE.replace(HOST.encode(), b"evil.com"), b"POST" + UPGRADE[3:]])
def test_a_handshake_that_can_never_be_is_refused_at_once(begin: bytes, extra: bytes) -> None:
    at_once, _ = upgrade(begin + extra + b"\r\n")
    assert at_once.written.startswith(b"HTTP/1.1 400") and at_once.is_closed
    head, _, body = at_once.written.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head


def test_a_handshake_that_nobody_answers_is_given_up_and_one_that_was_answered_is_not() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    at_once, later = upgrade(UPGRADE + b"\r\n", silent)
    assert not at_once.is_closed and later.is_aborted
    at_once, later = upgrade(UPGRADE + b"\r\n", EchoSocket())
    assert at_once.written.startswith(b"HTTP/1.1 101") and not later.is_aborted


def wire(*chunks: bytes) -> tuple[FakeTransport, bool]:
    """A connection that got these bytes at once, and whether its clock for the head still runs."""
    from uvicorn.server import ServerState

    transport = FakeTransport()

    async def go() -> bool:
        protocol = TimedProtocol(server_config(Guard(Echo(), POLICY), "127.0.0.1", 8765), ServerState(), {})
        protocol.connection_made(transport)
        for chunk in chunks:
            protocol.data_received(chunk)
            await asyncio.sleep(0)
            await anyio.wait_all_tasks_blocked()
        timer = protocol._head_timer
        if timer is not None:
            assert timer.when() <= asyncio.get_running_loop().time() + protocol.head_seconds
            timer._run()
        protocol.connection_lost(None)
        return timer is not None

    return transport, asyncio.run(go())


REQUEST = f"GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@pytest.mark.parametrize("sent", [b"", b"G", REQUEST[:-2], REQUEST + b"GET /he"])
def test_a_head_that_never_ends_is_given_up(sent: bytes) -> None:
    transport, was_waiting = wire(*(chunk for chunk in (sent[: len(REQUEST)], sent[len(REQUEST) :]) if chunk))
    assert was_waiting and transport.is_closed
    assert b"HTTP/1.1 408 Request Timeout" in transport.written


def test_a_complete_head_stops_the_clock() -> None:
    transport, was_waiting = wire(REQUEST)
    assert not was_waiting and transport.written.startswith(b"HTTP/1.1 200")


def test_a_head_above_the_wires_cap_is_refused() -> None:
    transport, _ = wire(b"GET /health HTTP/1.1\r\nX: " + b"y" * 40_000)
    assert transport.written.startswith(b"HTTP/1.1 400") and transport.is_closed
