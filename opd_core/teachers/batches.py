"""References that can wait, at half the price: the Message Batches API, safe against a crash at any moment.

The ledger is the memory. Each request is reserved first, as a batch call, and its call id is its `custom_id`; then it
is noted that the sending begins; then the batch is sent; then its id is noted with the calls. A worker that died in
between left open batch calls. Those whose sending never began are released; with a batch id they are waited for; the
others are looked for at the provider and, if not found, charged in full. Whoever wants one of the same replies does
that on the dead worker's behalf: the money stays with the run that reserved it, the replies go to the cache.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from opd_core.errors import (
    BudgetExceededError,
    DuplicateCallError,
    OPDError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
)
from opd_core.message_params import body_bytes
from opd_core.money.totals import OpenCall
from opd_core.teachers.batch_client import BatchClient, JsonObject
from opd_core.teachers.batch_recovery import BatchSearch
from opd_core.teachers.cashier import Cashier
from opd_core.teachers.requests import Answer, Request, Reservation
from opd_core.teachers.retrying import CallFailed
from opd_core.teachers.transport import ApiKey
from opd_core.teachers.waiting import Seams, Waits

log = logging.getLogger(__name__)

MAX_REQUESTS = 10_000  # the provider takes 100,000 and 256 MB
MAX_BYTES = 100_000_000
NOT_CARRIED_OUT = ("errored", "canceled", "expired")  # and not billed
Held = Sequence[tuple[Request, Reservation]]
ByKey = dict[str, Request]
HoldOwner = Callable[[str], AbstractContextManager[bool]]


class Batcher:
    """Gets the answers of one run's requests through batches; lives as long as its event loop.

    Args:
        hold_owner: see `Ledger.recover`.
    """

    def __init__(
        self, client: BatchClient, key: ApiKey, cashier: Cashier, waits: Waits, seams: Seams, hold_owner: HoldOwner
    ) -> None:
        self._client, self._key, self._cashier, self._ledger = client, key, cashier, cashier.ledger
        self._waits, self._seams, self._hold_owner = waits, seams, hold_owner

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

    async def take_up(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """Settle open batch calls that stand in the way of these requests, as far as no living worker does.

        Returns: the answers of those that were this run's own; other runs' are in the cache.

        Raises:
            TeacherUnavailableError, TeacherRefusedError, TeacherStoppedError: as `fetch`.
        """
        try:
            return await self._finish({request.key: request for request in requests}, has_time=False)
        except CallFailed as failure:
            raise failure.as_unavailable() from None

    async def _fetch(self, by_key: ByKey) -> dict[str, Answer]:
        answers = await self._finish(by_key)
        waiting = [request for key, request in by_key.items() if key not in answers]
        while waiting:
            found = {each.key: answer for each in waiting if (answer := self._cashier.cached(each)) is not None}
            answers |= found
            held, waiting = self._reserve_what_fits([each for each in waiting if each.key not in found])
            if held:
                await self._submit(held)
                answers.update(await self._finish(by_key))
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
                self._waits.check_stop()
                held.append((request, self._cashier.reserve(request, is_batch=True)))
            except DuplicateCallError:
                continue
            except BudgetExceededError:
                if not held:
                    raise
                return held, list(requests[position:])
            except OPDError:
                self._release([reservation.call_id for _, reservation in held], "the batch was not sent")
                raise
        return held, []

    async def _submit(self, held: Held) -> None:
        """Send one batch and note its id. When it is not known whether it arrived, its calls stay open."""
        entries: list[JsonObject] = [
            {"custom_id": reservation.call_id, "params": request.params} for request, reservation in held
        ]
        call_ids = [reservation.call_id for _, reservation in held]
        self._ledger.note_submission(call_ids)
        try:
            # a failure after which it is tried again cost nothing, so the same reservations serve
            batch_id = await self._client.create(entries)
        except TeacherStoppedError:
            self._release(call_ids, "the batch was not sent: the run was asked to stop")
            raise
        except CallFailed as failure:
            if failure.outcome == "released":
                self._release(call_ids, str(failure))
                raise
            log.warning("It is not known whether a batch of %d requests was taken: %s", len(held), failure)
        else:
            self._ledger.set_batch_id(call_ids, batch_id)

    async def _finish(self, by_key: ByKey, *, has_time: bool = True) -> dict[str, Answer]:
        """Wait for open batch calls and settle them, whoever submitted them.

        Args:
            has_time: also for this run's calls that none of the requests needs.
        """
        own = self._cashier.run_id
        calls = self._ledger.open_batch_calls()
        runs = {call.run_id for call in calls if call.request_key in by_key or (has_time and call.run_id == own)}
        answers: dict[str, Answer] = {}
        stuck: TeacherUnavailableError | None = None
        for run_id in sorted(runs):
            try:
                answers.update(await self._finish_run([call for call in calls if call.run_id == run_id], by_key))
            except CallFailed as failure:
                wake = failure.as_unavailable().wake_in_seconds
                if run_id == own or wake is None:
                    raise
                reason = f"A batch that run {run_id} left behind has a reply that is needed here too. {failure}"
                stuck = TeacherUnavailableError(reason, wake_in_seconds=wake)
        if stuck is not None:
            raise stuck
        return answers

    async def _finish_run(self, calls: Sequence[OpenCall], by_key: ByKey) -> dict[str, Answer]:
        with self._held(calls) as found:
            self._release([call.call_id for call in found if not call.was_submitted], "it was never sent")
        submitted = [call for call in found if call.was_submitted]
        await self._place([call for call in submitted if call.batch_id is None])
        return await self._settle_run(calls[0].run_id, by_key) if submitted else {}

    async def _place(self, calls: Sequence[OpenCall]) -> None:
        """Find out in which batch the calls of one submission are. What is not found is charged in full."""
        if not calls:
            return
        taken = {call.batch_id for call in self._ledger.open_batch_calls() if call.batch_id}
        batch_id = await BatchSearch(self._client, self._waits, calls, taken).run()
        with self._held(calls) as still_open:
            unplaced = [call for call in still_open if call.batch_id is None]
            if batch_id is not None:
                self._ledger.set_batch_id([call.call_id for call in unplaced], batch_id)
            for call in unplaced if batch_id is None else ():
                self._give_up(call, "It is not known whether a batch at the provider holds it")

    async def _settle_run(self, run_id: str, by_key: ByKey) -> dict[str, Answer]:
        calls = [call for call in self._ledger.open_batch_calls() if call.run_id == run_id]
        answers: dict[str, Answer] = {}
        for batch_id in dict.fromkeys(call.batch_id for call in calls if call.batch_id is not None):
            members = [call for call in calls if call.batch_id == batch_id]
            try:
                await self._client.wait_for(batch_id, len(members))
                is_whole = {call.call_id for call in members}.issubset
                results = await self._client.results(batch_id, len(members), is_whole)
            except CallFailed as failure:
                if failure.status != 404:
                    raise
                results = {}  # the provider keeps results for 29 days; what became of these nobody can tell any more
            with self._held(members) as still_open:
                answers.update(self._settle(batch_id, still_open, results, by_key))
        return answers

    def _settle(
        self, batch_id: str, calls: Sequence[OpenCall], results: dict[str, JsonObject], by_key: ByKey
    ) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        refused: TeacherRefusedError | None = None
        for call in calls:
            cashier, is_own = self._cashier_of(call), call.run_id == self._cashier.run_id
            request = by_key.get(call.request_key)
            result = results.get(call.call_id, {})
            if result.get("type") in NOT_CARRIED_OUT:
                self._release([call.call_id], f"in the batch it was {result['type']}")
                continue
            answer = Answer()
            if result.get("type") != "succeeded":
                self._give_up(call, "The batch has no readable result for it")
            else:
                body = json.dumps(result.get("message"))
                try:
                    answer, _ = cashier.settle(
                        Reservation.of(call), request if is_own else None, body, batch_id=batch_id
                    )
                except TeacherRefusedError as error:
                    # the others are paid for: they are kept first
                    refused = error if is_own or request is not None else refused
                    continue
            if is_own:
                answers[call.request_key] = answer
        if refused is not None:
            raise refused
        return answers

    @contextlib.contextmanager
    def _held(self, calls: Sequence[OpenCall]) -> Iterator[list[OpenCall]]:
        """Those calls of one run that are still open, while its worker is known to be dead; else none."""
        is_own = calls[0].run_id == self._cashier.run_id
        with nullcontext(True) if is_own else self._hold_owner(calls[0].owner) as is_dead:
            call_ids = {call.call_id for call in calls}
            yield [call for call in self._ledger.open_batch_calls() if is_dead and call.call_id in call_ids]

    def _cashier_of(self, call: OpenCall) -> Cashier:
        return self._cashier if call.run_id == self._cashier.run_id else self._cashier.on_behalf(call.run_id)

    def _give_up(self, call: OpenCall, reason: str) -> None:
        self._cashier_of(call).fail(Reservation.of(call), CallFailed(reason, "forfeited", "final"))

    def _release(self, call_ids: Sequence[str], reason: str) -> None:
        for call_id in call_ids:
            self._ledger.release(call_id, reason)
