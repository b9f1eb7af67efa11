"""What the money does when workers are killed, race, restart or go away in mid call."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import BudgetExceededError, TeacherStoppedError, TeacherUnavailableError
from opd_core.guidance import Reference
from tests.endpoint import Endpoint, Reply
from tests.opd_core.teachers.claude_kit import DOLLAR, Kit, ask, reference
from tests.opd_core.teachers.dying_client import die
from tests.waiting import wait_until

TWO_CALLS = 28_000_000_000  # what two of these calls reserve, and not a third


# row 1
def test_a_kill_between_reservation_and_sending_costs_the_whole_reservation(kit: Kit) -> None:
    die(kit, "before_send")
    assert kit.totals.open_calls >= 1
    assert kit.endpoint.requests == []
    orphans, held = kit.totals.open_calls, kit.totals.reserved_pico
    assert kit.recover() == orphans
    assert (kit.totals.spent_pico, kit.totals.reserved_pico) == (held, 0)
    assert kit.teacher().references([ask()]) != [None]
    kit.check_money()


# row 2
def test_a_kill_between_reply_and_settlement_costs_the_whole_reservation(kit: Kit) -> None:
    die(kit, "after_reply")
    kit.check_money()
    assert kit.endpoint.billed_pico > 0
    kit.recover()
    kit.check_money()
    assert kit.totals.forfeited_calls >= 1
    assert kit.totals.spent_pico >= kit.endpoint.billed_pico


# row 2
def test_after_a_kill_the_request_is_asked_again_only_if_the_budget_allows_it(kit: Kit, tmp_path: Path) -> None:
    die(kit, "after_reply")
    kit.recover()
    paid = len(kit.endpoint.calls)
    poor = Kit(tmp_path / "home", kit.endpoint, run_id="run_2", limit_pico=1)
    with pytest.raises(BudgetExceededError):
        poor.teacher().references([ask()])
    assert len(kit.endpoint.calls) == paid
    kit.teacher().references([ask()])
    assert len(kit.endpoint.calls) == paid + 1


# row 3
def test_four_workers_racing_for_the_last_cent_admit_no_more_than_there_is(tmp_path: Path, endpoint: Endpoint) -> None:
    gate = threading.Event()
    endpoint.answer = lambda params: Reply(text=reference(), hold=gate)
    kits = [Kit(tmp_path / "home", endpoint, limit_pico=TWO_CALLS, owner=f"run_1:{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        racing: list[Future[Any]] = [
            pool.submit(kit.teacher().references, [ask(str(place))]) for place, kit in enumerate(kits)
        ]
        try:
            wait_until(lambda: len(endpoint.calls) + sum(future.done() for future in racing) == 4, 30, "all have tried")
        finally:
            gate.set()
    failures = [future.exception() for future in racing]
    assert sum(isinstance(failure, BudgetExceededError) for failure in failures) == 2
    assert sum(failure is None for failure in failures) == len(endpoint.calls) == 2
    kits[0].check_money()


# row 18
def test_the_same_request_of_two_workers_at_once_makes_one_call(tmp_path: Path, endpoint: Endpoint) -> None:
    gate, arrived = threading.Event(), threading.Event()
    endpoint.answer = lambda params: Reply(text=reference(), hold=gate, arrived=arrived)
    first, second = (Kit(tmp_path / "home", endpoint, run_id=name, owner=name) for name in ("run_1", "run_2"))
    with ThreadPoolExecutor(2) as pool:
        try:
            paying = pool.submit(first.teacher().references, [ask()])
            assert arrived.wait(30)
            waiting = pool.submit(second.teacher().references, [ask()])
            wait_until(lambda: second.time.slept > 1.0, 30, "the second worker waits for the first")
        finally:
            gate.set()
        assert paying.result() == waiting.result() == [Reference("Yes.")]
    assert len(endpoint.calls) == 1
    assert (first.totals.spent_pico, second.totals.spent_pico) == (endpoint.billed_pico, 0)


# row 18
def test_whoever_waits_for_another_worker_s_call_takes_over_when_it_fails(tmp_path: Path, endpoint: Endpoint) -> None:
    gate, arrived = threading.Event(), threading.Event()
    endpoint.script.append(Reply(status=401, raw=b"{}", hold=gate, arrived=arrived, bill=False))
    first, second = (Kit(tmp_path / "home", endpoint, run_id=name, owner=name) for name in ("run_1", "run_2"))
    with ThreadPoolExecutor(2) as pool:
        try:
            failing = pool.submit(first.teacher().references, [ask()])
            assert arrived.wait(30)
            waiting = pool.submit(second.teacher().references, [ask()])
            wait_until(lambda: second.time.slept > 1.0, 30, "the second worker waits for the first")
        finally:
            gate.set()
        assert waiting.result() != [None]
        assert isinstance(failing.exception(), TeacherUnavailableError)


# row 19
def test_after_a_restart_the_same_request_costs_nothing(kit: Kit, tmp_path: Path) -> None:
    before = kit.teacher().references([ask()])
    spent = kit.totals.spent_pico
    restarted = Kit(tmp_path / "home", kit.endpoint, owner="run_1:2")
    assert restarted.teacher().references([ask()]) == before
    assert len(kit.endpoint.calls) == 1
    assert restarted.totals.spent_pico == spent


# row 42
def test_a_caller_that_goes_away_in_mid_call_is_charged_and_may_ask_again(kit: Kit) -> None:
    gate, arrived = threading.Event(), threading.Event()
    kit.endpoint.script.append(Reply(text=reference(), hold=gate, arrived=arrived))
    with ThreadPoolExecutor(1) as pool:
        try:
            asking = pool.submit(kit.teacher(stop_grace_seconds=0.0).references, [ask()])
            assert arrived.wait(30)
            kit.stop = True
            with pytest.raises(TeacherStoppedError):
                asking.result(30)
        finally:
            gate.set()
    assert kit.totals.forfeited_calls == 1
    kit.check_money()
    kit.stop = False
    assert kit.teacher().references([ask()]) != [None]
    kit.check_money()


# row 45
def test_a_batch_whose_id_was_lost_in_a_crash_is_found_and_not_submitted_twice(kit: Kit) -> None:
    die(kit, "after_submit")
    assert len(kit.endpoint.submissions) == 1
    assert [call.batch_id for call in kit.ledger.open_batch_calls()] == [None, None]
    assert kit.recover() == 0  # the provider goes on with it: nothing is given up
    found = kit.by_batch([ask(), ask("another")])
    assert None not in found
    assert len(kit.endpoint.submissions) == 1
    assert kit.endpoint.calls == []
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0
    assert kit.totals.limit_pico == DOLLAR
