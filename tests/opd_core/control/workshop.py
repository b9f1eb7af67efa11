"""A home whose supervisor starts real workers that follow orders."""

from __future__ import annotations

import signal
import sys

import pytest

from opd_core.control.processes import signal_process
from opd_core.control.supervisor import Supervisor
from opd_core.paths import HomePaths
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import RunState
from tests.opd_core.control.scripted_worker import COMMAND, Orders
from tests.waiting import wait_until

START_SECONDS = 20.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Workshop:
    """A home with a supervisor whose workers follow orders."""

    def __init__(self, home: HomePaths) -> None:
        home.prepare()
        self.home = home
        self.store = RunStore(home.database)
        self.supervisor = Supervisor(home, self.store, COMMAND)
        self.orders: dict[str, Orders] = {}
        self.seen: set[tuple[int, str]] = set()

    def queue(self, *run_ids: str) -> None:
        for run_id in run_ids:
            self.orders[run_id] = Orders(self.home, run_id)
            self.store.create(run_id, "distillation", {}, total_steps=30)

    def row(self, run_id: str = "a") -> RunRow:
        row = self.store.get(run_id)
        if row.pid is not None and row.process_identity is not None:
            self.seen.add((row.pid, row.process_identity))
        return row

    def wait(self, state: RunState, run_id: str = "a") -> RunRow:
        wait_until(lambda: self.row(run_id).state == state, START_SECONDS, f"{run_id} {state}")
        return self.row(run_id)

    def running(self, run_id: str = "a") -> int:
        """Queue one run, start it and return its worker's process number."""
        self.queue(run_id)
        self.supervisor.start_next_queued()
        pid = self.wait("running", run_id).pid
        assert pid is not None
        return pid

    def log(self, run_id: str = "a") -> str:
        return self.home.log(run_id).read_text()

    def close(self) -> None:
        for row in self.store.list(limit=100):
            self.row(row.run_id)
        for pid, identity in self.seen:
            signal_process(pid, identity, signal.SIGKILL)
        for orders in self.orders.values():
            orders.close()
