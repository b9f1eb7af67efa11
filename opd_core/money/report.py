"""The ledger for a person's eyes: budgets and calls as they are recorded, newest first. Only reads."""

from __future__ import annotations

import json
from dataclasses import dataclass

from opd_core.money.totals import Totals, read_totals
from opd_core.state.database import Database

MOST_LISTED = 50


@dataclass(frozen=True)
class CallRecord:
    """One HTTP attempt. Amounts are picodollars."""

    call_id: str
    run_id: str
    opened_at: str
    model: str
    state: str
    """"open", "settled", "released" (costs nothing) or "forfeited" (outcome unknown, charged in full)."""
    reserved_pico: int
    charged_pico: int | None
    """With a person's corrections; None while it is open."""
    adjusted_pico: int
    """The corrections among it."""
    input_tokens: int | None
    """Billed tokens of the prompt, those written to and read from the provider's cache included."""
    output_tokens: int | None
    request_id: str | None
    batch_id: str | None
    reason: str | None


def read_budgets(database: Database, limit: int = MOST_LISTED) -> tuple[list[Totals], int]:
    """The newest budgets of runs and months, and how many older ones there are."""
    records = database.read(
        "SELECT scope, COUNT(*) OVER () AS total FROM budget_changes GROUP BY scope ORDER BY MIN(number) DESC LIMIT ?",
        (limit,),
    )
    found = [read_totals(database, record["scope"]) for record in records]
    return [totals for totals in found if totals is not None], records[0]["total"] - len(records) if records else 0


def read_calls(database: Database, scope: str, limit: int = MOST_LISTED) -> tuple[list[CallRecord], int]:
    """The newest calls of a run or a month, and how many older ones there are."""
    column = "month" if scope.startswith("month:") else "run_id"
    records = database.read(
        "SELECT call_id, run_id, opened_at, model, state, reserved_pico, request_id, batch_id, reason, actual_pico, "
        "usage, (SELECT COALESCE(SUM(delta_pico), 0) FROM adjustments AS a WHERE a.call_id = calls.call_id) "
        "AS adjusted_pico, "
        f"COUNT(*) OVER () AS total FROM calls WHERE {column} = ? ORDER BY number DESC LIMIT ?",
        (scope, limit),
    )
    calls = []
    for record in records:
        values = {name: record[name] for name in CallRecord.__dataclass_fields__ if name in record.keys()}  # noqa: SIM118
        usage = None if record["usage"] is None else json.loads(record["usage"])
        prompt = ("input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")
        calls.append(
            CallRecord(
                **values,
                charged_pico=None if record["actual_pico"] is None else record["actual_pico"] + record["adjusted_pico"],
                input_tokens=None if usage is None else sum(usage.get(name, 0) for name in prompt),
                output_tokens=None if usage is None else usage.get("output_tokens", 0),
            )
        )
    return calls, records[0]["total"] - len(records) if records else 0
