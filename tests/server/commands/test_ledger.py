"""The ledger in a terminal: what a person reads there, and the changes that only a person makes."""

from __future__ import annotations

import getpass
import json
import re
from typing import Any

import pytest

from opd_core.errors import BudgetExceededError
from opd_core.money.ledger import Ledger
from opd_core.money.report import MOST_LISTED
from opd_core.paths import HomePaths
from opd_core.state.database import Database
from server.cli import main
from tests.server.test_cli import refused

DOLLAR = 10**12
MODEL = "claude-sonnet-5-5"
USAGE = '{"input_tokens": 900, "cache_read_tokens": 100, "output_tokens": 42}'


@pytest.fixture
def ledger(home: HomePaths, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Run opd_1 may spend $2 and the home $5 a month; somebody works at the terminal."""
    home.prepare()
    monkeypatch.setenv("OPD_MONTHLY_BUDGET_USD", "5")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    made = Ledger(home.database, month_limit_pico=5 * DOLLAR)
    made.open_budget("opd_1", 2 * DOLLAR)
    return made


def reserve(ledger: Ledger, key: str, pico: int = DOLLAR // 10, run_id: str = "opd_1") -> str:
    return ledger.reserve(run_id, key, MODEL, "1", pico, f"{run_id}:1")


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def cells(output: str, beginning: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.startswith(beginning)]
    return re.split(r" {2,}", line)


def test_the_ledger_shows_every_budget(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.settle(reserve(ledger, "a"), DOLLAR // 20, USAGE, "req_7", "reply")
    reserve(ledger, "b")
    ledger.count_cache_hits("opd_1", 3)
    ledger.forfeit(reserve(ledger, "c"), "a reply without a price", freeze=True)
    output = told(["ledger"], capsys)
    month = ledger.month_totals().scope
    assert cells(output, "opd_1") == ["opd_1", "$2.00", "$0.15", "$0.10", "$1.75", "FROZEN", "3", "3"]
    assert cells(output, month)[:6] == [month, "$5.00", "$0.15", "$0.10", "$4.75", "FROZEN"]
    assert "is $5.00 (by the lowest OPD_MONTHLY_BUDGET_USD" in output and "opd set-month --to-usd" in output
    assert output.index(month) < output.index("opd_1"), "newest first"


def test_a_runs_ledger_shows_its_calls_newest_first(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    settled = reserve(ledger, "a")
    ledger.settle(settled, DOLLAR // 20, USAGE, "req_7", "reply")
    forfeited = reserve(ledger, "b")
    ledger.forfeit(forfeited, "timeout \x1b[2J" + "x" * 100)
    still_open = reserve(ledger, "c")
    ledger.open_budget("opd_2", DOLLAR)
    other = reserve(ledger, "d", run_id="opd_2")
    output = told(["ledger", "opd_1"], capsys)
    call = cells(output, settled)
    assert call[2:] == [MODEL, "settled", "$0.10", "$0.05", "1,000/42", "req_7"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", call[1])
    assert cells(output, forfeited)[3:6] == ["forfeited", "$0.10", "$0.10"]
    assert cells(output, still_open)[3:] == ["open", "$0.10"]
    assert output.index(still_open) < output.index(forfeited) < output.index(settled)
    assert other not in output and "\x1b" not in output
    assert other in told(["ledger", ledger.month_totals().scope], capsys)


def test_a_long_list_says_what_was_cut(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(MOST_LISTED + 2):
        ledger.release(reserve(ledger, str(number)), "529")
        ledger.open_budget(f"opd_x{number}", DOLLAR)
    output = told(["ledger", "opd_1"], capsys)
    assert output.count("released") == MOST_LISTED and "… and 2 older calls that are not shown." in output
    assert "… and 4 older budgets that are not shown." in told(["ledger"], capsys)


def test_json_has_the_exact_amounts(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.settle(reserve(ledger, "a"), 7, USAGE, "req_7", "reply")
    data: dict[str, Any] = json.loads(told(["ledger", "opd_1", "--json"], capsys))
    (budget,), (call,) = data["budgets"], data["calls"]
    assert (budget["scope"], budget["limit_usd"], budget["spent_pico"], budget["frozen"]) == ("opd_1", 2.0, 7, False)
    assert (call["charged_pico"], call["reserved_usd"], call["input_tokens"], call["request_id"]) == (
        7,
        0.1,
        1000,
        "req_7",
    )
    assert (data["month"]["limit_usd"], data["older_not_shown"], data["damage"]) == (5.0, 0, None)
    assert "calls" not in json.loads(told(["ledger", "--json"], capsys))


def test_a_damaged_ledger_is_shown_with_what_is_wrong(
    ledger: Ledger, home: HomePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    reserve(ledger, "a")
    with Database(home.database).write() as connection:
        connection.execute("DROP TRIGGER budgets_stay")
    assert main(["ledger"]) == 1
    output = capsys.readouterr()
    assert "opd_1" in output.out and "does not add up" in output.err


def test_a_home_without_a_paid_call_has_an_empty_ledger(home: HomePaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No paid call yet." in told(["ledger"], capsys)
    assert "opd_9" in refused(["ledger", "opd_9"], capsys)
    assert not home.database.exists()


def test_a_person_corrects_a_charge_and_is_named(
    ledger: Ledger, home: HomePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    call = reserve(ledger, "a")
    assert "not closed" in refused(["adjust", call, "--delta-usd", "-0.01", "--why", "not on the bill"], capsys)
    ledger.forfeit(call, "timeout")
    output = told(["adjust", call, "--delta-usd", "-0.04", "--why", "only partly on the bill"], capsys)
    assert output == f"Call {call} is corrected by -$0.04; opd_1 has spent $0.06.\n"
    told(["adjust", call, "--delta-usd", "0.01", "--why", "a little more"], capsys)
    assert ledger.totals("opd_1").spent_pico == 7 * DOLLAR // 100
    shown = cells(told(["ledger", "opd_1"], capsys), call)
    assert shown[4:6] == ["$0.10", "$0.07"] and shown[-1] == "adjusted by -$0.03"
    who = Database(home.database).read("SELECT delta_pico, why, by_whom FROM adjustments ORDER BY number LIMIT 1")
    assert tuple(who[0]) == (-4 * DOLLAR // 100, "only partly on the bill", "ada")


@pytest.mark.parametrize("amount", ["many", "nan", "-inf", "--5", "-5000000"])
def test_a_correction_that_is_no_amount_is_refused(
    ledger: Ledger, amount: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = reserve(ledger, "a")
    ledger.forfeit(call, "timeout")
    assert "is not an amount of money" in refused(["adjust", call, f"--delta-usd={amount}", "--why", "w"], capsys)
    assert ledger.totals("opd_1").spent_pico == DOLLAR // 10


def test_a_person_raises_the_month_and_the_next_call_is_admitted(
    ledger: Ledger, home: HomePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.open_budget("opd_2", 9 * DOLLAR)
    reserve(ledger, "a", 5 * DOLLAR, "opd_2")
    with pytest.raises(BudgetExceededError):
        reserve(ledger, "b", 2 * DOLLAR, "opd_2")
    output = told(["set-month", "--to-usd", "7.50", "--why", "the deadline"], capsys)
    assert "may cost $7.50" in output and "before: $5.00" in output and "$2.50 are left" in output
    reserve(ledger, "b", 2 * DOLLAR, "opd_2")
    last = Database(home.database).read("SELECT limit_pico, why, by_whom FROM budget_changes ORDER BY number DESC")[0]
    assert tuple(last) == (15 * DOLLAR // 2, "the deadline", "ada")
    assert "(by ada on " in told(["ledger"], capsys)


def test_a_change_without_a_reason_or_an_amount_is_refused(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    call = reserve(ledger, "a")
    ledger.forfeit(call, "timeout", freeze=True)
    for command in (
        ["set-month", "--to-usd", "7"],
        ["adjust", call, "--delta-usd", "-0.01"],
        ["unfreeze", "opd_1"],
    ):
        assert "--why is empty" in refused([*command, "--why", " "], capsys)
    assert "not an amount" in refused(["set-month", "--to-usd", "-1", "--why", "less"], capsys)
    assert ledger.month_totals().limit_pico == 5 * DOLLAR and ledger.totals("opd_1").frozen


def test_a_person_lifts_a_freeze_and_only_one_that_is_there(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.forfeit(reserve(ledger, "a"), "dearer than reserved", freeze=True)
    month = ledger.month_totals().scope
    for scope in ("opd_1", month):
        output = told(["unfreeze", scope, "--why", "looked at the usage page"], capsys)
        assert output == f"Paid calls of {scope} are admitted again.\n"
    assert ledger.frozen_scopes("opd_1") == []
    assert "not frozen" in refused(["unfreeze", "opd_1", "--why", "again"], capsys)
