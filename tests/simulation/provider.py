"""A teacher's provider that keeps its own bill, and the worker's end of the line to it: the real cashier."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from opd_core.errors import DuplicateCallError
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable, cost_pico
from opd_core.money.response_cache import ResponseCache
from opd_core.money.usage import Usage
from opd_core.paths import HomePaths
from opd_core.state.database import Database
from opd_core.state.jsonl import JsonlFile
from opd_core.teachers.cashier import Cashier
from opd_core.teachers.completions import Append, CompletionsLog
from opd_core.teachers.requests import Answer, Request
from opd_core.teachers.retrying import CallFailed
from opd_core.teachers.waiting import Seams as TeacherSeams
from tests.simulation.system import Faults
from tests.simulation.world import World

MODEL = "claude-haiku-5-5"
PRICES = PriceTable.load()
PRICES_CONFIRMED = date(2026, 11, 23)
MAX_TOKENS = 100
USAGE = {"input_tokens": 40, "output_tokens": 60}
COST_PICO = cost_pico(PRICES, MODEL, Usage.parse(USAGE), False, when=date(2026, 11, 23), requested_model=MODEL)
BODY = json.dumps(
    {
        **{"id": "m", "type": "message", "role": "assistant", "model": MODEL, "stop_reason": "end_turn"},
        **{"content": [{"type": "text", "text": "Yes."}], "usage": USAGE},
    }
)
OUTAGE_SECONDS = 900.0
ASKS = 3


@dataclass
class Provider:
    """Answers or not; whatever it begins to answer is on its bill.

    Attributes:
        bill_pico: by run, whatever the asking process believes.
        away_until: it cannot be reached before this moment of `World.seconds`.
        on_bill: called when the bill grows.
    """

    world: World
    faults: Faults
    bill_pico: dict[str, int] = field(default_factory=dict)
    away_until: float = 0.0
    on_bill: Callable[[], None] = lambda: None

    def send(self, run_id: str) -> str:
        """One HTTP attempt.

        Raises:
            CallFailed: as the real client explains it.
        """
        world, drawn = self.world, self.world.random.random()
        world.pause("send")
        if drawn < self.faults.outage:
            self.away_until = world.seconds + OUTAGE_SECONDS
        if world.seconds < self.away_until:
            raise CallFailed("The teacher's server cannot be reached.", "released", "unreachable")
        self.bill_pico[run_id] = self.bill_pico.get(run_id, 0) + COST_PICO
        self.on_bill()
        world.pause("billed")
        if world.random.random() < self.faults.lost:
            raise CallFailed("The teacher did not answer in time.", "forfeited", "uncertain")
        return BODY


class Clerk:
    """Asks as the real teacher does: cache, reservation, one attempt, settlement; gives up on a long outage."""

    def __init__(
        self, provider: Provider, home: HomePaths, database: Database, ledger: Ledger, run_id: str, owner: str
    ) -> None:
        world = provider.world
        self._provider, self._world = provider, world

        def append_of(run: str) -> Append:
            return JsonlFile(home.completions(run)).append

        self.cashier = Cashier(
            *(run_id, owner, ledger, ResponseCache(database), PRICES, CompletionsLog(append_of, world.now)),
            *(TeacherSeams(now=world.now), PRICES_CONFIRMED, str),
        )

    def ask(self, key: str) -> Answer:
        """The answer to one request.

        Raises:
            OPDError: as the real teacher.
        """
        params = {"model": MODEL, "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": key}]}
        request = Request("reference", key, params, "1", 0, str)
        failure: CallFailed | None = None
        for _ in range(ASKS):
            known = self.cashier.cached(request)
            if known is not None:
                return known
            try:
                reservation = self.cashier.reserve(request)
            except DuplicateCallError:  # another run asks the same just now
                failure = CallFailed("The same request is on its way.", "released", "busy")
                self._world.sleep(1.0)
                continue
            try:
                body = self._provider.send(self.cashier.run_id)
            except CallFailed as error:
                failure = error
                self.cashier.fail(reservation, error)
                self._world.sleep(1.0)
                continue
            return self.cashier.settle(reservation, request, body)[0]
        assert failure is not None
        raise failure.as_unavailable()
