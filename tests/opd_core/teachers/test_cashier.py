"""Nothing is sent without a price and a budget that holds it, and the books say what the bill says."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.errors import BudgetExceededError, StalePricesError, UnknownPriceError
from tests.opd_core.teachers.claude_kit import Kit, ask


def test_the_ledger_says_what_the_bill_says(kit: Kit) -> None:
    kit.teacher().references([ask("a"), ask("b")])
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0
    assert kit.totals.reserved_pico == 0


def test_a_model_without_a_price_is_never_sent_to(kit: Kit) -> None:
    with pytest.raises(UnknownPriceError, match="claude-imaginary"):
        kit.teacher(model="claude-imaginary").references([ask()])
    assert kit.endpoint.requests == []


def test_a_dated_model_has_the_price_of_its_row(kit: Kit) -> None:
    kit.teacher(model="claude-sonnet-5-5-20261007").references([ask()])
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0


def test_old_prices_need_a_confirmation(kit: Kit) -> None:
    kit.time.seconds = 100 * 86_400.0
    with pytest.raises(StalePricesError):
        kit.teacher().references([ask()])
    kit.teacher(prices_confirmed_on=kit.time.now().date()).references([ask()])
    assert len(kit.endpoint.calls) == 1


def test_a_budget_is_used_up_to_the_last_call_that_fits(kit: Kit, tmp_path: Path) -> None:
    """Open calls hold far more than they will cost: the next one waits for them instead of ending the run."""
    poor = Kit(tmp_path / "poor", kit.endpoint, limit_pico=20_000_000_000)  # room for one reservation
    poor.teacher(max_concurrent=8).references([ask(str(number)) for number in range(8)])
    assert len(kit.endpoint.calls) == 8
    poor.check_money()


def test_a_budget_that_is_used_up_stops_cleanly_and_keeps_what_was_paid(kit: Kit, tmp_path: Path) -> None:
    poor = Kit(tmp_path / "poor", kit.endpoint, limit_pico=20_000_000_000)
    with pytest.raises(BudgetExceededError) as caught:
        poor.teacher().references([ask(str(number)) for number in range(60)])
    assert caught.value.scope == "run"
    paid = len(kit.endpoint.calls)
    assert 5 < paid < 60
    assert poor.totals.settled_calls == paid
    poor.check_money()
