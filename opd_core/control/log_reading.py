"""Reading a job's log from its end: the last lines, a search, a summary; never the whole file in memory.

What a worker printed is text from elsewhere: every line is escaped and capped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opd_core.control.kept_log import KeptLog, open_log
from opd_core.errors import ConfigError, StateError
from opd_core.matching import compile_pattern
from opd_core.types import clean_text

LogMode = Literal["summary", "tail", "grep"]
Accepts = Callable[[str], bool | None]
"""Whether a line is wanted; None when that could not be told in time."""
LINE_CHARACTERS = 400
BLOCK_BYTES = 64 * 1024
LOOK_BACK_BYTES = 16 * 1024 * 1024
"""How much of a log one search reads; the cursor goes on from there."""
COUNTED_BYTES = 256 * 1024 * 1024
"""Lines of a longer log are not counted."""
ERRORS_SHOWN = 10
SUMMARY_LINES = 10
PATTERN_SECONDS = 0.05
SEARCH_SECONDS = 2.0
# What a worker, Python or a library writes when something went wrong; "no error" and counts of zero are not it.
_TROUBLE = re.compile(
    r"\b(?:error|exception|traceback|failed|failure|fatal|killed|out of memory|cannot|not finite)\b"
    r"|\w(?:Error|Exception)\b",
    re.IGNORECASE,
)
_NO_TROUBLE = re.compile(r"\b(?:no|0|without)\s+(?:error|exception|failure)", re.IGNORECASE)


@dataclass(frozen=True)
class LogLine:
    """One line, escaped and capped; `line` is its number from 1, None where the log is too long to count."""

    line: int | None
    text: str


@dataclass(frozen=True)
class LogPart:
    """What was read. `cursor` asks for what stands before it; None: the beginning was reached.

    Places, numbers and totals count from the log's very beginning, of which the first `dropped_bytes` are not kept.
    `total_lines` is None for a log that is too long to count, `ends_early` when a search ran out of time.
    `timeouts` lines were passed over, as the pattern took too long on them.
    """

    total_lines: int | None
    total_bytes: int
    lines: tuple[LogLine, ...]
    errors: tuple[LogLine, ...]
    cursor: int | None
    ends_early: bool = False
    timeouts: int = 0
    dropped_bytes: int = 0


@dataclass(frozen=True)
class _Found:
    start: int
    text: str


def read_log(
    path: Path,
    mode: LogMode,
    *,
    lines: int,
    pattern: str | None = None,
    is_regex: bool = False,
    before: int | None = None,
) -> LogPart:
    """The last `lines` lines (or matches) before byte `before`; an absent log is an empty one.

    Raises:
        ConfigError: the pattern is missing or is no pattern.
        StateError: the log is not a regular file, or cannot be read.
    """
    accepts = _matcher(mode, pattern, is_regex)
    try:
        log = open_log(path)
    except FileNotFoundError:
        return LogPart(0, 0, (), (), None)
    except OSError as error:
        raise StateError(f"The log {path} cannot be read: {error.strerror}. Has something taken its place?") from error
    with log:
        return _read(log, mode, accepts, lines, before)


def _read(log: KeptLog, mode: LogMode, accepts: Accepts, lines: int, before: int | None) -> LogPart:
    count = _count_lines(log)
    end = log.size if before is None else max(0, min(before - log.bytes_before, log.size))
    wanted = min(lines, SUMMARY_LINES) if mode == "summary" else lines
    kept, start, early, timeouts = _last(log, end, accepts, wanted)
    errors: list[_Found] = []
    if mode == "summary":
        errors, *_ = _last(log, end, _is_trouble, ERRORS_SHOWN)
    numbers = _line_numbers(log, [*kept, *errors]) if count is not None else {}
    return LogPart(
        None if count is None else log.lines_before + count,
        log.bytes_before + log.size,
        tuple(LogLine(numbers.get(found.start), found.text) for found in reversed(kept)),
        tuple(LogLine(numbers.get(found.start), found.text) for found in reversed(errors)),
        None if start is None else log.bytes_before + start,
        early,
        timeouts,
        log.bytes_before,
    )


def _matcher(mode: LogMode, pattern: str | None, is_regex: bool) -> Accepts:
    if mode != "grep":
        if pattern is not None:
            raise ConfigError(f"pattern is for mode 'grep', and the mode is {mode!r}. Give mode grep.", field="pattern")
        return lambda text: True
    if not pattern:
        raise ConfigError(
            "mode 'grep' needs a pattern: a plain text, or an expression with regex true.", field="pattern"
        )
    if not is_regex:
        wanted = pattern.casefold()
        return lambda text: wanted in text.casefold()
    try:
        compiled = compile_pattern(pattern)
    except ValueError as error:
        raise ConfigError(f"pattern {clean_text(pattern, 80)!r} is no expression: {error}.", field="pattern") from None

    def search(text: str) -> bool | None:
        try:
            return compiled.search(text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError:
            return None

    return search


def _is_trouble(text: str) -> bool:
    return _TROUBLE.search(text) is not None and _NO_TROUBLE.search(text) is None


def _last(log: KeptLog, end: int, accepts: Accepts, wanted: int) -> tuple[list[_Found], int | None, bool, int]:
    """The last accepted lines before `end`, newest first; where to go on, whether time ran out, lines not judged."""
    kept: list[_Found] = []
    started, start, timeouts = time.monotonic(), end, 0
    for start, raw in _lines_backwards(log, end):
        text = raw.decode("utf-8", errors="replace").rstrip("\r")
        is_wanted = accepts(text) if text.strip() else False
        timeouts += is_wanted is None
        if is_wanted:
            kept.append(_Found(start, clean_text(text, LINE_CHARACTERS)))
            if len(kept) == wanted:
                break
        if end - start > LOOK_BACK_BYTES or time.monotonic() - started > SEARCH_SECONDS:
            return kept, start or None, start > 0, timeouts
    return kept, start or None, False, timeouts


def _lines_backwards(log: KeptLog, end: int) -> Iterator[tuple[int, bytes]]:
    """(start, line) from the last line before `end` to the first; of a very long line only its beginning."""
    position, rest = end, b""
    while position > 0:
        size = min(BLOCK_BYTES, position)
        position -= size
        log.seek(position)
        pieces = log.read(size).split(b"\n")
        pieces[-1] += rest
        rest = pieces[0][: 2 * BLOCK_BYTES]  # its beginning stands in an earlier block
        starts, at = [], position
        for piece in pieces:
            starts.append(at)
            at += len(piece) + 1
        yield from zip(reversed(starts[1:]), reversed(pieces[1:]), strict=True)
    if end > 0:
        yield 0, rest


def _count_lines(log: KeptLog) -> int | None:
    """Lines of what is kept, a last one without its end included."""
    if log.size > COUNTED_BYTES:
        return None
    log.seek(0)
    count, last = 0, b"\n"
    while block := log.read(1024 * 1024):
        count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _line_numbers(log: KeptLog, found: list[_Found]) -> dict[int, int]:
    """Number of the line that begins at each place, in one pass."""
    numbers: dict[int, int] = {}
    position, count = 0, log.lines_before + 1
    log.seek(0)
    for start in sorted({line.start for line in found}):
        while position < start:
            block = log.read(min(1024 * 1024, start - position))
            if not block:
                break
            position, count = position + len(block), count + block.count(b"\n")
        numbers[start] = count
    return numbers
