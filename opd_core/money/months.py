"""Whose word rules a month's limit for the whole install.

Several servers, also on several settings, may spend from one home. A month begins at the setting
(`OPD_MONTHLY_BUDGET_USD`) of the process that spends first. A setting lower than all that the month has seen lowers its
limit for everybody; a higher one changes nothing. Only a person raises it, at the terminal, and that word stands
against the settings it overruled. All of it is in `budget_changes`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from opd_core.money.postings import change_budget, frozen_months, limit_of
from opd_core.money.totals import Totals, read_totals
from opd_core.state.database import Database, SqlValue
from opd_core.types import clean_text

SETTING = "OPD_MONTHLY_BUDGET_USD"
RAISE_COMMAND = "opd set-month --to-usd DOLLARS --why TEXT"
BY_SETTING = "install"

Read = Callable[[str, Sequence[SqlValue]], list[sqlite3.Row]]


def heed_setting(connection: sqlite3.Connection, month: str, setting_pico: int, at: str) -> None:
    """Begin a month at a process's setting, or lower it to that; inside the transaction of its reservation."""
    read = reader(connection)
    limit, lowest = limit_of(connection, month), _lowest_setting(read, month)
    if limit is None:
        # a freeze does not end with its month: a person has still to look
        earlier = frozen_months(connection)
        why = f"still frozen since {earlier[-1]}" if earlier else SETTING
        change_budget(connection, month, at, why, BY_SETTING, limit_pico=setting_pico, frozen=bool(earlier))
    elif lowest is None or setting_pico < lowest:
        lower = _last_word(read, month)
        change_budget(connection, month, at, SETTING, BY_SETTING, limit_pico=setting_pico)
        if limit < setting_pico:  # a person's word; the setting is noted all the same, and overruled if that is raised
            change_budget(connection, month, lower["at"], lower["why"], lower["by_whom"], limit_pico=limit)


def month_totals(database: Database, month: str, setting_pico: int) -> Totals:
    """How a month stands for a process with this setting: under the limit that its next call meets."""
    found = read_totals(database, month)
    if found is None:
        frozen = database.read("SELECT 1 FROM budgets WHERE scope LIKE 'month:%' AND frozen")
        return Totals(month, limit_pico=setting_pico, frozen=bool(frozen))
    lowest = _lowest_setting(database.read, month)
    lowers = lowest is None or setting_pico < lowest
    return replace(found, limit_pico=min(found.limit_pico, setting_pico)) if lowers else found


class Rule(NamedTuple):
    """Whose word a month's limit is, and what a person does to raise it, as parts of sentences."""

    whose: str
    way_up: str


def who_rules(read: Read, month: str, setting_pico: int | None = None) -> Rule:
    """Who decided a month's limit; with a setting, as the next call of its process finds it."""
    lowest = _lowest_setting(read, month)
    last = None if lowest is None else _last_word(read, month)
    if lowest is None or last is None or (setting_pico is not None and setting_pico < min(lowest, last["limit_pico"])):
        return Rule(f"by {SETTING} of this server", f"with {SETTING}, where this server has it from")
    way_up = f"in a terminal with: {RAISE_COMMAND}"
    if last["by_whom"] == BY_SETTING:
        return Rule(f"by the lowest {SETTING} of all that spent this month", way_up)
    return Rule(f"by {clean_text(last['by_whom'], 40)} on {last['at'][:10]}: {clean_text(last['why'], 120)}", way_up)


def reader(connection: sqlite3.Connection) -> Read:
    """How a transaction reads."""
    return lambda sql, parameters: connection.execute(sql, parameters).fetchall()


def _last_word(read: Read, month: str) -> sqlite3.Row:
    """The change that made a month's limit what it is."""
    return read(
        "SELECT at, limit_pico, why, by_whom FROM budget_changes AS c WHERE scope = ?1 AND limit_pico IS NOT "
        "(SELECT limit_pico FROM budget_changes WHERE scope = ?1 AND number < c.number ORDER BY number DESC LIMIT 1) "
        "ORDER BY number DESC LIMIT 1",
        (month,),
    )[0]


def _lowest_setting(read: Read, month: str) -> int | None:
    found = read(
        "SELECT MIN(limit_pico) AS lowest FROM budget_changes WHERE scope = ? AND by_whom = ?", (month, BY_SETTING)
    )
    return None if not found or found[0]["lowest"] is None else int(found[0]["lowest"])
