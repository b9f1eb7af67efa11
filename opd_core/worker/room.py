"""Room for a run to work in: free disk for its next checkpoint, and some memory. Looked at before every step.

A run on a full disk waits, visibly, and asks no teacher meanwhile; it goes on by itself when there is room again.
"""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from opd_core.allocator import give_back_memory
from opd_core.checkpoint_files import list_checkpoints
from opd_core.control.machine import free_disk_bytes, read_memory
from opd_core.errors import StoreError
from opd_core.state.recorder import RunRecorder

DISK_FLOOR_BYTES = 100_000_000
MEMORY_FLOOR_BYTES = 200_000_000
SAY_SECONDS = 30.0
POLL_SECONDS = 1.0
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that the disk is full."""
    return any(
        (isinstance(part, OSError) and part.errno in FULL)
        or (isinstance(part, StoreError) and "disk is full" in str(part))
        or (type(part) is RuntimeError and "Unable to write" in str(part))  # MLX names no reason
        for part in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


class Room:
    """Whether a run can work, and the wait until it can.

    Args:
        home, checkpoints: the folders that a run writes to; they may lie on different disks.
        free_bytes: free bytes on the disk of a folder; None where the system does not say.
        available_bytes: free memory, likewise.
    """

    def __init__(
        self,
        home: Path,
        checkpoints: Path,
        recorder: RunRecorder,
        *,
        free_bytes: Callable[[Path], int | None] = free_disk_bytes,
        available_bytes: Callable[[], int | None] = lambda: read_memory().available_bytes,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._checkpoints, self._recorder = home, checkpoints, recorder
        self._free_bytes, self._available_bytes, self._sleep = free_bytes, available_bytes, sleep
        self._clock, self._looked_at = clock, -math.inf
        self._has_told_memory = False

    def shortage(self) -> str | None:
        """Why there is not enough disk, in one sentence; None while there is."""
        needed = DISK_FLOOR_BYTES + 2 * self._checkpoint_bytes()
        for folder in (self._home, self._checkpoints):
            free = self._free_bytes(folder)
            if free is not None and free < needed:
                return (
                    f"The disk of {folder} is full: {free / 1e6:.0f} MB are free and {needed / 1e6:.0f} MB are needed. "
                    "Free some space; the run then goes on by itself."
                )
        return None

    def wait(self) -> None:
        """Return when there is room, or a stop was asked for."""
        self._look_at_memory()
        reason = self.shortage()
        if reason is None:
            return
        self._recorder.log(f"waiting: {reason}")
        waited = 0.0
        while reason is not None and not self._recorder.should_stop():
            if waited % SAY_SECONDS == 0:
                self._say(reason)
            self._sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            reason = self.shortage()
        self._recorder.waiting("", 0.0)
        self._recorder.log("going on" if reason is None else "asked to stop while waiting for room")

    def _say(self, reason: str) -> None:
        try:
            self._recorder.waiting(reason, SAY_SECONDS)
        except StoreError as error:  # the very disk that is full
            self._recorder.log(f"the wait cannot be recorded: {error}")

    def _checkpoint_bytes(self) -> int:
        found = list_checkpoints(self._checkpoints)
        return sum(file.stat().st_size for file in found[-1].iterdir()) if found else 0

    def _look_at_memory(self) -> None:
        if self._clock() - self._looked_at < SAY_SECONDS:
            return  # on macOS a look starts two processes
        self._looked_at = self._clock()
        available = self._available_bytes()
        if available is None or available >= MEMORY_FLOOR_BYTES:
            return
        if "mlx.core" in sys.modules:
            import mlx.core as mx

            mx.clear_cache()
        give_back_memory()
        available = self._available_bytes()  # what was short may have been what this worker had kept
        if available is not None and available < MEMORY_FLOOR_BYTES and not self._has_told_memory:
            self._has_told_memory = True
            self._recorder.warn(
                f"Memory is nearly used up: {available / 1e6:.0f} MB are free. The system may end this run; it then "
                "goes on from its last checkpoint. Close other programs, or use a smaller batch_size."
            )
