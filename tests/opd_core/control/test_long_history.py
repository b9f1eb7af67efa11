"""A long history costs a status call and a metrics call nothing: counted in SQLite's own instructions, not in time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from sqlite3 import Row
from typing import Any

import pytest

from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import Settings
from opd_core.state import metrics
from opd_core.state.database import Database, SqlValue
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import config

MAX_POINTS = 16
SHORT, LONG = 12, 11 * 64 + 1
"""Lengths that leave the same 12 points, the long one thinned six times."""


class CountingDatabase(Database):
    """Counts the instructions of SQLite's virtual machine from its first read on."""

    instructions = 0

    def read(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[Row]:
        self._connection().set_progress_handler(self._count, 1)
        return super().read(sql, parameters)

    def _count(self) -> None:
        self.instructions += 1


def recorded(home: HomePaths, steps: int) -> CountingDatabase:
    """The database of a completed run with an evaluation and a checkpoint at every tenth step; its files are gone."""
    home.prepare()
    store = RunStore(home.database)
    store.create("run", "distillation", config().model_dump(mode="json"), total_steps=steps)
    epoch = store.claim("run")
    recorder = RunRecorder(store, home, store.get("run"), lambda: False)
    recorder.phase("rollout", "step 1")
    for step in range(1, steps + 1):
        recorder.train_metrics({"step": step, "kl_loss": 1.0 / step})
        if step % 10 == 0:
            recorder.eval_metrics({"step": step, "reverse_kl": 1.0 / step})
            recorder.checkpoint(step, home.checkpoints("run"), is_best=False)
    store.finish("run", "completed", "finished", epoch=epoch, message="")
    for series in ("train", "eval"):
        home.metrics("run", series).unlink(missing_ok=True)
    return CountingDatabase(home.database)


def costs(home: HomePaths, steps: int) -> dict[str, int]:
    """Instructions of one status call and one metrics call on a run of so many steps."""
    database = recorded(home, steps)
    store, ledger = RunStore(database), Ledger(database, month_limit_pico=0)
    supervisor = Supervisor(home, store, ledger=ledger)
    runs = Runs(Settings(home), Roots.of(home.home), store=store, ledger=ledger, supervisor=supervisor)
    assert runs.status("run").step == steps
    status = database.instructions
    lines: list[dict[str, Any]] = runs.metrics("run", points=MAX_POINTS)
    assert len(lines) == SHORT and (lines[0]["step"], lines[-1]["step"]) == (1, steps)
    return {"status": status, "metrics": database.instructions - status}


def test_a_history_some_sixty_times_as_long_costs_neither_call_an_instruction_and_no_call_reads_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_POINTS", MAX_POINTS)
    short = costs(HomePaths(tmp_path / "short"), SHORT)
    assert min(short.values()) > 100
    assert costs(HomePaths(tmp_path / "long"), LONG) == short
