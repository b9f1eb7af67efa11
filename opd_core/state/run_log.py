"""A run's log from the side that writes it: the output of the worker's own process, kept within a size.

When the log is full it becomes the older generation, in place of the one before, and this process goes on in a fresh
file. Only its worker does that, since it alone holds the file open. The first line of a later generation says how much
came before, so that a place in the log keeps its number and a reader can tell what was dropped.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import threading
from pathlib import Path

from opd_core.paths import older_generation

MAX_LOG_BYTES = 10_000_000
"""Of one generation; two are kept."""
WATCH_SECONDS = 1.0
HEADER_BYTES = 100
OUTPUT, ERRORS = 1, 2
BLOCK_BYTES = 1024 * 1024
_TURNING = threading.Lock()
"""The two descriptors are the process's, and so is this; a teacher's threads write lines as well."""
_HEADER = re.compile(rb"\[This log goes on: (\d{1,15}) bytes in (\d{1,15}) lines came before\]\n")


def came_before(beginning: bytes) -> tuple[int, int]:
    """Bytes and lines before a generation, by its first HEADER_BYTES; none before the first one."""
    match = _HEADER.match(beginning)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class RunLog:
    """What this process prints, while that goes to the log at `path`; output that goes elsewhere is left alone.

    Args:
        max_bytes: a line that would make the log larger begins a new generation. What libraries print past `write_line`
            is looked at by `keep_within`, and may be beyond it by what comes between two looks.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes

    def write_line(self, line: str) -> None:
        """Write one line, whole into one generation."""
        text = f"{line}\n"
        with _TURNING:
            self._make_room(len(text.encode("utf-8", errors="backslashreplace")))
            sys.stderr.write(text)
            sys.stderr.flush()

    def keep_within(self) -> None:
        """Begin a new generation when this one is too large."""
        with _TURNING:
            self._make_room(0)

    def watch(self) -> None:
        """Call `keep_within` every second for as long as this process lives: a library may print without end."""
        never = threading.Event()

        def look() -> None:
            while not never.wait(WATCH_SECONDS):
                self.keep_within()

        threading.Thread(target=look, name="run log", daemon=True).start()

    def _make_room(self, needed_bytes: int) -> None:
        with contextlib.suppress(OSError):  # a log that cannot be turned over goes on as it is
            now = os.fstat(ERRORS)
            if now.st_size and now.st_size + needed_bytes > self._max_bytes and self._is_ours(now):
                self._turn_over(now)

    def _is_ours(self, output: os.stat_result) -> bool:
        return stat.S_ISREG(output.st_mode) and os.path.samestat(output, self._path.lstat())

    def _turn_over(self, now: os.stat_result) -> None:
        older = older_generation(self._path)
        self._path.rename(older)
        try:
            fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            older.rename(self._path)
            raise
        try:
            with contextlib.suppress(OSError):
                os.write(fresh, _header(older))
            for descriptor in (OUTPUT, ERRORS):
                if os.path.samestat(os.fstat(descriptor), now):
                    os.dup2(fresh, descriptor)
        finally:
            os.close(fresh)


def _header(older: Path) -> bytes:
    with older.open("rb") as file:
        size, lines = came_before(file.read(HEADER_BYTES))
        file.seek(0)
        while block := file.read(BLOCK_BYTES):
            size, lines = size + len(block), lines + block.count(b"\n")
    return f"[This log goes on: {size} bytes in {lines} lines came before]\n".encode()
