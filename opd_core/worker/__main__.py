"""`python -m opd_core.worker`: how the supervisor starts it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from opd_core.worker import main

NICENESS = 10


def step_back() -> None:
    """Leave the processor to whoever needs it now, such as a server that must answer; idle time is still all ours.

    Absolute, so that a worker started by a worker is not nicer still. Linux shares time between sessions first, and a
    worker has one of its own: hence its autogroup as well.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


if __name__ == "__main__":
    step_back()
    sys.exit(main())
