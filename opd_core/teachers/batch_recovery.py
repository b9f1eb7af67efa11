"""Which batch holds calls that were being sent when the connection or the worker died?

The provider's list tells sizes and times, but not what is in a batch; its results do, once it has ended. So the list is
read back to before the calls were opened, and every batch of as many requests is looked into. Twice, since a batch may
be missing from the list for a moment after it was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from opd_core.money.totals import OpenCall
from opd_core.teachers.batch_client import BatchClient, JsonObject, batch_id_of
from opd_core.teachers.retrying import CallFailed
from opd_core.teachers.waiting import Waits

SETTLE_SECONDS = 300.0
"""How long after its sending began a batch that was taken may be missing from the list."""
LEAST_PAUSE_SECONDS = 60.0  # between the two looks, whatever the clock says
CLOCK_MARGIN = timedelta(minutes=15)
"""How far this machine's clock may be from the provider's."""
RESULTS_KEPT = timedelta(days=28)  # by the provider: 29; of older batches nobody knows what was in them


@dataclass(frozen=True)
class Found:
    """The batch; or None, and whether it is certain that the list has none."""

    batch_id: str | None
    is_certain: bool = False


class BatchSearch:
    """One search.

    Args:
        calls: of one submission, all of it.
        taken: batches known to hold other calls.
    """

    def __init__(
        self,
        client: BatchClient,
        waits: Waits,
        now: Callable[[], datetime],
        calls: Sequence[OpenCall],
        taken: Collection[str],
    ) -> None:
        self._client, self._waits, self._now = client, waits, now
        self._call_ids = {call.call_id for call in calls}
        self._since = min(call.opened_at for call in calls) - CLOCK_MARGIN
        self._opened = max(call.opened_at for call in calls)
        self._not_ours = set(taken)
        self._in_doubt = False

    async def run(self) -> Found:
        """Look, wait, look again.

        Raises:
            TeacherUnavailableError: a batch that may be the one is still being worked on.
            CallFailed: the provider cannot be asked.
            TeacherStoppedError: the run was asked to stop.
        """
        age = self._now() - self._opened
        found = await self._look()
        if found is None:
            missing = SETTLE_SECONDS - age.total_seconds()
            pause = min(SETTLE_SECONDS, max(LEAST_PAUSE_SECONDS, missing))
            await self._waits.pause(pause, "Waiting for the teacher: it is not known whether it has taken a batch.")
            found = await self._look()
        # a clock that went back may have hidden it behind `since`
        return Found(found, not self._in_doubt and timedelta(0) <= age < RESULTS_KEPT)

    async def _look(self) -> str | None:
        self._in_doubt = False
        candidates = await self._candidates()
        # what has ended is looked into before anything is waited for
        for batch in sorted(candidates, key=lambda batch: batch.get("processing_status") != "ended"):
            batch_id, size = batch["id"], _size(batch)
            try:
                await self._client.wait_for(batch_id, len(self._call_ids))
                results = await self._client.results(batch_id)
            except CallFailed as failure:
                if failure.status != 404:
                    raise
                self._in_doubt = True  # its results are gone: nobody can tell any more what was in it
                continue
            if results.keys() & self._call_ids:
                return str(batch_id)
            if len(results) == size:
                self._not_ours.add(batch_id)
            else:
                self._in_doubt = True
        return None

    async def _candidates(self) -> list[JsonObject]:
        """The listed batches that may hold the calls; doubt is noted when the list was not read to its end."""
        candidates: list[JsonObject] = []
        cursor: str | None = None
        cursors: set[str] = set()
        while True:
            page = await self._client.page(cursor)
            batches = page.get("data")
            if not isinstance(batches, list):
                break
            recent = [batch for batch in batches if not self._is_older(batch)]
            for batch in recent:
                if batch_id_of(batch) is None:
                    self._in_doubt = True
                elif batch["id"] not in self._not_ours and _size(batch) in (None, len(self._call_ids)):
                    candidates.append(batch)
            if page.get("has_more") is False or (batches and not recent):  # the newest come first
                return candidates
            cursor = batch_id_of({"id": page.get("last_id")})
            if cursor is None or cursor in cursors:
                break
            cursors.add(cursor)
        self._in_doubt = True
        return candidates

    def _is_older(self, batch: object) -> bool:
        """Whether it was certainly there before the calls were opened."""
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
