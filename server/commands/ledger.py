"""What a person does with the money in a terminal: look, correct a charge, lift a freeze, set the month's limit.

None of it is a tool: an assistant can tell the user the command, and the ledger records who typed it and why.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Any

from opd_core.errors import ConfigError, LedgerDamagedError, StateError
from opd_core.money.amounts import format_usd, pico_from_usd, usd_from_pico
from opd_core.money.ledger import Ledger
from opd_core.money.report import CallRecord, read_budgets, read_calls
from opd_core.money.totals import Totals, read_totals
from opd_core.state.database import Database
from opd_core.state.store import RunStore
from opd_core.types import clean_text
from server.settings import Settings, read_settings

BUDGET_COLUMNS = ("budget", "limit", "spent", "reserved", "left", "frozen", "calls", "cache hits")
CALL_COLUMNS = ("call", "opened (UTC)", "model", "state", "reserved", "charged", "tokens in/out", "request id", "note")
MAX_WHY_CHARACTERS = 300


def show(scope: str | None, as_json: bool) -> int:
    """`opd ledger [RUN] [--json]`: all budgets, or one and its calls; 1 when the ledger does not add up.

    Raises:
        OPDError: no such run, or the home cannot be used.
    """
    settings = read_settings()
    ledger, database = _ledger(settings), Database(settings.home.database)
    calls: list[CallRecord] | None = None
    if scope is None:
        budgets, cut = read_budgets(database)
    else:
        budgets = [_one_budget(settings, database, scope)]
        calls, cut = read_calls(database, budgets[0].scope)
    try:
        ledger.rebuild_check()
        damage = None
    except LedgerDamagedError as error:
        damage = str(error)
    if as_json:
        print(json.dumps(_as_data(ledger, budgets, calls, cut) | {"damage": damage}, indent=2))
    else:
        print("\n".join(_as_text(ledger, budgets, calls, cut)))
        if damage is not None:
            print(damage, file=sys.stderr)
    return 0 if damage is None else 1


def adjust(call_id: str, delta_usd: str, why: str) -> int:
    """`opd adjust CALL --delta-usd X --why TEXT`: a correction beside a closed call, which itself never changes.

    Raises:
        OPDError: the amount, the reason or the call will not do.
    """
    settings = read_settings()
    delta = _signed_pico(delta_usd)
    _ledger(settings).adjust(call_id, delta, _reason(why), getpass.getuser())
    found = Database(settings.home.database).read("SELECT run_id FROM calls WHERE call_id = ?", (call_id,))
    totals = _ledger(settings).totals(found[0]["run_id"])
    print(
        f"Call {call_id} is corrected by {format_usd(delta)}; {totals.scope} has spent {format_usd(totals.spent_pico)}."
    )
    return 0


def unfreeze(scope: str, why: str) -> int:
    """`opd unfreeze SCOPE --why TEXT`.

    Raises:
        OPDError: it is not frozen, or there is no reason.
    """
    lifted = _ledger(read_settings()).unfreeze(scope, why=_reason(why), by_whom=getpass.getuser())
    print(f"Paid calls of {' and '.join(lifted)} are admitted again.")
    return 0


def set_month(to_usd: str, why: str) -> int:
    """`opd set-month --to-usd X --why TEXT`: the present month's limit for everything in this home.

    Raises:
        OPDError: the amount or the reason will not do.
    """
    settings = read_settings()
    ledger, limit = _ledger(settings), pico_from_usd(to_usd)
    settings.home.prepare()
    before = ledger.set_month(limit, _reason(why), getpass.getuser())
    month = ledger.month_totals()
    print(
        f"Everything in this home may cost {format_usd(limit)} in {month.scope.removeprefix('month:')} (before: "
        f"{format_usd(before)}); {format_usd(month.left_pico)} are left. The next month begins at "
        "OPD_MONTHLY_BUDGET_USD again. A server whose setting is lower than any this month has seen still lowers it."
    )
    return 0


def _ledger(settings: Settings) -> Ledger:
    return Ledger(settings.home.database, month_limit_pico=pico_from_usd(settings.monthly_budget_usd))


def _one_budget(settings: Settings, database: Database, scope: str) -> Totals:
    known = read_totals(database, scope)
    if known is None:
        row = RunStore(settings.home.database).resolve(scope)
        known = read_totals(database, row.run_id)
        if known is None:
            raise StateError(f"{row.run_id} has no budget in the ledger: it has not asked a paid teacher yet.")
    return known


def _as_data(ledger: Ledger, budgets: Sequence[Totals], calls: Sequence[CallRecord] | None, cut: int) -> dict[str, Any]:
    month = ledger.month_totals()
    data: dict[str, Any] = {
        "month": {**_in_usd(asdict(month)), "limit_set": ledger.who_rules_the_month().whose},
        "budgets": [_in_usd(asdict(totals)) for totals in budgets],
    }
    if calls is not None:
        data["calls"] = [_in_usd(asdict(call)) for call in calls]
    return data | {"older_not_shown": cut}


def _in_usd(record: dict[str, Any]) -> dict[str, Any]:
    """With a dollar figure beside every exact one."""
    amounts = {name: value for name, value in record.items() if name.endswith("_pico") and value is not None}
    return record | {f"{name.removesuffix('_pico')}_usd": usd_from_pico(value) for name, value in amounts.items()}


def _as_text(ledger: Ledger, budgets: Sequence[Totals], calls: Sequence[CallRecord] | None, cut: int) -> list[str]:
    month, rule = ledger.month_totals(), ledger.who_rules_the_month()
    lines = _table(BUDGET_COLUMNS, [_budget_cells(totals) for totals in budgets]) if budgets else ["No paid call yet."]
    if calls is not None:
        lines += ["", *_table(CALL_COLUMNS, [_call_cells(call) for call in calls])]
    if cut:
        lines.append(f"… and {cut:,} older {'budgets' if calls is None else 'calls'} that are not shown.")
    return [
        *lines,
        "",
        f"The limit of everything in {month.scope.removeprefix('month:')} is {format_usd(month.limit_pico)} "
        f"({rule.whose}); a person raises it {rule.way_up}",
    ]


def _budget_cells(totals: Totals) -> tuple[str, ...]:
    amounts = (totals.limit_pico, totals.spent_pico, totals.reserved_pico, totals.left_pico)
    frozen = "FROZEN" if totals.frozen else "no"
    return (totals.scope, *map(format_usd, amounts), frozen, f"{totals.calls:,}", f"{totals.cache_hits:,}")


def _call_cells(call: CallRecord) -> tuple[str, ...]:
    charged = "" if call.charged_pico is None else format_usd(call.charged_pico)
    tokens = "" if call.input_tokens is None else f"{call.input_tokens:,}/{call.output_tokens or 0:,}"
    note = f"adjusted by {format_usd(call.adjusted_pico)}" if call.adjusted_pico else call.reason or ""
    return (
        *(call.call_id, call.opened_at[:19].replace("T", " "), clean_text(call.model, 40), call.state),
        *(format_usd(call.reserved_pico), charged, tokens, clean_text(call.request_id or call.batch_id or "", 40)),
        clean_text(note, 60).replace("\n", " "),
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *rows)
    ]


def _signed_pico(text: str) -> int:
    try:
        sign = -1 if Decimal(text) < 0 else 1
    except InvalidOperation:
        sign = 1
    return sign * pico_from_usd(text.strip().removeprefix("-") if sign < 0 else text)


def _reason(why: str) -> str:
    reason = clean_text(why.strip(), MAX_WHY_CHARACTERS)
    if not reason:
        raise ConfigError("--why is empty. Say in a few words what you compared or decided; it stays in the ledger.")
    return reason
