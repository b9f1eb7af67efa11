"""The ledger's writes, inside the caller's transaction. Triggers decide what is admitted; here they get words."""

from __future__ import annotations

import sqlite3

from opd_core.errors import BudgetExceededError, BudgetFrozenError, DuplicateCallError, OPDError, StateError
from opd_core.money.amounts import format_usd
from opd_core.state.database import SqlValue


def limit_of(connection: sqlite3.Connection, scope: str) -> int | None:
    """The limit of a run or a month; None when it has no budget yet."""
    found = connection.execute("SELECT limit_pico FROM budgets WHERE scope = ?", (scope,)).fetchone()
    return None if found is None else int(found["limit_pico"])


def change_budget(
    connection: sqlite3.Connection,
    scope: str,
    at: str,
    why: str,
    by_whom: str,
    *,
    limit_pico: int | None = None,
    frozen: bool | None = None,
) -> None:
    """Append a change of a limit or a freeze; what is None stays as it is. A trigger carries it over to the budget."""
    connection.execute(
        "INSERT INTO budget_changes (scope, at, limit_pico, frozen, why, by_whom) SELECT ?1, ?2, "
        "COALESCE(?3, (SELECT limit_pico FROM budgets WHERE scope = ?1)), "
        "COALESCE(?4, (SELECT frozen FROM budgets WHERE scope = ?1), 0), ?5, ?6",
        (scope, at, limit_pico, frozen, why, by_whom),
    )


def is_a_month_frozen(connection: sqlite3.Connection) -> bool:
    """Whether any month's budget is frozen."""
    row = connection.execute("SELECT EXISTS (SELECT 1 FROM budgets WHERE scope LIKE 'month:%' AND frozen)").fetchone()
    return bool(row[0])


def admit_call(connection: sqlite3.Connection, columns: dict[str, SqlValue]) -> None:
    """Insert an open call, which reserves its amount under the limits of `run_id` and `month`.

    Raises:
        BudgetExceededError, BudgetFrozenError, DuplicateCallError, StateError: as `Ledger.reserve`.
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
        raise _refusal(
            connection, str(error), str(columns["run_id"]), str(columns["month"]), int(columns["reserved_pico"] or 0)
        ) from None


def close_call(connection: sqlite3.Connection, call_id: str, state: str, closed_at: str, **columns: SqlValue) -> None:
    """Close an open call; without an `actual_pico` at the whole amount reserved.

    Raises:
        StateError: it is closed already, or unknown.
    """
    values: dict[str, SqlValue] = {"state": state, "closed_at": closed_at, **columns}
    amount = "" if "actual_pico" in columns else ", actual_pico = reserved_pico"
    assignments = ", ".join(f"{name} = ?" for name in values)
    updated = connection.execute(
        f"UPDATE calls SET {assignments}{amount} WHERE call_id = ? AND state = 'open'", (*values.values(), call_id)
    ).rowcount
    if updated != 1:
        found = connection.execute("SELECT state FROM calls WHERE call_id = ?", (call_id,)).fetchone()
        raise StateError(
            f"Call {call_id} is {found['state'] if found else 'unknown'} and cannot become {state}: a call is closed "
            "once. Its charge stands; a person can adjust it."
        )


def scopes_of(connection: sqlite3.Connection, call_id: str) -> tuple[str, str]:
    """The run and the month that a call is charged to."""
    found = connection.execute("SELECT run_id, month FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    return found["run_id"], found["month"]


def note_batch(connection: sqlite3.Connection, call_id: str, batch_id: str) -> None:
    """Write the provider's id of the batch that an open call was submitted in; the same again changes nothing.

    Raises:
        StateError: the call is not an open batch call, or is in another batch.
    """
    updated = connection.execute(
        "UPDATE calls SET batch_id = ?1 WHERE call_id = ?2 AND state = 'open' AND is_batch "
        "AND COALESCE(batch_id, ?1) = ?1",
        (batch_id, call_id),
    ).rowcount
    if updated != 1:
        raise StateError(f"Call {call_id} is no open call for batch {batch_id}: it is closed, or in another batch.")


def forfeit_orphans(connection: sqlite3.Connection, owner: str, closed_at: str) -> int:
    """Close an owner's open calls, except those in a batch; the caller holds the owner's lock. Returns how many."""
    return connection.execute(
        "UPDATE calls SET state = 'forfeited', actual_pico = reserved_pico, closed_at = ?, "
        "reason = 'its worker died' WHERE owner = ? AND state = 'open' AND NOT is_batch",
        (closed_at, owner),
    ).rowcount


def append_adjustment(
    connection: sqlite3.Connection, call_id: str, at: str, delta_pico: int, why: str, by_whom: str
) -> None:
    """Correct what a closed call cost.

    Raises:
        StateError: the call is open or unknown, or would cost less than nothing, or a word is missing.
    """
    try:
        connection.execute(
            "INSERT INTO adjustments (call_id, at, delta_pico, why, by_whom) VALUES (?, ?, ?, ?, ?)",
            (call_id, at, delta_pico, why, by_whom),
        )
    except sqlite3.IntegrityError as error:
        raise StateError(
            f"Call {call_id} cannot be adjusted by {delta_pico} picodollars ({error}). Only a closed call can, by no "
            "more than it cost, with a reason and a name."
        ) from None


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
    change = connection.execute(
        "SELECT scope, at, why FROM budget_changes JOIN budgets USING (scope) "
        "WHERE scope IN (?, ?) AND budgets.frozen ORDER BY number DESC LIMIT 1",
        (run_id, month),
    ).fetchone()
    whose = f"run {run_id}" if change["scope"] == run_id else f"this install for {month.removeprefix('month:')}"
    return BudgetFrozenError(
        f"The budget of {whose} is frozen since {change['at']}: {change['why']}. The prices or the token bound may be "
        "wrong, so no paid call is made. A person must compare the provider's usage page with this ledger and lift the "
        "freeze; no tool can. Stop the run meanwhile, or use a local teacher."
    )


def _over_limit(connection: sqlite3.Connection, run_id: str, month: str, amount_pico: int) -> BudgetExceededError:
    budgets = connection.execute(
        "SELECT scope, limit_pico, limit_pico - spent_pico - reserved_pico AS left, reserved_pico FROM budgets "
        "WHERE scope IN (?, ?) ORDER BY left LIMIT 1",
        (run_id, month),
    ).fetchone()
    left, limit = max(0, int(budgets["left"])), format_usd(budgets["limit_pico"])
    is_run = budgets["scope"] == run_id
    whose = f"The budget of run {run_id}" if is_run else f"The install's budget for {month.removeprefix('month:')}"
    way_out = (
        "If the person agrees, resume the run with a higher budget (resume_distillation with max_budget_usd and "
        "confirmed=true); or keep its best adapter."
        if is_run
        else "A new one begins next month (UTC); only a person can raise it, with OPD_MONTHLY_BUDGET_USD. The run "
        "keeps its best adapter."
    )
    held = format_usd(budgets["reserved_pico"])
    return BudgetExceededError(
        f"{whose} ({limit}) has {format_usd(left)} left (open calls hold {held}), and the next call may cost up to "
        f"{format_usd(amount_pico)}. {way_out}",
        scope="run" if is_run else "month",
        left_pico=left,
        needed_pico=amount_pico,
    )
