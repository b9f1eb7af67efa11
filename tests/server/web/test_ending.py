"""The end of the HTTP server: waits are answered, streams are closed, short requests are let finish."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive, Scope, Send

from server.web.ending import Ending
from tests.server.asgi import Reply, ask, head

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def body(text: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


def ended_during(answer: Callable[[Send, anyio.Event], Awaitable[None]], grace_seconds: float = 0.0) -> Reply:
    """What a caller gets whose request is under way when the server is told to end."""

    async def go() -> Reply:
        under_way, replies = anyio.Event(), list[Reply]()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await answer(send, under_way)

        ending = Ending(app, grace_seconds)

        async def client(everything: anyio.CancelScope) -> None:
            replies.append(await ask(ending, head()))
            everything.cancel()

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client, tasks.cancel_scope)
                await under_way.wait()
                await ending.end()
        return replies[0]

    return anyio.run(go)


def test_a_wait_is_refused_with_words() -> None:
    async def waits(send: Send, under_way: anyio.Event) -> None:
        under_way.set()
        await anyio.sleep_forever()

    reply = ended_during(waits)
    assert reply.status == 503 and "Runs go on" in reply.problem["detail"] and "retry-after" in reply.headers


def test_a_stream_ends_as_a_stream_does() -> None:
    async def streams(send: Send, under_way: anyio.Event) -> None:
        await send(START)
        await send(body(b"data: 1\n\n", more=True))
        under_way.set()
        await anyio.sleep_forever()

    reply = ended_during(streams)
    assert reply.status == 200 and reply.body == b"data: 1\n\n" and reply.is_complete


def test_a_stream_that_ends_by_itself_is_completed() -> None:
    async def streams(send: Send, under_way: anyio.Event) -> None:
        await send(START)
        under_way.set()
        await anyio.lowlevel.checkpoint()

    assert ended_during(streams, grace_seconds=5.0).is_complete


def test_a_short_request_is_let_finish() -> None:
    async def answers(send: Send, under_way: anyio.Event) -> None:
        under_way.set()
        await anyio.lowlevel.checkpoint()
        await send(START)
        await send(body(b"done", more=False))

    reply = ended_during(answers, grace_seconds=5.0)
    assert reply.status == 200 and reply.body == b"done"


def test_nothing_is_added_to_an_answer_while_the_server_goes_on() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

    reply = anyio.run(ask, Ending(half), head())
    assert reply.status == 200 and not reply.is_complete
