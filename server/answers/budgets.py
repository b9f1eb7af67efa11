"""Money in words and figures: how a job's budget stands, why it stopped for money, and what can be done then."""

from __future__ import annotations

from opd_core.money.amounts import format_usd, pico_from_usd
from opd_core.money.months import RAISE_COMMAND
from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.words import number
from server.schemas.runs import BudgetEntry

JOB_TOOLS = {"comparison": "compare_adapters", "probe": "probe_teacher"}


def dollars(amount: float | None) -> str:
    """`$4.50`, `$0.0312`: at least cents, and as many places as a small amount needs to be seen."""
    if amount is None:
        return "an unknown amount"
    if amount and amount < 0.0001:
        return "less than $0.0001"
    whole, _, fraction = f"{amount:,.{2 if amount >= 1 else 4}f}".partition(".")
    return f"${whole}.{fraction.rstrip('0'):0<2}"


def exact_dollars(amount: float | None) -> str:
    """A limit as it was given: `$2.035` is not `$2.04`, which would be more than may be spent."""
    return dollars(amount) if amount is None else format_usd(pico_from_usd(amount))


def budget_entry(row: RunRow) -> BudgetEntry | None:
    """How the ledger has the job's budget; null for a job that cannot spend anything."""
    limit, used = row.budget_usd, row.spent_usd + row.reserved_usd
    if limit is None:
        return None
    return BudgetEntry(
        limit_usd=limit,
        spent_usd=row.spent_usd,
        reserved_usd=row.reserved_usd,
        left_usd=max(0.0, limit - used),
        used_pct=round(100 * used / limit, 2) if limit else 100.0 * (used > 0),
        frozen=bool(row.frozen_budgets),
    )


def why_stopped(row: RunRow) -> str:
    """The end of `… stopped at step 12 of 30`."""
    if row.end_reason == "teacher_refused":
        return f"because the teacher's provider refuses to help with this training; {_kept(row)}"
    if row.end_reason != "budget":
        return f"({(row.end_reason or 'no reason recorded').replace('_', ' ')})"
    if row.stopped_by_freeze:
        why = "because paid calls were frozen: a bill was higher than its reservation, or could not be priced"
    elif _is_month(row):
        why = "because the budget of this installation for the month is used up"
    else:
        # the reservation of a call is far above its usual price, so there may be something left
        limit = exact_dollars(row.budget_usd)
        why = f"because its budget of {limit} is used up: the next call could cost more than is left"
    return f"{why}; {_kept(row)}"


def _is_month(row: RunRow) -> bool:
    return RAISE_COMMAND in row.message


def _kept(row: RunRow) -> str:
    if row.kind != "distillation":
        return "it has no result"
    return "the best adapter so far is kept" if row.final_adapter_path else "nothing was trained yet"


def money_sentence(row: RunRow) -> str:
    """How the budget stands, for those who pay."""
    if row.budget_usd is None or row.state == "queued":
        return ""
    hits = (row.latest_metrics or {}).get("teacher_cache_hits")
    free = f"; {hits:,} answers came from the cache for nothing" if hits else ""
    spent = f" It has spent {dollars(row.spent_usd)} of its budget of {exact_dollars(row.budget_usd)}{free}."
    warning = " Four fifths of the budget are used." if row.budget_warning and row.state not in END_STATES else ""
    return spent + warning


def after_the_budget(row: RunRow) -> str:
    """The next step of a job that stopped for lack of money."""
    resume = f"resume_distillation with run_id {row.run_id}"
    if row.kind != "distillation":
        resume = f"{JOB_TOOLS[row.kind]} again"
    if row.frozen_budgets:
        commands = " and ".join(f"`opd unfreeze {scope} --why TEXT`" for scope in row.frozen_budgets)
        return (
            "Paid calls are frozen and no tool can change that. Tell the user to compare the provider's usage page "
            f"with `opd ledger {row.run_id}` in a terminal, and then to lift the freeze there with {commands}. After "
            f"that call {resume}."
        )
    if row.stopped_by_freeze:
        return f"A person has lifted the freeze. Call {resume} to go on."
    if _is_month(row):
        return (
            "A new month's budget begins on the first (UTC); until then only a person can raise it, in a terminal, "
            f"with `{RAISE_COMMAND}`. Then call {resume}."
        )
    confirmed = " and confirmed=true" if row.kind == "distillation" else ""
    budget = "judge_budget_usd" if row.kind == "comparison" else "max_budget_usd"
    kept = "; or use the adapter that is kept" if row.final_adapter_path else ""
    return (
        "Ask the user for a larger budget, naming what was spent. If they agree, call "
        f"{resume}, a larger {budget}{confirmed}{kept}. Answers already paid for are not paid again."
    )


def budget_lines(budget: BudgetEntry | None, is_near_limit: bool = False) -> list[str]:
    """Spent, reserved and left, with a warning at four fifths."""
    if budget is None:
        return []
    lines = [
        f"- budget: {dollars(budget.spent_usd)} spent and {dollars(budget.reserved_usd)} reserved of "
        f"{exact_dollars(budget.limit_usd)} ({number(budget.used_pct)} %)"
    ]
    lines += ["- warning: four fifths of the budget are used"] if is_near_limit else []
    return lines + (
        ["- paid calls are frozen: only a person can lift that, with opd unfreeze"] if budget.frozen else []
    )
