"""Every cent before it is spent: reserve, send one HTTP attempt, settle together with the reply.

Safe from any number of processes and threads. The limits of the run and of the calendar month (UTC, the whole
install) are enforced by triggers in the database, so that wrong code here cannot admit too much. An open call may be
billed: whoever does not know how one ended forfeits it, and it counts in full. Nothing is ever deleted; corrections
are rows of their own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from opd_core.errors import StateError
from opd_core.money import admission, months, postings, totals
from opd_core.money.amounts import format_usd
from opd_core.money.totals import OpenCall as OpenCall
from opd_core.money.totals import Totals as Totals
from opd_core.seams import utc_moment
from opd_core.state.database import Database, SqlValue

DatabasePlace = Path | Database
"""A home's database, or where its file is."""


class Ledger:
    """The money of one home. Amounts are picodollars; every method that changes something is one transaction.

    Args:
        database: the home's database, or where its file is.
        month_limit_pico: this process's setting of the whole install's limit in a calendar month of UTC. The lowest
            setting that a month has seen rules, whoever spends; only `set_month` lifts it above that.
        clock: gives the present moment in UTC.
        token: so many random bytes, as hexadecimal digits, for call ids.
    """

    def __init__(
        self,
        database: DatabasePlace,
        *,
        month_limit_pico: int,
        clock: Callable[[], datetime] = utc_moment,
        token: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._database = Database.at(database)
        self._month_limit_pico, self._clock, self._token = month_limit_pico, clock, token
        self._is_checked = False

    def open_budget(self, run_id: str, limit_pico: int) -> None:
        """Give a run its budget, at every start of it. The caller has checked the person's ceilings.

        A lower limit than the run had is taken over; a higher one needs `raise_limit`.

        Raises:
            StateError: the run has a lower limit.
            LedgerDamagedError: as `rebuild_check`.
        """
        self.rebuild_check()
        with self._database.write() as connection:
            limit = postings.limit_of(connection, run_id)
            if limit is not None and limit < limit_pico:
                raise StateError(
                    f"Run {run_id} has a budget of {format_usd(limit)}, not {format_usd(limit_pico)}. Resume it with a "
                    "higher max_budget_usd and confirmed=true to raise it."
                )
            if limit != limit_pico:
                postings.change_budget(connection, run_id, self._now(), "its budget", "run", limit_pico=limit_pico)

    def raise_limit(self, run_id: str, new_limit_pico: int) -> None:
        """Raise a run's limit; the caller has a person's confirmation and has checked the ceilings.

        Raises:
            StateError: the run has no budget, or a higher one.
            LedgerDamagedError: as `rebuild_check`.
        """
        self.rebuild_check()
        with self._database.write() as connection:
            limit = postings.limit_of(connection, run_id)
            if limit is None or new_limit_pico < limit:
                problem = "no budget yet" if limit is None else f"the higher budget {format_usd(limit)}"
                raise StateError(f"Run {run_id} has {problem}. Leave its budget as it is, or start a new run.")
            if new_limit_pico > limit:
                postings.change_budget(connection, run_id, self._now(), "raised", "run", limit_pico=new_limit_pico)

    def set_month(self, limit_pico: int, why: str, by_whom: str) -> int:
        """A person's word on the present month's limit, also above the settings it has seen. Never offered as a tool.

        It stands against every process whose setting the month has seen, and against every higher one; a setting
        lower than all of those still lowers the month. Returns the limit before.

        Raises:
            LedgerDamagedError: as `rebuild_check`.
        """
        self.rebuild_check()
        month = self._month()
        with self._database.write() as connection:
            months.heed_setting(connection, month, self._month_limit_pico, self._now())
            before = postings.limit_of(connection, month) or 0
            postings.change_budget(connection, month, self._now(), why, by_whom, limit_pico=limit_pico)
        return before

    def reserve(
        self,
        run_id: str,
        request_key: str,
        model: str,
        price_version: str,
        amount_pico: int,
        owner: str,
        *,
        is_batch: bool = False,
    ) -> str:
        """Admit one HTTP attempt at its highest possible cost; send it at once after this. Returns its call id.

        Args:
            amount_pico: from `pricing.reservation_pico`; positive.
            owner: the worker instance (run and epoch) whose lock proves that it lives, for `recover`.
            is_batch: it is sent in a batch under the call id as custom_id, and outlives its worker.

        Raises:
            BudgetExceededError: it does not fit into what is left of the run's or the month's budget.
            BudgetFrozenError: an earlier call of the run or the month cost more than was reserved.
            DuplicateCallError: the request is open, or its reply is stored (look into the cache again).
            LedgerDamagedError: the first reservation of each instance does `rebuild_check` first.
            StateError: the run has no budget.
        """
        if not self._is_checked:
            self.rebuild_check()
        call_id, month = self._token(16), self._month()
        with self._database.write() as connection:
            months.heed_setting(connection, month, self._month_limit_pico, self._now())
            columns: dict[str, SqlValue] = {
                "call_id": call_id, "run_id": run_id, "month": month, "request_key": request_key, "owner": owner,
                "model": model, "price_version": price_version, "is_batch": is_batch, "reserved_pico": amount_pico,
                "opened_at": self._now(),
            }  # fmt: skip
            refusal = admission.admit_call(connection, columns)
        if refusal is not None:  # raised only here: what the setting did to the month stays
            raise refusal
        return call_id

    def settle(self, call_id: str, actual_pico: int, usage_json: str, request_id: str | None, body: str | None) -> None:
        """Close a call at its computed cost and, in the same transaction, store its reply for good.

        A cost above the reservation is recorded as it is and freezes the run, the month and those that came after it.

        Args:
            body: the reply to keep in the response cache; None charges the call and keeps nothing.

        Raises:
            StateError: the call is closed already, or unknown.
        """
        now = self._now()
        with self._database.write() as connection:
            postings.close_call(
                connection, call_id, "settled", now, actual_pico=actual_pico, usage=usage_json, request_id=request_id
            )
            if postings.is_overrun(connection, call_id):
                postings.freeze(connection, call_id, now, f"call {call_id} cost more than was reserved for it")
            if body is not None:
                connection.execute(
                    "INSERT INTO responses SELECT request_key, call_id, ?, ?, ? FROM calls WHERE call_id = ?",
                    (body, hashlib.sha256(body.encode()).hexdigest(), now, call_id),
                )

    def release(self, call_id: str, reason: str) -> None:
        """Close a call that is known not to be billed: never sent, or refused with a status that costs nothing.

        Raises:
            StateError: as `settle`.
        """
        with self._database.write() as connection:
            postings.close_call(connection, call_id, "released", self._now(), actual_pico=0, reason=reason)

    def forfeit(self, call_id: str, reason: str, *, freeze: bool = False) -> None:
        """Close a call of which nobody knows whether it is billed: charged in full.

        Args:
            freeze: the reply could not be priced, so no more calls until a person has looked.

        Raises:
            StateError: as `settle`.
        """
        with self._database.write() as connection:
            postings.close_call(connection, call_id, "forfeited", self._now(), reason=reason)
            if freeze:
                postings.freeze(connection, call_id, self._now(), reason)

    def adjust(self, call_id: str, delta_pico: int, why: str, by_whom: str) -> None:
        """A person's correction of a closed call, such as a forfeited one that the provider's bill does not show.

        Raises:
            StateError: the call is open or unknown, or would cost less than nothing, or a word is missing.
            LedgerDamagedError: as `rebuild_check`.
        """
        self.rebuild_check()
        with self._database.write() as connection:
            postings.append_adjustment(connection, call_id, self._now(), delta_pico, why, by_whom)

    def unfreeze(self, scope: str, why: str, by_whom: str) -> list[str]:
        """Admit calls again, after a person compared the provider's bill with the ledger. Never offered as a tool.

        Args:
            scope: a run id, or `month:2026-11`; with a month every other frozen month is freed too, since the install
                has one bill and a new month begins as frozen as the one before.

        Returns: what was frozen and is not any more.

        Raises:
            StateError: it is not frozen.
            LedgerDamagedError: as `rebuild_check`.
        """
        self.rebuild_check()
        with self._database.write() as connection:
            frozen = [scope] if postings.is_frozen(connection, scope) else []
            if not frozen:
                raise StateError(f"The budget of {scope} is not frozen, so there is nothing to lift.")
            if scope.startswith("month:"):
                frozen = postings.frozen_months(connection)
            for each in frozen:
                postings.change_budget(connection, each, self._now(), why, by_whom, frozen=False)
        return frozen

    def recover(self, hold_owner: Callable[[str], AbstractContextManager[bool]]) -> int:
        """Forfeit the open calls of dead owners; returns how many.

        Calls in a batch stay open: the provider goes on with a batch whoever died, and its list tells the outcome.

        Args:
            hold_owner: tries, without waiting, to take the lock that this owner held for life, and holds it inside the
                `with`; gives whether it was got. While it is held no such owner lives, so its open calls are orphans.
        """
        forfeited = 0
        for record in self._database.read("SELECT DISTINCT owner FROM calls WHERE state = 'open' AND NOT is_batch"):
            with hold_owner(record["owner"]) as is_dead:
                if is_dead:
                    with self._database.write() as connection:
                        forfeited += postings.forfeit_orphans(connection, record["owner"], self._now())
        return forfeited

    def open_batch_calls(self) -> list[OpenCall]:
        """All runs' calls that were meant for a batch and have no outcome yet, oldest first."""
        return totals.read_open_batch_calls(self._database)

    def note_submission(self, call_ids: Sequence[str]) -> None:
        """Note that the sending of open batch calls begins now: until then it is certain that they are not billed.

        Raises:
            StateError: a call is not an open batch call without a batch.
        """
        with self._database.write() as connection:
            for call_id in call_ids:
                postings.note_submission(connection, call_id)

    def set_batch_id(self, call_ids: Sequence[str], batch_id: str) -> None:
        """Note in which batch open calls were submitted; a second, different id for a call is refused.

        Raises:
            StateError: a call is not an open batch call, or is in another batch.
        """
        with self._database.write() as connection:
            for call_id in call_ids:
                postings.note_batch(connection, call_id, batch_id)

    def count_cache_hits(self, run_id: str, count: int = 1) -> None:
        """Note that stored replies answered so many of a run's requests."""
        with self._database.write() as connection:
            connection.execute("UPDATE budgets SET cache_hits = cache_hits + ? WHERE scope = ?", (count, run_id))

    def totals(self, run_id: str) -> Totals:
        """How a run's budget stands; all zero for a run that has none."""
        return totals.read_totals(self._database, run_id) or Totals(run_id)

    def month_totals(self) -> Totals:
        """How the install's budget of the present month stands, under the limit that this process's next call meets."""
        return months.month_totals(self._database, self._month(), self._month_limit_pico)

    def who_rules_the_month(self) -> months.Rule:
        """Who decided the present month's limit, and how a person raises it."""
        return months.who_rules(self._database.read, self._month(), self._month_limit_pico)

    def frozen_scopes(self, run_id: str) -> list[str]:
        """The budgets whose freeze keeps a run from its next paid call: its own, a month's, both or none."""
        return totals.read_frozen(self._database, run_id, self._month())

    def rebuild_check(self) -> None:
        """Reckon every total anew from the calls; no money moves through an instance before this has passed once.

        Raises:
            LedgerDamagedError: the totals, a guard or a stored reply were changed past the ledger.
        """
        totals.rebuild_check(self._database)
        self._is_checked = True

    def _now(self) -> str:
        return self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _month(self) -> str:
        return f"month:{self._clock():%Y-%m}"
