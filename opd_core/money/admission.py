"""Admitting a call. Triggers decide; here their refusal gets words, and what a person can do."""

from __future__ import annotations

import sqlite3

from opd_core.errors import BudgetExceededError, BudgetFrozenError, DuplicateCallError, OPDError, StateError
from opd_core.money.amounts import format_usd
from opd_core.money.months import SETTING, reader, who_rules
from opd_core.state.database import SqlValue

FROZEN_MARK = "is frozen since"
"""Stands in the message of a job that a freeze stopped, and of no other."""


def admit_call(connection: sqlite3.Connection, columns: dict[str, SqlValue]) -> OPDError | None:
    """Insert an open call, which reserves its amount under the limits of `run_id` and `month`.

    Returns: None, or why it was refused, for the caller to raise when the transaction is over: a BudgetExceededError,
        BudgetFrozenError, DuplicateCallError or StateError as `Ledger.reserve`.
    """
    names = ", ".join(columns)
    values = ", ".join(f":{name}" for name in columns)
    try:
        connection.execute(
            f"INSERT INTO calls ({names}, state, attempt) "
            f"VALUES ({values}, 'open', (SELECT COUNT(*) + 1 FROM calls WHERE request_key = :request_key))",
            columns,
        )
    except sqlite3.IntegrityError as error:
        return _refusal(
            connection, str(error), str(columns["run_id"]), str(columns["month"]), int(columns["reserved_pico"] or 0)
        )
    return None


def _refusal(connection: sqlite3.Connection, reason: str, run_id: str, month: str, amount_pico: int) -> OPDError:
    """The error for a reservation that a trigger refused with `reason`; read in the same transaction."""
    match reason:
        case "money: open":
            return DuplicateCallError(
                "The same request is on its way already and is not paid for twice. Wait for it, then look into the "
                "response cache again."
            )
        case "money: stored":
            return DuplicateCallError(
                "The reply to this request is paid for and stored. Take it from the response cache; do not ask again."
            )
        case "money: no budget":
            return StateError(f"Run {run_id} has no budget, so it makes no paid call. Start it with max_budget_usd.")
        case "money: frozen":
            return _frozen(connection, run_id, month)
        case "money: over limit":
            return _over_limit(connection, run_id, month, amount_pico)
    return StateError(f"The ledger refused a reservation of {amount_pico} picodollars for run {run_id}: {reason}.")


def _frozen(connection: sqlite3.Connection, run_id: str, month: str) -> BudgetFrozenError:
    # the change that froze it, not one that came later and left it frozen
    change = connection.execute(
        "SELECT scope, at, why FROM budget_changes AS c JOIN budgets USING (scope) "
        "WHERE scope IN (?, ?) AND budgets.frozen AND number > COALESCE("
        "(SELECT MAX(number) FROM budget_changes WHERE scope = c.scope AND NOT frozen), 0) ORDER BY number LIMIT 1",
        (run_id, month),
    ).fetchone()
    scope = change["scope"]
    whose = f"run {run_id}" if scope == run_id else f"this install for {month.removeprefix('month:')}"
    return BudgetFrozenError(
        f"The budget of {whose} {FROZEN_MARK} {change['at']}: {change['why']}. The prices or the token bound may be "
        "wrong, so no paid call is made. A person must compare the provider's usage page with this ledger and lift the "
        f"freeze in a terminal with: opd unfreeze {scope} --why TEXT; no tool can. Stop the run meanwhile, or use a "
        "local teacher."
    )


def _over_limit(connection: sqlite3.Connection, run_id: str, month: str, amount_pico: int) -> BudgetExceededError:
    budgets = connection.execute(
        "SELECT scope, limit_pico, limit_pico - spent_pico - reserved_pico AS left, reserved_pico FROM budgets "
        "WHERE scope IN (?, ?) ORDER BY left LIMIT 1",
        (run_id, month),
    ).fetchone()
    left, limit = max(0, int(budgets["left"])), format_usd(budgets["limit_pico"])
    is_run = budgets["scope"] == run_id
    if is_run:
        whose = f"The budget of run {run_id} ({limit})"
        way_out = (
            "If the person agrees, resume the run with a higher budget (resume_distillation with max_budget_usd and "
            "confirmed=true); or keep its best adapter."
        )
    else:
        rule = who_rules(reader(connection), month)
        whose = f"The install's budget for {month.removeprefix('month:')} ({limit}, {rule.whose})"
        way_out = (
            f"A new one begins next month (UTC) with {SETTING}; until then only a person can raise it, "
            f"{rule.way_up}. The run keeps its best adapter."
        )
    held = format_usd(budgets["reserved_pico"])
    return BudgetExceededError(
        f"{whose} has {format_usd(left)} left (open calls hold {held}), and the next call may cost up to "
        f"{format_usd(amount_pico)}. {way_out}",
        scope="run" if is_run else "month",
        left_pico=left,
        needed_pico=amount_pico,
    )
