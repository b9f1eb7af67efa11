"""Which batch holds calls that were being sent when the connection or the worker died?

The provider's list tells sizes and times, but not what is in a batch; its results do, once it has ended. So the list is
read back to well before the calls were opened, and every batch of as many requests is looked into. Twice, since a batch
may be missing from the list for a while after it was taken. What is found was sent; of what is not found nothing is
known: the clocks may differ, the list may lag or belong to another workspace's key.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from opd_core.money.totals import OpenCall
from opd_core.teachers.batch_client import BatchClient, JsonObject
from opd_core.teachers.retrying import CallFailed
from opd_core.teachers.waiting import Waits

SETTLE_SECONDS = 300.0
"""Between the two looks."""
CLOCK_MARGIN = timedelta(hours=25)
"""How far the provider's clock may be behind this machine's: a wrong time zone, and more. Older batches are left out
only because a list may be long."""


class BatchSearch:
    """One search.

    Args:
        calls: of one submission, all of it.
        taken: batches known to hold other calls.
    """

    def __init__(self, client: BatchClient, waits: Waits, calls: Sequence[OpenCall], taken: Collection[str]) -> None:
        self._client, self._waits = client, waits
        self._call_ids = {call.call_id for call in calls}
        self._since = min(call.opened_at for call in calls) - CLOCK_MARGIN
        self._not_ours = set(taken)

    async def run(self) -> str | None:
        """Look, wait, look again; the id of the batch, or None: then it may exist all the same.

        Raises:
            TeacherUnavailableError: a batch that may be the one is still being worked on.
            CallFailed: the provider cannot be asked.
            TeacherStoppedError: the run was asked to stop.
        """
        found = await self._look()
        if found is None:
            reason = "Waiting for the teacher: it is not known whether it has taken a batch."
            await self._waits.pause(SETTLE_SECONDS, reason)
            found = await self._look()
        return found

    async def _look(self) -> str | None:
        candidates = await self._candidates()
        # what has ended is looked into before anything is waited for
        for batch in sorted(candidates, key=lambda batch: batch.get("processing_status") != "ended"):
            batch_id, size = str(batch["id"]), _size(batch)
            try:
                await self._client.wait_for(batch_id, len(self._call_ids))
                found = await self._results(batch_id, size)
            except CallFailed as failure:
                if failure.status != 404:
                    raise
                continue  # its results are gone: nobody can tell any more what was in it
            if found.keys() & self._call_ids:
                return batch_id
            self._not_ours.add(batch_id)
        return None

    async def _results(self, batch_id: str, size: int | None) -> dict[str, JsonObject]:
        def tells(found: dict[str, JsonObject]) -> bool:
            return bool(found.keys() & self._call_ids) or len(found) == size or (size is None and bool(found))

        return await self._client.results(batch_id, len(self._call_ids), tells)

    async def _candidates(self) -> list[JsonObject]:
        """The listed batches that may hold the calls, as far as the list can be read."""
        candidates: list[JsonObject] = []
        cursor: str | None = None
        cursors: set[str] = set()
        while True:
            page = await self._client.page(cursor)
            batches = page.get("data")
            if not isinstance(batches, list):
                return candidates
            recent = [batch for batch in batches if not self._is_older(batch)]
            candidates += [
                batch
                for batch in recent
                if self._client.id_of(batch) not in (None, *self._not_ours)
                and _size(batch) in (None, len(self._call_ids))
            ]
            cursor = self._client.id_of({"id": page.get("last_id")})
            # the newest come first
            if page.get("has_more") is False or (batches and not recent) or cursor is None or cursor in cursors:
                return candidates
            cursors.add(cursor)

    def _is_older(self, batch: object) -> bool:
        """Whether it was there before the calls were opened, by any clock that can be believed."""
        try:
            created = datetime.fromisoformat(batch["created_at"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return False
        return created.replace(tzinfo=created.tzinfo or UTC) < self._since


def _size(batch: JsonObject) -> int | None:
    """How many requests are in it; None when that cannot be read."""
    counts = batch.get("request_counts")
    numbers = list(counts.values()) if isinstance(counts, dict) else []
    return sum(numbers) if numbers and all(type(number) is int for number in numbers) else None
