"""The provider's Message Batches: send one, wait for it, read its results, list them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anthropic
import httpx2

from opd_core.errors import TeacherUnavailableError
from opd_core.teachers.replies import BadReplyError, decode
from opd_core.teachers.retrying import (
    LONGEST_WAIT_SECONDS,
    TRY_AGAIN_SECONDS,
    CallFailed,
    explain,
    with_retries,
)
from opd_core.teachers.transport import ApiKey
from opd_core.teachers.waiting import Seams, Waits

log = logging.getLogger(__name__)

POLL_SECONDS = 30.0
PAGE_SIZE = 100
SECONDS_PER_RESULT = 0.2  # what reading the results of a large batch may take longer
READ_PAUSES_SECONDS = (30.0, 90.0, 180.0, 300.0)
"""After results that came with status 200 and are not all readable: a gateway's page, or a body that lost its end."""
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
T = TypeVar("T")
JsonObject = dict[str, Any]


class BatchClient:
    """Speaks the protocol and knows no money. Asking costs nothing, so it is repeated; sending is not."""

    def __init__(
        self, client: anthropic.AsyncAnthropic, key: ApiKey, waits: Waits, seams: Seams, timeout_seconds: float
    ) -> None:
        self._client, self._key, self._waits, self._seams = client, key, waits, seams
        self._timeout_seconds = timeout_seconds

    async def create(self, entries: Sequence[JsonObject]) -> str:
        """Send one batch; returns its id.

        Raises:
            CallFailed: its outcome tells whether the provider may have taken the batch.
            TeacherStoppedError: nothing was sent.
        """
        batch: Any = entries

        async def send() -> str:
            self._waits.check_stop()
            found = self.id_of(await self._json(lambda: self._batches.create(requests=batch)))
            if found is None:
                raise CallFailed("The teacher's server sent a batch without a usable id", "forfeited", "uncertain")
            return found

        return await with_retries(send, self._waits, self._seams, uncertain_attempts=1)

    async def page(self, after_id: str | None) -> JsonObject:
        """A page of the list of batches, the newest first."""
        cursor = {} if after_id is None else {"after_id": after_id}
        return await self._look(lambda: self._json(lambda: self._batches.list(limit=PAGE_SIZE, **cursor)))

    async def wait_for(self, batch_id: str, size: int) -> None:
        """Until the batch of `size` requests has ended.

        Raises:
            TeacherUnavailableError: it has not within ten minutes.
        """
        reason = f"Waiting for the teacher: a batch of {size} references is being worked on."
        started = self._seams.clock()

        async def ended() -> bool:
            found = await self._look(lambda: self._json(lambda: self._batches.retrieve(batch_id)))
            return found.get("processing_status") == "ended"

        if await ended():
            return
        with self._waits.visible(reason, LONGEST_WAIT_SECONDS):
            while self._seams.clock() - started < LONGEST_WAIT_SECONDS:
                await self._waits.pause(POLL_SECONDS, reason)
                if await ended():
                    return
        raise TeacherUnavailableError(reason, wake_in_seconds=LONGEST_WAIT_SECONDS)

    async def results(
        self, batch_id: str, size: int, is_answer: Callable[[dict[str, JsonObject]], bool]
    ) -> dict[str, JsonObject]:
        """The readable results of an ended batch of `size` requests, by custom id.

        They are read again, in the end after ten minutes, until `is_answer` is content; then they are what they are.
        """
        path = f"/v1/messages/batches/{batch_id}/results"
        deadline = self._timeout_seconds + SECONDS_PER_RESULT * size

        async def read() -> httpx2.Response:
            return await self._guarded(lambda: self._client.get(path, cast_to=httpx2.Response), deadline)

        results = _readable((await self._look(read)).text)
        if is_answer(results):
            return results
        reason = "Waiting for the teacher: the results of a batch have come and cannot be read."
        log.warning("Results of batch %s cannot be read.", batch_id)
        with self._waits.visible(reason, sum(READ_PAUSES_SECONDS)):
            for seconds in READ_PAUSES_SECONDS:
                await self._waits.pause(seconds, reason)
                results |= _readable((await self._look(read)).text)
                if is_answer(results):
                    break
        return results

    def id_of(self, batch: object) -> str | None:
        """The id in what describes a batch, if it can be part of an address and is not our key sent back."""
        found = batch.get("id") if isinstance(batch, dict) else None
        is_id = isinstance(found, str) and _BATCH_ID.fullmatch(found) and self._key.redact(found) == found
        return found if is_id else None

    @property
    def _batches(self) -> Any:
        return self._client.messages.batches.with_raw_response

    async def _look(self, attempt: Callable[[], Awaitable[T]]) -> T:
        async def once() -> T:
            try:
                return await attempt()
            except CallFailed as failure:
                raise _of_a_look(failure) from None

        return await with_retries(once, self._waits, self._seams, uncertain_attempts=3)

    async def _json(self, send: Callable[[], Awaitable[Any]]) -> JsonObject:
        raw = await self._guarded(send)
        try:
            found = decode(raw.http_response.text)
        except BadReplyError as error:
            raise CallFailed(f"The teacher's server sent {error}", "forfeited", "uncertain") from None
        if not isinstance(found, dict):
            raise CallFailed("The teacher's server sent something else than an object", "forfeited", "uncertain")
        return found

    async def _guarded(self, send: Callable[[], Awaitable[T]], deadline_seconds: float | None = None) -> T:
        try:
            async with asyncio.timeout(deadline_seconds or self._timeout_seconds):
                return await send()
        except Exception as error:
            raise explain(error, self._seams.now(), self._key) from None


def _readable(text: str) -> dict[str, JsonObject]:
    results: dict[str, JsonObject] = {}
    for line in text.split("\n"):  # and nowhere else: JSON may hold the other characters that end a line
        try:
            entry = decode(line)
            results[entry["custom_id"]] = dict(entry["result"])
        except (BadReplyError, KeyError, TypeError, ValueError):
            continue
    return results


def _of_a_look(failure: CallFailed) -> CallFailed:
    """What a failure means when nothing was at stake: nothing is known, and it is worth coming back for."""
    never_sent = failure.outcome == "released" and failure.status is None
    if failure.kind == "busy" or failure.status == 401 or never_sent:
        return failure
    said = f"status {failure.status}" if failure.status else "no whole answer"
    return CallFailed(
        f"The teacher's server did not say how a batch stands ({said}).",
        *("released", "uncertain"),
        wake_in_seconds=TRY_AGAIN_SECONDS,
        status=failure.status,
    )
