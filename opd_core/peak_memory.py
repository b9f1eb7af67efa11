"""The most memory a process has held, by the kernel's count. Standard library only: benchmarks of others use it too."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """The most memory this process has had in RAM at one time.

    On Linux `ru_maxrss` would count the parent it was forked from too, so it is asked only where there is no `VmHWM`.
    """
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
