"""What `check_setup` says about teachers that cost money: key, prices, the default model, this month's spend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from opd_core.control.preflight.paid import month_ledger, utc_today
from opd_core.errors import OPDError, StalePricesError, UnknownPriceError
from opd_core.message_params import DEFAULT_TEACHER
from opd_core.money.amounts import usd_from_pico
from opd_core.money.pricing import PriceTable
from opd_core.settings import Settings, find_api_key


@dataclass(frozen=True)
class PaidTeacherFacts:
    """What was found. Of the key only whether there is one."""

    api_key_present: bool
    default_teacher: str
    default_teacher_retires_on: str | None
    """"retired", the day when that is at most 30 days away, else `None`."""
    prices_version: str
    prices_age_days: int
    month_spent_usd: float
    month_reserved_usd: float
    month_limit_usd: float
    """What holds for this server, whatever it was told by its own setting."""
    month_limit_set: str
    """Whose word that is, and how a person raises it."""
    run_limit_usd: float
    paid_calls_frozen: bool

    def as_facts(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def look_at_paid_teachers(settings: Settings, today: date | None = None) -> tuple[PaidTeacherFacts, list[OPDError]]:
    """The facts, and what a person should mend before a paid run; a missing key is a fact and no problem.

    Raises:
        OPDError: the ledger or the price table cannot be read.
    """
    today = today or utc_today()
    prices, model = PriceTable.load(), settings.default_teacher or DEFAULT_TEACHER
    retires, problems = _price_problems(prices, model, today, settings.prices_confirmed_on)
    ledger = month_ledger(settings)
    ledger.rebuild_check()
    month = ledger.month_totals()
    rule = ledger.who_rules_the_month()
    facts = PaidTeacherFacts(
        api_key_present=find_api_key(settings.home) is not None,
        default_teacher=model,
        default_teacher_retires_on=retires,
        prices_version=prices.version,
        prices_age_days=prices.age_days(today),
        month_spent_usd=usd_from_pico(month.spent_pico),
        month_reserved_usd=usd_from_pico(month.reserved_pico),
        month_limit_usd=usd_from_pico(month.limit_pico),
        month_limit_set=f"{rule.whose}; only a person raises it, {rule.way_up}",
        run_limit_usd=settings.max_budget_usd,
        paid_calls_frozen=month.frozen,
    )
    return facts, problems


def _price_problems(
    prices: PriceTable, model: str, today: date, confirmed_on: date | None
) -> tuple[str | None, list[OPDError]]:
    """When the default teacher retires, and what is wrong with its price or the age of all prices."""
    problems: list[OPDError] = []
    retires: str | None = None
    try:
        prices.price_for(model, 1, today)
        found = prices.retirement(model, today)
        retires = None if found is None else str(found)
        notice = prices.retirement_notice(model, today)
        if notice is not None:
            problems.append(UnknownPriceError(f"The default teacher {notice} Set OPD_DEFAULT_TEACHER to another."))
    except UnknownPriceError as error:
        problems.append(error)
    try:
        prices.require_fresh(today, confirmed_on)
    except StalePricesError as error:
        problems.append(error)
    return retires, problems
