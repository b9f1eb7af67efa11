"""Bounded waiting, with a clock that only moves when somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import pytest

from opd_core.errors import RunNotFoundError
from opd_core.state.rows import RunRow
from server import verbs, waiting
from server.waiting import Report, wait_for_end
from tests.server.fakes import FakeUseCases, call, data_of
from tests.server.records import completed, make_row


class Clock:
    """Time in seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def wait(rows: Sequence[RunRow], timeout_seconds: float) -> tuple[RunRow, list[tuple[float, str | None]], Clock]:
    clock, reports = Clock(), []
    left = list(rows)

    async def report(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, message))

    def read() -> RunRow:
        return left.pop(0) if len(left) > 1 else left[0]

    async def go() -> RunRow:
        return await wait_for_end(read, report, timeout_seconds, clock=clock, sleep=clock.sleep)

    return anyio.run(go), reports, clock


def test_an_ended_run_is_returned_at_once() -> None:
    row, reports, clock = wait([completed()], 20)
    assert row.state == "completed" and reports == [] and clock.now == 0


def test_the_wait_ends_with_the_run() -> None:
    row, _, clock = wait([make_row(), make_row(), completed()], 20)
    assert row.state == "completed" and clock.now == pytest.approx(0.5)


def test_the_wait_ends_when_the_time_is_up() -> None:
    row, _, clock = wait([make_row()], 3.1)
    assert row.state == "running" and clock.now == pytest.approx(3.1)


def test_no_time_means_one_look() -> None:
    row, reports, clock = wait([make_row(), completed()], 0)
    assert row.state == "running" and reports == [] and clock.now == 0


def test_progress_is_reported_once_while_nothing_changes() -> None:
    _, reports, _ = wait([make_row()], 30)
    assert len(reports) == 1


def test_progress_comes_at_most_once_a_second_and_only_grows() -> None:
    rows = [make_row(step=step // 2, phase=("rollout", "update")[step % 2]) for step in range(40)]
    _, reports, clock = wait([*rows, completed()], 60)
    progress = [value for value, _ in reports]
    assert progress == sorted(set(progress))
    assert len(reports) <= clock.now + 1
    assert len(reports) >= 9


def test_a_new_phase_of_the_same_step_is_reported() -> None:
    rows = [make_row(phase="rollout")] * 5 + [make_row(phase="evaluation")] * 5 + [completed()]
    _, reports, _ = wait(rows, 60)
    assert [message for _, message in reports] == [
        "step 12 of 30, rollout, KL loss 0.426",
        "step 12 of 30, evaluation, KL loss 0.426",
    ]


def test_a_job_without_steps_reports_its_share() -> None:
    rows = [
        make_row(
            total_steps=0,
            step=0,
            phase="evaluation",
            phase_detail=f"base: {n} of 8",
            phase_fraction=n / 8,
            latest_metrics=None,
        )
        for n in range(9)
    ]
    _, reports, _ = wait([*rows, completed()], 60)
    assert reports[0] == (0.0, "evaluation, base: 0 of 8") and reports[1] == (0.5, "evaluation, base: 4 of 8")


def test_a_stop_is_asked_for_at_once_and_its_wait_is_the_one_that_holds_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = []

    async def recorded(read: Callable[[], RunRow], report: Report, timeout_seconds: float) -> RunRow:
        waits.append(timeout_seconds)
        return await wait_for_end(read, report, timeout_seconds)

    monkeypatch.setattr(verbs, "wait_for_end", recorded)
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.0)
    stopping = make_row(state="stopping")
    cases = FakeUseCases(rows=[stopping, stopping, stopping, make_row(state="stopped")])
    data = data_of(call(cases, "stop_distillation", {"timeout_seconds": 3600}))
    assert data["state"] == "stopped" and waits == [50.0]
    assert cases.asked == [("stop", None, 0.0), *[("status", "opd_1")] * 3]
    data = data_of(call(FakeUseCases(rows=[stopping]), "stop_distillation", {"timeout_seconds": 0}))
    assert data["state"] == "stopping" and data["message"].startswith("The run ends after the work in hand")


def test_what_the_reader_raises_is_passed_on() -> None:
    async def report(progress: float, total: float | None, message: str | None) -> None: ...

    def read() -> RunRow:
        raise RunNotFoundError("gone")

    async def go() -> None:
        await wait_for_end(read, report, 5)

    with pytest.raises(RunNotFoundError):
        anyio.run(go)
