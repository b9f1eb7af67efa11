"""What surrounds every paid call: the cached reply before it, the reservation, the settlement, the records."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

from opd_core.errors import TeacherRefusedError, UnknownPriceError
from opd_core.guidance import MalformedReplyError
from opd_core.message_params import body_bytes
from opd_core.money.amounts import format_usd, usd_from_pico
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable, cost_pico, prompt_upper_bound, reservation_pico
from opd_core.money.response_cache import ResponseCache
from opd_core.teachers.completions import Completion, CompletionsLog
from opd_core.teachers.replies import FRONTIER_REFUSAL, BadReplyError, Reply, decode, read_message, without_secrets
from opd_core.teachers.requests import Answer, Request, Reservation
from opd_core.teachers.retrying import CallFailed
from opd_core.teachers.waiting import Seams
from opd_core.training.teaching import TeacherStats

log = logging.getLogger(__name__)


class Cashier:
    """The money and the records of one run's teacher; safe from several threads.

    Args:
        redact: takes the API key out of a text, before anything of a reply is kept.
    """

    def __init__(
        self,
        run_id: str,
        owner: str,
        ledger: Ledger,
        cache: ResponseCache,
        prices: PriceTable,
        completions: CompletionsLog,
        seams: Seams,
        prices_confirmed_on: date | None,
        redact: Callable[[str], str],
    ) -> None:
        self.run_id = run_id
        self.ledger = ledger
        self._owner = owner
        self._cache = cache
        self._prices = prices
        self._prices_confirmed_on = prices_confirmed_on
        self._completions = completions
        self._seams = seams
        self._redact = redact
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("calls", "cache_hits", "refused", "truncated", "malformed"), 0)
        self._cost_pico = 0
        self._cost_before_pico = ledger.totals(run_id).spent_pico
        self._latency_seconds = 0.0

    def on_behalf(self, run_id: str) -> Cashier:
        """Another run's cashier: what it settles is counted and recorded as that run's."""
        other = copy.copy(self)
        other.run_id, other._lock, other._counts = run_id, threading.Lock(), dict(self._counts)
        return other

    def cached(self, request: Request) -> Answer | None:
        """The answer from the response cache, or None.

        Raises:
            LedgerDamagedError: the stored reply was changed.
        """
        body = self._cache.get(request.key)
        if body is None:
            return None
        reply = read_message(decode(body))
        value, standing = _judge(reply, request.parse)
        self.ledger.count_cache_hits(self.run_id)
        self._count("cache_hits", standing)
        self._completions.write(
            self.run_id,
            Completion(request.kind, request.key, request.version, request.sample_index, reply, standing, True),
        )
        return Answer(value)

    def reserve(self, request: Request, *, is_batch: bool = False) -> Reservation:
        """Hold the most that one attempt can cost; it is sent right after this, or not at all.

        Raises:
            BudgetExceededError, BudgetFrozenError, DuplicateCallError: see `Ledger.reserve`.
            UnknownPriceError, StalePricesError: the call has no price that could be relied on.
        """
        today = self._seams.now().date()
        self._prices.require_fresh(today, self._prices_confirmed_on)
        size = body_bytes(request.params)
        price = self._prices.price_for(request.model, prompt_upper_bound(size), today)
        amount = reservation_pico(price, size, request.params["max_tokens"], is_batch)
        call_id = self.ledger.reserve(
            self.run_id, request.key, request.model, price.version, amount, self._owner, is_batch=is_batch
        )
        return Reservation(call_id, request.key, request.model, amount, today)

    def fail(self, reservation: Reservation, failure: CallFailed) -> None:
        """Close an attempt that gave no message."""
        reason = f"{failure} [{failure.request_id}]" if failure.request_id else str(failure)
        if failure.outcome == "released":
            self.ledger.release(reservation.call_id, reason)
        else:
            self._forfeit(reservation, reason)

    def abandon(self, reservation: Reservation) -> None:
        """Close an attempt that was cut off by us: the provider may go on with it and bill it."""
        self._forfeit(reservation, "the call was cut off while it was under way")

    def settle(
        self,
        reservation: Reservation,
        request: Request | None,
        body: str,
        *,
        request_id: str | None = None,
        latency_seconds: float = 0.0,
        batch_id: str | None = None,
    ) -> tuple[Answer, Reply | None]:
        """Close an attempt by what came back with status 200; the reply is stored in the same transaction.

        Args:
            request: None when a batch of an earlier worker is taken over: its reply is stored and not read.

        Raises:
            TeacherRefusedError: the provider refuses because of what the text is for.
        """
        body = without_secrets(body, self._redact)
        request_id = self._redact(request_id) if request_id else None
        came = Completion(
            *_names(request, reservation),
            *(None, "malformed", False),
            model=reservation.model,
            body=body,
            cost_pico=reservation.amount_pico,
            latency_seconds=latency_seconds,
            request_id=request_id,
            batch_id=batch_id,
        )
        try:
            reply = read_message(decode(body))
            cost = cost_pico(
                self._prices,
                reply.model,
                reply.usage,
                batch_id is not None,
                when=reservation.day,
                requested_model=reservation.model,
            )
        except BadReplyError as error:
            self._forfeit(reservation, str(error))
            return self._unusable(came, f"{error}; it is charged in full"), None
        except UnknownPriceError as error:
            self._forfeit(reservation, str(error), freeze=True)
            return self._unusable(replace(came, reply=reply), str(error)), None
        value, standing = _judge(reply, request.parse) if request else (None, reply.standing)
        # a refusal of the whole undertaking is not kept, so that it can be asked again once a person has cleared it
        kept = None if reply.refusal == FRONTIER_REFUSAL else body
        self.ledger.settle(reservation.call_id, cost, reply.usage.as_json(), request_id, kept)
        if cost > reservation.amount_pico:
            log.warning(
                "A reply cost %s, more than the %s reserved; paid calls are frozen until a person has looked.",
                format_usd(cost),
                format_usd(reservation.amount_pico),
            )
        self._count("calls", standing, cost, latency_seconds)
        self._completions.write(self.run_id, replace(came, reply=reply, standing=standing, cost_pico=cost))
        if reply.refusal == FRONTIER_REFUSAL:
            raise TeacherRefusedError(
                f"The teacher ({reply.model}) refuses to help: its provider sees the request as help in developing a "
                "competing AI model, which its terms restrict. The run stops and does not try to get around this. "
                "Read the provider's terms, ask it for permission, or use a local teacher (teacher_kind='local')."
            )
        return Answer(value), reply

    def stats(self) -> TeacherStats:
        """Counts since this was made."""
        with self._lock:
            calls = self._counts["calls"]
            mean = 1000.0 * self._latency_seconds / calls if calls else 0.0
            return TeacherStats(
                latency_ms_mean=mean,
                cost_usd=usd_from_pico(self._cost_pico),
                cost_before_usd=usd_from_pico(self._cost_before_pico),
                **self._counts,
            )

    def _forfeit(self, reservation: Reservation, reason: str, *, freeze: bool = False) -> None:
        log.warning("A call to the teacher is charged in full: %s", reason)
        self.ledger.forfeit(reservation.call_id, reason, freeze=freeze)
        with self._lock:
            self._cost_pico += reservation.amount_pico

    def _unusable(self, came: Completion, reason: str) -> Answer:
        """Count and record a reply that was charged in full, so that a person can compare it with the bill."""
        log.warning("The teacher sent %s.", reason)
        self._count("calls", "malformed")
        self._completions.write(self.run_id, replace(came, unusable=reason))
        return Answer()

    def _count(self, name: str, standing: str, cost: int = 0, latency_seconds: float = 0.0) -> None:
        with self._lock:
            self._counts[name] += 1
            if standing != "complete":
                self._counts[standing] += 1
            self._cost_pico += cost
            self._latency_seconds += latency_seconds


def _names(request: Request | None, reservation: Reservation) -> tuple[str, str, str, int]:
    """What a completion was asked for; of a batch that was taken over no more than the key is known."""
    kind, version, sample = (request.kind, request.version, request.sample_index) if request else ("reference", "", 0)
    return kind, reservation.request_key, version, sample


def _judge(reply: Reply, parse: Callable[[str], Any]) -> tuple[Any, str]:
    """The value of a reply and its standing, which says "malformed" also when the schema is not kept."""
    if reply.standing != "complete":
        return None, reply.standing
    try:
        return parse(reply.text), "complete"
    except MalformedReplyError:
        return None, "malformed"
