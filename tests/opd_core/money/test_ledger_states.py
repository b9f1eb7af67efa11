from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from opd_core.errors import BudgetExceededError, BudgetFrozenError, DuplicateCallError, OPDError, StateError
from opd_core.money.ledger import Ledger
from tests.opd_core.money.books import Clock, hold


@dataclass(frozen=True)
class ModelCall:
    """What a call should look like, and what the provider really bills for it."""

    call_id: str
    run_id: str
    month: str
    key: str
    owner: str
    reserved: int
    state: str = "open"
    actual: int = 0
    adjusted: int = 0
    billed: int = 0


RUNS = ("one", "two")
SETTINGS = (300, 320, 280)
"""Of the month's limit, one a worker: as on servers that do not agree."""
PICK = st.integers(0, 10_000)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of everything that can happen to the ledger, beside an obvious model of it and the provider's own bill.

    I1 spent + reserved ≤ limit after each admission; I2 totals are sums; I3 the bill never exceeds spent + reserved;
    I4 at most one open call and one stored reply a key; I5 closed calls never change; I6 recovery touches nothing
    of the living; I7 the rebuild check agrees.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "opd.db"
        self.clock = Clock()
        self.limits = dict.fromkeys(RUNS, 200)
        self.frozen: set[str] = set()
        self.months: dict[str, int] = {}
        self.lowest: dict[str, int] = {}
        self.calls: list[ModelCall] = []
        self.stored: dict[str, str] = {}
        self.dead: set[str] = set()
        self.closed_rows: dict[str, tuple[object, ...]] = {}
        self.workers = [self.start_worker(number) for number in range(3)]
        for run_id in RUNS:
            self.workers[0][1].open_budget(run_id, 200)
        self.file = sqlite3.connect(self.path, isolation_level=None)

    def start_worker(self, number: int) -> tuple[str, Ledger]:
        return f"worker {number}", Ledger(self.path, month_limit_pico=SETTINGS[number], clock=self.clock)

    def heed(self, setting: int) -> str:
        """What a month's limit becomes when a process with this setting spends; returns the month."""
        month = f"month:{self.clock.now:%Y-%m}"
        if month not in self.months:
            self.months[month] = self.lowest[month] = setting
            if any(scope.startswith("month:") for scope in self.frozen):
                self.frozen.add(month)
        elif setting < self.lowest[month]:
            self.months[month], self.lowest[month] = min(self.months[month], setting), setting
        return month

    def teardown(self) -> None:
        self.file.close()
        self.folder.cleanup()

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Straight from the file, past all our code."""
        return self.file.execute(sql).fetchall()

    def ledger(self, pick: int) -> Ledger:
        return self.workers[pick % len(self.workers)][1]

    def used(self, scope: str) -> int:
        return sum(
            call.reserved if call.state == "open" else call.actual + call.adjusted
            for call in self.calls
            if scope in (call.run_id, call.month)
        )

    def pick_call(self, pick: int, is_open: bool) -> int | None:
        fitting = [place for place, call in enumerate(self.calls) if (call.state == "open") is is_open]
        return fitting[pick % len(fitting)] if fitting else None

    def close(self, place: int, state: str, actual: int) -> None:
        self.calls[place] = replace(self.calls[place], state=state, actual=actual)

    @rule(who=PICK, run_id=st.sampled_from(RUNS), key=st.sampled_from("abcdefgh"), amount=st.integers(1, 90))
    def reserve(self, who: int, run_id: str, key: str, amount: int) -> None:
        owner, ledger = self.workers[who % len(self.workers)]
        month = self.heed(SETTINGS[who % len(self.workers)])
        expected: type[OPDError] | None = None
        if key in self.stored or any(call.key == key and call.state == "open" for call in self.calls):
            expected = DuplicateCallError
        elif self.frozen & {run_id, month}:
            expected = BudgetFrozenError
        elif self.used(run_id) + amount > self.limits[run_id] or self.used(month) + amount > self.months[month]:
            expected = BudgetExceededError
        if expected is not None:
            with pytest.raises(expected):
                ledger.reserve(run_id, key, "m", "v", amount, owner)
            return
        call_id = ledger.reserve(run_id, key, "m", "v", amount, owner)
        self.calls.append(ModelCall(call_id, run_id, month, key, owner, amount))
        over = self.rows("SELECT scope, limit_pico FROM budgets WHERE spent_pico + reserved_pico > limit_pico")
        assert not [scope for scope, _ in over if scope in (run_id, month)]  # I1

    @rule(pick=PICK, share=st.floats(0, 1))
    def provider_answers(self, pick: int, share: float) -> None:
        place = self.pick_call(pick, is_open=True)
        if place is not None and not self.calls[place].billed:
            call = self.calls[place]
            self.calls[place] = replace(call, billed=int(call.reserved * share))

    @rule(pick=PICK, who=PICK, is_stored=st.booleans())
    def settle(self, pick: int, who: int, is_stored: bool) -> None:
        place = self.pick_call(pick, is_open=True)
        if place is None:
            return
        call = self.calls[place]
        body = f"reply {len(self.stored)}" if is_stored else None
        self.ledger(who).settle(call.call_id, call.billed, "{}", "req", body)
        self.close(place, "settled", call.billed)
        if body is not None:
            self.stored[call.key] = body

    @precondition(lambda self: len(self.calls) > 6)
    @rule(pick=PICK, extra=st.integers(1, 20))
    def settle_above_the_reservation(self, pick: int, extra: int) -> None:
        place = self.pick_call(pick, is_open=True)
        if place is None:
            return
        call = replace(self.calls[place], billed=self.calls[place].reserved + extra)
        self.calls[place] = call
        self.ledger(pick).settle(call.call_id, call.billed, "{}", "req", None)
        self.close(place, "settled", call.billed)
        since = min(call.month, f"month:{self.clock.now:%Y-%m}")
        self.frozen |= {call.run_id, *(month for month in self.months if month >= since)}

    @rule(pick=PICK, who=PICK)
    def release(self, pick: int, who: int) -> None:
        place = self.pick_call(pick, is_open=True)
        if place is not None and not self.calls[place].billed:
            self.ledger(who).release(self.calls[place].call_id, "529")
            self.close(place, "released", 0)

    @rule(pick=PICK, who=PICK)
    def forfeit(self, pick: int, who: int) -> None:
        place = self.pick_call(pick, is_open=True)
        if place is not None:
            self.ledger(who).forfeit(self.calls[place].call_id, "timeout")
            self.close(place, "forfeited", self.calls[place].reserved)

    @rule(pick=PICK, delta=st.integers(-50, 20))
    def adjust(self, pick: int, delta: int) -> None:
        place = self.pick_call(pick, is_open=False)
        if place is None:
            return
        call = self.calls[place]
        after = call.actual + call.adjusted + delta
        if after < 0:
            with pytest.raises(StateError):
                self.ledger(pick).adjust(call.call_id, delta, "bill", "Ada")
        elif after >= call.billed:  # a person who corrects has seen the bill
            self.ledger(pick).adjust(call.call_id, delta, "bill", "Ada")
            self.calls[place] = replace(call, adjusted=call.adjusted + delta)

    @rule(pick=PICK)
    def close_a_closed_call(self, pick: int) -> None:
        place = self.pick_call(pick, is_open=False)
        if place is not None:
            with pytest.raises(StateError):
                self.ledger(pick).settle(self.calls[place].call_id, 1, "{}", None, "late")

    @rule(pick=PICK)
    def kill_and_restart(self, pick: int) -> None:
        number = pick % len(self.workers)
        self.dead.add(self.workers[number][0])
        name = f"worker {len(self.dead) + len(self.workers)}"
        self.workers[number] = (name, self.start_worker(number)[1])

    @rule(pick=PICK)
    def kill_inside_a_transaction(self, pick: int) -> None:
        place = self.pick_call(pick, is_open=True)
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if place is not None:
                connection.execute(
                    "UPDATE calls SET state = 'released', actual_pico = 0, closed_at = 'now' WHERE call_id = ?",
                    (self.calls[place].call_id,),
                )

    @rule(who=PICK)
    def recover(self, who: int) -> None:
        orphans = [place for place, call in enumerate(self.calls) if call.state == "open" and call.owner in self.dead]
        assert self.ledger(who).recover(hold(*self.dead)) == len(orphans)  # I6
        for place in orphans:
            self.close(place, "forfeited", self.calls[place].reserved)

    @rule(run_id=st.sampled_from(RUNS), more=st.integers(0, 60), who=PICK)
    def raise_limit(self, run_id: str, more: int, who: int) -> None:
        self.limits[run_id] += more
        self.ledger(who).raise_limit(run_id, self.limits[run_id])

    @rule(who=PICK)
    def a_person_lifts_a_freeze(self, who: int) -> None:
        for scope in sorted(self.frozen & set(RUNS)):
            assert self.ledger(who).unfreeze(scope, "seen", "Ada") == [scope]
        months = sorted(self.frozen - set(RUNS))
        if months:
            assert self.ledger(who).unfreeze(months[0], "seen", "Ada") == months
        self.frozen.clear()

    @rule(who=PICK, limit=st.integers(0, 400))
    def a_person_sets_the_month(self, who: int, limit: int) -> None:
        month = self.heed(SETTINGS[who % len(self.workers)])
        assert self.ledger(who).set_month(limit, "more is needed", "Ada") == self.months[month]
        self.months[month] = limit

    @precondition(lambda self: len(self.calls) > 8)
    @rule()
    def a_month_goes_by(self) -> None:
        self.clock.now += timedelta(days=31)

    @invariant()
    def totals_are_the_sums_of_the_calls(self) -> None:
        budgets = {row[0]: row[1:] for row in self.rows("SELECT scope, spent_pico, reserved_pico, frozen FROM budgets")}
        assert budgets.keys() == {*RUNS, *self.months}
        for scope, found in budgets.items():
            mine = [call for call in self.calls if scope in (call.run_id, call.month)]
            reserved = sum(call.reserved for call in mine if call.state == "open")
            assert found == (self.used(str(scope)) - reserved, reserved, scope in self.frozen)  # I2
            assert sum(call.billed for call in mine) <= self.used(str(scope))  # I3
        limits = {row[0]: row[1] for row in self.rows("SELECT scope, limit_pico FROM budgets")}
        assert limits == self.limits | self.months
        self.ledger(0).rebuild_check()  # I7

    @invariant()
    def keys_are_bought_once_and_closed_calls_stay(self) -> None:
        rows = {row[1]: row for row in self.rows("SELECT * FROM calls")}
        assert rows.keys() == {call.call_id for call in self.calls}
        open_keys = [call.key for call in self.calls if call.state == "open"]
        assert len(open_keys) == len(set(open_keys))  # I4
        assert {row[0]: row[1] for row in self.rows("SELECT request_key, body FROM responses")} == self.stored
        for call in self.calls:
            if call.state != "open":
                assert self.closed_rows.setdefault(call.call_id, rows[call.call_id]) == rows[call.call_id]  # I5


def test_no_order_of_events_breaks_a_promise() -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
