"""Faults of the database: held by another process, and clocks that jump while it is written."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opd_core.errors import StoreError
from opd_core.money.ledger import Ledger
from opd_core.money.totals import rebuild_check
from opd_core.paths import HomePaths
from opd_core.seams import Seams
from opd_core.settings import read_settings
from opd_core.state import database
from opd_core.state.database import Database
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from opd_core.worker.jobs import WORKER_BUSY_SECONDS
from server.home_use_cases import HomeUseCases
from tests.opd_core.control.workshop import Workshop
from tests.waiting import wait_until


@pytest.fixture
def shop(home: HomePaths) -> Iterator[Workshop]:
    workshop = Workshop(home)
    yield workshop
    workshop.close()


@contextlib.contextmanager
def held(path: Path, how: str) -> Iterator[sqlite3.Connection]:
    """Another process's transaction: IMMEDIATE keeps writers out, EXCLUSIVE readers too."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute(f"BEGIN {how}")
        yield holder
        if holder.in_transaction:
            holder.execute("ROLLBACK")


# --- held by another writer for long (row 34)


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_call_of_a_tool_says_that_the_database_is_busy_and_works_afterwards(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    shop.queue("a")
    shop.store.close()
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.01)
    cases = HomeUseCases(read_settings(home=shop.home.home))
    with held(shop.home.database, how), pytest.raises(StoreError, match=r"is busy.*Call again"):
        cases.stop("a", 0)
    assert cases.stop("a", 0).state == "stopped"


def test_a_worker_waits_longer_than_any_tool_call(shop: Workshop) -> None:
    shop.running("a")
    shop.orders["a"].send("patience", "finish")
    shop.wait("completed")
    assert f"waits {WORKER_BUSY_SECONDS * 1000:.0f} ms for the database" in shop.log()
    assert WORKER_BUSY_SECONDS > 30 > database.BUSY_TIMEOUT_SECONDS


def test_a_worker_at_work_loses_nothing_to_a_held_database(shop: Workshop) -> None:
    """Steps and the run's end fall into the time in which nobody can write."""
    shop.running("a")
    with held(shop.home.database, "EXCLUSIVE"):
        shop.orders["a"].send("step", "step", "finish")
        file = shop.home.metrics("a", "train")
        wait_until(lambda: file.exists() and file.stat().st_size > 0, 10)  # it stands before the row's write
    row = shop.wait("completed")
    assert row.step == 2
    assert [line["step"] for line in shop.store.metrics("a")] == [1, 2]
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]
    assert sum("completed" in event.message for event in shop.store.events("a")) == 1


# --- clocks that jump (row 36)


class Calendar:
    """A person, or a time server, sets it by up to a day before each look."""

    def __init__(self, seed: int) -> None:
        self.random, self.moment = random.Random(seed), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    def now(self) -> datetime:
        self.moment += timedelta(seconds=self.random.choice([-86_400, 86_400, -3_600, 3_600, 1]))
        return self.moment


class Time:
    """Seconds that only grow: one at each look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 1.0
        return self.seconds


@pytest.mark.parametrize("seed", range(5))
def test_a_runs_life_does_not_depend_on_the_calendar(home: HomePaths, seed: int) -> None:
    home.prepare()
    seams = Seams(now=Calendar(seed).now, monotonic=Time().now)
    store = RunStore(home.database, seams)
    for run_id in ("a", "b", "c"):
        store.create(run_id, "distillation", {}, total_steps=30)
    taken = []
    while (queued := store.next_queued()) is not None:
        taken.append(queued.run_id)
        epoch = store.claim(queued.run_id)
        recorder = RunRecorder(store, home, store.get(queued.run_id), lambda: False, seams)
        recorder.phase("rollout")
        for step in (1, 2, 3):
            recorder.train_metrics({"step": step})
            row = store.get(queued.run_id)
            assert row.steps_per_second is not None and 0.05 < row.steps_per_second < 1.0  # of the growing seconds
            assert row.heartbeat_age_seconds is not None and row.heartbeat_age_seconds >= 0
        store.finish(queued.run_id, "completed", "finished", epoch=epoch, message="")
    assert taken == ["a", "b", "c"]
    assert [row.run_id for row in store.list()] == ["c", "b", "a"]
    sequences = [event.sequence for event in store.events()]
    assert sequences == sorted(sequences) and len(sequences) == 3 * 4


@pytest.mark.parametrize("seed", range(5))
def test_no_cent_is_lost_or_counted_twice_when_the_calendar_jumps_over_months(home: HomePaths, seed: int) -> None:
    home.prepare()
    calendar = Calendar(seed)
    calendar.moment = datetime(2026, 10, 31, 23, 59, tzinfo=UTC)
    ledger = Ledger(home.database, month_limit_pico=1_000, clock=calendar.now)
    ledger.open_budget("a", 100)
    for number in range(10):
        call = ledger.reserve("a", f"key {number}", "m", "v", 10, "a:1")
        if number % 2:
            ledger.forfeit(call, "unknown")
        else:
            ledger.release(call, "never sent")
    totals = ledger.totals("a")
    assert (totals.spent_pico, totals.reserved_pico, totals.forfeited_calls) == (50, 0, 5)
    rebuild_check(Database(home.database))
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        months = connection.execute(
            "SELECT spent_pico, reserved_pico FROM budgets WHERE scope LIKE 'month:%'"
        ).fetchall()
    assert sum(spent for spent, _ in months) == 50 and all(reserved == 0 for _, reserved in months)
