"""What is kept of a run's log, its older generation and the current one, read as one file; see `state/run_log.py`."""

from __future__ import annotations

import contextlib
import errno
import os
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from opd_core.paths import older_generation
from opd_core.safe_open import UnsafeFileError, open_own
from opd_core.state.run_log import HEADER_BYTES, came_before

ATTEMPTS = 5
"""How often both files are opened, when the worker went on to a fresh one in between."""


class KeptLog:
    """Open generations as one file of `size` bytes that does not grow; a context manager.

    Attributes:
        bytes_before, lines_before: what is not kept any more; a place in the log counts from its very beginning.
    """

    def __init__(self, files: list[BufferedReader]) -> None:
        self._files = files
        self.bytes_before, self.lines_before = came_before(files[0].read(HEADER_BYTES))
        self._parts: list[tuple[BufferedReader, int, int]] = []
        self.size = self._at = 0
        for file in files:
            begin, self.size = self.size, self.size + os.fstat(file.fileno()).st_size
            self._parts.append((file, begin, self.size))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def seek(self, position: int) -> None:
        """Read on from this byte of what is kept."""
        self._at = position

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        pieces = []
        for file, begin, end in self._parts:
            if begin <= self._at < end and count > 0:
                file.seek(self._at - begin)
                piece = file.read(min(count, end - self._at))
                self._at, count = self._at + len(piece), count - len(piece)
                pieces.append(piece)
        return b"".join(pieces)


def open_log(path: Path) -> KeptLog:
    """What is kept of the log at `path`: generations that follow each other, also while its worker goes on to the next.

    Raises:
        FileNotFoundError: there is no log.
        UnsafeFileError: something else has taken its place.
        OSError: not readable.
    """
    older = older_generation(path)
    for _ in range(ATTEMPTS):
        with contextlib.ExitStack() as opened:
            before = _open(older, opened)
            files = [file for file in (before, _open(path, opened)) if file is not None]
            if not _is_still(older, before):
                continue
            if not files:
                raise FileNotFoundError(errno.ENOENT, "there is none")
            log = KeptLog(files)
            opened.pop_all()
            return log
    raise UnsafeFileError("it is replaced again and again")


def _open(path: Path, opened: contextlib.ExitStack) -> BufferedReader | None:
    try:
        return opened.enter_context(open_own(path))
    except FileNotFoundError:
        return None


def _is_still(path: Path, file: BufferedReader | None) -> bool:
    """Whether this file, or none, is the one at the path."""
    try:
        now = path.lstat()
    except FileNotFoundError:
        return file is None
    return file is not None and os.path.samestat(now, os.fstat(file.fileno()))
