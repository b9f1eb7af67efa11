"""Opening a file that somebody else named: what was checked is what is read, and nothing that could hang or never end.

A path from outside is first resolved and held against the allowed folders (`roots.py`). Here it is opened without
following a symbolic link in any part of it, so that a link put there in between leads nowhere; without blocking, so
that a FIFO cannot hang; and only a regular file within its cap is handed out, as an open file, never as a path again.

Hard links: a prompt file must have one name only, since its lines are shown and its other name may lie outside the
roots. Files of models and adapters may have several, as copies in hub caches and model folders share them; no text
of theirs is given out.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_LINK_ANYWHERE: int = getattr(os, "O_NOFOLLOW_ANY", 0)  # macOS
_LOOK: int = getattr(os, "O_PATH", os.O_RDONLY)  # Linux: a folder need not be readable to be passed through


class UnsafeFileError(OSError):
    """What stands at the path is no file to read; `strerror` ends the sentence "FILE cannot be read: …"."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)


def open_regular(path: Path, *, max_bytes: int | None = None, one_name: bool = False) -> BufferedReader:
    """Open a regular file for reading; the caller closes it.

    Args:
        path: absolute and resolved; a symbolic link in any part of it is refused.
        max_bytes: refuse a larger file (it may still grow while it is read).
        one_name: refuse a file with further hard links.

    Raises:
        UnsafeFileError: a link, a folder, a FIFO, a device, too large, or with a second name.
        OSError: missing, not readable.
    """
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        if reason := _unfit(status, max_bytes, one_name):
            raise UnsafeFileError(reason)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_own(path: Path, *, max_bytes: int | None = None) -> BufferedReader:
    """Open a file that this program wrote: links may lead to its folder, but the file itself is none.

    Raises:
        UnsafeFileError, OSError: as `open_regular`.
    """
    return open_regular(resolved(path.parent) / path.name, max_bytes=max_bytes)


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The whole of a small regular file; links that lead to it are followed, as the caller has checked the place.

    Raises:
        UnsafeFileError: not a regular file, or larger than `max_bytes`.
        OSError: missing, not readable.
    """
    with open_regular(resolved(path), max_bytes=max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsafeFileError(f"it is larger than {max_bytes} bytes")
    return data


def resolved(path: Path) -> Path:
    """The real path of something that exists.

    Raises:
        OSError: missing, not reachable, or a path no system call takes.
    """
    try:
        return path.resolve(strict=True)
    except (ValueError, RuntimeError) as error:  # a NUL character; a circle of links
        raise UnsafeFileError(str(error)) from None


def _unfit(status: os.stat_result, max_bytes: int | None, one_name: bool) -> str | None:
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if max_bytes is not None and status.st_size > max_bytes:
        return f"it is larger than {max_bytes} bytes"
    if one_name and status.st_nlink != 1:
        return f"it has {status.st_nlink} names (hard links); make a copy of it and name the copy"
    return None


def _open(path: Path) -> int:
    """A descriptor for the path, no link followed."""
    try:
        if _NO_LINK_ANYWHERE:
            return os.open(path, _READ | _NO_LINK_ANYWHERE)
        return _open_step_by_step(path)
    except ValueError as error:
        raise UnsafeFileError(str(error)) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafeFileError("a part of its path is a symbolic link or no folder; name its real path") from None
        raise


def _open_step_by_step(path: Path) -> int:
    """Linux has no flag for this: each folder is opened inside the one before, so none can be swapped for a link."""
    *folders, name = path.absolute().parts
    if ".." in folders:
        raise UnsafeFileError("its path holds '..'; name its real path")
    inside = os.open(folders[0], _LOOK | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders[1:]:
            deeper = os.open(folder, _LOOK | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
            os.close(inside)
            inside = deeper
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=inside)
    finally:
        os.close(inside)
