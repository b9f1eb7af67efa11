"""A larger budget is the ledger's only when its resume came through."""

from __future__ import annotations

from typing import Any

import pytest

from opd_core.control.runs import Runs
from opd_core.errors import LedgerDamagedError, StateError
from opd_core.paths import HomePaths
from opd_core.state.database import Database
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import DOLLAR, end, ledger_of, paid

pytestmark = pytest.mark.usefixtures("busy")


@pytest.fixture
def stopped(runs: Runs, home: HomePaths, store: RunStore) -> str:
    """A run that has a budget of 5 dollars and has ended."""
    runs.start(paid())
    ledger_of(home).open_budget("mine", 5 * DOLLAR)
    end(store, "mine", "stopped")
    return "mine"


def test_who_loses_a_race_has_raised_nothing(
    runs: Runs, home: HomePaths, stopped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeue = RunStore.requeue

    def another_call_is_quicker(self: RunStore, run_id: str, **changed: Any) -> None:
        requeue(self, run_id, config=self.get(run_id).config, total_steps=50)
        requeue(self, run_id, **changed)

    monkeypatch.setattr(RunStore, "requeue", another_call_is_quicker)
    with pytest.raises(StateError, match="another call"):
        runs.resume(stopped, max_budget_usd=7, confirmed=True)
    assert ledger_of(home).totals(stopped).limit_pico == 5 * DOLLAR
    assert runs.status(stopped).budget_usd == 5.0


def test_a_damaged_ledger_refuses_before_the_run_is_queued(
    runs: Runs, home: HomePaths, store: RunStore, stopped: str
) -> None:
    with Database(home.database).write() as connection:
        connection.execute("UPDATE budgets SET spent_pico = 6 WHERE scope = ?", (stopped,))
    before = store.get(stopped)
    with pytest.raises(LedgerDamagedError):
        runs.resume(stopped, max_budget_usd=7, confirmed=True)
    assert store.get(stopped) == before
