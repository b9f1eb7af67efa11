"""Where the traceback of an unexpected error goes: a file, never a chat."""

from __future__ import annotations

import os
import sys
import traceback

from opd_core.paths import HomePaths, utc_now


def record_fault(home: HomePaths, what: str, error: BaseException) -> str:
    """Append the traceback to OPD_HOME/logs/server.log, or print it on stderr when that cannot be written.

    Returns:
        Where it is, as the end of a sentence.
    """
    lines = "".join(traceback.format_exception(error))
    path = home.log("server")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(f"{utc_now()} {what}\n{lines}\n")
    except OSError:
        print(f"{utc_now()} {what}\n{lines}", file=sys.stderr, flush=True)
        return "the server's error output"
    return str(path)
