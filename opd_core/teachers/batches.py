"""References that can wait, at half the price: the Message Batches API, safe against a crash at any moment.

The ledger is the memory. Each request is reserved first, as a batch call, and its call id is its `custom_id`; then the
batch is submitted; then its id is noted with the calls. A worker that died in between left open batch calls: with an
id they are simply waited for; without one the provider's list is searched for a batch that holds them, and only when
there is none are they released. So nothing is submitted twice and no result is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anthropic
import httpx2

from opd_core.errors import (
    BudgetExceededError,
    DuplicateCallError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
)
from opd_core.message_params import body_bytes
from opd_core.money.ledger import OpenCall
from opd_core.teachers.cashier import Answer, Cashier, Request, Reservation
from opd_core.teachers.replies import BadReplyError, decode
from opd_core.teachers.retrying import LONGEST_WAIT_SECONDS, CallFailed, explain, with_retries
from opd_core.teachers.transport import ApiKey
from opd_core.teachers.waiting import Seams, Waits

log = logging.getLogger(__name__)

MAX_REQUESTS = 10_000  # the provider takes 100,000 and 256 MB
MAX_BYTES = 100_000_000
POLL_SECONDS = 30.0
SETTLE_IN_SECONDS = 60.0  # how long a batch that was just submitted may be missing from the list
LISTED = 100  # newest batches that are searched
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
T = TypeVar("T")
Held = Sequence[tuple[Request, Reservation]]


class Batcher:
    """Gets the answers of one run's requests through batches; lives as long as its event loop."""

    def __init__(
        self,
        client: anthropic.AsyncAnthropic,
        key: ApiKey,
        cashier: Cashier,
        waits: Waits,
        seams: Seams,
        timeout_seconds: float,
    ) -> None:
        self._client = client
        self._key = key
        self._cashier = cashier
        self._waits = waits
        self._seams = seams
        self._timeout_seconds = timeout_seconds

    async def fetch(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """Answers by request key; none for a request that the provider did not carry out.

        Raises:
            TeacherUnavailableError: the batch is not done after ten minutes; asking again later takes it up.
            TeacherStoppedError, TeacherRefusedError, and anything of `Cashier.reserve`.
        """
        self._key.read()
        try:
            return await self._fetch({request.key: request for request in requests})
        except CallFailed as failure:
            raise failure.as_unavailable() from None

    async def _fetch(self, by_key: dict[str, Request]) -> dict[str, Answer]:
        answers = await self._finish_open_calls(by_key)
        waiting = [request for key, request in by_key.items() if key not in answers]
        while waiting:
            missing = []
            for request in waiting:
                found = self._cashier.cached(request)
                if found is None:
                    missing.append(request)
                else:
                    answers[request.key] = found
            held, waiting = self._reserve_what_fits(missing)
            if held:
                await self._submit(held)
                answers.update(await self._finish_open_calls(by_key))
        return answers

    def _reserve_what_fits(self, requests: Sequence[Request]) -> tuple[Held, list[Request]]:
        """Reserve as many as one batch and the budget admit; what is left goes into the next, when these are settled.

        A request that another run is asking for is in neither: it is left to the ordinary way, which waits for that.
        """
        held: list[tuple[Request, Reservation]] = []
        size = 0
        for position, request in enumerate(requests):
            size += body_bytes(request.params)
            if len(held) == MAX_REQUESTS or (held and size > MAX_BYTES):
                return held, list(requests[position:])
            try:
                held.append((request, self._cashier.reserve(request, is_batch=True)))
            except DuplicateCallError:
                continue
            except BudgetExceededError:
                if not held:
                    raise
                return held, list(requests[position:])
        return held, []

    async def _submit(self, held: Held) -> None:
        """Send one batch and note its id. When it is not known whether it arrived, its calls stay open."""
        entries: list[Any] = [
            {"custom_id": reservation.call_id, "params": request.params} for request, reservation in held
        ]
        call_ids = [reservation.call_id for _, reservation in held]

        async def create() -> str:
            self._waits.check_stop()
            return _batch_id(await self._json(lambda: self._batches.create(requests=entries)))

        try:
            # a failure after which it is tried again cost nothing, so the same reservations serve
            batch_id = await with_retries(create, self._waits, self._seams, uncertain_attempts=1)
        except TeacherStoppedError:
            self._release(call_ids, "the batch was not submitted: the run was asked to stop")
            raise
        except CallFailed as failure:
            if failure.outcome == "released":
                self._release(call_ids, str(failure))
                raise
            log.warning("It is not known whether a batch of %d requests was taken: %s", len(held), failure)
        else:
            self._cashier.ledger.set_batch_id(call_ids, batch_id)

    async def _finish_open_calls(self, by_key: dict[str, Request]) -> dict[str, Answer]:
        """Wait for all open batch calls of the run, whoever submitted them, and settle them."""
        unplaced = [call for call in self._open_calls() if call.batch_id is None]
        if unplaced:
            await self._find_batch(unplaced)
        answers: dict[str, Answer] = {}
        calls = self._open_calls()
        for batch_id in dict.fromkeys(call.batch_id for call in calls if call.batch_id is not None):
            members = [call for call in calls if call.batch_id == batch_id]
            answers.update(await self._settle(batch_id, members, by_key))
        return answers

    async def _find_batch(self, calls: Sequence[OpenCall]) -> None:
        """Find out in which batch calls without a batch id are; release them when there is none.

        The provider's list does not tell what is in a batch; the results do, once it has ended. So only batches of as
        many requests are looked into.
        """
        call_ids = [call.call_id for call in calls]
        for is_last_look in (False, True):
            listed = await self._get(lambda: self._batches.list(limit=LISTED))
            for batch in listed.get("data") or ():
                batch_id = _batch_id(batch)
                if sum((batch.get("request_counts") or {}).values()) != len(calls):
                    continue
                await self._wait_for(batch_id, len(calls))
                if (await self._results(batch_id)).keys() & set(call_ids):
                    self._cashier.ledger.set_batch_id(call_ids, batch_id)
                    return
            if not is_last_look:
                await self._waits.pause(SETTLE_IN_SECONDS, "")
        self._release(call_ids, "no batch at the provider holds it: it was never submitted")

    async def _settle(self, batch_id: str, calls: Sequence[OpenCall], by_key: dict[str, Request]) -> dict[str, Answer]:
        try:
            await self._wait_for(batch_id, len(calls))
            results = await self._results(batch_id)
        except CallFailed as failure:
            if failure.status != 404:
                raise
            results = {}  # the provider keeps results for 29 days; what became of these nobody can tell any more
        answers: dict[str, Answer] = {}
        refused: TeacherRefusedError | None = None
        today = self._seams.now().date()
        for call in calls:
            result = results.get(call.call_id, {})
            reservation = Reservation(call.call_id, call.request_key, call.model, call.reserved_pico, today)
            if result.get("type") in ("errored", "canceled", "expired"):
                self._release([call.call_id], f"in the batch it was {result['type']}")
            elif result.get("type") != "succeeded":
                missing = CallFailed("The batch has no result for it", "forfeited", "final")
                self._cashier.fail(reservation, missing)
                answers[call.request_key] = Answer()
            else:
                try:
                    answers[call.request_key], _ = self._cashier.settle(
                        reservation, by_key.get(call.request_key), json.dumps(result.get("message")), batch_id=batch_id
                    )
                except TeacherRefusedError as error:
                    refused = error  # the others are paid for: they are kept first
        if refused is not None:
            raise refused
        return answers

    async def _wait_for(self, batch_id: str, size: int) -> None:
        """Until the batch has ended."""
        reason = f"Waiting for the teacher: a batch of {size} references is being worked on."
        started = self._seams.clock()

        async def ended() -> bool:
            found = await self._get(lambda: self._batches.retrieve(batch_id))
            return found.get("processing_status") == "ended"

        if await ended():
            return
        with self._waits.visible(reason, LONGEST_WAIT_SECONDS):
            while self._seams.clock() - started < LONGEST_WAIT_SECONDS:
                await self._waits.pause(POLL_SECONDS, reason)
                if await ended():
                    return
        raise TeacherUnavailableError(reason, wake_in_seconds=LONGEST_WAIT_SECONDS)

    async def _results(self, batch_id: str) -> dict[str, dict[str, Any]]:
        """The result of each request of an ended batch, by its custom id."""
        path = f"/v1/messages/batches/{batch_id}/results"

        async def read() -> httpx2.Response:
            return await self._guarded(lambda: self._client.get(path, cast_to=httpx2.Response))

        results: dict[str, dict[str, Any]] = {}
        for line in (await self._retried(read)).text.splitlines():
            try:
                entry = decode(line)
                results[entry["custom_id"]] = dict(entry["result"])
            except (BadReplyError, KeyError, TypeError, ValueError):
                log.warning("A line in the results of batch %s cannot be read.", batch_id)
        return results

    @property
    def _batches(self) -> Any:
        return self._client.messages.batches.with_raw_response

    def _open_calls(self) -> list[OpenCall]:
        return self._cashier.ledger.open_batch_calls(self._cashier.run_id)

    def _release(self, call_ids: Sequence[str], reason: str) -> None:
        for call_id in call_ids:
            self._cashier.ledger.release(call_id, reason)

    async def _get(self, send: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        return await self._retried(lambda: self._json(send))

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Asking costs nothing, so it may be repeated."""
        return await with_retries(attempt, self._waits, self._seams, uncertain_attempts=3)

    async def _json(self, send: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        raw = await self._guarded(send)
        try:
            found = decode(raw.http_response.text)
        except BadReplyError as error:
            raise CallFailed(f"The teacher's server sent {error}", "forfeited", "uncertain") from None
        if not isinstance(found, dict):
            raise CallFailed("The teacher's server sent something else than an object", "forfeited", "uncertain")
        return found

    async def _guarded(self, send: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await send()
        except Exception as error:
            raise explain(error, self._seams.now(), self._key) from None


def _batch_id(batch: dict[str, Any]) -> str:
    found = batch.get("id")
    if not isinstance(found, str) or not _BATCH_ID.fullmatch(found):
        raise CallFailed("The teacher's server sent a batch without a usable id", "forfeited", "uncertain")
    return found
