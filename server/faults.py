"""Where the traceback of an unexpected error goes: a file, never a chat."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

from opd_core.paths import HomePaths, older_generation, utc_now
from opd_core.state.run_log import MAX_LOG_BYTES


def record_fault(home: HomePaths, what: str, error: BaseException) -> str:
    """Append the traceback to OPD_HOME/logs/server.log, or print it on stderr when that cannot be written.

    A log that has grown above MAX_LOG_BYTES first becomes the older generation, in place of the one before.

    Returns:
        Where it is, as the end of a sentence.
    """
    lines = "".join(traceback.format_exception(error))
    path = home.log("server")
    _make_room(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(f"{utc_now()} {what}\n{lines}\n")
    except OSError:
        print(f"{utc_now()} {what}\n{lines}", file=sys.stderr, flush=True)
        return "the server's error output"
    return str(path)


def _make_room(path: Path) -> None:
    with contextlib.suppress(OSError):  # there is none yet; or it stays as it is
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(older_generation(path))
