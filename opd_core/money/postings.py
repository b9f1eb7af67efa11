"""The ledger's writes, inside the caller's transaction. Triggers decide what is admitted; here they get words."""

from __future__ import annotations

import sqlite3

from opd_core.errors import StateError
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


def is_frozen(connection: sqlite3.Connection, scope: str) -> bool:
    """Whether the budget of a run or a month is frozen."""
    return connection.execute("SELECT 1 FROM budgets WHERE scope = ? AND frozen", (scope,)).fetchone() is not None


def frozen_months(connection: sqlite3.Connection) -> list[str]:
    """The months whose budget is frozen, earliest first."""
    rows = connection.execute("SELECT scope FROM budgets WHERE scope LIKE 'month:%' AND frozen ORDER BY scope")
    return [str(row["scope"]) for row in rows]


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


def is_overrun(connection: sqlite3.Connection, call_id: str) -> bool:
    """Whether a closed call cost more than was reserved for it."""
    sql = "SELECT 1 FROM calls WHERE call_id = ? AND actual_pico > reserved_pico"
    return connection.execute(sql, (call_id,)).fetchone() is not None


def freeze(connection: sqlite3.Connection, call_id: str, at: str, why: str) -> None:
    """Freeze what a call is charged to, as far as it is not yet: its run, its month, and every month begun since then.

    The install has one bill, and a batch that is settled late tells of a wrong price when its month is over. A month
    that begins after this begins frozen: see `months.heed_setting`.
    """
    month_now = f"month:{at[:7]}"  # an earlier one than the call's, when the clock went back
    unfrozen = connection.execute(
        "SELECT scope FROM calls JOIN budgets ON scope = run_id OR (scope LIKE 'month:%' AND scope >= MIN(month, ?)) "
        "WHERE call_id = ? AND NOT frozen",
        (month_now, call_id),
    ).fetchall()
    for record in unfrozen:
        change_budget(connection, record["scope"], at, why, f"call {call_id}", frozen=True)


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


def note_submission(connection: sqlite3.Connection, call_id: str) -> None:
    """Write that an open batch call is being sent; closing it writes over this.

    Raises:
        StateError: the call is not an open batch call without a batch.
    """
    updated = connection.execute(
        "UPDATE calls SET reason = 'being sent in a batch' WHERE call_id = ? AND state = 'open' AND is_batch "
        "AND batch_id IS NULL",
        (call_id,),
    ).rowcount
    if updated != 1:
        raise StateError(f"Call {call_id} is no open call that waits for its batch: it is closed, or in one already.")


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
