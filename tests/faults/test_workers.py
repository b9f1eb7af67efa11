"""Faults of processes: servers and workers that die, stop, linger, race, grow too large or are somebody else by now."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd_core.control.processes import Kernel, process_identity, try_lock
from opd_core.control.supervisor import MAX_GRACE_SECONDS, SAVE_SECONDS, Supervisor
from opd_core.errors import StoreError
from opd_core.paths import HomePaths
from opd_core.seams import Seams
from opd_core.state.database import Database
from opd_core.state.store import RunStore
from opd_core.types import LIVE_STATES
from opd_core.worker.out_of_memory import out_of_memory_message
from server.answers.sentences import status_summary
from tests.opd_core.control import little_server
from tests.opd_core.control.scripted_worker import COMMAND
from tests.opd_core.control.workshop import START_SECONDS, Workshop
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def shop(home: HomePaths) -> Iterator[Workshop]:
    workshop = Workshop(home)
    yield workshop
    workshop.close()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours, leading a group of its own."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        yield process
        process.kill()


def state_letter(pid: int) -> str:
    """What the kernel says a process does: R, S, T (stopped), Z (zombie); empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@contextlib.contextmanager
def started_by_a_server(shop: Workshop) -> Iterator[subprocess.Popen[str]]:
    """Another process that has started the first queued run; killed in the end, whatever state it is in."""
    server = little_server.start(shop.home)
    try:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write("go\n")
        server.stdin.flush()
        assert server.stdout.readline() == "done\n"
        yield server
    finally:
        server.kill()
        server.communicate()


def suspend(shop: Workshop, pid: int) -> None:
    """Stop a worker at a moment at which it does not hold the database: else everybody would wait for it."""

    def is_suspended() -> bool:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_letter(pid) == "T", 5)
        try:
            with Database(shop.home.database, busy_timeout_seconds=0.01).write():
                return True
        except StoreError:
            os.kill(pid, signal.SIGCONT)
            return False

    wait_until(is_suspended, 5)


def make_older(home: HomePaths, run_id: str, seconds: float) -> None:
    """Let time pass for a heartbeat."""
    with contextlib.closing(sqlite3.connect(home.database)) as connection, connection:
        connection.execute(
            "UPDATE runs SET heartbeat_unix_seconds = heartbeat_unix_seconds - ? WHERE run_id = ?", (seconds, run_id)
        )


# --- the server dies, the worker lives (row 22)


def test_a_new_server_goes_on_with_the_worker_of_a_killed_one_and_starts_no_second(shop: Workshop) -> None:
    shop.queue("a", "b")
    with started_by_a_server(shop) as server:
        before = shop.wait("running")
        os.killpg(server.pid, signal.SIGKILL)
    shop.supervisor.reconcile()
    shop.supervisor.start_next_queued()
    after = shop.row()
    assert (after.state, after.pid, after.epoch) == ("running", before.pid, 1)
    assert shop.row("b").state == "queued"
    assert shop.supervisor.stop("a", 10).message == "Stopped after step 0."
    shop.wait("running", "b")


# --- the machine goes down (row 23)


@linux_only
def test_after_a_reboot_every_live_run_is_interrupted_and_nobody_is_signalled(
    home: HomePaths, bystander: subprocess.Popen[bytes]
) -> None:
    """The numbers in the rows belong to other processes by now, and no lock is held."""
    home.prepare()
    store = RunStore(home.database)
    ways = {"running": ["running"], "waiting": ["waiting"], "stopping": ["running", "stopping"], "preparing": []}
    assert set(ways) == set(LIVE_STATES)
    for run_id, states in ways.items():
        store.create(run_id, "distillation", {}, total_steps=30)
        epoch = store.claim(run_id)
        store.adopt(run_id, epoch, bystander.pid, "0123-of-another-boot 4711")
        for state in states:
            store.transition(run_id, state, epoch=epoch)  # type: ignore[arg-type]
    store.create("next", "distillation", {}, total_steps=30)
    supervisor = Supervisor(home, store, COMMAND)
    supervisor.stop("running", 0, force=True)
    supervisor.reconcile()
    for run_id in ways:
        row = store.get(run_id)
        assert row.state == "interrupted" and row.pid is None
        assert "started again in the meantime" in (row.error_message or "")
    assert bystander.poll() is None
    supervisor.start_next_queued()
    wait_until(lambda: store.get("next").state == "completed", START_SECONDS)


@linux_only
def test_a_process_of_this_boot_is_not_taken_for_one_of_another() -> None:
    identity = process_identity(os.getpid())
    assert identity is not None
    assert not Kernel().is_of_another_boot(identity) and Kernel().is_of_another_boot("x" + identity)
    assert not Kernel().is_of_another_boot("")


# --- numbers that mean somebody else (row 24)


def test_not_even_force_signals_a_process_that_has_the_workers_number(
    home: HomePaths, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd_core.control.supervisor.KILL_WAIT_SECONDS", 0.1)
    home.prepare()
    store = RunStore(home.database)
    store.create("a", "distillation", {}, total_steps=30)
    epoch = store.claim("a")
    identity = process_identity(bystander.pid)
    store.adopt("a", epoch, bystander.pid, f"{identity}1")
    lock = try_lock(home.run_lock("a"))
    assert lock is not None
    assert Supervisor(home, store, COMMAND).stop("a", 0.1, force=True).state == "stopping"
    assert bystander.poll() is None
    os.close(lock)


# --- copies of locks (row 25)


def test_nothing_here_forks_without_exec() -> None:
    """A forked child would hold the worker's locks, and share its SQLite connections."""
    for path in [*ROOT.glob("opd_core/**/*.py"), *ROOT.glob("server/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", "") if isinstance(node, ast.ImportFrom) else ""
            assert not any("multiprocessing" in f"{module}.{name}" for name in names), path
            is_fork = isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty", "ProcessPoolExecutor")
            assert not is_fork, path


# --- dead, but not reaped (row 26)


@linux_only
def test_a_zombie_is_dead(shop: Workshop) -> None:
    """Its parent is stopped and cannot reap it; the number still answers to signals."""
    shop.queue("a")
    with started_by_a_server(shop) as server:
        pid = shop.wait("running").pid
        assert pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        wait_until(lambda: state_letter(server.pid) == "T", 5)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: state_letter(pid) == "Z", 5)
        os.kill(pid, 0)
        assert process_identity(pid) is None

        def is_recorded() -> bool:
            shop.supervisor.reconcile()
            return shop.row().state == "interrupted"

        wait_until(is_recorded, 5)  # a worker of several threads may keep its lock for a moment after its leader died


# --- suspended (row 27)


@linux_only
def test_a_worker_suspended_for_ten_minutes_is_stalled_and_goes_on_when_continued(shop: Workshop) -> None:
    pid = shop.running("a")
    shop.queue("b")
    suspend(shop, pid)
    assert "stalled" not in status_summary(shop.row())
    make_older(shop.home, "a", 600)
    shop.supervisor.reconcile()
    shop.supervisor.start_next_queued()
    row = shop.row()
    assert (row.state, row.pid, row.epoch, row.is_stalled) == ("running", pid, 1, True)
    assert "stalled" in status_summary(row) and "about 10 minutes" in status_summary(row)
    assert shop.row("b").state == "queued"
    os.kill(pid, signal.SIGCONT)
    shop.orders["a"].send("step")
    wait_until(lambda: shop.row().step == 1, 5)
    assert not shop.row().is_stalled
    shop.orders["a"].send("finish")
    shop.wait("completed")


@linux_only
def test_a_suspended_worker_can_be_killed(shop: Workshop) -> None:
    pid = shop.running("a")
    suspend(shop, pid)
    assert shop.supervisor.stop("a", 0.1, force=True).state == "stopped"
    wait_until(lambda: process_identity(pid) is None, 5)


# --- deaf to SIGTERM (row 28)


@linux_only
def test_a_deaf_worker_is_killed_with_its_children_after_the_grace_and_that_is_recorded(shop: Workshop) -> None:
    pid = shop.running("a")
    shop.orders["a"].send("step", "child", "deaf")
    wait_until(lambda: "deaf now" in shop.log(), 5)
    (child,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    row = shop.supervisor.stop("a", 0.1, force=True)
    assert (row.state, row.end_reason, row.step) == ("stopped", "by_user", 1)
    wait_until(lambda: process_identity(pid) is None and process_identity(child) is None, 5)
    assert "Killed: it did not stop within 0.1 seconds" in shop.store.events("a")[-1].message
    lock = try_lock(shop.home.run_lock("a"))
    assert lock is not None
    os.close(lock)


class Time:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += max(seconds, 0.01)


@pytest.mark.parametrize(
    ("step_seconds", "grace"), [(None, SAVE_SECONDS), (15.0, SAVE_SECONDS + 30.0), (3000.0, MAX_GRACE_SECONDS)]
)
def test_the_grace_is_twice_the_slowest_step_and_the_time_to_save(
    home: HomePaths, step_seconds: float | None, grace: float
) -> None:
    home.prepare()
    store, time = RunStore(home.database), Time()
    store.create("a", "distillation", {}, total_steps=30)
    epoch = store.claim("a")
    for step, seconds in enumerate((1.0, step_seconds, 2.0) if step_seconds else (), start=1):
        store.append_metrics("a", epoch, "train", {"step": step, "step_seconds": seconds})
    lock = try_lock(home.run_lock("a"))
    assert lock is not None
    supervisor = Supervisor(home, store, COMMAND, seams=Seams(monotonic=lambda: time.seconds, sleep=time.sleep))
    assert supervisor.grace_seconds("a") == grace
    if grace < MAX_GRACE_SECONDS:
        supervisor.stop("a", force=True)
        assert grace <= time.seconds < grace + 10
    os.close(lock)


# --- out of memory (row 44)


@linux_only
def test_a_worker_out_of_memory_says_so_with_its_peak_and_the_next_run_goes_on(shop: Workshop) -> None:
    shop.running("a")
    shop.queue("b")
    shop.orders["a"].send("eat")
    row = shop.wait("failed")
    assert row.error_message is not None
    assert "ran out of memory; it had used up to 0." in row.error_message
    assert "batch_size" in row.error_message
    shop.orders["b"].send("finish")
    shop.wait("completed", "b")


def test_a_worker_killed_for_memory_is_interrupted_with_the_peak_of_its_last_step(shop: Workshop) -> None:
    """The kernel leaves no word, so what is known is told."""
    pid = shop.running("a")
    shop.queue("b")
    shop.orders["a"].send("step")
    wait_until(lambda: shop.row().step == 1, 5)
    os.kill(pid, signal.SIGKILL)

    def is_over() -> bool:
        shop.supervisor.reconcile()
        return shop.row().state == "interrupted"

    wait_until(is_over, 5)
    assert "ran out of memory (at its last step MLX had used up to 3.2 GB)" in (shop.row().error_message or "")
    shop.supervisor.start_next_queued()
    shop.wait("running", "b")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("[malloc] Unable to allocate 4096 bytes."), True),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than 8"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("Unable to allocate"), False),
    ],
)
def test_only_what_means_too_little_memory_is_called_so(error: Exception, is_memory: bool) -> None:
    assert (out_of_memory_message(error) is not None) is is_memory
