"""How a budget stands, and whether the ledger still adds up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from opd_core.errors import LedgerDamagedError
from opd_core.money.amounts import format_usd
from opd_core.state.database import Database
from opd_core.state.migrations import MONEY_GUARDS

WARNING_FRACTION = 0.8


@dataclass(frozen=True)
class Totals:
    """One budget, of a run or of a month, in picodollars. No admission takes `spent + reserved` above the limit."""

    scope: str
    limit_pico: int = 0
    spent_pico: int = 0
    """What closed calls cost, corrections included."""
    reserved_pico: int = 0
    """What open calls may still cost."""
    frozen: bool = False
    """No call is admitted until a person has lifted it."""
    calls: int = 0
    """HTTP attempts, whatever became of them."""
    open_calls: int = 0
    settled_calls: int = 0
    released_calls: int = 0
    """Known not to be billed."""
    forfeited_calls: int = 0
    """Outcome unknown: charged in full."""
    forfeited_pico: int = 0
    """The part of `spent_pico` that only may have been billed."""
    cache_hits: int = 0
    """Requests answered by a stored reply, for nothing."""

    @property
    def left_pico(self) -> int:
        """What may still be reserved."""
        return max(0, self.limit_pico - self.spent_pico - self.reserved_pico)

    @property
    def used_fraction(self) -> float:
        """Spent and reserved as a fraction of the limit; 0 for a limit of nothing with nothing spent."""
        used = self.spent_pico + self.reserved_pico
        return used / self.limit_pico if self.limit_pico else float(used > 0)

    @property
    def is_near_limit(self) -> bool:
        """Whether 80 % are spent or reserved: time to warn."""
        return self.used_fraction >= WARNING_FRACTION


@dataclass(frozen=True)
class OpenCall:
    """A reservation whose outcome is not recorded yet."""

    call_id: str
    run_id: str
    request_key: str
    model: str
    reserved_pico: int
    batch_id: str | None
    """The provider's id of the batch it was submitted in; None when that is not known (yet)."""
    owner: str
    """The worker instance that reserved it."""
    opened_at: datetime
    """By this machine's clock, in UTC; the day whose price was reserved."""
    was_submitted: bool
    """Whether its sending has begun; if not, it cannot have been billed."""


def read_totals(database: Database, scope: str) -> Totals | None:
    """The totals of a run id or of `month:2026-11`, from one consistent moment; None when it has no budget yet."""
    column = "month" if scope.startswith("month:") else "run_id"
    records = database.read(
        f"""
        SELECT scope, limit_pico, spent_pico, budgets.reserved_pico, frozen, COUNT(call_id) AS calls,
            COALESCE(SUM(state = 'open'), 0) AS open_calls, COALESCE(SUM(state = 'settled'), 0) AS settled_calls,
            COALESCE(SUM(state = 'released'), 0) AS released_calls,
            COALESCE(SUM(state = 'forfeited'), 0) AS forfeited_calls,
            COALESCE(SUM(CASE state WHEN 'forfeited' THEN actual_pico + (SELECT COALESCE(SUM(delta_pico), 0)
                FROM adjustments WHERE adjustments.call_id = calls.call_id) END), 0) AS forfeited_pico, cache_hits
        FROM budgets LEFT JOIN calls ON calls.{column} = budgets.scope WHERE scope = ? GROUP BY scope
        """,
        (scope,),
    )
    if not records:
        return None
    values = dict(records[0])
    return Totals(**{**values, "frozen": bool(values["frozen"])})


def read_frozen(database: Database, run_id: str, month: str) -> list[str]:
    """As `Ledger.frozen_scopes`: a month that has not begun is as frozen as any before it."""
    records = database.read(
        "SELECT scope FROM budgets WHERE frozen AND (scope IN (?1, ?2) OR (scope LIKE 'month:%' AND NOT EXISTS "
        "(SELECT 1 FROM budgets WHERE scope = ?2))) ORDER BY scope",
        (run_id, month),
    )
    return [str(record["scope"]) for record in records]


def read_open_batch_calls(database: Database) -> list[OpenCall]:
    """As `Ledger.open_batch_calls`."""
    records = database.read(
        "SELECT call_id, run_id, request_key, model, reserved_pico, batch_id, owner, opened_at, "
        "(reason IS NOT NULL OR batch_id IS NOT NULL) AS was_submitted "
        "FROM calls WHERE state = 'open' AND is_batch ORDER BY number"
    )
    return [
        OpenCall(**{
            **dict(record),
            "opened_at": datetime.fromisoformat(record["opened_at"]),
            "was_submitted": bool(record["was_submitted"]),
        })
        for record in records
    ]  # fmt: skip


def rebuild_check(database: Database) -> None:
    """Compare every total with the calls and corrections it must follow from, and the guards with the schema.

    Raises:
        LedgerDamagedError: something was changed past the ledger; names the first difference.
    """
    if not database.read("SELECT 1 FROM sqlite_master"):
        return
    kept = {record["sql"] for record in database.read("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
    missing = [guard for guard in MONEY_GUARDS if guard not in kept]
    if missing:
        name = missing[0].removeprefix("CREATE ").removeprefix("UNIQUE ").split()[1]
        raise _damaged(f"its guard {name} was removed or changed")
    for record in database.read(_DIFFERENCES):
        held, implied = record["held"], record["implied"]
        if record["what"] not in ("spent", "reserved"):
            raise _damaged(f"{record['what']} of {record['scope']} is {held}, but {implied} by its records")
        raise _damaged(
            f"{record['scope']} has {format_usd(held or 0)} {record['what']} by its total, but "
            f"{format_usd(implied)} by its calls"
        )
    for record in database.read(_STRAY_RESPONSES):
        raise _damaged(f"the stored reply of call {record['call_id']} belongs to no settled call")


_DIFFERENCES = """
    WITH postings (scope, spent, reserved) AS (
        SELECT run_id, COALESCE(actual_pico, 0), iif(state = 'open', reserved_pico, 0) FROM calls
        UNION ALL SELECT month, COALESCE(actual_pico, 0), iif(state = 'open', reserved_pico, 0) FROM calls
        UNION ALL SELECT run_id, delta_pico, 0 FROM adjustments JOIN calls USING (call_id)
        UNION ALL SELECT month, delta_pico, 0 FROM adjustments JOIN calls USING (call_id)
        UNION ALL SELECT scope, 0, 0 FROM budgets
        UNION ALL SELECT scope, 0, 0 FROM budget_changes
    ),
    implied AS (
        SELECT scope, SUM(spent) AS spent, SUM(reserved) AS reserved,
            (SELECT limit_pico FROM budget_changes AS c WHERE c.scope = postings.scope ORDER BY number DESC LIMIT 1)
                AS limit_pico,
            (SELECT frozen FROM budget_changes AS c WHERE c.scope = postings.scope ORDER BY number DESC LIMIT 1)
                AS frozen
        FROM postings GROUP BY scope
    )
    SELECT scope, 'spent' AS what, spent_pico AS held, spent AS implied FROM implied LEFT JOIN budgets USING (scope)
        WHERE spent_pico IS NOT spent
    UNION ALL SELECT scope, 'reserved', reserved_pico, reserved FROM implied LEFT JOIN budgets USING (scope)
        WHERE reserved_pico IS NOT reserved
    UNION ALL SELECT scope, 'the limit (picodollars)', budgets.limit_pico, implied.limit_pico
        FROM implied LEFT JOIN budgets USING (scope) WHERE budgets.limit_pico IS NOT implied.limit_pico
    UNION ALL SELECT scope, 'the freeze', budgets.frozen, implied.frozen
        FROM implied LEFT JOIN budgets USING (scope) WHERE budgets.frozen IS NOT implied.frozen
    LIMIT 1
"""

_STRAY_RESPONSES = """
    SELECT responses.call_id FROM responses LEFT JOIN calls
        ON calls.call_id = responses.call_id AND calls.request_key = responses.request_key AND state = 'settled'
    WHERE calls.call_id IS NULL LIMIT 1
"""


def _damaged(difference: str) -> LedgerDamagedError:
    return LedgerDamagedError(
        f"The ledger does not add up: {difference}. Something other than this program changed opd.db. No paid call is "
        "made with it: a person must put back a copy of opd.db from before the change, or set OPD_HOME to a new folder "
        "and count what was spent there. Local teachers and everything already trained still work."
    )
