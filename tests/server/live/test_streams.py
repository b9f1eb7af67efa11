"""The live feed over HTTP: socket and event stream, readers that are too slow, a writer in another process."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.sync.client import connect

from opd_core.control.processes import try_lock
from opd_core.paths import HomePaths
from opd_core.seams import utc_moment
from opd_core.state.events import add_event
from server.guard import Guard
from server.home_use_cases import HomeUseCases
from server.live.feed import Feed
from server.live.streams import live_routes
from server.settings import Settings
from server.use_cases import UseCases
from server.web.app import http_app
from server.web.heads import GuardPolicy
from server.web.listening import TimedProtocol, server_config
from server.web.stalls import StallingSocketProtocol
from tests.server.asgi import HOST, TOKEN, head, socket_head
from tests.server.fakes import FakeUseCases
from tests.server.live.feed_kit import Writer, quick_feed
from tests.server.records import make_row
from tests.waiting import wait_until


@pytest.fixture
def writer(home: HomePaths) -> Writer:
    return Writer.of(home)


@pytest.fixture
def cases(home: HomePaths) -> FakeUseCases:
    return FakeUseCases(rows=[make_row(run_id="run")], home=home)


def app_of(cases: UseCases, **options: Any) -> Starlette:
    return Starlette(routes=live_routes(cases, feed=quick_feed(cases.home), **options))


def data_until(next_text: Any, kind: str, **values: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while not found or found[-1]["kind"] != kind or any(found[-1][name] != value for name, value in values.items()):
        found.append(json.loads(next_text())["data"])
    return found


# --- the socket


def test_the_socket_tells_what_was_missed_and_what_comes(writer: Writer, cases: FakeUseCases) -> None:
    writer.begin()
    with TestClient(app_of(cases)) as client, client.websocket_connect("/opd/ws?after=1") as session:
        found = data_until(session.receive_text, "phase")
        assert [data["sequence"] for data in found if data["kept"]] == [2, 3]
        session.send_text(json.dumps({"type": "subscribe", "run_id": "other"}))  # read and ignored
        writer.step(1)
        writer.end()
        found = data_until(session.receive_text, "state", state="completed")
    assert [data["sequence"] for data in found if data["kept"]] == [4, 5]


@pytest.mark.parametrize(("offered", "accepted"), [([], None), (["opd"], "opd"), (["chat"], None)])
def test_only_the_subprotocol_opd_is_accepted(
    writer: Writer, cases: FakeUseCases, offered: list[str], accepted: str | None
) -> None:
    writer.begin()
    with TestClient(app_of(cases)) as client, client.websocket_connect("/opd/ws", subprotocols=offered) as session:
        assert session.accepted_subprotocol == accepted


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=1&after=2", "odd=1", "run_id="])
def test_a_socket_with_wrong_arguments_is_refused_with_a_problem(cases: FakeUseCases, query: str) -> None:
    with (
        TestClient(app_of(cases)) as client,
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(f"/opd/ws?{query}"),
    ):
        pass
    assert refused.value.status_code == 422 and refused.value.json()["detail"]


@pytest.mark.parametrize("query", ["after=%ff", "after", "&"])
def test_a_socket_with_an_unreadable_query_is_refused_with_a_problem(cases: FakeUseCases, query: str) -> None:
    app = http_app(cases, token=TOKEN, hosts=frozenset({HOST}), origins=frozenset())
    with (
        TestClient(app, base_url=f"http://{HOST}") as client,
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(f"/opd/ws?{query}", headers={"host": HOST, "authorization": f"Bearer {TOKEN}"}),
    ):
        pass
    assert refused.value.status_code == 400 and "name=value" in refused.value.json()["detail"]


def test_a_run_that_nobody_knows_is_refused(home: HomePaths) -> None:
    app = app_of(FakeUseCases(home=home))
    with (
        TestClient(app) as client,
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/opd/ws?run_id=none"),
    ):
        pass
    assert refused.value.status_code == 404
    with TestClient(app) as client:
        assert client.get("/opd/events?run_id=none").status_code == 404
    assert not home.home.exists()


# --- by hand: readers that stop reading


class Stalling:
    """The other end of a connection: takes what is sent until it is told to stall."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.takes, self.leaves = anyio.Event(), anyio.Event()
        self.takes.set()
        self.is_connected = False

    async def receive(self) -> Message:
        if not self.is_connected:
            self.is_connected = True
            return {"type": "websocket.connect"}
        await self.leaves.wait()
        return {"type": "websocket.disconnect", "code": 1001}

    async def receive_http(self) -> Message:
        if not self.is_connected:
            self.is_connected = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.takes.wait()
        self.got.append(message)

    def stall(self) -> None:
        self.takes = anyio.Event()


async def answer(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


async def until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.001)


def test_a_reader_that_takes_nothing_is_closed_with_a_reason_and_the_others_get_everything(
    writer: Writer, cases: FakeUseCases
) -> None:
    writer.begin()
    app = app_of(cases, send_seconds=0.05)

    async def go() -> tuple[Stalling, Stalling]:
        stalled, quick = Stalling(), Stalling()
        scope = socket_head(extensions={})
        scope["query_string"] = b"after=0"
        async with anyio.create_task_group() as tasks:
            for end in (stalled, quick):
                tasks.start_soon(answer, app, dict(scope), end.receive, end.send)
            await until(lambda: len(stalled.got) >= 5 and len(quick.got) >= 5)
            stalled.stall()
            for step in range(1, 30):
                writer.step(step)
            await until(lambda: '"step":29' in quick.got[-1].get("text", ""))
            await anyio.sleep(0.1)
            stalled.takes.set()  # it wakes up: what it finds is the end
            await until(lambda: stalled.got[-1]["type"] == "websocket.close")
            quick.leaves.set()
        return stalled, quick

    stalled, quick = anyio.run(go)
    last = json.loads(stalled.got[-2]["text"])["data"]["sequence"]
    close = stalled.got[-1]
    assert close["code"] == 1013 and f"after={last};" in close["reason"] and len(close["reason"].encode()) <= 123
    told = [json.loads(message["text"])["data"] for message in quick.got[1:]]
    assert [data["sequence"] for data in told if data["kept"]] == list(range(1, 33))


def stream(app: ASGIApp, query: str, act: Any, headers: list[tuple[str, str]] | None = None) -> Stalling:
    """Run one event stream; `act` gets its other end and decides when it leaves."""

    async def go() -> Stalling:
        end = Stalling()
        scope: Scope = head(f"/opd/events?{query}", headers=[("host", "h"), *(headers or [])])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, app, scope, end.receive_http, end.send)
            with anyio.fail_after(20):
                await act(end)
            end.leaves.set()
        return end

    return anyio.run(go)


def events_of(end: Stalling) -> list[dict[str, str]]:
    text = b"".join(message.get("body", b"") for message in end.got).decode()
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [("after=0", [], 1), ("after=2", [], 3), ("after=0", [("last-event-id", "1")], 2)],
)
def test_the_event_stream_has_ids_and_goes_on_from_the_last_one(
    writer: Writer, cases: FakeUseCases, query: str, headers: list[tuple[str, str]], first: int
) -> None:
    writer.begin()

    async def act(end: Stalling) -> None:
        await until(lambda: b'"kind":"phase"' in end.got[-1].get("body", b"") if end.got else False)

    end = stream(app_of(cases), query, act, headers)
    start = {name.decode(): value.decode() for name, value in end.got[0]["headers"]}
    assert start["content-type"].startswith("text/event-stream") and start["cache-control"] == "no-store"
    retry, *events = events_of(end)
    assert retry == {"retry": "2000"} and {event["event"] for event in events} == {"opd_progress"}
    found = [json.loads(event["data"])["data"] for event in events]
    assert [event["id"] for event in events] == [str(data["sequence"]) for data in found]
    assert [data["sequence"] for data in found if data["kept"]] == list(range(first, 4))


def test_a_quiet_stream_is_kept_alive_by_comments(home: HomePaths) -> None:
    cases = FakeUseCases(home=home)
    app = Starlette(routes=live_routes(cases, feed=quick_feed(home, idle_seconds=0.001)))

    async def act(end: Stalling) -> None:
        await until(lambda: len(end.got) > 4)

    end = stream(app, "", act)
    assert end.got[2]["body"] == b": still here\n\n" and not home.home.exists()


def test_a_stream_that_takes_nothing_ends_with_an_event_that_says_so(writer: Writer, cases: FakeUseCases) -> None:
    writer.begin()

    async def act(end: Stalling) -> None:
        await until(lambda: len(end.got) >= 3)
        end.stall()
        writer.step(1)
        await anyio.sleep(0.3)
        end.takes.set()
        await until(lambda: not end.got[-1].get("more_body", True))

    events = events_of(stream(app_of(cases, send_seconds=0.05), "", act))
    assert events[-1]["event"] == "dropped"
    assert json.loads(events[-1]["data"])["after"] == 3 and "too slowly" in json.loads(events[-1]["data"])["reason"]


def test_a_head_request_does_not_stream_and_a_wrong_last_event_id_is_refused(cases: FakeUseCases) -> None:
    with TestClient(app_of(cases)) as client:
        response = client.head("/opd/events")
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        assert client.get("/opd/events", headers={"last-event-id": "x"}).status_code == 422
        assert client.get("/opd/events?after=-3").status_code == 422


# --- a real server, real sockets, a writer in another process


@contextmanager
def served(home: HomePaths, monkeypatch: pytest.MonkeyPatch, stall_seconds: float = 20.0) -> Iterator[tuple[int, Feed]]:
    """The guarded feed behind uvicorn as `opd serve --http` configures it; gives its port and the feed."""
    monkeypatch.setattr(TimedProtocol, "stall_seconds", stall_seconds)
    monkeypatch.setattr(StallingSocketProtocol, "stall_seconds", stall_seconds)
    cases = HomeUseCases(Settings(home), is_local=False)
    feed = Feed(home, lambda: cases.status(None))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        policy = GuardPolicy(token=TOKEN, hosts=frozenset({f"127.0.0.1:{port}"}))
        app = Guard(Starlette(routes=live_routes(cases, feed=feed)), policy)
        server = uvicorn.Server(server_config(app, "127.0.0.1", port, lifespan="off", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started, 20, "the server listens")
            yield port, feed
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


WRITER = """
import sys
from pathlib import Path
from opd_core.state.store import RunStore
store = RunStore(Path(sys.argv[1]))
epoch = store.claim("run")
store.transition("run", "running", epoch=epoch)
for step in range(1, 101):
    store.append_metrics("run", epoch, "train", {"step": step, "kl_loss": 0.5}, step=step)
store.finish("run", "completed", "finished", epoch=epoch, message="Done.")
"""


def test_a_reader_here_hears_a_writer_in_another_process(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.store.create("run", "distillation", {}, total_steps=100)
    # a live run whose lock nobody holds is dead to whoever looks: hold it as a worker would
    lock = try_lock(writer.home.run_lock("run"))
    device = try_lock(writer.home.device_lock)
    assert lock is not None and device is not None
    with served(writer.home, monkeypatch) as (port, _):
        url = f"ws://127.0.0.1:{port}/opd/ws?after=0"
        protocols: Any = ["opd", f"opd.token.{TOKEN}"]
        with connect(url, subprotocols=protocols, proxy=None) as client:
            assert client.subprotocol == "opd"
            process = subprocess.Popen([sys.executable, "-P", "-c", WRITER, str(writer.home.database)])
            found = data_until(lambda: client.recv(timeout=30), "state", state="completed")
            assert process.wait(30) == 0
    assert [data["sequence"] for data in found if data["kept"]] == list(range(1, 105))
    assert [data["step"] for data in found if data["kind"] == "metrics"] == list(range(1, 101))


def test_a_connection_that_takes_nothing_is_cut(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.store.create("run", "distillation", {}, total_steps=100)
    with writer.store._database.write() as connection:
        for _ in range(3000):
            add_event(connection, "run", "warning", "w" * 1400, utc_moment())
    with served(writer.home, monkeypatch, stall_seconds=0.2) as (port, feed), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        request = f"GET /opd/events?after=0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        client.sendall(request.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: feed.readers == 0, 20, "the server has given the reader up")
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(65_536):
                received += len(block)
        assert received < 1_000_000  # of four and a half
