"""What somebody who follows a home live can see: what happened since a moment, how each run stands, new log lines.

Everything blocks and reads only; nothing is made, not even the database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opd_core.control.kept_log import KeptLog, open_log
from opd_core.money.amounts import usd_from_pico
from opd_core.money.totals import Totals
from opd_core.state.database import Database, SqlValue
from opd_core.types import LIVE_STATES, EndReason, RunState, clean_text

MAX_FOLLOWED_RUNS = 100
LOG_BYTES_A_LOOK = 16_384
LOG_LINES_A_LOOK = 100
LOG_LINE_BYTES = 4_096
LOG_LINE_CHARACTERS = 400

Mark = tuple[SqlValue, ...]


@dataclass(frozen=True)
class Spend:
    """How a run's budget stands, in dollars."""

    limit_usd: float
    spent_usd: float
    reserved_usd: float
    is_near_limit: bool
    is_frozen: bool


@dataclass(frozen=True)
class RunNow:
    """One run at this moment; text in it is data and not escaped yet."""

    run_id: str
    state: RunState
    end_reason: EndReason | None
    step: int
    total_steps: int
    phase: str | None
    phase_detail: str | None
    phase_fraction: float | None
    waiting_reason: str | None
    wake_at: str | None
    spend: Spend | None
    """None: it has no budget (yet)."""

    @property
    def activity(self) -> Mark:
        """What a new phase message would tell."""
        return (self.state, self.phase, self.phase_detail, self.phase_fraction, self.waiting_reason, self.wake_at)


@dataclass(frozen=True)
class LogText:
    """One new line of a run's log, escaped and capped; `end_byte` is where it ends, from the log's very first byte."""

    text: str
    end_byte: int


_RUNS_NOW = """
    SELECT newest.sequence AS newest, runs.run_id, state, end_reason, step, total_steps, phase, phase_detail,
        phase_fraction, waiting_reason, wake_at, limit_pico, spent_pico, reserved_pico, frozen
    FROM (SELECT COALESCE(MAX(sequence), 0) AS sequence FROM events) AS newest
    LEFT JOIN runs ON runs.number IN (
        SELECT number FROM runs WHERE state IN ({active}) OR run_id IN ({asked}) ORDER BY number DESC LIMIT ?)
    LEFT JOIN budgets ON budgets.scope = runs.run_id
"""


def runs_now(database: Database, asked: Iterable[str] = ()) -> tuple[int, dict[str, RunNow]]:
    """The newest sequence number, and the runs that have not ended and those asked for, of one consistent moment.

    Raises:
        StoreError: as any read.
    """
    active, wanted = ("queued", *LIVE_STATES), tuple(asked)
    sql = _RUNS_NOW.format(active=", ".join("?" * len(active)), asked=", ".join("?" * len(wanted)))
    records = database.read(sql, (*active, *wanted, MAX_FOLLOWED_RUNS + len(wanted)))
    newest = records[0]["newest"] if records else 0
    return newest, {record["run_id"]: _run(record) for record in records if record["run_id"] is not None}


class LogTail:
    """The lines that a log gets from now on (or, from_start, from its first byte on); a part of a line waits."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._at = 0 if from_start else self._end()

    def new_lines(self) -> list[LogText]:
        """What came since the last look; of more than LOG_LINES_A_LOOK only the end, after a line that says so."""
        try:
            status = self._path.stat()
            if (status.st_ino, status.st_size) == self._seen:
                return []
            with open_log(self._path) as log:
                self._seen = status.st_ino, status.st_size
                return self._read(log)
        except OSError:
            return []

    def _read(self, log: KeptLog) -> list[LogText]:
        start, end = self._at, log.bytes_before + log.size
        if end <= start:
            self._at = end  # cut or replaced: go on from its new end
            return []
        at = begin = max(start, end - LOG_BYTES_A_LOOK, log.bytes_before)
        log.seek(begin - log.bytes_before)
        block = log.read(end - begin)
        whole = block.rfind(b"\n") + 1
        if not whole and len(block) >= LOG_LINE_BYTES:
            whole = len(block)
        lines = []
        for raw in block[:whole].splitlines(keepends=True):
            at += len(raw)
            text = raw.decode("utf-8", errors="replace").rstrip()
            if text:
                lines.append(LogText(clean_text(text, LOG_LINE_CHARACTERS), at))
        self._at = at
        if begin > start or len(lines) > LOG_LINES_A_LOOK:
            cut, lines = lines[:-LOG_LINES_A_LOOK], lines[-LOG_LINES_A_LOOK:]
            shown_from = cut[-1].end_byte if cut else begin
            lines.insert(0, LogText(f"[{shown_from - start} bytes of the log are not shown here]", shown_from))
        return lines

    def _end(self) -> int:
        try:
            with open_log(self._path) as log:
                return log.bytes_before + log.size
        except OSError:
            return 0


def _run(record: sqlite3.Row) -> RunNow:
    values = {name: record[name] for name in RunNow.__dataclass_fields__ if name != "spend"}
    return RunNow(**values, spend=None if record["limit_pico"] is None else _spend(record))


def _spend(record: sqlite3.Row) -> Spend:
    totals = Totals(record["run_id"], record["limit_pico"], record["spent_pico"], record["reserved_pico"])
    return Spend(
        limit_usd=usd_from_pico(totals.limit_pico),
        spent_usd=usd_from_pico(totals.spent_pico),
        reserved_usd=usd_from_pico(totals.reserved_pico),
        is_near_limit=totals.is_near_limit,
        is_frozen=bool(record["frozen"]),
    )
