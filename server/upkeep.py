"""What a server does for its home by itself, once: soon after its start it makes the rows of the runs true.

A run whose worker has died is recorded as interrupted, and the next in the queue started, though nobody asks for a
status. It happens after a moment and in a thread, so that the first answers come as fast as without it.
"""

from __future__ import annotations

import threading

from opd_core.errors import RunNotFoundError
from server.faults import record_fault
from server.use_cases import UseCases

START_SECONDS = 1.0


def tend_soon(cases: UseCases, seconds: float = START_SECONDS) -> threading.Timer:
    """`tend` in a thread, so many seconds from now; it holds up neither an answer nor the end of the process."""
    timer = threading.Timer(seconds, tend, [cases])
    timer.daemon = True
    timer.start()
    return timer


def tend(cases: UseCases) -> None:
    """Record dead workers and start what is queued; makes no home, and what goes wrong is logged, never raised."""
    try:
        if cases.home.database.exists():
            cases.status(None)
    except RunNotFoundError:
        pass
    except Exception as error:
        record_fault(cases.home, "the look at the runs at the start of a server", error)
