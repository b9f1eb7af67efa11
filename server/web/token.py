"""The token of the HTTP door: made at the first start, kept in OPD_HOME/token, shown nowhere else."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from opd_core.errors import HomeError
from opd_core.paths import HomePaths, fsync_descriptor, fsync_path

TOKEN_BYTES = 32
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{43,128}")  # 256 bits and more, in letters a header and a socket can carry
MAX_FILE_BYTES = 256


def token_path(home: HomePaths) -> Path:
    """Where the token lies."""
    return home.home / "token"


def read_or_make_token(home: HomePaths) -> str:
    """The home's token; one is made where there is none. Of servers that start together one makes it, all use it.

    Raises:
        HomeError: the file cannot be made or read, others may read it, or it holds no token.
    """
    home.prepare()
    path = token_path(home)
    try:
        if not os.path.lexists(path):
            _make(path)
        return _read(path)
    except HomeError:
        raise
    except OSError as error:
        raise HomeError(
            f"The token file {path} cannot be used: {error.strerror}. Make OPD_HOME a folder of your own on a local "
            "disk, or remove the file; the next start makes a new one."
        ) from error


def _make(path: Path) -> None:
    """Write the token aside and link it into place: a reader sees all of it, and only the first link succeeds."""
    temporary = path.with_name(f".token.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            file.flush()
            fsync_descriptor(file.fileno())
        path.hardlink_to(temporary)
    except FileExistsError:
        pass  # another server was first: its token is the token
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def _read(path: Path) -> str:
    """Read through one descriptor: what was checked is what is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise HomeError(
                f"The token file {path} is not a file of your own. Remove it; the next start makes a new one."
            )
        if status.st_mode & 0o077:
            raise HomeError(
                f"The token file {path} can be read by other users (mode {status.st_mode & 0o777:04o}), "
                "so its token may be known. Remove it; the next start makes a new one."
            )
        text = file.read(MAX_FILE_BYTES).decode("ascii", errors="replace").strip()
    if not TOKEN_PATTERN.fullmatch(text):
        raise HomeError(f"The token file {path} holds no token. Remove it; the next start makes a new one.")
    return text
