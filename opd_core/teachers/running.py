"""From the synchronous trainer to asynchronous calls and back: one event loop a batch, one batch at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import anthropic

from opd_core.errors import (
    BudgetExceededError,
    BudgetFrozenError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
)
from opd_core.teachers.transport import ApiKey, open_client
from opd_core.teachers.waiting import SLICE_SECONDS, Seams, Waits

T = TypeVar("T")


class CallRunner:
    """Runs batches of calls from whatever thread asks."""

    def __init__(
        self, base_url: str, key: ApiKey, timeout_seconds: float, grace_seconds: float, waits: Waits, seams: Seams
    ) -> None:
        self._base_url = base_url
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._grace_seconds = grace_seconds
        self._waits = waits
        self._seams = seams
        self._one_batch_at_a_time = threading.Lock()

    def run(self, work: Callable[[anthropic.AsyncAnthropic], Awaitable[T]]) -> T:
        """Run asynchronous work with a client of its own, from whatever thread."""

        async def with_client() -> T:
            client = open_client(self._base_url, self._key, self._timeout_seconds, self._seams.transport)
            try:
                return await work(client)
            finally:
                await client.close()

        with self._one_batch_at_a_time:
            self._waits.begin()
            return asyncio.run(with_client())

    async def all(self, coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Run all; when one fails or the run is to stop, begin nothing new but let calls under way end: they are paid.

        Raises:
            The worst error of all, so that a refusal is not hidden by the stop it caused.
        """

        async def ending_all(coroutine: Coroutine[Any, Any, T]) -> T:
            try:
                return await coroutine
            except BaseException:
                self._waits.end()  # before another task gets the slot that has just become free
                raise

        tasks = [asyncio.create_task(ending_all(coroutine)) for coroutine in coroutines]
        pending = set(tasks)
        cut_off_at: float | None = None
        clock = asyncio.get_running_loop().time
        while pending:
            # waiting for the network is no wait of ours: it takes no part in a test's time
            _, pending = await asyncio.wait(pending, timeout=SLICE_SECONDS)
            if self._waits.stopping:
                cut_off_at = cut_off_at or clock() + self._grace_seconds
                if clock() >= cut_off_at:
                    for task in pending:
                        task.cancel()
        errors = [_error(task) for task in tasks]
        worst = min((error for error in errors if error is not None), key=_rank, default=None)
        if worst is not None:
            raise worst
        return [task.result() for task in tasks]


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    if task.cancelled():
        return TeacherStoppedError(
            "The run was asked to stop; what was under way to the teacher was cut off and is charged in full."
        )
    return task.exception()


def _rank(error: BaseException) -> int:
    """Faults of the program first, then what ends a run, then what only delays it, then the stop itself."""
    order = (TeacherRefusedError, BudgetFrozenError, BudgetExceededError, TeacherUnavailableError, TeacherStoppedError)
    return next((place for place, kind in enumerate(order, 1) if isinstance(error, kind)), 0)
