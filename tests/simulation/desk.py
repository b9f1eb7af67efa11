"""What clients ask of the servers, and the servers' processes. A request whose server dies is delivered again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from opd_core.config import RunConfig
from opd_core.control.runs import Runs
from opd_core.errors import OPDError, StoreError
from opd_core.types import END_STATES, RESUMABLE_STATES
from tests.simulation.system import Faults
from tests.simulation.world import Process, World

FOLDER = re.compile(r"/\S*opd_sim_\w+")
"""Where the schedule lies this time."""
Verb = Literal["start", "status", "list", "stop", "force", "resume"]


@dataclass(eq=False)
class Order:
    """One request of a client; `run` counts the starts, and an order about a run waits for the reply to its start."""

    verb: Verb
    run: int
    config: RunConfig | None = None
    at: float = 0.0
    deliveries: int = 0
    is_done: bool = False
    server: Process | None = None


@dataclass
class Desk:
    """The clients' orders and the ids they were told.

    Attributes:
        before_look: called when a status call begins; gives what checks its reply.
        has_run: whether a request has made a run.
    """

    world: World
    faults: Faults
    orders: list[Order]
    before_look: Callable[[Process], Callable[[], None]]
    has_run: Callable[[str], bool]
    ids: dict[int, str] = field(default_factory=dict)
    is_closing: bool = False

    def next_order(self, server: Process) -> Order | None:
        """An order that is due and that no living server has."""
        world = self.world
        for order in self.orders:
            if order.at > world.seconds and not self.is_closing:
                continue
            held = order.server is not None and not order.server.is_dead
            doubled = held and order.verb == "start" and world.random.random() < self.faults.again
            if order.is_done or (held and not doubled) or (order.verb != "start" and order.run not in self.ids):
                continue
            order.server = server
            order.deliveries += 1
            return order
        return None

    def serve(self, server: Process, runs: Runs) -> None:
        """A server's life."""
        world = self.world
        while True:
            order = self.next_order(server)
            world.note(f"order {order.verb} {order.run}" if order else "look")
            try:
                self._do(server, runs, order) if order is not None else self._look(server, runs)
            except OPDError as error:
                world.note(f"refused: {type(error).__name__}: {FOLDER.sub('…', str(error))}")
                self._check_refusal(order, error)
                if order is not None and order.verb != "start":
                    order.is_done = True  # a start is asked for again, until there is a run
                elif order is not None:
                    order.server, order.at = None, world.seconds + 1.0
            if self.is_closing and self._is_quiet(runs):
                return
            world.sleep(0.5 if order is not None else 4.0)

    def _do(self, server: Process, runs: Runs, order: Order) -> None:
        run_id = self.ids.get(order.run)
        match order.verb:
            case "start":
                assert order.config is not None
                told = runs.start(order.config).run_id
                if self.ids.setdefault(order.run, told) != told:
                    self.world.fail(f"the same request was told {self.ids[order.run]} and {told}")
            case "status":
                self._look(server, runs, run_id)
            case "list":
                runs.list()
            case "stop":
                runs.stop(run_id, timeout_seconds=5.0)
            case "force":
                runs.stop(run_id, timeout_seconds=2.0, force=True)
            case "resume":
                if runs.status(run_id).state in RESUMABLE_STATES:
                    runs.resume(run_id)
        order.is_done = True

    def _look(self, server: Process, runs: Runs, run_id: str | None = None) -> None:
        if run_id is None and not self.ids:
            return
        check = self.before_look(server)
        runs.status(run_id)
        check()

    def _check_refusal(self, order: Order | None, error: OPDError) -> None:
        """A start that made a run is never refused when it is repeated; only the database may be busy or full."""
        if order is None or order.config is None or isinstance(error, StoreError):
            return
        if self.has_run(order.config.client_request_id or ""):
            self.world.fail(f"a repeated start was refused: {error}")

    def _is_quiet(self, runs: Runs) -> bool:
        try:
            rows = runs.list(limit=50)[0]
        except OPDError:
            return False
        return all(order.is_done for order in self.orders) and all(row.state in END_STATES for row in rows)
