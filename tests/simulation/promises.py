"""What must hold after every step: the state machine, the queue, the fence, the money, the checkpoints.

The names C1 to C3 and I1 to I7 are those of the notes on checkpoints and on the ledger.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from opd_core.checkpoint_files import checkpoint_step, list_checkpoints, verify_checkpoint
from opd_core.control.supervisor import run_of_owner
from opd_core.errors import OPDError
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.state.jsonl import JsonlFile
from opd_core.state.rows import ALLOWED_CHANGES
from opd_core.types import END_STATES, LIVE_STATES
from tests.simulation.provider import Provider
from tests.simulation.world import Process, World

Rows = dict[str, sqlite3.Row]
C1 = "C1: a published checkpoint is not what was written"


class Promises:
    """Watches one world; the first promise that is broken ends its schedule.

    Attributes:
        locks_hold: False once somebody has deleted the lock files: two workers may live then, and the fence is all.
    """

    def __init__(self, world: World, connection: sqlite3.Connection, home: HomePaths, provider: Provider) -> None:
        self._world, self._connection, self._home, self._provider = world, connection, home, provider
        self._runs: Rows = {}
        self._calls: Rows = {}
        self._published: dict[str, int] = {}
        self._seen: set[tuple[str, str, int]] = set()
        self.locks_hold = True

    # --- after every commit

    def after_commit(self) -> None:
        """Compare what stands now with what stood before the present process's commit."""
        writer = self._world.current
        before, self._runs = self._runs, self._read("SELECT * FROM runs", "run_id")
        for run_id, row in self._runs.items():
            if run_id not in before:
                self._check_new(row, before)
            elif row != before[run_id]:
                self._check_change(before[run_id], row, before, writer)
        self._check_money(writer)

    def _check_new(self, row: sqlite3.Row, before: Rows) -> None:
        self._expect(row["state"] == "queued", f"{row['run_id']} began as {row['state']}")
        self._check_last_in_queue(row, before)
        asked = _request_of(row)
        twin = next((other["run_id"] for other in before.values() if asked and _request_of(other) == asked), None)
        self._expect(twin is None, f"{asked} made {twin} and {row['run_id']}")

    def _check_change(self, old: sqlite3.Row, new: sqlite3.Row, before: Rows, writer: Process | None) -> None:
        run_id, was, is_now = new["run_id"], old["state"], new["state"]
        way = f"{run_id} from {was} to {is_now}"
        self._expect(was == is_now or is_now in ALLOWED_CHANGES[was], f"{way} is not allowed")
        is_claim = was == "queued" and is_now == "preparing"
        self._expect(new["epoch"] == old["epoch"] + is_claim, f"{way}, epoch {old['epoch']} to {new['epoch']}")
        self._expect(
            not str(new["error_message"]).startswith("The worker met an unexpected"), str(new["error_message"])
        )
        if is_claim:
            first = min(
                (row for row in before.values() if row["state"] == "queued"), key=lambda row: row["queue_order"]
            )
            self._expect(first["run_id"] == run_id, f"{run_id} was claimed before {first['run_id']}")
        if is_now == "queued" and was != "queued":
            self._check_last_in_queue(new, before)
        else:
            self._expect(new["queue_order"] == old["queue_order"], f"{run_id} changed its place in the queue")
        if was in LIVE_STATES and writer is not None:
            self._check_writer(old, new, writer)
        if new["checkpoint_path"] != old["checkpoint_path"] and new["checkpoint_path"] is not None:
            self._check_checkpoint(Path(new["checkpoint_path"]), "C3: the row tells of a checkpoint that is none")

    def _check_writer(self, old: sqlite3.Row, new: sqlite3.Row, writer: Process) -> None:
        run_id, owner = old["run_id"], (old["run_id"], old["epoch"])
        if writer.run is not None and writer.run[0] == run_id and writer.run != owner:
            fresh = self._world.holds(writer, self._home.run_lock(run_id)) and new["state"] in END_STATES
            self._expect(fresh, f"fence: the stale {writer} changed epoch {old['epoch']} of {run_id}")
        if not self.locks_hold:
            return
        asked = new["state"] == "stopping" and old["state"] != "stopping" and new["stop_requested"]
        held = self._world.holds(writer, self._home.run_lock(run_id))
        self._expect(held or asked, f"{writer} changed the live {run_id} without its lock")
        if writer.run != owner and new["state"] in END_STATES and old["state"] in LIVE_STATES:
            living = [process for process in self._world.processes if process.run == owner and self._works(process)]
            self._expect(not living, f"{writer} declared {run_id} {new['state']} while {living and living[0]} lives")

    def _check_last_in_queue(self, row: sqlite3.Row, before: Rows) -> None:
        last = max((other["queue_order"] for other in before.values()), default=0)
        self._expect(row["queue_order"] > last, f"{row['run_id']} pushed in at {row['queue_order']}, not after {last}")

    # --- money

    def _check_money(self, writer: Process | None) -> None:
        before, self._calls = self._calls, self._read("SELECT * FROM calls", "call_id")
        for call_id, old in before.items():
            new = self._calls[call_id]
            if new != old:
                self._expect(old["state"] == "open", f"I5: the closed call {call_id} changed")
                if writer is not None and new["state"] != "open" and self.locks_hold:
                    self._check_closer(old["owner"], writer)
        open_keys = [call["request_key"] for call in self._calls.values() if call["state"] == "open"]
        self._expect(len(open_keys) == len(set(open_keys)), "I4: two open calls for one request")
        for budget in self._connection.execute("SELECT * FROM budgets"):
            self._check_budget(budget)
        self.check_bill()

    def _check_closer(self, owner: str, writer: Process) -> None:
        run_id, _, epoch = owner.rpartition(":")
        if writer.run == (run_id, int(epoch)):
            return
        held = self._world.holds(writer, self._home.run_lock(run_of_owner(owner)))
        same = [process for process in self._world.processes if process.run == (run_id, int(epoch))]
        lives = any(self._works(process) for process in same)
        self._expect(held and not lives, f"I6: {writer} closed a call of {owner}, lock {held}, alive {lives}")

    def _check_budget(self, budget: sqlite3.Row) -> None:
        scope, spent, reserved = budget["scope"], budget["spent_pico"], budget["reserved_pico"]
        mine = [call for call in self._calls.values() if scope in (call["run_id"], call["month"])]
        self._expect(spent + reserved <= budget["limit_pico"], f"I1: {scope} is over its limit")
        self._expect(spent == sum(call["actual_pico"] or 0 for call in mine), f"I2: what {scope} spent")
        held = sum(call["reserved_pico"] for call in mine if call["state"] == "open")
        self._expect(reserved == held, f"I2: what {scope} has reserved")

    def check_bill(self) -> None:
        """I3: the provider never bills more than the ledger counts."""
        for run_id, billed in self._provider.bill_pico.items():
            counted = sum(
                call["reserved_pico"] if call["actual_pico"] is None else call["actual_pico"]
                for call in self._calls.values()
                if call["run_id"] == run_id
            )
            self._expect(billed <= counted, f"I3: {run_id} is billed {billed}, counted {counted}")

    # --- processes and files

    def on_device(self, process: Process) -> None:
        """A worker begins to compute."""
        if not self.locks_hold:
            return
        others = [other for other in self._world.processes if other is not process and other.uses_device]
        self._expect(not others, f"{process} and {others and others[0]} both use the machine")

    def on_worker(self, process: Process) -> None:
        """A worker was started."""
        if not self.locks_hold or process.run is None:
            return
        for other in self._world.processes:
            same = other is not process and other.run is not None and other.run[0] == process.run[0]
            double = same and self._works(other)
            self._expect(not double, f"{process} was started while {other} lives")

    def _works(self, process: Process) -> bool:
        """Whether a worker still has its run; one that has let go of the lock only starts the next job."""
        return process.run is not None and self._world.holds(process, self._home.run_lock(process.run[0]))

    def may_signal(self, pid: int) -> bool:
        """Whether the process with that number is a worker whose run was asked to stop."""
        target = next(process for process in self._world.processes if process.pid == pid)
        return target.run is not None and bool(self._runs[target.run[0]]["stop_requested"])

    def on_files(self, run_id: str, published: int | None) -> None:
        """A run's checkpoint folder changed; `published`: the step that is safe now."""
        if not self.locks_hold:
            return
        if published is not None:
            self._published[run_id] = published
        found = list_checkpoints(self._home.checkpoints(run_id))
        for path in found:
            seen = (run_id, path.name, path.stat().st_ino)
            if seen not in self._seen:  # and once more at the end
                self._check_checkpoint(path, C1)
                self._seen.add(seen)
        newest = checkpoint_step(found[-1]) if found else 0
        least = self._published.get(run_id, 0)
        self._expect(newest >= least, f"C2: {run_id} had a checkpoint of step {least}, its newest is of {newest}")
        told = self._runs[run_id]["checkpoint_path"]
        self._expect(told is None or Path(told).is_dir(), f"C3: {run_id} tells of {told}, which is gone")

    def _check_checkpoint(self, path: Path, what: str) -> None:
        try:
            verify_checkpoint(path)
        except OPDError as error:
            self._expect(False, f"{what}: {error}")

    # --- looks, and the end

    def before_look(self, server: Process) -> Callable[[], None]:
        """A status call begins; what it gives checks, after it, that the deaths of before are recorded."""
        alive = {process.run for process in self._world.processes}
        dead = [
            (run_id, row["epoch"])
            for run_id, row in self._runs.items()
            if row["state"] in LIVE_STATES and (run_id, row["epoch"]) not in alive and not self._is_locked(run_id)
        ]
        others = {run_id: self._foreign_takes(run_id, server) for run_id, _ in dead}

        def check() -> None:
            for run_id, epoch in dead if self.locks_hold else ():
                row, disturbed = self._runs[run_id], self._foreign_takes(run_id, server) > others[run_id]
                still = row["epoch"] == epoch and row["state"] in LIVE_STATES
                self._expect(disturbed or not still, f"{run_id} is {row['state']} after a look, its worker is dead")

        return check

    def has_run(self, client_request_id: str) -> bool:
        """Whether that request has made a run."""
        return any(_request_of(row) == client_request_id for row in self._runs.values())

    def _is_locked(self, run_id: str) -> bool:
        return bool(self._world.holders.get(self._home.run_lock(run_id)))

    def _foreign_takes(self, run_id: str, server: Process) -> int:
        takes = self._world.takes.get(self._home.run_lock(run_id), [])
        return sum(number != server.number for number in takes)

    def at_the_end(self, ledger: Ledger) -> None:
        """Nothing is lost and nothing is left behind."""
        for run_id, row in self._runs.items():
            self._expect(row["state"] in END_STATES, f"{run_id} never ended: it is {row['state']}")
            if row["state"] == "completed" and self.locks_hold:
                self._check_steps(run_id, row["total_steps"])
            for path in list_checkpoints(self._home.checkpoints(run_id)) if self.locks_hold else ():
                self._check_checkpoint(path, C1)
        left = [str(process) for process in self._world.processes if process.run is not None]
        self._expect(not left, f"still running: {left}")
        held = [path.name for path, holders in self._world.holders.items() if holders]
        self._expect(not held, f"still locked: {held}")
        still_open = [call["call_id"] for call in self._calls.values() if call["state"] == "open"]
        self._expect(not still_open, f"calls of dead workers are still open: {still_open}")
        try:
            ledger.rebuild_check()
        except OPDError as error:
            self._expect(False, f"I7: {error}")

    def _check_steps(self, run_id: str, total: int) -> None:
        steps = [line["step"] for line in JsonlFile(self._home.metrics(run_id, "train")).read()]
        self._expect(steps == list(range(1, total + 1)), f"{run_id} completed with metrics lines of steps {steps}")

    def _read(self, sql: str, key: str) -> Rows:
        return {row[key]: row for row in self._connection.execute(sql)}

    def _expect(self, holds: object, otherwise: str) -> None:
        if not holds:
            self._world.fail(otherwise)


def _request_of(row: sqlite3.Row) -> str | None:
    """The request that made a run, by its configuration: the column may be what is wrong."""
    asked: str | None = json.loads(row["config"])["client_request_id"]
    return asked
