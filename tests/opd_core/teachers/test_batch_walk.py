"""Walks by chance through everything that can go wrong with batches: no step may cost what is not counted.

Two runs share a home and some of their requests. They die before or after a write to the ledger, lose replies, meet a
list that lags, a clock that is wrong and an unknown price, over the turn of a month; a person lifts freezes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from opd_core.errors import OPDError
from opd_core.money.ledger import Ledger
from tests.endpoint import Endpoint, JsonObject, Reply, error, obliging
from tests.opd_core.money.books import query
from tests.opd_core.teachers.batch_kit import work_off
from tests.opd_core.teachers.claude_kit import DOLLAR, KEY, Kit, ask

WALKS = 20
RUNS = ("run_1", "run_2")
WRITES = ("note_submission", "set_batch_id", "release", "settle", "forfeit", "reserve", "open_batch_calls")
DAY = 86400.0
# shares of the replies; the others are as they should be
TO_A_BATCH = (
    *(Reply(), Reply(), Reply(), Reply(drop=True), Reply(drop=True, bill=False), error(500, bill=True)),
    *(error(529, bill=False), error(429, headers={"retry-after": "400"}, bill=False), Reply(cut=20)),
    *(error(400, bill=False), Reply(raw=b"{}")),
)
TO_A_LOOK = (
    *(error(500), error(520), error(529), error(403), error(404), error(429, headers={"retry-after": "3"})),
    *(Reply(drop=True), Reply(raw=b"<"), Reply(raw=b"{}"), Reply(raw=b"[]")),
)


class Died(BaseException):
    """The worker was killed."""


class Home(Endpoint):
    """The provider; it compares its bill with the books whenever it grows, as does the walk after each step."""

    check: Callable[[], None] = staticmethod(lambda: None)

    def _charge(self, message: JsonObject, params: JsonObject, usage: JsonObject, batch: bool) -> None:
        super()._charge(message, params, usage, batch)
        self.check()


class Walk:
    """One walk; `run` gives what was seen."""

    def __init__(self, seed: int, folder: Path, endpoint: Home) -> None:
        self.chance, self.folder, self.endpoint = Random(seed), folder, endpoint
        self.books = Ledger(folder / "opd.db", month_limit_pico=100 * DOLLAR)
        self.seen: Counter[str] = Counter()
        self.escapes: list[str] = []
        self.where = f"seed {seed}, begin"
        self.skew = timedelta(minutes=self.chance.choice([0, 0, 20, -20, 24 * 60, -24 * 60, 40 * 24 * 60]))
        self.lag = timedelta(seconds=self.chance.choice([0, 0, 30, 200, 400, 10**6]))
        endpoint.answer = self.answer
        endpoint.look = lambda path: self.chance.choice(TO_A_LOOK) if self.chance.random() < 0.12 else None
        whole = endpoint.batch_page
        endpoint.batch_page = lambda query: whole(query) if self.shows_all() else NOTHING_LISTED  # type: ignore[method-assign]
        endpoint.check = self.check

    def answer(self, params: JsonObject) -> Reply | JsonObject:
        if self.chance.random() < 0.05:
            return Reply(message={"model": "claude-of-unknown-price-9"})
        return obliging(params)

    def shows_all(self) -> bool:
        batches = self.endpoint.batches.values()
        return all(self.endpoint.now() - batch["created"] >= self.lag for batch in batches)

    def check(self) -> None:
        """Billed ≤ spent + reserved ≤ limit, at this moment."""
        billed = self.endpoint.billed_pico  # first: what is billed is in the books before
        totals = [self.books.totals(run_id) for run_id in RUNS]
        if billed > sum(each.spent_pico + each.reserved_pico for each in totals):
            self.escapes.append(f"{self.where}: {billed} billed, {totals}")
        self.escapes += [f"{self.where}: {each}" for each in totals if each.spent_pico + each.reserved_pico > DOLLAR]

    def check_calls(self) -> None:
        """No call of a batch is billed more than its own row counts: what others forfeit would hide it in the sums."""
        rows = query(self.folder / "opd.db", "SELECT call_id, COALESCE(actual_pico, reserved_pico) FROM calls")
        counted = {str(call_id): int(str(pico)) for call_id, pico in rows}
        billed = dict(self.endpoint.bill)
        for batch in self.endpoint.batches.values():
            for line in batch["lines"] or ():
                pico = billed.get(line["result"].get("message", {}).get("id"), 0)
                if pico > counted[line["custom_id"]]:
                    self.escapes.append(f"{self.where}: call {line['custom_id']} was billed {pico} and not counted")

    def run(self) -> None:
        seconds = 0.0
        for number in range(self.chance.randint(3, 6)):
            run_id = self.chance.choice(RUNS)
            kit = Kit(self.folder, self.endpoint, run_id=run_id, owner=f"{run_id}:{number}")
            kit.time.seconds = seconds
            kit.dead = {f"{each}:{past}" for each in RUNS for past in range(number)}
            self.endpoint.now = lambda kit=kit: kit.time.now() + self.skew  # type: ignore[misc]
            self.where = f"{self.where.split(',')[0]}, step {number} of {run_id}"
            is_late = number > 1
            self.step(kit, is_late=is_late)
            kit.recover()
            if is_late or self.chance.random() < 0.5:
                work_off(kit)  # the provider does its work and bills it, whoever asks
            self.check()
            self.check_calls()
            kit.ledger.rebuild_check()
            if self.chance.random() < 0.5:
                for scope in kit.ledger.frozen_scopes(run_id):
                    kit.ledger.unfreeze(scope, "seen", "Ada")
            seconds = kit.time.seconds + self.chance.choice([0.0, 10.0, 400.0, 4000.0, 9 * DAY])

    def step(self, kit: Kit, *, is_late: bool) -> None:
        chance, endpoint = self.chance, self.endpoint
        endpoint.batch_polls = 0 if is_late else chance.choice([0, 1, 3, 10**9])
        endpoint.batch_script.clear()
        endpoint.batch_script.extend(chance.choice(TO_A_BATCH) for _ in range(2))
        kinds = ["expired", "errored", "canceled", "weird"]
        endpoint.batch_results = {str(i): {"type": chance.choice(kinds)} for i in range(4) if chance.random() < 0.15}
        conversations = [ask(str(chance.randint(0, 4))) for _ in range(chance.randint(1, 4))]
        was_frozen, calls_before = kit.ledger.frozen_scopes(kit.run_id), kit.totals.calls
        with self.death() if chance.random() < 0.5 else self.stop(kit, chance.choice([1, 20, 10**9])):
            try:
                if chance.random() < 0.6:
                    kit.by_batch(conversations)
                else:
                    kit.teacher().references(conversations)
                self.seen["done"] += 1
            except (OPDError, Died) as end:
                self.seen[type(end).__name__] += 1
        if was_frozen and kit.totals.calls > calls_before:
            self.escapes.append(f"{self.where}: a call was admitted although {was_frozen} was frozen")
        self.seen["found"] += kit.totals.settled_calls
        self.seen["frozen"] += bool(kit.ledger.frozen_scopes(kit.run_id))

    @contextmanager
    def death(self) -> Iterator[None]:
        """Die before or after the n-th use of one of the ledger's methods."""
        name, count, before = self.chance.choice(WRITES), self.chance.randint(1, 4), self.chance.random() < 0.5
        original = getattr(Ledger, name)
        uses = 0

        def dying(ledger: Ledger, *values: Any, **more: Any) -> Any:
            nonlocal uses
            uses += 1
            if uses == count and before:
                raise Died
            given = original(ledger, *values, **more)
            if uses == count:
                raise Died
            return given

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, name, dying)
            yield

    @contextmanager
    def stop(self, kit: Kit, slices: int) -> Iterator[None]:
        """Ask the run to stop when it has waited for so many slices."""
        sleep, slept = kit.time.sleep, 0

        async def counted(seconds: float) -> None:
            nonlocal slept
            slept += 1
            kit.stop = slept >= slices
            await sleep(seconds)

        kit.time.sleep = counted  # type: ignore[method-assign]
        yield


NOTHING_LISTED = {"data": [], "has_more": False, "last_id": None}


def test_no_walk_by_chance_costs_what_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    logging.disable(logging.CRITICAL)
    seen: Counter[str] = Counter()
    escapes: list[str] = []
    try:
        for seed in range(WALKS):
            with Home() as endpoint:
                walk = Walk(seed, tmp_path / str(seed), endpoint)
                walk.run()
            seen += walk.seen
            escapes += walk.escapes
    finally:
        logging.disable(logging.NOTSET)
    assert escapes == []
    assert {"done", "Died", "found", "frozen", "TeacherUnavailableError", "BudgetFrozenError"} <= set(seen), seen
