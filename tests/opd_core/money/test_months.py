"""Several servers with several settings spend from one home: the lowest rules, and only a person raises it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core.errors import BudgetExceededError
from opd_core.money.ledger import Ledger
from tests.opd_core.money.books import MONTH, Clock, query, reserve

Server = Callable[[int], Ledger]


@pytest.fixture
def server(path: Path, clock: Clock) -> Server:
    """A process with that setting of the month's limit; a run "big" has all the money it wants."""

    def start(setting_pico: int) -> Ledger:
        ledger = Ledger(path, month_limit_pico=setting_pico, clock=clock)
        ledger.open_budget("big", 10_000)
        return ledger

    return start


def test_the_lowest_setting_rules_whoever_spends_in_whatever_order(server: Server) -> None:
    middle, low, high = server(700), server(500), server(900)
    reserve(middle, "a", 400, "big")
    reserve(low, "b", 100, "big")
    for number, ledger in enumerate((low, middle, high)):
        with pytest.raises(BudgetExceededError, match="by the lowest OPD_MONTHLY_BUDGET_USD"):
            reserve(ledger, f"c{number}", 1, "big")
        assert ledger.month_totals().limit_pico == 500
    low.rebuild_check()


def test_a_lower_setting_counts_also_when_its_own_call_was_refused(server: Server) -> None:
    first = server(700)
    reserve(first, "a", 400, "big")
    with pytest.raises(BudgetExceededError):
        reserve(server(500), "b", 200, "big")
    with pytest.raises(BudgetExceededError):
        reserve(first, "b", 200, "big")


def test_before_its_first_call_a_process_sees_the_limit_that_call_would_meet(server: Server, path: Path) -> None:
    assert (server(700).month_totals().limit_pico, server(700).who_rules_the_month().whose) == (
        700, "by OPD_MONTHLY_BUDGET_USD of this server",
    )  # fmt: skip
    reserve(server(700), "a", 100, "big")
    low, high = server(500), server(900)
    assert (low.month_totals().limit_pico, low.who_rules_the_month().whose) == (
        500,
        "by OPD_MONTHLY_BUDGET_USD of this server",
    )
    assert high.month_totals().limit_pico == 700 and "by the lowest" in high.who_rules_the_month().whose
    assert query(path, f"SELECT limit_pico FROM budgets WHERE scope = '{MONTH}'") == [(700,)], "looking changes nothing"


def test_only_a_person_raises_the_month_and_the_history_says_who_and_why(server: Server, path: Path) -> None:
    ledger = server(500)
    reserve(ledger, "a", 500, "big")
    assert ledger.set_month(800, "the deadline", "Ada") == 500
    reserve(ledger, "b", 300, "big")
    with pytest.raises(BudgetExceededError, match=r"by Ada on 2026-11-23: the deadline"):
        reserve(ledger, "c", 1, "big")
    history = query(path, f"SELECT limit_pico, why, by_whom FROM budget_changes WHERE scope = '{MONTH}'")
    assert history == [(500, "OPD_MONTHLY_BUDGET_USD", "install"), (800, "the deadline", "Ada")]
    ledger.rebuild_check()


def test_a_persons_word_stands_against_settings_it_overruled_and_not_against_a_new_lower_one(server: Server) -> None:
    low, between, high = server(500), server(600), server(900)
    for ledger in (high, low):
        reserve(ledger, str(id(ledger)), 10, "big")
    low.set_month(800, "the deadline", "Ada")
    for number, ledger in enumerate((low, between, high)):
        reserve(ledger, f"a{number}", 10, "big")
        assert ledger.month_totals().limit_pico == 800
    assert low.who_rules_the_month().whose.startswith("by Ada")
    lower = server(400)
    reserve(lower, "b", 10, "big")
    assert [ledger.month_totals().limit_pico for ledger in (low, high)] == [400, 400]


def test_a_setting_above_a_person_s_limit_is_seen_all_the_same_and_overruled_with_the_others(server: Server) -> None:
    high, seen, new = server(500), server(300), server(250)
    reserve(high, "a", 10, "big")
    high.set_month(200, "careful", "Ada")
    reserve(seen, "b", 10, "big")
    assert seen.month_totals().limit_pico == 200
    assert seen.who_rules_the_month().whose == new.who_rules_the_month().whose == "by Ada on 2026-11-23: careful"
    high.set_month(1000, "the deadline", "Ada")
    reserve(seen, "c", 10, "big")
    assert seen.month_totals().limit_pico == 1000, "its setting was known when the person spoke"
    reserve(new, "d", 10, "big")
    assert [each.month_totals().limit_pico for each in (high, seen, new)] == [250, 250, 250]
    high.rebuild_check()


def test_a_person_can_speak_before_the_first_call_of_a_month_and_lower_it_too(server: Server) -> None:
    ledger = server(500)
    assert ledger.set_month(800, "the deadline", "Ada") == 500
    reserve(ledger, "a", 700, "big")
    ledger.set_month(600, "enough", "Ada")
    with pytest.raises(BudgetExceededError, match="by Ada"):
        reserve(ledger, "b", 1, "big")


def test_the_next_month_begins_at_the_setting_again(server: Server, clock: Clock) -> None:
    ledger = server(500)
    ledger.set_month(800, "the deadline", "Ada")
    clock.now = clock.now.replace(month=12)
    reserve(ledger, "a", 500, "big")
    with pytest.raises(BudgetExceededError):
        reserve(ledger, "b", 1, "big")
