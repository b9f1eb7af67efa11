from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import StaleWorkerError
from opd_core.paths import HomePaths
from opd_core.seams import Seams
from opd_core.state import database
from opd_core.state.recorder import RunRecorder
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import Rollout


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    home.prepare()
    return RunStore(home.database)


@pytest.fixture
def signals() -> list[str]:
    """The signals this worker got; any means stop."""
    return []


@pytest.fixture
def recorder(store: RunStore, home: HomePaths, clock: Clock, signals: list[str]) -> Iterator[RunRecorder]:
    store.create("run", "distillation", {}, total_steps=30)
    store.claim("run")
    yield RunRecorder(store, home, store.get("run"), lambda: bool(signals), Seams(monotonic=clock))


def row(store: RunStore) -> RunRow:
    return store.get("run")


def train_line(step: int) -> dict[str, object]:
    return {"step": step, "kl_loss": 1.0 / step}


def eval_line(step: int, is_best: bool) -> dict[str, object]:
    return {"step": step, "reverse_kl": 0.5, "is_best": is_best}


def rollout(step: int) -> Rollout:
    return Rollout(
        rollout_id=f"r{step}",
        step=step,
        prompt_id="p",
        messages=({"role": "user", "content": "Hello"},),
        prompt_ids=(1, 2),
        completion="Hi",
        completion_ids=(3,),
        sampling_logprobs=(-0.1,),
        finish_reason="stop",
        temperature=1.0,
        top_p=1.0,
        max_tokens=8,
        seed=1,
        timestamp="2026-01-01T00:00:00Z",
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_the_run_is_running_from_the_first_phase_after_preparing(store: RunStore, recorder: RunRecorder) -> None:
    recorder.phase("preparing", "loading the student")
    assert row(store).state == "preparing"
    recorder.phase("baseline_eval", "1 of 8", 0.125)
    now = row(store)
    assert (now.state, now.phase, now.phase_detail, now.phase_fraction) == (
        "running", "baseline_eval", "1 of 8", 0.125,
    )  # fmt: skip


def test_a_stop_that_came_while_preparing_is_not_overwritten(store: RunStore, recorder: RunRecorder) -> None:
    store.request_stop("run")
    recorder.phase("rollout")
    assert row(store).state == "stopping"
    assert recorder.should_stop()


def test_a_training_step_reaches_file_series_and_row(
    store: RunStore, recorder: RunRecorder, home: HomePaths, clock: Clock
) -> None:
    recorder.phase("rollout")
    clock.now += 2.0
    recorder.train_metrics(train_line(1))
    clock.now += 2.0
    recorder.train_metrics(train_line(2))
    now = row(store)
    assert (now.step, now.latest_metrics, now.steps_per_second) == (2, train_line(2), 0.5)
    assert store.metrics("run") == [train_line(1), train_line(2)]
    assert len(lines(home.metrics("run", "train"))) == 2


def test_a_value_that_is_not_finite_is_recorded_as_unknown(store: RunStore, recorder: RunRecorder) -> None:
    recorder.train_metrics({"step": 1, "kl_loss": float("nan")})
    assert row(store).latest_metrics == {"step": 1, "kl_loss": None}


def test_evaluations_keep_baseline_latest_and_best(store: RunStore, recorder: RunRecorder) -> None:
    for step, is_best in ((0, True), (10, True), (20, False)):
        recorder.eval_metrics(eval_line(step, is_best))
    now = row(store)
    found = [line["step"] for line in (now.baseline_eval, now.best_eval, now.latest_eval) if line]
    assert found == [0, 10, 20]
    assert now.best_step == 10
    assert [line["step"] for line in store.metrics("run", "eval")] == [0, 10, 20]


def test_rollouts_go_to_the_file_of_their_split(recorder: RunRecorder, home: HomePaths) -> None:
    recorder.rollouts("train", 1, [rollout(1), rollout(1)])
    recorder.rollouts("val", 1, [rollout(1)])
    assert len(lines(home.rollouts("run", "train"))) == 2
    assert len(lines(home.rollouts("run", "val"))) == 1


def test_rollouts_go_where_the_configuration_says(store: RunStore, home: HomePaths, tmp_path: Path) -> None:
    store.create("other", "distillation", {"rollout_output_dir": str(tmp_path / "mine")})
    store.claim("other")
    RunRecorder(store, home, store.get("other"), lambda: False).rollouts("train", 1, [rollout(1)])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["other_rollouts.jsonl"]


def test_a_checkpoint_is_noted_with_an_event(store: RunStore, recorder: RunRecorder, tmp_path: Path) -> None:
    recorder.checkpoint(10, tmp_path / "step_000010", True)
    assert row(store).checkpoint_path == str(tmp_path / "step_000010")
    assert "step 10 (best so far)" in store.events("run")[-1].message


def test_phases_within_a_step_are_written_at_most_four_times_a_second(
    store: RunStore, recorder: RunRecorder, clock: Clock
) -> None:
    recorder.phase("rollout", "step 1")
    clock.now += 0.1
    recorder.phase("update", "step 1")
    assert row(store).phase == "rollout"
    clock.now += 0.2
    recorder.phase("update", "step 1")
    assert row(store).phase == "update"


def test_a_long_step_shows_its_phase_though_a_metrics_line_was_just_written(
    store: RunStore, recorder: RunRecorder, clock: Clock
) -> None:
    recorder.phase("update", "step 1")
    clock.now += 5.0
    recorder.train_metrics(train_line(1))
    recorder.phase("rollout", "step 2")
    assert row(store).phase_detail == "step 2"


def test_progress_within_a_phase_is_written_about_once_a_second(
    store: RunStore, recorder: RunRecorder, clock: Clock
) -> None:
    recorder.phase("evaluation", "1 of 8")
    clock.now += 0.9
    recorder.phase("evaluation", "2 of 8")
    assert row(store).phase_detail == "1 of 8"
    clock.now += 0.2
    recorder.phase("evaluation", "3 of 8")
    assert row(store).phase_detail == "3 of 8"


def test_a_stop_request_is_seen_within_half_a_second(store: RunStore, recorder: RunRecorder, clock: Clock) -> None:
    assert not recorder.should_stop()
    store.request_stop("run")
    assert not recorder.should_stop()
    clock.now += 0.6
    assert recorder.should_stop()


def test_a_signal_needs_no_look_at_the_row(recorder: RunRecorder, signals: list[str]) -> None:
    signals.append("SIGTERM")
    assert recorder.should_stop()


def test_a_worker_that_lost_its_run_is_told_so_everywhere(
    store: RunStore, recorder: RunRecorder, clock: Clock, tmp_path: Path
) -> None:
    store.finish("run", "interrupted", "worker_died", epoch=1, message="")
    store.requeue("run", config={}, total_steps=30)
    store.claim("run")
    clock.now += 10.0
    with pytest.raises(StaleWorkerError):
        recorder.should_stop()
    with pytest.raises(StaleWorkerError):
        recorder.phase("update")
    with pytest.raises(StaleWorkerError):
        recorder.train_metrics(train_line(1))
    with pytest.raises(StaleWorkerError):
        recorder.checkpoint(1, tmp_path, False)
    assert row(store).checkpoint_path is None


def test_cutting_back_returns_everything_to_a_checkpoint(
    store: RunStore, recorder: RunRecorder, home: HomePaths
) -> None:
    def work(first: int, last: int) -> None:
        for step in range(first, last + 1):
            recorder.rollouts("train", step, [rollout(step)])
            recorder.train_metrics(train_line(step))

    recorder.eval_metrics(eval_line(0, True))
    work(1, 4)
    positions = recorder.positions()
    before = row(store)
    work(5, 7)
    recorder.eval_metrics(eval_line(7, True))
    recorder.cut_back(positions)
    after = row(store)
    for name in ("step", "latest_metrics", "latest_eval", "baseline_eval", "best_eval", "best_step"):
        assert getattr(after, name) == getattr(before, name), name
    assert recorder.positions() == positions
    assert [line["step"] for line in store.metrics("run")] == [1, 2, 3, 4]
    work(5, 5)
    assert [line["step"] for line in store.metrics("run")] == [1, 2, 3, 4, 5]


def test_cutting_back_to_nothing_forgets_all(store: RunStore, recorder: RunRecorder, tmp_path: Path) -> None:
    recorder.eval_metrics(eval_line(0, True))
    recorder.train_metrics(train_line(1))
    recorder.checkpoint(1, tmp_path, True)
    recorder.cut_back({})
    now = row(store)
    assert (now.step, now.latest_metrics, now.baseline_eval, now.best_step, now.checkpoint_path) == (
        0, None, None, None, None,
    )  # fmt: skip
    assert store.metrics("run") == [] and store.metrics("run", "eval") == []
    assert set(recorder.positions().values()) == {0}


def test_a_step_outlives_a_busy_database(
    store: RunStore, recorder: RunRecorder, home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is let go after the first refusal; the line must then be there exactly once."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.01)
    store.close()
    with closing(sqlite3.connect(home.database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        real, refusals = database.Database._connection, []

        def connection(self: database.Database) -> Any:
            refusals.append(1)
            if len(refusals) == 2 and holder.in_transaction:
                holder.execute("ROLLBACK")
            return real(self)

        monkeypatch.setattr(database.Database, "_connection", connection)
        recorder.train_metrics(train_line(1))
    assert len(refusals) >= 2
    assert store.metrics("run") == [train_line(1)]


def test_a_wait_shows_its_reason_and_wake_time_until_it_is_over(recorder: RunRecorder, store: RunStore) -> None:
    recorder.phase("baseline_eval")
    recorder.waiting("rate \x1b limit", 90.0)
    seen = row(store)
    assert (seen.state, seen.waiting_reason) == ("waiting", "rate \\x1b limit")
    assert seen.wake_at is not None and seen.started_at is not None and seen.wake_at > seen.started_at
    recorder.waiting("longer", 600.0)
    assert row(store).state == "waiting" and row(store).waiting_reason == "longer"
    recorder.waiting("", 0.0)
    assert (row(store).state, row(store).waiting_reason, row(store).wake_at) == ("running", None, None)


def test_a_run_that_waits_before_it_began_is_running_afterwards(recorder: RunRecorder, store: RunStore) -> None:
    recorder.waiting("spend cap", 90.0)
    recorder.waiting("", 0.0)
    recorder.phase("rollout")
    assert row(store).state == "running"


def test_a_stop_wins_over_a_wait(recorder: RunRecorder, store: RunStore) -> None:
    recorder.phase("rollout")
    store.request_stop("run")
    recorder.waiting("rate limit", 90.0)
    assert row(store).state == "stopping" and recorder.should_stop()
    recorder.waiting("rate limit", 90.0)
    recorder.waiting("", 0.0)
    assert row(store).state == "stopping"
