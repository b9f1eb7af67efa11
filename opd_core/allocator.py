"""How a worker's memory is kept: freed memory stays with the process for the next array, in large pages.

MLX on a CPU asks the C library for every array. By default that gives large ones back to the kernel at once, and the
next array's pages have to be cleared and mapped again, one by one: a tenth of an update's time (measured). A worker
that waits, or finds the machine short of memory, gives it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

NAME = "GLIBC_TUNABLES"
KEPT = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000"
"""Ask for large pages; avoid mappings for single arrays; keep up to a terabyte of free memory."""


def allocator_environment() -> dict[str, str]:
    """Environment variables to start a worker with; what a person has set already stays.

    Other C libraries than glibc do not look at them.
    """
    return {NAME: os.environ.get(NAME, KEPT)} if sys.platform == "linux" else {}


def give_back_memory() -> None:
    """Return all free memory to the kernel, for others to use; nothing where the C library cannot."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
