"""Bounded waiting for a job, with progress that obeys the protocol: it only ever increases, about once a second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.figures import progress
from server.answers.sentences import progress_line

POLL_SECONDS = 0.25
REPORT_SECONDS = 1.0

Report = Callable[[float, float | None, str | None], Awaitable[None]]


async def wait_for_end(
    read: Callable[[], RunRow],
    report: Report,
    timeout_seconds: float,
    *,
    clock: Callable[[], float] = anyio.current_time,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> RunRow:
    """Read the job until it has ended or the time is up; the last row read is returned.

    Args:
        read: blocking; called in a thread. Whatever it raises is passed on.
        report: gets progress, total and a short message when the step has grown or the phase has changed.
        timeout_seconds: 0 reads once.
    """
    deadline = clock() + timeout_seconds
    last_report, reported, phase = -REPORT_SECONDS, -1.0, None
    while True:
        row = await anyio.to_thread.run_sync(read)
        now = clock()
        if row.state in END_STATES or now >= deadline:
            return row
        done, total = progress(row)
        if (done > reported or row.phase != phase) and now - last_report >= REPORT_SECONDS:
            # a new phase without a new step counts as a small part of one, since progress must increase
            reported = max(done, reported + 0.001)
            last_report, phase = now, row.phase
            await report(reported, total, progress_line(row))
        await sleep(min(POLL_SECONDS, deadline - now))
