"""The live feed of one home: what any process changes in it, told to everyone who listens here, from SQLite alone.

One task looks for changes, five times a second and only while somebody listens. What it finds goes into one bounded
ring of ready-made messages that all readers share; each reads at its own pace. Who falls out of the ring goes on from
the database, at the sequence number it has reached: being slow costs a reader phases and log lines that it would see
too late anyway, but never a kept message, and it costs the others nothing.

    look → ring → reader        kept messages, phases, spend, log lines as they come
    database → reader           kept messages it has missed, then how things stand, then the ring
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from opd_core.control.following import LogTail, LogText, RunNow, runs_now
from opd_core.errors import OPDError, StoreError
from opd_core.paths import HomePaths
from opd_core.state.database import Database
from opd_core.state.events import Event, read_feed
from opd_core.state.watching import ChangeWatch
from opd_core.types import END_STATES, LIVE_STATES
from server.faults import record_fault
from server.live.progress import Message, ProgressData, changes, differences, message, of_event, of_log

POLL_SECONDS = 0.2
TEND_SECONDS = 2.0
IDLE_SECONDS = 15.0
RING_MESSAGES = 2048
PAGE_EVENTS = 128
PAGE_THREADS = 2  # readers that are behind wait for each other, not the rest of the server for them


Messages = AsyncGenerator[Message | None, None]


@dataclass
class _Look:
    """What one look at the home found; `newest` is None when only log lines were looked for."""

    newest: int | None = None
    runs: dict[str, RunNow] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    lines: list[tuple[RunNow, LogText]] = field(default_factory=list)


class Feed:
    """The feed of one home in one process; all of it runs in one event loop, only looks happen in a thread.

    Args:
        tend: makes the home's rows true (records dead workers, starts what is queued); called now and then while
            somebody listens, since nobody else may be asking.
        idle_seconds: a reader without news gets None that often, for its keep-alive.
    """

    def __init__(
        self,
        home: HomePaths,
        tend: Callable[[], object],
        *,
        poll_seconds: float = POLL_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._tend, self._clock = home, tend, clock
        self._poll_seconds, self._idle_seconds = poll_seconds, idle_seconds
        self._database, self._watch = Database(home.database), ChangeWatch(home.database)
        self._readers: Counter[str | None] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._lock: anyio.Lock | None = None
        self._pages: anyio.CapacityLimiter | None = None
        self._reset()

    @property
    def readers(self) -> int:
        """How many listen now."""
        return self._readers.total()

    @asynccontextmanager
    async def reader(self, run_id: str | None, after: int | None) -> AsyncIterator[Messages]:
        """Listen to one run, or to all.

        Args:
            after: the sequence number of the last message that is known already; 0 for everything, None to begin now.

        Raises:
            StoreError: the database cannot be read.
        """
        self._readers[run_id] += 1
        messages: Messages | None = None
        try:
            if self._lock is None:
                self._lock, self._pages = anyio.Lock(), anyio.CapacityLimiter(PAGE_THREADS)
            await self._refresh(force=True)
            if self._task is None:
                self._task = asyncio.create_task(self._follow_home())
            newest = self._sequence or 0
            messages = self._messages(run_id, newest if after is None else min(after, newest))
            yield messages
        finally:
            self._readers[run_id] -= 1
            if not self._readers[run_id]:
                del self._readers[run_id]
            if not self.readers:
                self._reset()
            if messages is not None:
                await messages.aclose()

    def _reset(self) -> None:
        """Forget everything: the next reader begins with a look at the home as it is then."""
        self._task = None  # it sees that it is no longer wanted; a thread at work is never left behind
        self._is_stale = True
        self._sequence: int | None = None
        self._runs: dict[str, RunNow] = {}
        self._tails: dict[str, LogTail] = {}
        self._ring: deque[Message] = deque()
        self._first = 0  # the place of ring[0] among all messages ever put there
        self._news = asyncio.Event()
        self._has_failed = False

    async def _messages(self, run_id: str | None, cursor: int) -> Messages:
        while True:
            while cursor < self._known():
                target = self._known()
                page = await anyio.to_thread.run_sync(
                    read_feed, self._database, run_id, cursor, target, PAGE_EVENTS, limiter=self._pages
                )
                for event in page:
                    cursor = event.sequence
                    yield message(of_event(event))
                if len(page) < PAGE_EVENTS:
                    cursor = target
            place = self._first + len(self._ring)  # nothing can come in between: no await since the comparison
            for standing in self._standing(run_id):
                yield standing
            while place >= self._first:
                if place == self._first + len(self._ring):
                    if not await self._wait_for_news():
                        yield None
                    continue
                following = self._ring[place - self._first]
                place += 1
                cursor = max(cursor, following.sequence)
                if run_id is None or run_id == following.run_id:
                    yield following

    def _known(self) -> int:
        if self._has_failed:
            raise StoreError("The live feed met an unexpected error; its details are in a log. Connect again.")
        return self._sequence or 0

    async def _wait_for_news(self) -> bool:
        news = self._news
        with anyio.move_on_after(self._idle_seconds):
            await news.wait()
        self._known()
        return news.is_set()

    def _standing(self, run_id: str | None) -> list[Message]:
        """How things stand: what is not kept, for whoever begins to read."""
        runs = [run for run in self._runs.values() if run_id is None or run.run_id == run_id]
        chosen = [run for run in runs if run_id is not None or run.state not in END_STATES]
        return [message(data) for run in chosen for data in differences(run, None, self._known())]

    async def _follow_home(self) -> None:
        """Look, again and again, until the last reader has left."""
        tended, me = self._clock(), asyncio.current_task()
        try:
            while True:
                await anyio.sleep(self._poll_seconds)
                if self._task is not me:
                    return
                with suppress(StoreError):  # busy: the next look will tell
                    await self._refresh(force=False)
                if self._clock() - tended >= TEND_SECONDS and self._home.database.exists():
                    with suppress(OPDError):
                        await anyio.to_thread.run_sync(self._tend)
                    tended = self._clock()
        except Exception as error:
            await anyio.to_thread.run_sync(record_fault, self._home, "the live feed", error)
            if self._task is me:
                self._has_failed, self._task = True, None
                self._wake()

    async def _refresh(self, *, force: bool) -> None:
        assert self._lock is not None
        async with self._lock:
            asked = {run_id for run_id in self._readers if run_id is not None}  # here: readers come and go meanwhile
            self._tell(await anyio.to_thread.run_sync(self._look, force, asked))

    def _look(self, force: bool, asked: set[str]) -> _Look:
        """In a thread, one at a time."""
        runs, tails, sequence = self._runs, self._tails, self._sequence
        look = _Look(runs=runs)
        self._is_stale = self._watch.changed() or self._is_stale  # stays so until a look has succeeded
        if force or self._is_stale:
            going_on = {run_id for run_id, run in runs.items() if run.state not in END_STATES}
            look.newest, look.runs = runs_now(self._database, going_on | asked)
            if sequence is not None and look.newest > sequence:
                look.events = read_feed(self._database, None, sequence, look.newest, RING_MESSAGES)
            self._is_stale = False
        # after the runs: what a worker printed before it ended is in the log by now
        look.lines = [
            (look.runs.get(run_id) or runs[run_id], line) for run_id, tail in tails.items() for line in tail.new_lines()
        ]
        return look

    def _tell(self, look: _Look) -> None:
        """Put what was found into the ring; nothing awaits here, so readers see all of it or nothing."""
        is_first = self._sequence is None
        found: list[ProgressData] = []
        if len(look.events) < RING_MESSAGES:
            found += map(of_event, look.events)
        else:  # readers fetch so many from the database, each at its own pace
            self._first += len(self._ring) + 1
            self._ring.clear()
        before = self._runs
        if look.newest is not None:
            self._sequence, self._runs = look.newest, look.runs
        sequence = self._sequence or 0
        found += [of_log(run, line, sequence) for run, line in look.lines]
        if look.newest is not None:
            if not is_first:
                found += changes(before, look.runs, sequence)
            self._follow_logs(is_first)
        self._ring.extend(map(message, found))
        while len(self._ring) > RING_MESSAGES:
            self._ring.popleft()
            self._first += 1
        if found or len(look.events) >= RING_MESSAGES:
            self._wake()

    def _follow_logs(self, is_first: bool) -> None:
        live = [run_id for run_id, run in self._runs.items() if run.state in LIVE_STATES]
        self._tails = {
            run_id: self._tails.get(run_id) or LogTail(self._home.log(run_id), from_start=not is_first)
            for run_id in live
        }

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
