"""Real worker processes: how they start, queue, race, stop, and what they are given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from opd_core import blas
from opd_core.allocator import allocator_environment
from opd_core.control.processes import process_identity, try_lock
from opd_core.control.supervisor import Supervisor
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from tests.opd_core.control import little_server
from tests.opd_core.control.scripted_worker import COMMAND, Orders
from tests.opd_core.control.workshop import Workshop, linux_only
from tests.waiting import wait_until

# --- one worker


def test_a_worker_works_and_records_its_end_once(shop: Workshop) -> None:
    shop.running()
    shop.orders["a"].send("step", "step", "finish")
    row = shop.wait("completed")
    assert (row.step, row.end_reason, row.message, row.final_adapter_path) == (
        2,
        "finished",
        "As ordered.",
        "/adapters",
    )
    assert row.pid is None
    assert "completed: As ordered." in shop.log()


@linux_only
def test_a_worker_leads_a_session_of_its_own_with_a_bare_environment(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("OPD_ROOTS", "/models")
    pid = shop.running()
    assert os.getsid(pid) == pid
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    environment = dict(entry.split("=", 1) for entry in entries if entry)
    assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH"} & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["OPD_HOME"] == str(shop.home.home)
    assert environment["OPD_ROOTS"] == "/models"
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    assert Path(f"/proc/{pid}/fd/1").readlink() == shop.home.log("a")


@linux_only
def test_a_worker_gets_what_the_fast_blas_needs_and_keeps_its_memory(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "worker_environment", lambda folder: {"LD_LIBRARY_PATH": str(folder)})
    pid = shop.running()
    environment = Path(f"/proc/{pid}/environ").read_text()
    assert f"LD_LIBRARY_PATH={shop.home.home / 'lib'}" in environment.split("\0")
    for name, value in allocator_environment().items():  # glibc ends each setting with a zero as it reads them
        assert f"{name}={value}" in environment.replace("\0", ":")


def test_a_failure_is_recorded_with_its_message(shop: Workshop) -> None:
    shop.running()
    shop.orders["a"].send("fail")
    row = shop.wait("failed")
    assert (row.end_reason, row.error_message) == ("diverged", "The loss was not finite.")


def test_an_unexpected_error_is_recorded_by_its_class_and_traced_in_the_log(shop: Workshop) -> None:
    shop.running()
    shop.orders["a"].send("crash")
    row = shop.wait("failed")
    assert row.end_reason == "error"
    assert row.error_message is not None and row.error_message.startswith(
        "The worker met an unexpected ZeroDivisionError"
    )
    assert "\x1b" not in row.error_message
    assert "Traceback" in shop.log()


def test_a_worker_that_cannot_be_started_is_a_failed_run(home: HomePaths) -> None:
    home.prepare()
    store = RunStore(home.database)
    store.create("a", "distillation", {})
    Supervisor(home, store, ("/nowhere/python",)).start_next_queued()
    row = store.get("a")
    assert row.state == "failed"
    assert row.error_message is not None and "could not be started" in row.error_message


# --- racing and queueing


def test_of_eight_racing_starters_exactly_one_starts_a_worker(shop: Workshop) -> None:
    shop.queue("a", "b")
    servers = [little_server.start(shop.home) for _ in range(8)]
    try:
        for server in servers:
            assert server.stdin is not None
            server.stdin.write("go\n")
            server.stdin.flush()
        for server in servers:
            assert server.stdout is not None and server.stdout.readline() == "done\n"
        shop.wait("running")
        assert (shop.row("a").epoch, shop.row("b").state, shop.row("b").epoch) == (1, "queued", 0)
        shop.orders["a"].send("finish")
        shop.orders["b"].send("finish")
        shop.wait("completed", "b")
        assert [shop.row(run_id).epoch for run_id in ("a", "b")] == [1, 1]
        assert shop.log("a").count("epoch 1, process") == 1
    finally:
        for server in servers:
            server.communicate()


def test_the_queue_runs_in_order_each_started_by_the_one_before(shop: Workshop) -> None:
    """Nobody asks for anything here but the workers that end, well or badly."""
    shop.queue("b", "c")
    shop.store.request_stop("b")
    shop.store.requeue("b", config={}, total_steps=30)
    shop.queue("d")
    shop.supervisor.start_next_queued()
    shop.wait("running", "c")
    assert [shop.row(run_id).state for run_id in ("b", "d")] == ["queued", "queued"]
    shop.orders["c"].send("crash")
    shop.wait("running", "b")
    assert shop.row("c").state == "failed" and shop.row("d").state == "queued"
    shop.orders["b"].send("finish")
    shop.wait("running", "d")
    shop.orders["d"].send("finish")
    shop.wait("completed", "d")


def test_a_run_cancelled_in_the_queue_is_never_started(shop: Workshop) -> None:
    shop.running("a")
    shop.queue("b", "c")
    row = shop.supervisor.stop("b", 0)
    assert (row.state, row.step) == ("stopped", 0)
    shop.orders["a"].send("finish")
    shop.wait("running", "c")
    assert shop.row("b").epoch == 0


# --- stopping


def test_a_stop_is_answered_by_the_worker_itself(shop: Workshop) -> None:
    shop.running()
    shop.orders["a"].send("step")
    wait_until(lambda: shop.row().step == 1, 5)
    row = shop.supervisor.stop("a", 10)
    assert (row.state, row.end_reason, row.step, row.message) == ("stopped", "by_user", 1, "Stopped after step 1.")


def test_a_worker_that_does_not_stop_in_time_is_said_to_be_stopping(shop: Workshop) -> None:
    pid = shop.running()
    shop.orders["a"].send("deaf")
    wait_until(lambda: "deaf now" in shop.log(), 5)
    row = shop.supervisor.stop("a", 0.1)
    assert row.state == "stopping"
    assert process_identity(pid) is not None
    shop.orders["a"].send("finish")
    assert shop.wait("completed").end_reason == "finished"


def test_only_force_kills_and_the_next_run_follows(shop: Workshop) -> None:
    pid = shop.running("a")
    shop.queue("b")
    shop.orders["a"].send("deaf")
    wait_until(lambda: "deaf now" in shop.log(), 5)
    row = shop.supervisor.stop("a", 0.1, force=True)
    assert (row.state, row.end_reason) == ("stopped", "by_user")
    assert row.message.startswith("Killed")
    wait_until(lambda: process_identity(pid) is None, 5)
    shop.wait("running", "b")


def test_a_reused_process_number_is_not_signalled_by_a_stop(home: HomePaths) -> None:
    """The row names a live process that is not the worker; only the lock and the identity decide."""
    home.prepare()
    store = RunStore(home.database)
    store.create("a", "distillation", {}, total_steps=30)
    epoch = store.claim("a")
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as bystander:
        store.adopt("a", epoch, bystander.pid, "another-boot 12345")
        lock = try_lock(home.run_lock("a"))
        assert lock is not None
        row = Supervisor(home, store, COMMAND).stop("a", 0.1)
        assert row.state == "stopping"
        assert bystander.poll() is None
        os.close(lock)
        bystander.kill()


# --- paid teachers


KEY = "sk-ant-canary-51"
PAID = {"teacher_kind": "claude"}


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@linux_only
@pytest.mark.parametrize(
    ("config", "passes"),
    [(PAID, True), ({}, False), ({**PAID, "teacher_cache_only": True}, False), ({"judge": 1}, True)],
)
def test_only_a_job_with_a_paid_teacher_gets_the_key_and_never_by_its_arguments(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], passes: bool
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://evil.example")
    shop.orders["a"] = Orders(shop.home, "a")
    shop.store.create("a", "distillation", config, total_steps=30)
    shop.supervisor.start_next_queued()
    pid = shop.wait("running").pid
    assert pid is not None
    assert (environment_of(pid).get("ANTHROPIC_API_KEY") == KEY) is passes
    assert "ANTHROPIC_BASE_URL" not in environment_of(pid)
    assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_worker_without_a_key_leaves_a_paid_job_to_a_server_that_has_one(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.store.create("paid", "distillation", PAID, total_steps=30)
    Supervisor(shop.home, shop.store, COMMAND, leaves_keyless=True).start_next_queued()
    assert shop.row("paid").state == "queued" and shop.row("paid").epoch == 0
    (shop.home.home / ".env").write_text(f"ANTHROPIC_API_KEY={KEY}\n")
    Supervisor(shop.home, shop.store, COMMAND, leaves_keyless=True).start_next_queued()
    shop.wait("completed", "paid")
