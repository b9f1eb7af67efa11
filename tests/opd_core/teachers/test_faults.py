"""What happens to the money and the run when the API, the network or the process fails, row by row."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import BudgetExceededError, BudgetFrozenError, TeacherStoppedError, TeacherUnavailableError
from opd_core.guidance import Reference
from tests.endpoint import Endpoint, Reply, error
from tests.opd_core.teachers.claude_kit import DOLLAR, Kit, ask, reference
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
TWO_CALLS = 28_000_000_000  # what two of these calls reserve, and not a third


def die(kit: Kit, moment: str) -> None:
    """Run a worker on this kit's home that is killed at `moment`."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.opd_core.teachers.dying_client import main; main()"
    )
    command = [sys.executable, "-P", "-c", program, str(kit.database.parent), kit.endpoint.url, moment]
    done = subprocess.run(command, timeout=60, env=os.environ)
    assert done.returncode == -signal.SIGKILL


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


# row 4
def test_a_call_that_timed_out_is_charged_in_full_and_repeated_once(kit: Kit) -> None:
    gate = threading.Event()
    kit.endpoint.answer = lambda params: Reply(text=reference(), hold=gate)
    try:
        with pytest.raises(TeacherUnavailableError, match="teacher_timeout_seconds") as caught:
            kit.teacher(timeout_seconds=0.3).references([ask()])
    finally:
        gate.set()
    assert caught.value.wake_in_seconds is None, "coming back by itself would spend the budget on outcomes nobody knows"
    assert len(kit.endpoint.calls) == kit.totals.forfeited_calls == 2
    assert kit.endpoint.billed_pico > 0
    kit.check_money()


# row 5
def test_a_teacher_that_stays_overloaded_costs_nothing_and_lets_the_run_wait(kit: Kit) -> None:
    kit.endpoint.answer = lambda params: error(529, "overloaded_error")
    with pytest.raises(TeacherUnavailableError, match="overloaded") as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds == 300.0
    assert len(kit.endpoint.calls) == kit.totals.released_calls == 6
    assert kit.totals.spent_pico == kit.totals.reserved_pico == 0
    assert 31.0 <= kit.time.slept <= 60.0  # 1 + 2 + 4 + 8 + 16


# row 6
def test_a_retry_after_of_an_hour_is_not_slept_through(kit: Kit) -> None:
    kit.endpoint.script.append(error(429, "rate_limit_error", headers={"retry-after": "3600"}))
    with pytest.raises(TeacherUnavailableError, match="rate limit") as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds == 3600.0
    assert kit.time.slept == 0.0
    assert kit.totals.spent_pico == 0


# row 6
def test_a_retry_after_of_minutes_is_a_visible_wait(kit: Kit) -> None:
    kit.endpoint.script.append(error(429, "rate_limit_error", headers={"retry-after": "120"}))
    assert kit.teacher().references([ask()]) != [None]
    assert kit.waits == [("Waiting for the teacher: its server is busy or cannot be reached.", 120.0), ("", 0.0)]
    assert 120.0 <= kit.time.slept < 121.0
    assert (kit.totals.released_calls, kit.totals.settled_calls) == (1, 1)


# row 6
def test_a_ramp_limit_is_waited_for_like_any_rate_limit(kit: Kit) -> None:
    kit.endpoint.script.append(
        error(429, "rate_limit_error", code="ramp_limit_exceeded", headers={"retry-after-ms": "2500"})
    )
    assert kit.teacher().references([ask()]) != [None]
    assert 2.5 <= kit.time.slept < 3.0


# row 7
def test_the_monthly_cap_is_never_tried_again_before_the_month_ends(kit: Kit) -> None:
    kit.endpoint.script.append(error(429, "rate_limit_error", code="enforced_spend_limit_reached"))
    with pytest.raises(TeacherUnavailableError, match="spend limit for this month") as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds == 7.5 * 86_400  # from noon on the 23rd to the first of December
    assert len(kit.endpoint.calls) == kit.totals.released_calls == 1


# row 7
@pytest.mark.parametrize("code", ["contract_spend_limit_reached", "linked_organization_spend_limit_reached"])
def test_a_cap_that_only_a_person_can_lift_names_no_time(kit: Kit, code: str) -> None:
    kit.endpoint.script.append(error(429, "rate_limit_error", code=code))
    with pytest.raises(TeacherUnavailableError) as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds is None
    assert len(kit.endpoint.calls) == kit.totals.released_calls == 1


# row 8
def test_the_workspace_s_own_limit_pauses_the_run_and_is_shown(kit: Kit) -> None:
    text = "You have reached your specified API usage limits. You will regain access on 2026-12-01."
    kit.endpoint.script.append(error(400, "invalid_request_error", text))
    with pytest.raises(TeacherUnavailableError, match="reached your specified") as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds == 7.5 * 86_400
    assert len(kit.endpoint.calls) == kit.totals.released_calls == 1


# row 9
@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "refused"),
        (401, "API key"),
        (402, "cannot pay"),
        (403, "may not use"),
        (404, "retired"),
        (413, "too large"),
    ],
)
def test_a_request_that_is_refused_is_released_and_not_repeated(kit: Kit, status: int, advice: str) -> None:
    kit.endpoint.script.append(error(status))
    with pytest.raises(TeacherUnavailableError, match=advice) as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds is None
    assert len(kit.endpoint.calls) == kit.totals.released_calls == 1
    assert kit.totals.spent_pico == 0


# row 10
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_charged_in_full_and_repeated_once(kit: Kit, status: int) -> None:
    kit.endpoint.script.extend([error(status, bill=True)] * 2)
    with pytest.raises(TeacherUnavailableError) as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds is None
    assert len(kit.endpoint.calls) == kit.totals.forfeited_calls == 2
    kit.check_money()


# row 10
def test_after_a_server_error_the_second_attempt_may_succeed(kit: Kit) -> None:
    kit.endpoint.script.append(error(500))
    assert kit.teacher().references([ask()]) != [None]
    assert (kit.totals.forfeited_calls, kit.totals.settled_calls) == (1, 1)


# row 11
@pytest.mark.parametrize(("status", "forfeited"), [(409, 1), (408, 1), (400, 0), (599, 1)])
def test_the_server_s_wish_to_be_asked_again_is_not_obeyed(kit: Kit, status: int, forfeited: int) -> None:
    kit.endpoint.script.append(error(status, headers={"x-should-retry": "true"}))
    with pytest.raises(TeacherUnavailableError):
        kit.teacher().references([ask()])
    assert len(kit.endpoint.calls) == 1
    assert kit.totals.forfeited_calls == forfeited


# row 12
@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=reference(), message={"usage": ...}),
        Reply(text=reference(), message={"usage": None}),
        Reply(text=reference(), usage={"output_tokens": "NaN"}),
        Reply(text=reference(), usage={"input_tokens": -3}),
        Reply(text=reference(), usage={"output_tokens": ...}),
        Reply(text=reference(), usage={"output_tokens": 1.5}),
        Reply(text=reference(), usage={"input_tokens": True}),
    ],
)
def test_a_reply_without_valid_usage_is_charged_in_full_and_never_used(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.append(reply)
    teacher = kit.teacher()
    assert teacher.references([ask()]) == [None]
    assert teacher.stats().malformed == 1
    assert kit.totals.forfeited_calls == len(kit.endpoint.calls) == 1
    kit.check_money()


# row 13
@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b"<html>busy</html>",
        b"",
        b'{"type": "message", "role": "user"}',
        b'{"type": "message", "type": "message"}',
        b"[" * 100_000,
    ],
)
def test_a_status_200_that_is_no_message_is_charged_in_full(kit: Kit, raw: bytes) -> None:
    kit.endpoint.script.append(Reply(raw=raw))
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1
    kit.check_money()


# row 13
def test_a_web_page_instead_of_a_message_is_charged_in_full(kit: Kit) -> None:
    kit.endpoint.script.append(Reply(raw=b"<html>", headers={"content-type": "text/html"}))
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1


# row 14
@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ({"stop_reason": "max_tokens"}, "truncated"),
        ({"stop_reason": "model_context_window_exceeded"}, "truncated"),
        ({"stop_reason": "refusal", "stop_details": {"category": "bio"}}, "refused"),
        ({"stop_reason": "refusal", "stop_details": None}, "refused"),
        ({"stop_reason": "pause_turn"}, "malformed"),
        ({"stop_reason": "something_new"}, "malformed"),
        ({"content": []}, "malformed"),
        ({"content": [{"type": "text", "text": '{"reference": ""}'}]}, "malformed"),
        ({"content": [{"type": "text", "text": '{"answer": "x"}'}]}, "malformed"),
    ],
)
def test_a_reply_that_is_not_whole_is_paid_by_usage_counted_and_never_used(
    kit: Kit, message: dict[str, Any], counted: str
) -> None:
    kit.endpoint.script.append(Reply(text=reference(), message=message))
    teacher = kit.teacher()
    assert teacher.references([ask()]) == [None]
    assert getattr(teacher.stats(), counted) == 1
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0
    assert [line["standing"] for line in kit.texts] == [counted]


# row 15
@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=reference(), cut=40),
        Reply(text=reference(), cut=0),
        Reply(text=reference(), drop=True),
    ],
)
def test_a_connection_that_breaks_in_mid_call_is_charged_in_full(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.extend([reply, reply])
    with pytest.raises(TeacherUnavailableError, match="charged in full"):
        kit.teacher().references([ask()])
    assert kit.totals.forfeited_calls == 2
    kit.check_money()


# row 15
@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=json.dumps({"type": "error", "error": {"type": "api_error", "message": "x"}}).encode()),
        Reply(text=reference(), message={"stop_reason": None}),
        Reply(text=reference(), message={"stop_reason": ...}),
    ],
)
def test_an_error_or_an_unfinished_message_after_status_200_is_never_accepted(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.append(reply)
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1
    kit.check_money()


# row 16
def test_a_reply_that_cost_more_than_was_reserved_is_recorded_and_freezes_the_budget(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    kit.endpoint.script.append(Reply(text=reference(), usage={"output_tokens": 5_000}))
    assert kit.teacher().references([ask()]) == [Reference("Yes.")]
    assert kit.totals.frozen
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
    assert "frozen" in caplog.text
    with pytest.raises(BudgetFrozenError):
        kit.teacher().references([ask("another")])
    assert len(kit.endpoint.calls) == 1


# row 17
def test_a_reply_of_another_model_is_priced_by_the_dearer_of_the_two(kit: Kit) -> None:
    kit.endpoint.script.extend(
        [
            Reply(text=reference(), message={"model": "claude-opus-5-5"}),
            Reply(text=reference(), message={"model": "claude-haiku-5-5"}),
        ]
    )
    kit.teacher(max_concurrent=1).references([ask("a")])
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
    kit.teacher(max_concurrent=1).references([ask("b")])
    assert kit.totals.spent_pico > kit.endpoint.billed_pico


# row 17
@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=reference(), message={"model": "claude-unheard-of"}),
        Reply(text=reference(), usage={"service_tier": "priority"}),
        Reply(text=reference(), usage={"inference_geo": "moon"}),
        Reply(text=reference(), usage={"speed": "ludicrous"}),
        Reply(text=reference(), usage={"server_tool_use": {"web_search_requests": 1}}),
    ],
)
def test_a_reply_that_has_no_price_is_charged_in_full_and_freezes_the_budget(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.append(reply)
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1
    assert kit.totals.frozen
    with pytest.raises(BudgetFrozenError):
        kit.teacher().references([ask("another")])


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


# row 43
def test_without_a_network_nothing_is_paid_and_the_run_can_wait(kit: Kit) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TeacherUnavailableError, match="cannot be reached") as caught:
            kit.teacher(base_url=url).references([ask()])
    assert caught.value.wake_in_seconds == 300.0
    assert kit.totals.released_calls == 6
    assert kit.totals.spent_pico == kit.totals.reserved_pico == 0


# row 43
def test_a_name_that_does_not_resolve_is_a_missing_network(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TeacherUnavailableError, match="cannot be reached"):
        kit.teacher(base_url="https://api.anthropic.com").references([ask()])
    assert kit.totals.spent_pico == 0


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
