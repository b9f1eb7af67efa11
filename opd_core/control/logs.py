"""The end of a worker's log, fit to show: text from a process, escaped and capped."""

from __future__ import annotations

from pathlib import Path

from opd_core.types import clean_text

LOG_TAIL_BYTES = 16_384
LOG_TAIL_LINES = 10
LOG_LINE_CHARACTERS = 300


def log_tail(path: Path) -> tuple[str, ...]:
    """The last lines of a worker's log, escaped and capped; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return tuple(clean_text(line, LOG_LINE_CHARACTERS) for line in lines[-LOG_TAIL_LINES:])
