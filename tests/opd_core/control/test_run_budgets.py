"""How a paid run's budget stands while it runs, when it is frozen, and when a resume makes it larger."""

from __future__ import annotations

import pytest

from opd_core.control.runs import Runs
from opd_core.errors import BudgetFrozenError, ConfigError
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import DOLLAR, Check, config, end, ledger_of, paid


@pytest.mark.usefixtures("busy")
def test_a_paid_run_tells_how_its_budget_stands(runs: Runs, home: HomePaths, store: RunStore) -> None:
    row = runs.start(paid())
    assert (row.budget_usd, row.spent_usd, row.reserved_usd, row.budget_warning) == (5.0, 0.0, 0.0, False)
    ledger = ledger_of(home)
    ledger.open_budget("mine", 5 * DOLLAR)
    call = ledger.reserve("mine", "key", "m", "v", 3 * DOLLAR, "mine:1", is_batch=True)
    ledger.settle(call, 3 * DOLLAR, "{}", None, None)
    assert not runs.status("mine").budget_warning
    ledger.reserve("mine", "another", "m", "v", DOLLAR, "mine:1", is_batch=True)
    row = runs.status("mine")
    assert (row.spent_usd, row.reserved_usd, row.budget_warning, row.budget_exceeded) == (3.0, 1.0, True, False)
    assert runs.list()[0] == [row]
    store.finish("mine", "stopped", "budget", epoch=store.claim("mine"), message="")
    assert runs.status("mine").budget_exceeded


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("is_month", [False, True])
def test_a_run_that_a_freeze_stopped_is_frozen_and_has_not_exceeded_its_budget(
    runs: Runs, home: HomePaths, store: RunStore, is_month: bool
) -> None:
    runs.start(paid())
    ledger = ledger_of(home)
    for run_id in ("mine", "other"):
        ledger.open_budget(run_id, 5 * DOLLAR)
    dear = ledger.reserve("other" if is_month else "mine", "key", "m", "v", DOLLAR, "mine:1", is_batch=True)
    ledger.forfeit(dear, "a reply without a price", freeze=True)
    with pytest.raises(BudgetFrozenError) as frozen:
        ledger.reserve("mine", "another", "m", "v", DOLLAR, "mine:1", is_batch=True)
    store.finish(
        "mine", "stopped", "budget", epoch=store.claim("mine"), message=f"{frozen.value} Stopped after step 2."
    )
    row, month = runs.status("mine"), ledger.month_totals().scope
    assert (row.stopped_by_freeze, row.budget_exceeded) == (True, False)
    assert row.frozen_budgets == ((month,) if is_month else ("mine", month))
    for scope in row.frozen_budgets:
        ledger.unfreeze(scope, "seen", "Ada")
    assert runs.status("mine").frozen_budgets == () and runs.status("mine").stopped_by_freeze


@pytest.mark.usefixtures("busy")
def test_a_local_run_has_no_budget(runs: Runs) -> None:
    row = runs.start(config())
    assert (row.budget_usd, row.spent_usd, row.budget_warning) == (None, 0.0, False)


@pytest.mark.usefixtures("busy")
def test_a_confirmed_resume_raises_the_ledgers_limit_and_a_refused_one_does_not(
    runs: Runs, home: HomePaths, store: RunStore, check: Check
) -> None:
    runs.start(paid())
    ledger = ledger_of(home)
    ledger.open_budget("mine", 5 * DOLLAR)
    end(store, "mine", "stopped")
    with pytest.raises(ConfigError, match="confirmed true"):
        runs.resume("mine", max_budget_usd=7)
    check.refusal = ConfigError("above OPD_MONTHLY_BUDGET_USD")
    with pytest.raises(ConfigError, match="MONTHLY"):
        runs.resume("mine", max_budget_usd=7, confirmed=True)
    assert ledger.totals("mine").limit_pico == 5 * DOLLAR
    check.refusal = None
    assert runs.resume("mine", max_budget_usd=7, confirmed=True).budget_usd == 7.0
    assert ledger.totals("mine").limit_pico == 7 * DOLLAR


@pytest.mark.usefixtures("busy")
def test_a_run_cancelled_before_it_had_a_budget_resumes_with_a_larger_one(runs: Runs, home: HomePaths) -> None:
    runs.start(paid())
    runs.stop("mine")
    assert runs.resume("mine", max_budget_usd=7, confirmed=True).budget_usd == 7.0
    assert ledger_of(home).totals("mine").limit_pico == 0, "its worker opens the budget"
