"""The end of a worker's log, fit to show: text from a process, escaped and capped."""

from __future__ import annotations

from pathlib import Path

from opd_core.control.kept_log import open_log
from opd_core.types import clean_text

LOG_TAIL_BYTES = 16_384
LOG_TAIL_LINES = 10
LOG_LINE_CHARACTERS = 300


def log_tail(path: Path) -> tuple[str, ...]:
    """The last lines of a worker's log, escaped and capped; empty when there is none, and why it cannot be read."""
    try:
        with open_log(path) as log:
            log.seek(max(0, log.size - LOG_TAIL_BYTES))
            text = log.read(LOG_TAIL_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    except OSError as error:
        return (f"[The log {path} cannot be read: {error.strerror}. Has something taken its place?]",)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return tuple(clean_text(line, LOG_LINE_CHARACTERS) for line in lines[-LOG_TAIL_LINES:])
