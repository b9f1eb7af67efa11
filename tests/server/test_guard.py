"""The guard alone, in front of an application that answers everything: bodies, places, sockets, the lifespan."""

from __future__ import annotations

import anyio
import pytest
from starlette.types import Message, Scope

from tests.server.asgi import TOKEN, Reply, ask, fetch, head, socket_head
from tests.server.guarded import JSON, OUR_HOST, POLICY, guarded, refused


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


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_the_body_is_capped_by_what_really_comes(size: int, status: int) -> None:
    guard, echo = guarded(max_body_bytes=1000)
    headers = [OUR_HOST, JSON, ("transfer-encoding", "chunked")]
    parts = [b"x" * 100] * 9 + [b"x" * (size - 900)]
    reply = fetch(guard, head("/opd/start", "POST", headers), parts)
    assert (reply.status, len(echo.scopes)) == (status, int(status == 200))


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
