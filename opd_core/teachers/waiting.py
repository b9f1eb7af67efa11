"""Waits that a person can see and a stop can end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from opd_core.errors import TeacherStoppedError
from opd_core.seams import utc_moment as utc_moment
from opd_core.teachers.transport import Transport, direct_transport

VISIBLE_SECONDS = 60.0  # a longer wait is the run's state `waiting`
SLICE_SECONDS = 0.25  # how long a stop can go unnoticed

OnWait = Callable[[str, float], None]
"""Told the reason and how many seconds from now the wait ends; `("", 0.0)` when it is over."""


@dataclass(frozen=True)
class Seams:
    """What a test replaces: time, chance and the network.

    Attributes:
        clock: seconds that only grow, for durations.
        now: the calendar, for prices and for times that the provider names.
        random: uniform in [0, 1).
        transport: makes one connection pool for one batch of calls.
    """

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = utc_moment
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = field(default_factory=lambda: random.Random().random)
    transport: Transport = direct_transport


class Waits:
    """All waiting of one teacher: in slices, so that a stop ends it; long ones are announced."""

    def __init__(self, seams: Seams, on_wait: OnWait, should_stop: Callable[[], bool]) -> None:
        self._seams = seams
        self._on_wait = on_wait
        self._should_stop = should_stop
        self._announced_until = 0.0
        self._announcers = 0
        self._ended = False

    def begin(self) -> None:
        """Forget that an earlier batch of calls was ended."""
        self._ended = False

    def end(self) -> None:
        """Let all waits of this batch of calls end now: one of its calls failed for good."""
        self._ended = True

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._should_stop()

    def check_stop(self) -> None:
        """Raise TeacherStoppedError when the run was asked to stop, or these calls were ended."""
        if self._ended or self._should_stop():
            raise TeacherStoppedError("The run was asked to stop; no more calls to the teacher are made.")

    async def pause(self, seconds: float, reason: str) -> None:
        """Wait `seconds`.

        Raises:
            TeacherStoppedError: the run was asked to stop.
        """
        until = self._seams.clock() + seconds
        await self.until(lambda: until - self._seams.clock(), reason, expected_seconds=seconds)

    async def until(self, remaining: Callable[[], float], reason: str, expected_seconds: float) -> None:
        """Wait until `remaining()`, asked again and again, is no longer positive.

        Args:
            remaining: seconds that are probably left.
            reason: a sentence for people, shown when the wait is long.
            expected_seconds: the whole wait as far as it is known now.

        Raises:
            TeacherStoppedError: the run was asked to stop.
        """
        with self.visible(reason, expected_seconds):
            self.check_stop()
            while (left := remaining()) > 0:
                await self._seams.sleep(min(max(left, 0.001), SLICE_SECONDS))
                self.check_stop()

    @contextlib.contextmanager
    def visible(self, reason: str, seconds: float) -> Iterator[None]:
        """Announce a wait of `seconds` when it is long, and its end."""
        if seconds <= VISIBLE_SECONDS:
            yield
            return
        self._announcers += 1
        until = self._seams.clock() + seconds
        if self._announcers == 1 or until > self._announced_until:
            self._announced_until = until
            self._on_wait(reason, seconds)
        try:
            yield
        finally:
            self._announcers -= 1
            if self._announcers == 0:
                self._on_wait("", 0.0)
