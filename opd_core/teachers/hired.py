"""The paid teacher of one job, put together: budget, response cache, prices, and the record of its texts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from opd_core.config import RunConfig
from opd_core.money.amounts import pico_from_usd
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable
from opd_core.money.response_cache import ResponseCache
from opd_core.settings import Settings
from opd_core.teachers.claude import ClaudeSettings, ClaudeTeacher
from opd_core.teachers.completions import Append, CompletionsLog
from opd_core.teachers.waiting import OnWait, utc_moment


def hire_claude(
    config: RunConfig,
    settings: Settings,
    database: Path,
    *,
    run_id: str,
    owner: str,
    hold_owner: Callable[[str], AbstractContextManager[bool]],
    append_of: Callable[[str], Append],
    on_wait: OnWait,
    should_stop: Callable[[], bool],
) -> ClaudeTeacher:
    """Open the job's budget, charge the calls that its dead predecessors left open, and make its teacher.

    Args:
        config: names model and `max_budget_usd`, which the preflight has checked against the person's ceilings.
        owner: the worker instance whose lock proves that it lives.
        hold_owner: see `Ledger.recover`.
        append_of: for a run id, what adds lines to that run's `teacher_completions` file.

    Raises:
        LedgerDamagedError: the ledger does not add up; nothing is spent with it.
        StateError: the ledger has a lower limit for this job, which only a confirmed resume raises.
        ConfigError: the address in settings.toml is not allowed, or the price table is damaged.
    """
    hired = ClaudeSettings.from_config(
        config,
        run_id=run_id,
        owner=owner,
        base_url=settings.teacher_base_url,
        prices_confirmed_on=settings.prices_confirmed_on,
    )
    ledger = Ledger(database, month_limit_pico=pico_from_usd(settings.monthly_budget_usd))
    ledger.recover(hold_owner)
    ledger.open_budget(run_id, pico_from_usd(config.max_budget_usd))
    return ClaudeTeacher(
        hired,
        ledger=ledger,
        cache=ResponseCache(database),
        prices=PriceTable.load(),
        completions=CompletionsLog(append_of, utc_moment),
        on_wait=on_wait,
        should_stop=should_stop,
        hold_owner=hold_owner,
    )
