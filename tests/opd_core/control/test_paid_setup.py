"""What the set-up check says about paid teachers: never the key, and never a reason not to start with a local one."""

from __future__ import annotations

from datetime import date

import pytest

from opd_core.control.paid_setup import look_at_paid_teachers
from opd_core.control.setup_check import check_setup
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import Settings
from opd_core.state.database import Database
from tests.opd_core.control.test_setup_check import FAST

TODAY = date(2026, 11, 23)
DOLLAR = 10**12


def test_the_facts_are_the_key_the_prices_the_model_and_the_month(
    home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.prepare()
    settings = Settings(home, monthly_budget_usd=20.0, max_budget_usd=5.0)
    facts, problems = look_at_paid_teachers(settings, TODAY)
    assert problems == [] and not facts.api_key_present
    assert (facts.default_teacher, facts.default_teacher_retires_on) == ("claude-sonnet-5-5", None)
    assert (facts.prices_age_days, facts.month_spent_usd, facts.month_limit_usd) == (29, 0.0, 20.0)
    assert facts.run_limit_usd == 5.0
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary")
    facts, _ = look_at_paid_teachers(settings, TODAY)
    assert facts.api_key_present and "canary" not in repr(facts)


def test_what_was_spent_and_reserved_this_month_is_told(home: HomePaths) -> None:
    home.prepare()
    ledger = Ledger(home.database, month_limit_pico=20 * DOLLAR)
    ledger.open_budget("r", 5 * DOLLAR)
    call = ledger.reserve("r", "key", "m", "v", 2 * DOLLAR, "r:1")
    ledger.reserve("r", "another", "m", "v", DOLLAR, "r:1")
    ledger.settle(call, DOLLAR // 2, "{}", None, "body")
    facts, _ = look_at_paid_teachers(Settings(home), TODAY)
    assert (facts.month_spent_usd, facts.month_reserved_usd) == (0.5, 1.0)
    assert facts.month_limit_usd == 20.0, "the lowest setting this month has seen, though this server allows 100"
    assert "by the lowest OPD_MONTHLY_BUDGET_USD" in facts.month_limit_set
    assert "opd set-month --to-usd" in facts.month_limit_set
    facts, _ = look_at_paid_teachers(Settings(home, monthly_budget_usd=3.0), TODAY)
    assert facts.month_limit_usd == 3.0 and "of this server" in facts.month_limit_set


@pytest.mark.parametrize(
    ("model", "today", "retires", "told"),
    [
        ("claude-sonnet-4-5", TODAY, "2026-11-30", "retires on 2026-11-30"),
        ("claude-sonnet-4-5", date(2026, 12, 1), "retired", "is retired"),
        ("claude-opus-4-5", TODAY, None, "retires not before 2026-11-24"),
        ("claude-haiku-4-5", TODAY, None, "may end any day"),
        ("claude-none-9", TODAY, None, "no price"),
        ("claude-sonnet-5-5", date(2027, 6, 1), None, "prices_confirmed_on"),
    ],
)
def test_a_default_teacher_or_prices_that_will_not_do_are_told(
    home: HomePaths, model: str, today: date, retires: str | None, told: str
) -> None:
    facts, problems = look_at_paid_teachers(Settings(home, default_teacher=model), today)
    assert facts.default_teacher_retires_on == retires
    assert told in " ".join(map(str, problems))


def test_a_damaged_ledger_is_a_problem_that_blocks_no_local_run(home: HomePaths) -> None:
    home.prepare()
    ledger = Ledger(home.database, month_limit_pico=20 * DOLLAR)
    ledger.open_budget("r", 5 * DOLLAR)
    with Database(home.database).write() as connection:
        connection.execute("DROP TRIGGER budgets_stay")
    report = check_setup(Settings(home), roots=Roots.of(home.home), measure=lambda: FAST)
    (problem,) = [problem for problem in report.problems if "ledger does not add up" in problem.what]
    assert not problem.blocking and report.paid_teacher is None
