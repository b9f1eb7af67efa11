"""Batches whose id was lost are looked for: found, charged in full, or released only if they were never sent."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import BudgetFrozenError, TeacherStoppedError, TeacherUnavailableError
from opd_core.guidance import Reference
from opd_core.teachers.batch_client import PAGE_SIZE
from opd_core.teachers.batch_recovery import CLOCK_MARGIN, SETTLE_SECONDS
from tests.endpoint import Reply, error
from tests.opd_core.teachers.batch_kit import BOTH, SOMEBODY_S, leave_behind, listed, other_run, work_off
from tests.opd_core.teachers.claude_kit import Kit, ask
from tests.opd_core.teachers.dying_client import die

pytestmark = pytest.mark.usefixtures("echo")


def test_a_dead_worker_s_batch_is_found_behind_hundreds_of_newer_ones(kit: Kit) -> None:
    die(kit, "after_submit")
    for _ in range(2 * PAGE_SIZE + 1):
        kit.time.seconds += 1.0
        kit.endpoint.create_batch({"requests": [SOMEBODY_S]})
    assert kit.by_batch(BOTH) == [Reference("Say yes."), Reference("another")]
    assert listed(kit) == 3
    assert len(kit.endpoint.submissions) == 1
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls) == (2, 0)
    kit.check_money()


def test_batches_from_before_the_calls_are_neither_asked_about_nor_read_to_the_end(kit: Kit) -> None:
    kit.time.seconds = -2 * CLOCK_MARGIN.total_seconds() - 3 * PAGE_SIZE
    old = [kit.endpoint.create_batch({"requests": [SOMEBODY_S]})["id"]]
    for _ in range(3 * PAGE_SIZE):
        kit.time.seconds += 1.0
        old.append(kit.endpoint.create_batch({"requests": [SOMEBODY_S]})["id"])
    kit.endpoint.archived = set(old)
    kit.time.seconds = 0.0
    kit.endpoint.batch_script.append(Reply(drop=True, bill=False))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.forfeited_calls, kit.totals.settled_calls) == (1, 1)
    assert listed(kit) == 2  # one page a look
    assert not any(name in path for name in old for _, path, _, _ in kit.endpoint.requests if "?" not in path)


def test_a_batch_whose_results_are_gone_does_not_end_the_search(kit: Kit) -> None:
    die(kit, "after_submit")
    theirs = kit.endpoint.create_batch({"requests": [SOMEBODY_S, SOMEBODY_S]})["id"]  # listed first
    kit.endpoint.batches[theirs]["lines"] = [{"custom_id": "x", "result": {"type": "succeeded"}}] * 2
    kit.endpoint.archived.add(theirs)
    assert None not in kit.by_batch(BOTH)
    assert len(kit.endpoint.submissions) == 1
    assert kit.totals.forfeited_calls == 0


def test_a_batch_that_is_known_to_be_another_run_s_is_not_waited_for(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a")
    kit.endpoint.batch_polls = 10**9
    other = other_run(kit, tmp_path)
    kit.endpoint.batch_script.append(Reply(drop=True, bill=False))
    assert other.by_batch([ask("b")]) == [Reference("b")]
    assert (other.totals.forfeited_calls, other.totals.settled_calls) == (1, 1)


def test_a_batch_that_arrived_and_whose_results_are_gone_is_charged_in_full(kit: Kit) -> None:
    kit.endpoint.batch_script.append(Reply(drop=True))
    kit.endpoint.create_batch({"requests": [SOMEBODY_S]})
    kit.endpoint.archived = {"msgbatch_000001", "msgbatch_000002"}
    assert kit.by_batch([ask("a")]) == [Reference("a")]  # asked for anew
    assert (kit.totals.forfeited_calls, kit.totals.released_calls) == (1, 0)
    kit.check_money()


PAGES: dict[str, dict[str, Any]] = {
    "no list": {"data": None, "has_more": False},
    "no end": {"data": []},
    "no cursor": {"data": [], "has_more": True, "last_id": None},
    "a cursor that stands still": {"data": [], "has_more": True, "last_id": "x"},
    "no id": {"data": [{"request_counts": {"processing": 1}}], "has_more": False},
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_what_a_broken_list_does_not_show_may_be_there_all_the_same(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, page: dict[str, Any]
) -> None:
    monkeypatch.setattr(kit.endpoint, "batch_page", lambda query: page)
    kit.endpoint.batch_script.append(Reply(drop=True))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.forfeited_calls, kit.totals.released_calls) == (1, 0)


def test_a_list_that_cannot_be_had_leaves_the_calls_reserved(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(query: object) -> None:
        raise OSError

    kit.endpoint.batch_script.append(Reply(drop=True))
    with monkeypatch.context() as patch:
        patch.setattr(kit.endpoint, "batch_page", fail)  # the connection closes
        with pytest.raises(TeacherUnavailableError, match="how a batch stands") as caught:
            kit.by_batch([ask("a")])
    assert caught.value.wake_in_seconds == 300.0
    assert kit.totals.open_calls == 1
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert kit.totals.spent_pico == kit.endpoint.billed_pico


def test_a_batch_that_may_be_missing_from_the_list_for_a_while_is_given_that_while(kit: Kit) -> None:
    late = kit.endpoint.batch_page
    kit.endpoint.batch_page = (  # type: ignore[method-assign]
        lambda query: late(query) if kit.time.seconds >= SETTLE_SECONDS else {"data": [], "has_more": False}
    )
    kit.endpoint.batch_script.append(Reply(drop=True))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.settled_calls, kit.totals.released_calls) == (1, 0)
    assert kit.waits[0][1] == SETTLE_SECONDS


@pytest.mark.parametrize(("pause_seconds", "lag_seconds"), [(0, 400), (400, 120), (400, 250), (0, 10**9)])
def test_a_batch_that_is_listed_late_is_found_or_charged_in_full_and_never_released(
    kit: Kit, pause_seconds: int, lag_seconds: int
) -> None:
    """The pause is a 429 before the batch is taken: the sending began long before."""
    if pause_seconds:
        kit.endpoint.batch_script.append(error(429, headers={"retry-after": str(pause_seconds)}, bill=False))
    kit.endpoint.batch_script.append(Reply(drop=True))
    whole = kit.endpoint.batch_page
    kit.endpoint.batch_page = lambda query: (  # type: ignore[method-assign]
        whole(query)
        if kit.time.now() - max(batch["created"] for batch in kit.endpoint.batches.values())
        >= timedelta(seconds=lag_seconds)
        else {"data": [], "has_more": False}
    )
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    was_found = lag_seconds < SETTLE_SECONDS
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls) == ((1, 0) if was_found else (1, 1))
    work_off(kit)
    kit.check_money()


@pytest.mark.parametrize("ahead", [timedelta(minutes=20), -timedelta(minutes=20), timedelta(hours=24)])
def test_a_clock_ahead_of_the_provider_s_or_behind_hides_no_batch(kit: Kit, ahead: timedelta) -> None:
    kit.endpoint.now = lambda: kit.time.now() - ahead
    kit.endpoint.batch_script.append(Reply(drop=True))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls, kit.endpoint.calls) == (1, 0, [])
    kit.check_money()


def test_a_batch_hidden_by_a_clock_that_is_weeks_ahead_is_charged_in_full(kit: Kit) -> None:
    kit.endpoint.now = lambda: kit.time.now() - timedelta(days=14)
    kit.endpoint.batch_script.append(Reply(drop=True))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.forfeited_calls, kit.totals.released_calls) == (1, 0)
    work_off(kit)
    kit.check_money()


def test_a_dead_worker_s_submission_that_is_not_found_is_charged_in_full(kit: Kit) -> None:
    die(kit, "after_submit")
    kit.endpoint.batches.clear()  # as with the key of another workspace
    kit.recover()
    assert None not in kit.by_batch(BOTH)
    assert (kit.totals.forfeited_calls, kit.totals.released_calls) == (2, 0)
    kit.check_money()


def test_calls_whose_sending_never_began_are_released_without_asking(kit: Kit) -> None:
    kit.ledger.reserve(kit.run_id, "key", "claude-sonnet-5-5", "v", 100, "run_1:0", is_batch=True)
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.released_calls, kit.totals.settled_calls) == (1, 1)
    assert listed(kit) == 0


def test_what_is_reserved_for_a_batch_that_cannot_be_filled_is_given_back(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = kit.teacher(use_batches=True)
    reserve = teacher._cashier.reserve

    def freeze_soon(*values: Any, **more: Any) -> Any:
        if kit.totals.open_calls == 2:
            raise BudgetFrozenError("frozen")
        return reserve(*values, **more)

    monkeypatch.setattr(teacher._cashier, "reserve", freeze_soon)
    with pytest.raises(BudgetFrozenError):
        teacher.references([ask("a"), ask("b"), ask("c")], may_wait=True)
    assert (kit.totals.released_calls, kit.totals.open_calls, kit.endpoint.submissions) == (2, 0, [])


def test_a_stop_is_noticed_while_a_batch_is_being_reserved(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = kit.teacher(use_batches=True)
    teacher._waits._should_stop = lambda: kit.stop or kit.totals.open_calls == 2
    with pytest.raises(TeacherStoppedError):
        teacher.references([ask(str(number)) for number in range(5)], may_wait=True)
    assert (kit.totals.calls, kit.totals.released_calls, kit.endpoint.submissions) == (2, 2, [])
