"""Telling subscribers that a run has changed, whichever process changed it.

A server learns of the worker's commits by looking at the database, twice a second and only while somebody has
subscribed. The lists of resources and templates never change, so only updates are told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated, ServerEvent

from opd_core.errors import StoreError
from opd_core.state.database import Database
from opd_core.state.watching import ChangeWatch, Mark, run_marks
from server.resources import PARTS, RUNS_URI, run_uri

POLL_SECONDS = 0.5


class RunChanges:
    """The bus of a server's subscriptions, and the task that feeds it."""

    def __init__(self, database: Path) -> None:
        self._path = database
        self._bus = InMemorySubscriptionBus()
        self._subscribers = 0
        self._somebody: anyio.Event | None = None

    async def publish(self, event: ServerEvent) -> None:
        """Deliver to every subscriber of this server."""
        await self._bus.publish(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register a listener; the watch begins with the first."""
        leave_bus = self._bus.subscribe(listener)
        self._subscribers += 1
        if self._somebody is not None:
            self._somebody.set()
        is_here = True

        def leave() -> None:
            nonlocal is_here
            leave_bus()
            self._subscribers -= is_here
            is_here = False

        return leave

    @asynccontextmanager
    async def lifespan(self, server: Any) -> AsyncIterator[dict[str, Any]]:
        """Watch for as long as the server runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            yield {}
            tasks.cancel_scope.cancel()
            self._somebody = None

    async def _follow(self) -> None:
        while True:
            if not self._subscribers:
                if self._somebody is None or self._somebody.is_set():
                    self._somebody = anyio.Event()
                await self._somebody.wait()
            await self._tell_while_somebody_listens()

    async def _tell_while_somebody_listens(self) -> None:
        watch, database = ChangeWatch(self._path), Database(self._path)

        def look() -> dict[str, Mark] | None:
            try:
                return run_marks(database) if watch.changed() else None
            except StoreError:
                return None
            finally:
                database.close()  # the next look may be in another thread

        try:
            known = await anyio.to_thread.run_sync(look) or {}
            while self._subscribers:
                await anyio.sleep(POLL_SECONDS)
                marks = await anyio.to_thread.run_sync(look)
                if marks is not None:
                    for uri in changed_uris(known, marks):
                        await self.publish(ResourceUpdated(uri=uri))
                    known = marks
        finally:
            watch.close()


def changed_uris(before: Mapping[str, Mark], now: Mapping[str, Mark]) -> Iterator[str]:
    """The addresses whose content differs; a configuration only when it does."""
    changed = [run_id for run_id, mark in now.items() if before.get(run_id) != mark]
    if changed or before.keys() - now.keys():
        yield RUNS_URI
    for run_id in changed:
        has_same_config = run_id in before and before[run_id][0] == now[run_id][0]
        for part in PARTS:
            if part != "config" or not has_same_config:
                yield run_uri(run_id, part)
