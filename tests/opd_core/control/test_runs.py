"""What is told of runs: their state, their list, their metrics, the end of their log."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.control.logs import log_tail
from opd_core.control.runs import Runs
from opd_core.errors import ConfigError, RunNotFoundError
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import config
from tests.waiting import wait_until


def test_asking_about_an_unused_home_makes_nothing(runs: Runs, home: HomePaths) -> None:
    for ask in (runs.status, runs.stop, runs.resume, runs.metrics):
        with pytest.raises(RunNotFoundError):
            ask()
    assert runs.list() == ([], None)
    assert not home.home.exists()


def test_a_status_call_starts_what_waits(runs: Runs, home: HomePaths, store: RunStore) -> None:
    home.prepare()
    store.create("waits", "distillation", {})
    runs.status("waits")
    assert store.get("waits").epoch == 1
    wait_until(lambda: store.get("waits").state == "completed", 20)


def test_a_dead_run_shows_the_end_of_its_log_escaped(runs: Runs, home: HomePaths, store: RunStore) -> None:
    home.prepare()
    store.create("dead", "distillation", {}, total_steps=30)
    store.claim("dead")
    home.log("dead").write_text("first\n" * 20 + "\x1b[31mSegmentation fault\x1b[0m\n\n")
    row = runs.status("dead")
    assert row.state == "interrupted"
    assert len(row.last_log_lines) == 10
    assert row.last_log_lines[-1] == "\\x1b[31mSegmentation fault\\x1b[0m"


def test_a_log_tail_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    assert log_tail(path) == ()
    path.write_bytes(b"x" * 1_000_000 + b"\xff\n" + "größer\n".encode() * 3)
    lines = log_tail(path)
    assert lines[1:] == ("größer",) * 3
    assert sum(len(line) for line in lines) < 1000


@pytest.mark.usefixtures("busy")
def test_lists_are_paged_by_a_cursor(runs: Runs) -> None:
    ids = [runs.start(config()).run_id for _ in range(5)]
    seen, cursor = list[str](), None
    while True:
        rows, cursor = runs.list(limit=2, cursor=cursor)
        seen += [row.run_id for row in rows]
        if cursor is None:
            break
    assert seen == ids[::-1]
    with pytest.raises(ConfigError, match="cursor"):
        runs.list(cursor="1; DROP TABLE runs")


@pytest.mark.usefixtures("busy")
def test_metrics_are_read_by_any_name_of_the_run(runs: Runs, store: RunStore) -> None:
    run_id = runs.start(config()).run_id
    epoch = store.claim(run_id)
    for step in range(1, 6):
        store.append_metrics(run_id, epoch, "train", {"step": step}, step=step)
    assert [line["step"] for line in runs.metrics()] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in runs.metrics(run_id[:-1], "train", 1, 2)] == [2, 5]
    assert runs.metrics(run_id, "eval") == []
