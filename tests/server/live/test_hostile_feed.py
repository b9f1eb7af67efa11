"""Hostile text on its way through the live feed: capped, escaped, and never a field or an event of its own."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from opd_core.paths import HomePaths
from server.live.progress import MAX_MESSAGE_CHARACTERS
from tests.server.fakes import FakeUseCases
from tests.server.hostile_home import HOSTILE, MARK, odd_characters
from tests.server.live.feed_kit import Writer
from tests.server.live.test_streams import Stalling, app_of, stream, until
from tests.server.records import make_row

INJECTIONS = {
    "a new event": f"fine\n\nevent: opd_progress\ndata: {MARK}\n\n",
    "a new field": f"fine\ndata: {MARK}\nid: 999999\nretry: 1",
    "carriage returns": f"fine\r\revent: {MARK}\rdata: {MARK}\r\n\r\n: {MARK}",
    "the end of its JSON": f'"}}}}\n\ndata: {{"type": "{MARK}"}}',
}
TEXTS = HOSTILE | INJECTIONS
KINDS = ("warning", "phase", "log")
LONGEST = 2 * MAX_MESSAGE_CHARACTERS  # a capped text, some of it as escapes


def hostile_run(writer: Writer, text: str) -> None:
    """A run that began well, and then a log, a phase, a reason and a kept event that are full of a text."""
    stored = text.encode("utf-8", "replace").decode()
    writer.store.add_event("run", "warning", stored)
    writer.phase("rollout", phase_detail=stored, waiting_reason=stored)
    with writer.home.log("run").open("ab") as log:
        log.write(f"Traceback: {text}\n{text[:1_000]}\n".encode("utf-8", "surrogatepass"))


def judge(told: dict[str, Any]) -> None:
    assert told.keys() == {"type", "data"} and told["type"] == "opd_progress"
    texts = [value for value in told["data"].values() if isinstance(value, str)]
    assert not {character for text in texts for character in odd_characters(text)}
    assert max(map(len, texts)) <= LONGEST


def has_all(found: list[str]) -> bool:
    """Whether event, phase and log line have come through, each with something of the text."""
    return all(any(f'"kind":"{kind}"' in text and MARK in text for text in found) for kind in KINDS)


@pytest.fixture
def writer(home: HomePaths) -> Writer:
    made = Writer.of(home)
    made.begin()
    made.log("")
    return made


@pytest.fixture
def cases(home: HomePaths) -> FakeUseCases:
    return FakeUseCases(rows=[make_row(run_id="run")], home=home)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_starts_a_field_or_an_event_of_the_stream(writer: Writer, cases: FakeUseCases, text: str) -> None:
    async def act(end: Stalling) -> None:
        await until(lambda: len(end.got) > 3)  # it listens: its log lines are followed from here on
        hostile_run(writer, text)
        await until(lambda: has_all([message.get("body", b"").decode() for message in end.got]))

    body = b"".join(message.get("body", b"") for message in stream(app_of(cases), "after=0", act).got)
    # as a browser reads: three line ends, an empty line ends an event
    blocks = [block.split("\n") for block in re.sub("\r\n?", "\n", body.decode()).split("\n\n") if block]
    assert blocks.pop(0) == ["retry: 2000"]
    for block in blocks:
        assert [line.partition(": ")[0] for line in block] == ["id", "event", "data"]
        told = json.loads(block[2].removeprefix("data: "))
        judge(told)
        assert block[:2] == [f"id: {told['data']['sequence']}", "event: opd_progress"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_message_of_the_socket_is_one_judged_object(writer: Writer, cases: FakeUseCases, text: str) -> None:
    found: list[str] = []
    with TestClient(app_of(cases)) as client, client.websocket_connect("/opd/ws?after=0") as socket:
        while not found or '"kind":"phase"' not in found[-1]:  # it listens: log lines are followed from here on
            found.append(socket.receive_text())
        hostile_run(writer, text)
        while not has_all(found):
            found.append(socket.receive_text())
    for each in found:
        judge(json.loads(each))
