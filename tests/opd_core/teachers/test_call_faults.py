"""What the money and the run do when the network or the API says no, not now, or nothing."""

from __future__ import annotations

import socket
import threading

import pytest

from opd_core.errors import TeacherUnavailableError
from tests.endpoint import Reply, error
from tests.opd_core.teachers.claude_kit import Kit, ask, reference


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
