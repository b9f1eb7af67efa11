"""Subscribers hear of what another process commits, and nothing is looked at while there are none."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from mcp.client import Client
from mcp.shared.subscriptions import ResourceUpdated, ServerEvent

from opd_core.paths import HomePaths
from opd_core.state.database import Database
from opd_core.state.store import RunStore
from opd_core.state.watching import ChangeWatch, run_marks
from server.app import server_for
from server.protocol import changes
from server.protocol.changes import RunChanges, changed_uris
from server.resources import PARTS, RUNS_URI, run_uri
from tests.server.fakes import FakeUseCases

CONFIG = {"base_model_path": "tiny"}


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    """The store of another process, as it were: it has a connection of its own."""
    home.prepare()
    return RunStore(home.database)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.01)


def test_only_another_connections_commit_is_a_change(home: HomePaths, store: RunStore) -> None:
    watch = ChangeWatch(home.database)
    assert not watch.changed() and not home.database.exists(), "asking makes no database"
    store.create("opd_1", "distillation", CONFIG, total_steps=3)
    assert watch.changed()
    assert not watch.changed()
    store.claim("opd_1")
    assert watch.changed() and not watch.changed()
    home.database.unlink()
    assert not watch.changed()
    store.close()
    store.create("opd_2", "distillation", CONFIG, total_steps=3)
    assert watch.changed(), "a new database is another one"
    store.close()
    copy = home.database.with_name("copy.db")
    copy.write_bytes(home.database.read_bytes())
    copy.replace(home.database)
    assert watch.changed(), "so is one that took its place between two looks"


def test_the_addresses_of_what_changed_are_told(home: HomePaths, store: RunStore) -> None:
    database = Database(home.database)
    store.create("opd_1", "distillation", CONFIG, total_steps=3)
    store.create("opd_2", "distillation", CONFIG, total_steps=3)
    before = run_marks(database)
    assert list(changed_uris(before, before)) == []
    store.claim("opd_1")
    told = set(changed_uris(before, run_marks(database)))
    assert told == {RUNS_URI} | {run_uri("opd_1", part) for part in PARTS if part != "config"}
    store.create("opd_3", "distillation", CONFIG, total_steps=3)
    assert run_uri("opd_3", "config") in set(changed_uris(before, run_marks(database)))


def test_a_subscriber_hears_of_a_run_that_another_process_changed(home: HomePaths, store: RunStore) -> None:
    store.create("opd_1", "distillation", CONFIG, total_steps=3)
    store.create("opd_2", "distillation", CONFIG, total_steps=3)

    async def go() -> None:
        with anyio.fail_after(20):
            async with (
                Client(server_for(FakeUseCases(home=home))) as client,
                client.listen(resource_subscriptions=[run_uri("opd_1", "metrics")]) as events,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(change_until_cancelled)
                async for event in events:
                    assert event == ResourceUpdated(uri=run_uri("opd_1", "metrics"))
                    break
                tasks.cancel_scope.cancel()

    async def change_until_cancelled() -> None:
        number = 0
        while True:  # the watch takes its first look when it likes; whatever comes after is told
            number += 1
            for run_id in ("opd_1", "opd_2"):
                with store._database.write() as connection:
                    connection.execute("UPDATE runs SET step = ? WHERE run_id = ?", (number, run_id))
            await anyio.sleep(0.02)

    anyio.run(go)


def test_nobody_looks_before_somebody_subscribes_nor_after_the_last_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def look(watch: ChangeWatch) -> bool:
        looks.append(1)
        return True

    monkeypatch.setattr(ChangeWatch, "changed", look)
    bus = RunChanges(tmp_path / "home" / "opd.db")

    def ignore(event: ServerEvent) -> None:
        raise AssertionError(event)

    async def until_looked(more_than: int) -> None:
        while len(looks) <= more_than:
            await anyio.sleep(0.005)

    async def go() -> None:
        with anyio.fail_after(20):
            async with bus.lifespan(None):
                await anyio.wait_all_tasks_blocked()
                assert looks == []
                leave, leave_too = bus.subscribe(ignore), bus.subscribe(ignore)
                await until_looked(3)
                leave()
                leave()
                await until_looked(len(looks) + 3)
                leave_too()
                while bus._somebody is None or bus._somebody.is_set():  # until it waits for somebody to come
                    await anyio.sleep(0.005)
                seen = len(looks)
                await anyio.wait_all_tasks_blocked()
                assert len(looks) == seen
                bus.subscribe(ignore)
                await until_looked(seen)

    anyio.run(go)
    assert list(tmp_path.iterdir()) == []
