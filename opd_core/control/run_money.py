"""A run's budget: how it stands, which the ledger knows and the run's own record does not, and a larger one."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from opd_core.errors import StateError
from opd_core.money.admission import FROZEN_MARK
from opd_core.money.amounts import pico_from_usd, usd_from_pico
from opd_core.money.ledger import Ledger
from opd_core.state.rows import RunRow


def with_money(row: RunRow, ledger: Ledger) -> RunRow:
    """The row with budget, spending and freezes, in dollars, as the ledger has them now; a free run stays as it is."""
    if not row.is_paid:
        return row
    totals = ledger.totals(row.run_id)
    stopped_by_freeze = row.end_reason == "budget" and FROZEN_MARK in row.message
    asked = row.config.get("judge_budget_usd") if row.kind == "comparison" else row.config["max_budget_usd"]
    return replace(
        row,
        budget_usd=usd_from_pico(totals.limit_pico) if totals.limit_pico else asked,
        spent_usd=usd_from_pico(totals.spent_pico),
        reserved_usd=usd_from_pico(totals.reserved_pico),
        budget_warning=totals.is_near_limit,
        budget_exceeded=row.end_reason == "budget" and not stopped_by_freeze,
        frozen_budgets=tuple(ledger.frozen_scopes(row.run_id)),
        stopped_by_freeze=stopped_by_freeze,
    )


def raise_budget(run_id: str, budget_usd: float, ledger: Ledger) -> None:
    """Let a run that has a budget spend up to `budget_usd`, when that is more than before."""
    limit_pico = pico_from_usd(budget_usd)
    if ledger.totals(run_id).limit_pico < limit_pico:
        with contextlib.suppress(StateError):  # it has no budget yet: its worker opens one
            ledger.raise_limit(run_id, limit_pico)
