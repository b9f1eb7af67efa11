"""The guard alone, in front of an application that answers everything: who is refused, with what, before what."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.guard import Guard
from server.web.heads import GuardPolicy
from server.web.listening import TimedProtocol, server_config
from server.web.stalls import StallingSocketProtocol
from tests.server.asgi import HOST, ORIGIN, TOKEN, Reply, ask, fetch, head, socket_head

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


def test_a_request_that_belongs_reaches_the_application_with_its_body() -> None:
    guard, echo = guarded()
    reply = fetch(guard, head("/opd/start", "POST", [OUR_HOST, JSON]), [b'{"a"', b": 1}"])
    assert (reply.status, reply.body) == (200, b'{"a": 1}')
    assert len(echo.scopes) == 1


def test_the_application_never_sees_the_token() -> None:
    guard, echo = guarded()
    fetch(guard, head())
    fetch(guard, socket_head(subprotocols=["opd", f"opd.token.{TOKEN}"]))
    fetch(guard, socket_head(token=TOKEN))
    assert len(echo.scopes) == 3
    assert TOKEN not in repr(echo.scopes)
    assert TOKEN not in repr(POLICY)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8766",
        "localhost:8765.evil.com",
        "evil.com",
        "evil.com:8765",
        "127.0.0.1:8765@evil.com",
        "127.0.0.1:8765/?x=",
        "a/?x=",
        " 127.0.0.1:8765",
        "0.0.0.0:8765",
        "",
        "127.0.0.1:8765, evil.com",
    ],
)
def test_another_host_is_refused_even_with_the_token(host: str) -> None:
    guard, echo = guarded()
    detail = refused(fetch(guard, head(headers=[("host", host)])), echo, 421)
    assert "--allow-host" in detail and "evil" not in detail


def test_a_request_without_a_host_is_refused() -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(headers=[])), echo, 421)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.com",
        "https://127.0.0.1:8765",
        "http://127.0.0.1",
        "http://127.0.0.1:8766",
        f"{ORIGIN}/",
    ],
)
@pytest.mark.parametrize("path", ["/opd/status", "/health"])
def test_another_origin_is_refused_even_with_the_token(origin: str, path: str) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(path, headers=[OUR_HOST, ("origin", origin)])), echo, 403)


def test_the_servers_own_origin_is_let_in_without_any_cors_header() -> None:
    guard, _ = guarded()
    reply = fetch(guard, head(headers=[OUR_HOST, ("origin", ORIGIN)]))
    assert reply.status == 200
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}t",
        f"Bearer {TOKEN.upper()}",
        f"Bearer  {TOKEN}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xff",
    ],
)
def test_a_missing_or_wrong_token_is_refused_with_a_challenge(authorization: str | None) -> None:
    guard, echo = guarded()
    headers = [OUR_HOST] if authorization is None else [OUR_HOST, ("authorization", authorization)]
    reply = fetch(guard, head(headers=headers, token=None))
    detail = refused(reply, echo, 401)
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "OPD_HOME" in detail and TOKEN not in detail


@pytest.mark.parametrize(
    "where", ["/opd/status?token=", "/opd/status?access_token=", "/opd/status?authorization=Bearer%20"]
)
def test_a_token_in_the_address_is_none(where: str) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(where + TOKEN, token=None)), echo, 401)


def test_an_empty_secret_lets_nobody_in() -> None:
    guard, echo = guarded(token="")
    refused(fetch(guard, head(token="")), echo, 401)


@pytest.mark.parametrize(
    "path", ["/health/", "/health/x", "/HEALTH", "/healthz", "/docs", "/openapi.json", "/metrics", "/"]
)
def test_nothing_but_health_is_open(path: str) -> None:
    guard, echo = guarded()
    assert fetch(guard, head("/health", token=None)).status == 200
    echo.scopes.clear()
    refused(fetch(guard, head(path, token=None)), echo, 401)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", [], 405),
        ("DELETE", [], 405),
        ("POST", [JSON, ("content-length", "5")], 405),
        ("GET", [JSON, ("content-length", "5")], 400),
        ("HEAD", [JSON, ("transfer-encoding", "chunked")], 400),
    ],
)
def test_a_stranger_cannot_hold_a_place_with_a_body_that_never_comes(
    method: str, headers: list[tuple[str, str]], status: int
) -> None:
    guard, echo = guarded(body_seconds=0.0)  # waiting for the body would be 408
    for token in (None, TOKEN):
        scope = head("/health", method, [OUR_HOST, *headers], token=token)
        reply = fetch(guard, scope, [b"{"], then_hangs=True)
        refused(reply, echo, status)
        assert reply.headers.get("allow") == ("GET, HEAD" if status == 405 else None)


def test_health_is_found_by_the_path_as_it_was_sent() -> None:
    guard, echo = guarded()
    refused(fetch(guard, head("/opd/status", raw_path=b"/opd/status", token=None)), echo, 401)
    refused(fetch(guard, head("/health", raw_path=b"/%68ealth", token=None)), echo, 401)
    refused(fetch(guard, head("/opd/start", "POST", [OUR_HOST], token=None, raw_path=b"/opd/start?/health")), echo, 401)


@pytest.mark.parametrize(
    "raw",
    [
        b"/opd/../health",
        b"/opd/%2e%2e/health",
        b"/health/.",
        b"//health",
        b"/opd//status",
        b"/opd%2fstatus",
        b"/opd\\status",
        b"/opd%5cstatus",
        b"/opd/status%00",
        b"/opd/status%0d%0aX:1",
        b"/opd/\xc3\xa4",
        b"http://evil.com/opd/status",
        b"*",
    ],
)
def test_a_path_that_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head("/opd/status", raw_path=raw)), echo, 400)


@pytest.mark.parametrize(
    "extra",
    [
        [OUR_HOST],
        [("host", "evil.com")],
        [("authorization", f"Bearer {TOKEN}")],
        [("content-length", "0"), ("content-length", "5")],
        [("origin", ORIGIN), ("origin", "http://evil.com")],
        [("content-length", "0"), ("transfer-encoding", "chunked")],
    ],
)
def test_a_header_that_decides_something_may_come_once(extra: list[tuple[str, str]]) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(headers=[OUR_HOST, *extra])), echo, 400)


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "get"])
def test_other_methods_are_refused_and_a_preflight_learns_nothing(method: str) -> None:
    guard, echo = guarded()
    headers = [OUR_HOST, ("origin", ORIGIN), ("access-control-request-method", "POST")]
    reply = fetch(guard, head(method=method, headers=headers, token=None))
    refused(reply, echo, 405)
    assert reply.headers["allow"] == "GET, HEAD, POST, DELETE"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_json_is_refused(media_type: str) -> None:
    guard, echo = guarded()
    headers = [OUR_HOST, ("content-type", media_type), ("content-length", "2")]
    refused(fetch(guard, head("/opd/start", "POST", headers), [b"{}"]), echo, 415)
    assert fetch(guard, head("/opd/stop", "POST", [OUR_HOST])).status == 200, "no body needs no type"


@pytest.mark.parametrize(("size", "status"), [(POLICY.max_body_bytes, 200), (POLICY.max_body_bytes + 1, 413)])
def test_the_body_is_capped_by_its_announced_length(size: int, status: int) -> None:
    guard, _ = guarded()
    headers = [OUR_HOST, JSON, ("content-length", str(size))]
    assert fetch(guard, head("/opd/start", "POST", headers)).status == status


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_the_body_is_capped_by_what_really_comes(size: int, status: int) -> None:
    guard, echo = guarded(max_body_bytes=1000)
    headers = [OUR_HOST, JSON, ("transfer-encoding", "chunked")]
    parts = [b"x" * 100] * 9 + [b"x" * (size - 900)]
    reply = fetch(guard, head("/opd/start", "POST", headers), parts)
    assert (reply.status, len(echo.scopes)) == (status, int(status == 200))


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "٣".encode().decode("latin-1"), "9" * 4000])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    guard, echo = guarded()
    reply = fetch(guard, head("/opd/start", "POST", [OUR_HOST, JSON, ("content-length", length)]))
    assert reply.status == (413 if length.startswith("9") else 400) and not echo.scopes


def test_a_body_that_never_ends_is_given_up() -> None:
    guard, echo = guarded(body_seconds=0.0)
    headers = [OUR_HOST, JSON, ("transfer-encoding", "chunked")]
    refused(fetch(guard, head("/opd/start", "POST", headers), [b"{"], then_hangs=True), echo, 408)


def test_a_caller_that_hangs_up_is_not_answered_and_gives_its_place_back() -> None:
    guard, echo = guarded(max_requests=1)
    for _ in range(3):
        assert fetch(guard, head("/opd/start", "POST", [OUR_HOST, JSON]), []).status is None
    assert echo.scopes == []
    assert fetch(guard, head()).status == 200


@pytest.mark.parametrize(("count", "status"), [(62, 200), (63, 431)])
def test_the_number_of_headers_is_capped(count: int, status: int) -> None:
    guard, _ = guarded()
    headers = [OUR_HOST, *((f"x-{number}", "1") for number in range(count))]  # and Authorization
    assert fetch(guard, head(headers=headers)).status == status


def test_the_size_of_headers_and_address_is_capped() -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(headers=[OUR_HOST, ("x", "y" * POLICY.max_header_bytes)])), echo, 431)
    refused(fetch(guard, head("/opd/status?run_id=" + "y" * 8_192)), echo, 414)


def test_requests_streams_and_sockets_are_counted_apart_and_only_once_let_in() -> None:
    guard, echo = guarded(max_requests=2, max_streams=1)
    replies: list[Reply] = []

    async def one(scope: Scope) -> None:
        replies.append(await ask(guard, scope))

    async def go() -> None:
        echo.go_on = anyio.Event()
        async with anyio.create_task_group() as group:
            for scope in (head(), head(), head("/opd/events")):
                group.start_soon(one, scope)
            await anyio.wait_all_tasks_blocked()
            assert len(echo.scopes) == 3
            for _ in range(5):
                assert (await ask(guard, head(token=None))).status == 401, "strangers take no place"
            for path in ("/opd/status", "/opd/events"):
                busy = await ask(guard, head(path))
                assert (busy.status, busy.headers["retry-after"]) == (503, "1")
            assert (await ask(guard, socket_head(token=TOKEN))).status == 101
            echo.go_on.set()
        assert (await ask(guard, head())).status == 200

    anyio.run(go)
    assert [reply.status for reply in replies] == [200, 200, 200]


def test_a_socket_takes_its_token_from_the_header_or_a_subprotocol() -> None:
    guard, _ = guarded()
    assert fetch(guard, socket_head(token=TOKEN)).status == 101
    reply = fetch(guard, socket_head(subprotocols=["opd", f"opd.token.{TOKEN}"]))
    assert (reply.status, reply.headers["subprotocol"]) == (101, "opd")


@pytest.mark.parametrize(
    ("headers", "subprotocols", "status"),
    [
        ([OUR_HOST], [], 401),
        ([OUR_HOST], ["opd", "opd.token."], 401),
        ([OUR_HOST], ["opd", f"opd.token.{TOKEN.upper()}"], 401),
        ([OUR_HOST], [f"opd.token.{TOKEN}", "opd.token.other"], 401),
        ([OUR_HOST, ("origin", "http://evil.com")], [f"opd.token.{TOKEN}"], 403),
        ([OUR_HOST, ("origin", "null")], [f"opd.token.{TOKEN}"], 403),
        ([("host", "evil.com:8765")], [f"opd.token.{TOKEN}"], 421),
        ([OUR_HOST, ("authorization", "Bearer wrong")], [f"opd.token.{TOKEN}"], 401),
    ],
)
def test_a_socket_is_refused_before_it_opens(
    headers: list[tuple[str, str]], subprotocols: list[str], status: int
) -> None:
    guard, echo = guarded()
    closed = fetch(guard, socket_head(headers, subprotocols=subprotocols))
    assert (closed.status, closed.closed) == (None, 1008)
    able = socket_head(headers, subprotocols=subprotocols, extensions={"websocket.http.response": {}})
    refused(fetch(guard, able), echo, status)


def test_the_lifespan_passes() -> None:
    guard, echo = guarded()

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        pass

    anyio.run(guard, {"type": "lifespan"}, receive, send)
    assert len(echo.scopes) == 1


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
