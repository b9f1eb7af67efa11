"""Real worker processes: what happens when they die, seem dead, and outlive their server."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from opd_core.control.processes import process_identity, try_lock
from opd_core.control.supervisor import Supervisor, owner_name
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from tests.opd_core.control import little_server
from tests.opd_core.control.workshop import START_SECONDS, Workshop, linux_only
from tests.waiting import wait_until


def test_a_killed_worker_is_reported_within_a_second(shop: Workshop) -> None:
    pid = shop.running()
    shop.orders["a"].send("step")
    wait_until(lambda: shop.row().step == 1, 5)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()

    def is_reported() -> bool:
        shop.supervisor.reconcile()
        return shop.row().state == "interrupted"

    wait_until(is_reported, 1.0)
    assert time.monotonic() - started < 1.0
    row = shop.row()
    assert row.end_reason == "worker_died"
    assert row.error_message is not None and "at step 1 of 30" in row.error_message


def test_a_child_of_a_dead_worker_does_not_keep_it_alive(shop: Workshop) -> None:
    pid = shop.running()
    shop.orders["a"].send("child")
    wait_until(lambda: "child started" in shop.log(), 5)
    os.kill(pid, signal.SIGKILL)

    def is_reported() -> bool:
        shop.supervisor.reconcile()
        return shop.row().state == "interrupted"

    try:
        wait_until(is_reported, 1.0)
    finally:
        os.killpg(pid, signal.SIGKILL)


@linux_only
def test_the_parent_leaves_no_zombie(shop: Workshop) -> None:
    pid = shop.running()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5)


def test_a_stopped_process_is_not_a_dead_one(shop: Workshop) -> None:
    """SIGSTOP, or a laptop asleep: however old the heartbeat, the lock is held."""
    pid = shop.running()
    os.kill(pid, signal.SIGSTOP)
    shop.supervisor.reconcile()
    assert shop.row().state == "running"
    os.kill(pid, signal.SIGCONT)
    shop.orders["a"].send("finish")
    shop.wait("completed")


def test_a_worker_that_has_not_begun_is_never_taken_for_dead(shop: Workshop) -> None:
    """From the claim on the run's lock is held, first by the starter and then by the child it passed it to."""
    shop.queue("a")
    shop.supervisor.start_next_queued()
    assert try_lock(shop.home.device_lock) is None
    while shop.row().pid is None:
        shop.supervisor.reconcile()
        assert shop.row().state in ("preparing", "running")
    shop.wait("running")


def test_a_worker_that_dies_before_its_first_write_is_reported_and_not_started_again(home: HomePaths) -> None:
    home.prepare()
    store = RunStore(home.database)
    store.create("a", "distillation", {})
    supervisor = Supervisor(home, store, ("sh", "-c", "echo no such module >&2; exit 1"))
    supervisor.start_next_queued()

    def is_reported() -> bool:
        supervisor.reconcile()
        supervisor.start_next_queued()
        return store.get("a").state == "interrupted"

    wait_until(is_reported, 5)
    assert store.get("a").epoch == 1
    assert home.log("a").read_text() == "no such module\n"


def test_a_worker_whose_run_moved_on_leaves_without_a_trace(shop: Workshop) -> None:
    pid = shop.running()
    os.kill(pid, signal.SIGSTOP)
    epoch = shop.row().epoch
    shop.store.finish("a", "interrupted", "worker_died", epoch=epoch, message="")
    shop.store.requeue("a", config={}, total_steps=30)
    shop.store.claim("a")
    before = shop.row()
    os.kill(pid, signal.SIGCONT)
    shop.orders["a"].send("step", "finish")
    wait_until(lambda: process_identity(pid) is None, 10)
    after = shop.row()
    assert (after.state, after.epoch, after.step) == (before.state, before.epoch, 0)
    assert "no longer" in shop.log() or "another worker" in shop.log()


def test_the_worker_outlives_its_server(shop: Workshop) -> None:
    shop.queue("a")
    with little_server.start(shop.home) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write("go\n")
        server.stdin.flush()
        assert server.stdout.readline() == "done\n"
        os.killpg(server.pid, signal.SIGKILL)
    pid = shop.wait("running").pid
    shop.orders["a"].send("step", "finish")
    row = shop.wait("completed")
    assert row.step == 1 and pid is not None


def test_after_a_dead_worker_the_next_caller_starts_the_queue(shop: Workshop) -> None:
    pid = shop.running("a")
    shop.queue("b")
    shop.supervisor.start_next_queued()
    assert shop.row("b").state == "queued"
    os.kill(pid, signal.SIGKILL)

    def has_moved_on() -> bool:
        shop.supervisor.start_next_queued()
        return shop.row("b").state == "running"

    wait_until(has_moved_on, START_SECONDS)


def test_stopping_a_dead_worker_tells_that_it_died(shop: Workshop) -> None:
    os.kill(shop.running(), signal.SIGKILL)
    assert shop.supervisor.stop("a", 5).state == "interrupted"


def test_calls_that_a_dead_worker_left_open_are_charged_and_those_of_a_live_one_are_not(shop: Workshop) -> None:
    pid = shop.running()
    ledger = Ledger(shop.home.database, month_limit_pico=100)
    for run_id in ("a", "gone"):
        ledger.open_budget(run_id, 50)
    ledger.reserve("a", "key a", "m", "v", 10, owner_name("a", 1))
    ledger.reserve("gone", "key gone", "m", "v", 20, owner_name("gone", 3))
    shop.supervisor.reconcile()
    assert (ledger.totals("a").reserved_pico, ledger.totals("gone").spent_pico) == (10, 20)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_over(shop), START_SECONDS)
    assert (ledger.totals("a").spent_pico, ledger.totals("a").forfeited_calls) == (10, 1)


def is_over(shop: Workshop) -> bool:
    shop.supervisor.reconcile()
    return shop.row().state == "interrupted"
