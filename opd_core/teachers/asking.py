"""One request to the teacher: cache, slot, rate limit, reservation, one HTTP attempt, settlement, and again if need be.

The order is what keeps the money safe. Nothing is awaited between the reservation and the sending, so an open call in
the ledger means "may be billed"; every way out of the sending closes it.
"""

from __future__ import annotations

import asyncio

import anthropic

from opd_core.errors import (
    BudgetExceededError,
    DuplicateCallError,
    TeacherCacheMissError,
    TeacherUnavailableError,
)
from opd_core.teachers.cashier import Cashier
from opd_core.teachers.limiter import TokenLimiter
from opd_core.teachers.requests import Answer, Request, Reservation
from opd_core.teachers.retrying import (
    LONGEST_WAIT_SECONDS,
    TRY_AGAIN_SECONDS,
    CallFailed,
    explain,
    with_retries,
)
from opd_core.teachers.transport import ApiKey
from opd_core.teachers.waiting import Seams, Waits

DUPLICATE_POLL_SECONDS = 0.5


class Asker:
    """Makes the calls of one batch; lives as long as its event loop."""

    def __init__(
        self,
        client: anthropic.AsyncAnthropic,
        key: ApiKey,
        cashier: Cashier,
        limiter: TokenLimiter,
        waits: Waits,
        seams: Seams,
        *,
        timeout_seconds: float,
        max_concurrent: int,
        cache_only: bool,
    ) -> None:
        self._client = client
        self._key = key
        self._cashier = cashier
        self._limiter = limiter
        self._waits = waits
        self._seams = seams
        self._timeout_seconds = timeout_seconds
        self._cache_only = cache_only
        self._slots = asyncio.Semaphore(max_concurrent)
        self._open = 0  # calls of ours under way
        self._closed = 0

    async def ask(self, request: Request) -> Answer:
        """The answer, from the cache or for money.

        Raises:
            TeacherCacheMissError: not cached, and calls are forbidden.
            TeacherUnavailableError: no attempt gave a message.
            TeacherStoppedError, and anything of `Cashier.reserve` and `Cashier.settle`.
        """
        found = self._cashier.cached(request)
        if found is not None:
            return found
        if self._cache_only:
            raise TeacherCacheMissError(
                "teacher_cache_only is on and a reply that is needed is not in the cache; the teacher was not asked. "
                "Turn teacher_cache_only off, or use the prompts, templates and model of a run that was paid for."
            )
        async with self._slots:
            try:
                return await with_retries(lambda: self._attempt(request), self._waits, self._seams)
            except CallFailed as failure:
                raise failure.as_unavailable() from None

    async def _attempt(self, request: Request) -> Answer:
        estimated = self._limiter.estimate(len(str(request.params)), request.params["max_tokens"])
        await self._limiter.acquire(estimated, self._waits)
        used = 0
        try:
            held = await self._reserve(request)
            if isinstance(held, Answer):
                return held
            used = estimated  # until a reply says better
            answer, tokens = await self._send(request, held)
            used = estimated if tokens is None else tokens
            return answer
        except CallFailed as failure:
            if failure.retry_after is not None and failure.retry_after <= LONGEST_WAIT_SECONDS:
                self._limiter.hold(failure.retry_after)
            used = 0 if failure.outcome == "released" else estimated
            raise
        finally:
            self._limiter.correct(estimated, used)

    async def _reserve(self, request: Request) -> Reservation | Answer:
        """A reservation, or the answer when somebody else has paid for it meanwhile."""
        self._key.read()
        waited = 0.0
        while True:
            self._waits.check_stop()
            try:
                return self._cashier.reserve(request)
            except DuplicateCallError:
                found = self._cashier.cached(request)
                if found is not None:
                    return found
                if waited > LONGEST_WAIT_SECONDS:
                    raise TeacherUnavailableError(
                        "Another run is asking the teacher the same thing and has no reply yet.",
                        wake_in_seconds=TRY_AGAIN_SECONDS,
                    ) from None
                await self._waits.pause(DUPLICATE_POLL_SECONDS, "")
                waited += DUPLICATE_POLL_SECONDS
            except BudgetExceededError:
                if self._open == 0:
                    raise
                # what our own open calls hold is far more than they will cost: wait for one of them to end
                closed = self._closed
                await self._waits.until(lambda: 0.0 if self._closed > closed else 1.0, "", 0.0)  # noqa: B023

    async def _send(self, request: Request, held: Reservation) -> tuple[Answer, int | None]:
        """One HTTP attempt; also the tokens it used, None when the reply does not say."""
        self._open += 1
        started = self._seams.clock()
        try:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    raw = await self._client.messages.with_raw_response.create(**request.params)
            except Exception as error:
                failure = explain(error, self._seams.now(), self._key)
                self._cashier.fail(held, failure)
                raise failure from None
            except BaseException:  # cancelled, or the process is told to end
                self._cashier.abandon(held)
                raise
            self._limiter.observe(raw.headers)
            answer, reply = self._cashier.settle(
                held,
                request,
                raw.http_response.text,
                request_id=raw.headers.get("request-id"),
                latency_seconds=self._seams.clock() - started,
            )
        finally:
            self._open -= 1
            self._closed += 1
        if reply is None:
            return answer, None
        usage = reply.usage
        self._limiter.learn(usage.output_tokens)
        return answer, usage.prompt_tokens - usage.cache_read_tokens + usage.output_tokens
