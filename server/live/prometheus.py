"""`GET /metrics`: how the home stands, in Prometheus' text format 0.0.4. Few series, whatever the number of runs.

Only what is true at the moment of asking: counts of runs by state, the run that is under way, the month's money, and
this process. Figures of ended runs are history and belong to get_metrics.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from opd_core import __version__
from opd_core.errors import OPDError
from opd_core.money.amounts import usd_from_pico
from opd_core.paths import HomePaths
from opd_core.seams import utc_moment
from opd_core.state.database import Database
from opd_core.state.rows import SELECT_RUNS, RunRow, to_row
from opd_core.types import END_STATES, LIVE_STATES
from server.live.feed import Feed
from server.use_cases import UseCases
from server.web.problems import problem_of

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("queued", *LIVE_STATES, *END_STATES)
RUN_FIGURES = (
    ("kl_loss", "opd_run_kl_loss_nats", "Divergence term of the loss at the newest step, nats a token."),
    ("student_entropy", "opd_run_student_entropy_nats", "Entropy of the student at the newest step, nats a token."),
    ("teacher_alignment_pct", "opd_run_teacher_alignment_percent", "Tokens where student and teacher agree."),
    ("tokens_per_second", "opd_run_tokens_per_second", "Speed of the newest step."),
)

Samples = Iterable[tuple[Mapping[str, str], float | None]]


def metrics_endpoint(cases: UseCases, feed: Feed) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of one home."""
    database = Database(cases.home.database)

    async def metrics(_: Request) -> Response:
        try:
            text = await anyio.to_thread.run_sync(exposition, cases.home, database, feed.readers)
        except OPDError as error:
            return problem_of(error)
        return Response(text, media_type=MEDIA_TYPE)

    return metrics


def exposition(home: HomePaths, database: Database, readers: int) -> str:
    """The whole page.

    Raises:
        StoreError: the database cannot be read.
    """
    counts = {record["state"]: record["runs"] for record in database.read(_COUNTS)}
    marks = ", ".join("?" for _ in LIVE_STATES)
    live = database.read(f"{SELECT_RUNS} WHERE state IN ({marks}) ORDER BY number DESC LIMIT 1", LIVE_STATES)
    parts = [
        family("opd_build_info", "gauge", "Version of this server.", [({"version": __version__}, 1)]),
        family("opd_runs", "gauge", "Runs and jobs by state.", [({"state": s}, counts.get(s, 0)) for s in STATES]),
        *(_active_run(to_row(live[0], utc_moment()), database) if live else ()),
        *_month(database),
        family("opd_live_readers", "gauge", "Readers of this server's live feed.", [({}, readers)]),
        family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", [({}, _resident_bytes())]),
        family("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", [({}, _cpu_seconds())]),
    ]
    return "".join(parts)


def family(name: str, kind: str, meaning: str, samples: Samples) -> str:
    """One metric; a sample without a value is left out, and the whole metric when none is left."""
    lines = [f"{name}{_labels(labels)} {_value(value)}\n" for labels, value in samples if value is not None]
    meaning = meaning.replace("\\", "\\\\").replace("\n", "\\n")
    return "".join([f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n", *lines]) if lines else ""


_COUNTS = "SELECT state, COUNT(*) AS runs FROM runs GROUP BY state"


def _active_run(row: RunRow, database: Database) -> Iterable[str]:
    run = {"run_id": row.run_id}
    line: Mapping[str, Any] = row.latest_metrics or {}
    yield family("opd_run_info", "gauge", "The run under way.", [({**run, "kind": row.kind, "state": row.state}, 1)])
    yield family("opd_run_step", "gauge", "Optimizer updates done.", [(run, row.step)])
    yield family("opd_run_steps", "gauge", "Optimizer updates asked for.", [(run, row.total_steps or None)])
    age = row.heartbeat_age_seconds
    yield family("opd_worker_heartbeat_age_seconds", "gauge", "Time since the worker last wrote.", [(run, age)])
    for key, name, meaning in RUN_FIGURES:
        value = line.get(key)
        yield family(name, "gauge", meaning, [(run, value if isinstance(value, int | float) else None)])
    yield from _money(database, row.run_id, "opd_run", run, "of the run")


def _month(database: Database) -> Iterable[str]:
    """The installation's money in this calendar month (UTC); nothing before the first paid run of the month."""
    month = f"{datetime.now(UTC):%Y-%m}"
    yield from _money(database, f"month:{month}", "opd_month", {"month": month}, "of the month")


_BUDGET = "SELECT limit_pico, spent_pico, reserved_pico FROM budgets WHERE scope = ?"
_MONEY_FIGURES = (
    ("spent_pico", "spent_usd", "Paid calls {whose}, corrections included."),
    ("reserved_pico", "reserved_usd", "What paid calls {whose} that are under way may still cost."),
    ("limit_pico", "budget_limit_usd", "Budget {whose}."),
)


def _money(database: Database, scope: str, prefix: str, labels: Mapping[str, str], whose: str) -> Iterable[str]:
    for record in database.read(_BUDGET, (scope,)):
        for column, name, meaning in _MONEY_FIGURES:
            value = usd_from_pico(record[column])
            yield family(f"{prefix}_{name}", "gauge", meaning.format(whose=whose), [(labels, value)])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    told = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(told) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _resident_bytes() -> float | None:
    """Linux tells; elsewhere nothing cheap does."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _cpu_seconds() -> float:
    return time.process_time()
