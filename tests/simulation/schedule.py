"""One seed, one schedule: who asks for what, which faults there are, and every turn until nothing is left to do."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from opd_core import worker
from opd_core.config import RunConfig
from opd_core.control.preflight.checking import Preflight
from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.errors import OPDError
from opd_core.model_files import ModelInfo
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.run_prompts import RunPrompts
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from opd_core.types import JobKind
from opd_core.worker.jobs import Job
from tests.simulation.desk import Desk, Order
from tests.simulation.job import Habits, Trainer
from tests.simulation.promises import Promises
from tests.simulation.provider import COST_PICO, Provider
from tests.simulation.system import FULL_RATES, Faults, SimDatabase, SimKernel, Template
from tests.simulation.world import DAY_SECONDS, Process, Violation, World

STORM_TURNS = 240
MOST_TURNS = 6000
MONTH_PICO = 10**12
CALL_USD = 0.00035  # a little more than the reservation of one call
TEMPLATE = Template()


@dataclass(frozen=True)
class Parts:
    """The code under test; a planted fault replaces a part."""

    store: type[RunStore] = RunStore
    ledger: type[Ledger] = Ledger
    supervisor: type[Supervisor] = Supervisor
    runs: type[Runs] = Runs
    worker: type[worker.Worker] = worker.Worker
    kernel: type[SimKernel] = SimKernel
    habits: Habits = field(default_factory=Habits)
    template: Template = TEMPLATE
    rates: Mapping[str, float] = field(default_factory=lambda: FULL_RATES)


SOUND = Parts()


@dataclass(frozen=True)
class Outcome:
    """What became of a schedule; `figures` count what happened in it."""

    seed: int
    violation: str | None
    turns: int
    runs: int
    figures: Mapping[str, int]
    trace: Sequence[tuple[str, str]] = field(repr=False)


def run_schedule(seed: int, parts: Parts = SOUND) -> Outcome:
    """Run one schedule from its seed to its end."""
    folder = Path(tempfile.mkdtemp(prefix="opd_sim_", dir=_fast_folder()))
    try:
        with contextlib.redirect_stderr(_Silence()), contextlib.redirect_stdout(_Silence()):
            return Schedule(seed, folder, parts).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_seed(seed: int, parts: Parts = SOUND) -> Outcome:
    """As `run_schedule`.

    Raises:
        Violation: a promise was broken; the message has the seed and the end of the schedule.
    """
    outcome = run_schedule(seed, parts)
    if outcome.violation is not None:
        raise Violation(f"{told(outcome)}\nReplay: python -m tests.simulation --seed {seed}")
    return outcome


def told(outcome: Outcome, last: int = 60) -> str:
    """The end of a schedule, one turn a line."""
    lines = [f"{who:24} {what}" for who, what in outcome.trace[-last:]]
    return "\n".join(
        [f"seed {outcome.seed}, {outcome.turns} turns: {outcome.violation or 'all promises kept'}", *lines]
    )


class Schedule:
    """A machine with its servers, clients, provider and faults."""

    def __init__(self, seed: int, folder: Path, parts: Parts) -> None:
        self.seed, self.parts = seed, parts
        self.home = HomePaths(folder)
        self.home.prepare()
        (folder / ".env").write_text("ANTHROPIC_API_KEY=none\n", encoding="utf-8")
        self.connection = parts.template.fresh()
        self.world = World(seed, self._on_death)
        random = self.world.random
        self.faults = Faults(**{name: rate for name, rate in parts.rates.items() if random.random() < 0.45})
        self.provider = Provider(self.world, self.faults)
        self.promises = Promises(self.world, self.connection, self.home, self.provider)
        self.provider.on_bill = self.promises.check_bill
        self.desk = Desk(self.world, self.faults, self._orders(), self.promises.before_look, self.promises.has_run)
        self.servers = random.choice((1, 2, 2, 3))
        self.settings = Settings(self.home, monthly_budget_usd=1.0)
        self.roots = Roots((), ())

    def run(self) -> Outcome:
        """Storm first, then calm until everything has ended."""
        world = self.world
        try:
            storm = world.random.randrange(STORM_TURNS)
            while world.violation is None and world.steps < MOST_TURNS:
                if world.steps >= storm and not self.desk.is_closing:
                    self._calm()
                self._disturb()
                self._keep_servers()
                ready = world.ready()
                if ready:
                    world.turn(world.random.choice(ready))
                elif self.desk.is_closing:
                    break
                else:
                    self._calm()  # all are stopped or dead
            self._end()
        finally:
            world.end()
            self.connection.close()
        return Outcome(self.seed, world.violation, world.steps, len(self.desk.ids), _figures(world.trace), world.trace)

    def _end(self) -> None:
        world = self.world
        if world.violation is None and world.steps >= MOST_TURNS:
            world.fail(f"nothing came to rest in {MOST_TURNS} turns")
        if world.violation is None:
            self.promises.at_the_end(self._ledger(self._database()))

    # --- what clients ask for

    def _orders(self) -> list[Order]:
        random, orders = self.world.random, list[Order]()
        for run in range(random.choice((1, 2, 2, 2, 3))):
            at = random.uniform(0.0, 10.0)
            orders.append(Order("start", run, self._config(run), at))
            for verb in random.choices(
                ("status", "stop", "force", "resume", "list"), (2, 2, 1, 4, 1), k=random.randrange(5)
            ):
                at += random.uniform(0.0, 8.0)
                orders.append(Order(verb, run, None, at))
        return orders

    def _config(self, run: int) -> RunConfig:
        random = self.world.random
        values = {
            **{"base_model_path": "/m", "prompts_path": "/p.jsonl", "num_training_steps": random.randrange(1, 5)},
            **{"client_request_id": f"request-{run}", "run_id": random.choice((None, None, f"named_{run}"))},
        }
        if random.random() < 0.7:
            budget = CALL_USD * random.choice((0.5, 2.0, 5.0, 20.0))
            values |= {"teacher_kind": "claude", "max_budget_usd": budget, "method": "contrast"}
        return RunConfig.model_validate(values)

    # --- processes

    def _database(self) -> SimDatabase:
        return SimDatabase(self.world, self.connection, self.faults, self.promises.after_commit)

    def _ledger(self, database: SimDatabase) -> Ledger:
        return self.parts.ledger(database, month_limit_pico=MONTH_PICO, clock=self.world.now, token=self.world.token)

    def _supervisor(self, store: RunStore, ledger: Ledger, leaves_keyless: bool) -> tuple[Supervisor, SimKernel]:
        kernel = self.parts.kernel(self.world, self.faults, self._begin, self.promises.may_signal)
        supervisor = self.parts.supervisor(
            self.home, store, ("worker",), leaves_keyless=leaves_keyless, ledger=ledger, kernel=kernel,
            seams=self.world.seams,
        )  # fmt: skip
        return supervisor, kernel

    def _serve(self, process: Process) -> None:
        database = self._database()
        store, ledger = self.parts.store(database, self.world.seams), self._ledger(database)
        supervisor, _ = self._supervisor(store, ledger, False)
        runs = self.parts.runs(
            self.settings, self.roots, store=store, ledger=ledger, supervisor=supervisor, seams=self.world.seams,
            preflight=_accept, config_text=RunConfig.model_dump_json,
        )  # fmt: skip
        self.desk.serve(process, runs)

    def _begin(self, command: Sequence[str], locks: Sequence[int]) -> None:
        """A worker's process begins with copies of its starter's locks."""
        starter, options = self.world.current, worker.parse(command[1:])
        assert starter is not None
        process = self.world.start("worker", self._work(options.run_id, options.epoch), (options.run_id, options.epoch))
        for lock in locks:
            self.world.hold(process, starter.locks[lock])
        self.promises.on_worker(process)

    def _work(self, run_id: str, epoch: int) -> Callable[[Process], None]:
        def work(process: Process) -> None:
            database = self._database()
            store, ledger = self.parts.store(database, self.world.seams), self._ledger(database)
            supervisor, kernel = self._supervisor(store, ledger, True)
            train: Job = Trainer(
                process, kernel, self.faults, self.provider, database, ledger, self.parts.habits,
                self.promises.on_files, self.promises.on_device,
            )  # fmt: skip
            jobs: Mapping[JobKind, Job] = {"distillation": train}
            run_lock, device_lock = process.locks
            owner = self.parts.worker(
                self.home, store, supervisor, jobs, lambda: process.flag, kernel, self.world.seams, lambda: None
            )
            with contextlib.suppress(OPDError):  # a full disk, a lock for too long: the process ends with it
                owner.own(run_id, epoch, process.pid, run_lock, device_lock)

        return work

    def _keep_servers(self) -> None:
        living = sum(process.role == "server" for process in self.world.processes)
        if self.desk.is_closing:
            if living == 0 and not self._rests():
                self.world.start("server", self._serve)
        elif living < self.servers and (living == 0 or self.world.random.random() < 0.1):
            self.world.start("server", self._serve)

    def _pass_by(self, process: Process) -> None:
        """Another program's process: it has a number, and does nothing."""
        self.world.sleep(self.world.random.uniform(0.0, 2.0))

    def _rests(self) -> bool:
        states = [row["state"] for row in self.connection.execute("SELECT state FROM runs")]
        settled = all(state in ("completed", "stopped", "failed", "interrupted") for state in states)
        return settled and all(order.is_done for order in self.desk.orders)

    def _on_death(self, process: Process) -> None:
        if self.connection.in_transaction:  # only the present process can have one, and it is the one that died
            self.connection.execute("ROLLBACK")
        if process.run is not None and not self.desk.is_closing and self.world.random.random() < 0.3:
            self.world.start("stranger", self._pass_by, pid=process.pid)

    # --- faults

    def _disturb(self) -> None:
        world, faults = self.world, self.faults
        if self.desk.is_closing or not world.processes:
            return
        random = world.random
        if faults.kill and random.random() < faults.kill:
            world.kill(random.choice(world.processes))
        if faults.stop and random.random() < faults.stop and world.processes:
            process = random.choice(world.processes)
            process.is_stopped = not process.is_stopped
            world.note("SIGSTOP" if process.is_stopped else "SIGCONT", process)
        if faults.reboot and random.random() < faults.reboot:
            world.reboot()
        if faults.clock and random.random() < faults.clock:
            world.calendar_seconds += random.choice((-DAY_SECONDS, DAY_SECONDS))
            world.note(f"the calendar says {world.now():%d %B}")
        if faults.locks and random.random() < faults.locks:
            self.promises.locks_hold = False
            world.forget_locks()

    def _calm(self) -> None:
        """The faults end: what still goes wrong now is lost."""
        self.world.note("calm")
        for fault in fields(self.faults):
            setattr(self.faults, fault.name, 0.0)
        for process in self.world.processes:
            process.is_stopped = False
        self.desk.is_closing = True


def _accept(config: RunConfig, roots: Roots, settings: Settings) -> Preflight:
    return Preflight(config, ModelInfo.__new__(ModelInfo), None, None, RunPrompts([], [], ()), ())


class _Silence(io.TextIOBase):
    """Swallows what workers log."""

    def write(self, text: str) -> int:
        return len(text)


def _fast_folder() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_COUNTED = {
    **{"killed": "kills", "SIGSTOP": "stops", "died before its commit": "deaths in a commit", "billed": "paid calls"},
    **{"the database is busy": "busy database", "the disk is full": "full disk", "spawn failed": "failed spawns"},
    **{"the lock files are deleted": "lost locks"},
}


def _figures(trace: Sequence[tuple[str, str]]) -> dict[str, int]:
    counts = dict.fromkeys((*_COUNTED.values(), "reboots", "clock jumps", "workers", "publications"), 0)
    for who, what in trace:
        if what in _COUNTED:
            counts[_COUNTED[what]] += 1
        elif what.startswith("reboot"):
            counts["reboots"] += 1
        elif what.startswith("the calendar"):
            counts["clock jumps"] += 1
        elif what == "started" and who.startswith("worker"):
            counts["workers"] += 1
        elif what == "pruned":
            counts["publications"] += 1
    return counts


assert COST_PICO < CALL_USD * 10**12
