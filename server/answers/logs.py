"""The answer of `read_log`: lines as data, the newest kept when not all fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from opd_core.state.rows import RunRow
from opd_core.types import clean_text
from server.answers.reply import data_bytes, first_that_fit
from server.schemas.studies import LineEntry, LogAnswer

if TYPE_CHECKING:
    from opd_core.control.log_reading import LogLine, LogPart


LOG_BYTES = 11_000
ERROR_BYTES = 2_500
TEXT_LOG_BYTES = 3_200


def log_read(row: RunRow, mode: Literal["summary", "tail", "grep"], part: LogPart, pattern: str | None) -> LogAnswer:
    """Lines of a log; the newest are kept when not all fit."""
    lines = _newest_that_fit(part.lines, LOG_BYTES)
    errors = _newest_that_fit(part.errors, ERROR_BYTES)
    notes = []
    if len(lines) < len(part.lines):
        notes.append(f"{len(part.lines) - len(lines)} earlier lines were left out; ask for fewer lines.")
    if part.ends_early:
        notes.append("The search ended before the beginning of the log; call again with next_cursor to go on.")
    if part.dropped_bytes and part.cursor is None:
        notes.append(f"The first {part.dropped_bytes:,} bytes of the log are gone: a log keeps only its newest lines.")
    if part.timeouts:
        lines_were = "1 line was" if part.timeouts == 1 else f"{part.timeouts:,} lines were"
        notes.append(f"{lines_were} passed over because the pattern took too long there; give a simpler pattern.")
    return LogAnswer(
        summary=_log_summary(row, mode, part, lines, pattern),
        next_step=_log_next(row, mode, part),
        run_id=row.run_id,
        mode=mode,
        total_lines=part.total_lines,
        total_bytes=part.total_bytes,
        errors=errors,
        lines=lines,
        next_cursor=part.cursor,
        cut=" ".join(notes) or None,
    )


def _newest_that_fit(lines: Sequence[LogLine], limit: int) -> list[LineEntry]:
    entries = [LineEntry(line=line.line, text=line.text) for line in reversed(lines)]
    return first_that_fit(entries, limit)[::-1]


def _log_summary(row: RunRow, mode: str, part: LogPart, lines: Sequence[LineEntry], pattern: str | None) -> str:
    if not part.total_bytes:
        return f"The log of {row.run_id} is empty: its worker has written nothing yet."
    size = f"{part.total_lines:,} lines" if part.total_lines is not None else f"{part.total_bytes:,} bytes"
    if mode == "grep":
        found = "are no such lines"
        if lines:
            count = "is 1 line" if len(lines) == 1 else f"are {len(lines)} lines"
            found = f"{count} with {clean_text(pattern or '', 80)!r}"
        return f"In the log of {row.run_id}, which has {size}, there {found} in the part that was searched."
    if mode == "tail":
        return f"These are {len(lines)} lines of the log of {row.run_id}, which has {size}."
    trouble = f"{len(part.errors)} of the newest tell of trouble" if part.errors else "none tells of trouble"
    return f"The log of {row.run_id} has {size}; {trouble}. The run is {row.state}."


def _log_next(row: RunRow, mode: str, part: LogPart) -> str:
    if part.cursor is not None and mode != "summary":
        return f"Call read_log with run_id {row.run_id} and cursor {part.cursor} for earlier lines, or diagnose_run."
    if part.errors or row.state == "failed":
        return f"Call diagnose_run with run_id {row.run_id} for what to change."
    return f"Call get_status with run_id {row.run_id} for the run's state, or read_log with mode grep and a pattern."


def log_facts(answer: LogAnswer) -> list[str]:
    """Errors first, then the newest lines that fit into the text."""
    errors = [f"- trouble (data), line {entry.line}: {entry.text}" for entry in answer.errors]
    room, kept = TEXT_LOG_BYTES - data_bytes(errors), list[str]()
    for entry in reversed(answer.lines):
        line = f"- log (data), line {entry.line}: {entry.text}"
        room -= len(line.encode())
        if room < 0:
            kept.append(f"- {len(answer.lines) - len(kept)} earlier lines are in the structured result alone")
            break
        kept.append(line)
    return [*errors, *reversed(kept), *([f"- {answer.cut}"] if answer.cut else [])]
