from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import BudgetExceededError, TeacherRefusedError, TeacherStoppedError, TeacherUnavailableError
from opd_core.guidance import Reference
from tests.endpoint import Reply, error, request_data
from tests.opd_core.teachers.claude_kit import Kit, ask, reference
from tests.waiting import wait_until


def echo(params: dict[str, Any]) -> dict[str, Any]:
    return {"reference": request_data(params)["conversation"][0]["content"].upper()}


def test_a_batch_gives_all_references_at_half_the_price(kit: Kit) -> None:
    kit.endpoint.answer = echo
    teacher = kit.teacher(use_batches=True)
    found = teacher.references([ask("a"), ask("b"), ask("a")], may_wait=True)
    assert found == [Reference("A"), Reference("B"), Reference("A")]
    [submission] = kit.endpoint.submissions
    assert len(submission["requests"]) == 2
    assert kit.endpoint.calls == []
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0
    assert kit.totals.reserved_pico == 0
    stats = teacher.stats()
    assert (stats.calls, stats.cache_hits) == (2, 0)
    assert {line["batch_id"] for line in kit.texts} == set(kit.endpoint.batches)


def test_the_same_text_by_batch_costs_half_of_a_direct_call(kit: Kit) -> None:
    kit.endpoint.answer = echo
    kit.teacher().references([ask("x")], sample_index=0)
    direct = kit.totals.spent_pico
    kit.by_batch([ask("x")], sample_index=1)
    assert (kit.totals.spent_pico - direct) * 2 == direct


def test_what_is_cached_is_not_put_into_a_batch(kit: Kit) -> None:
    kit.teacher().references([ask("a")])
    kit.by_batch([ask("a"), ask("b")])
    assert [len(submission["requests"]) for submission in kit.endpoint.submissions] == [1]
    kit.by_batch([ask("a"), ask("b")])
    assert len(kit.endpoint.submissions) == 1


def test_guidance_cannot_wait_and_is_asked_directly(kit: Kit) -> None:
    kit.teacher(use_batches=True).lesson([])
    assert kit.endpoint.submissions == []


@pytest.mark.parametrize("outcome", ["errored", "expired", "canceled"])
def test_a_request_that_the_batch_did_not_carry_out_is_released_and_asked_directly(kit: Kit, outcome: str) -> None:
    kit.endpoint.answer = echo
    failure: dict[str, Any] = {"type": outcome}
    if outcome == "errored":
        failure["error"] = {"type": "error", "error": {"type": "api_error", "message": "x"}}
    kit.endpoint.batch_results["0"] = failure
    assert kit.by_batch([ask("a"), ask("b")]) == [Reference("A"), Reference("B")]
    assert len(kit.endpoint.calls) == 1
    assert (kit.totals.released_calls, kit.totals.settled_calls) == (1, 2)
    assert kit.totals.spent_pico == kit.endpoint.billed_pico


def test_a_reply_in_a_batch_that_cannot_be_trusted_is_charged_in_full_and_not_asked_again(kit: Kit) -> None:
    kit.endpoint.script.append(Reply(text=reference(), message={"usage": None}))
    assert kit.by_batch([ask("a")]) == [None]
    assert kit.totals.forfeited_calls == 1
    assert kit.endpoint.calls == []
    kit.check_money()


def test_a_request_without_a_result_is_charged_in_full(kit: Kit) -> None:
    kit.endpoint.batch_results["0"] = {"type": "something_new"}
    kit.endpoint.batch_results["1"] = {}
    kit.endpoint.script.append(reference())
    found = kit.by_batch([ask("a"), ask("b"), ask("c")])
    assert found == [None, None, Reference("Yes.")]
    assert kit.totals.forfeited_calls == 2
    kit.check_money()


def test_a_batch_that_takes_long_is_a_visible_wait(kit: Kit) -> None:
    kit.endpoint.batch_polls = 4
    kit.by_batch([ask("a")])
    assert kit.waits[0] == ("Waiting for the teacher: a batch of 1 references is being worked on.", 600.0)
    assert kit.waits[-1] == ("", 0.0)
    assert kit.time.slept == pytest.approx(120.0, abs=1.0)


def test_a_batch_that_takes_longer_than_ten_minutes_gives_the_machine_back_and_is_taken_up_again(kit: Kit) -> None:
    kit.endpoint.answer = echo
    kit.endpoint.batch_polls = 25
    with pytest.raises(TeacherUnavailableError, match="batch of 1") as caught:
        kit.by_batch([ask("a")])
    assert caught.value.wake_in_seconds == 600.0
    assert kit.totals.open_calls == 1
    assert kit.by_batch([ask("a")]) == [Reference("A")]
    assert len(kit.endpoint.submissions) == 1
    assert kit.totals.spent_pico == kit.endpoint.billed_pico


def test_a_stop_ends_the_wait_and_the_batch_is_taken_up_again(kit: Kit) -> None:
    kit.endpoint.batch_polls = 3
    teacher = kit.teacher(use_batches=True)

    def stop_soon(reason: str, seconds: float) -> None:
        kit.stop = True

    teacher._waits._on_wait = stop_soon
    with pytest.raises(TeacherStoppedError):
        teacher.references([ask("a")], may_wait=True)
    assert kit.time.slept < 1.0
    kit.stop = False
    assert kit.by_batch([ask("a")]) != [None]
    assert len(kit.endpoint.submissions) == 1


def test_a_small_budget_is_spent_in_several_batches(kit: Kit, tmp_path: Path) -> None:
    poor = Kit(tmp_path / "poor", kit.endpoint, limit_pico=20_000_000_000)
    found = poor.by_batch([ask(str(number)) for number in range(6)])
    assert None not in found
    assert len(kit.endpoint.submissions) >= 2
    poor.check_money()


def test_a_budget_that_is_used_up_between_batches_is_said(kit: Kit, tmp_path: Path) -> None:
    poor = Kit(tmp_path / "poor", kit.endpoint, limit_pico=20_000_000_000)
    with pytest.raises(BudgetExceededError):
        poor.by_batch([ask(str(number)) for number in range(80)])
    assert poor.totals.settled_calls > 10
    assert poor.totals.reserved_pico == 0
    poor.check_money()


@pytest.mark.parametrize("status", [400, 401, 413])
def test_a_batch_that_is_refused_releases_all_its_calls(kit: Kit, status: int) -> None:
    refused = error(status)
    kit.endpoint.batch_script.append(Reply(status=status, raw=refused.raw, bill=False))
    with pytest.raises(TeacherUnavailableError):
        kit.by_batch([ask("a"), ask("b")])
    assert kit.totals.released_calls == 2
    assert kit.totals.reserved_pico == kit.totals.spent_pico == 0


def test_a_busy_server_is_asked_again_to_take_the_batch(kit: Kit) -> None:
    kit.endpoint.batch_script.append(Reply(status=529, raw=b"{}", bill=False))
    assert kit.by_batch([ask("a")]) != [None]
    assert len(kit.endpoint.submissions) == 2
    assert len(kit.endpoint.batches) == 1


@pytest.mark.parametrize(
    "reply", [Reply(drop=True), Reply(status=500, raw=b"{}"), Reply(raw=b"<html>"), Reply(raw=b'{"id": "../x"}')]
)
def test_a_batch_that_was_taken_although_the_reply_got_lost_is_found_by_its_calls(kit: Kit, reply: Reply) -> None:
    kit.endpoint.batch_script.append(reply)
    assert None not in kit.by_batch([ask("a"), ask("b")])
    assert len(kit.endpoint.submissions) == 1
    assert kit.totals.spent_pico == kit.endpoint.billed_pico


def test_a_submission_that_is_not_found_is_charged_in_full_and_made_again_directly(kit: Kit) -> None:
    kit.endpoint.batch_script.append(Reply(drop=True, bill=False))
    assert None not in kit.by_batch([ask("a"), ask("b")])
    assert (kit.totals.released_calls, kit.totals.forfeited_calls) == (0, 2)
    assert kit.time.slept >= 300.0  # the list is looked at again
    assert len(kit.endpoint.calls) == 2
    kit.check_money()


def test_somebody_else_s_batch_of_the_same_size_is_not_taken_for_ours(kit: Kit) -> None:
    kit.endpoint.batch_script.append(Reply(drop=True))
    kit.endpoint.batch_polls = 25
    with pytest.raises(TeacherUnavailableError):
        kit.by_batch([ask("a")])
    [ours] = kit.endpoint.batches
    params = {"model": "claude-sonnet-5-5", "messages": []}
    theirs = kit.endpoint.create_batch({"requests": [{"custom_id": "theirs", "params": params}]})  # listed first
    kit.endpoint.batch_polls = 0
    kit.endpoint.answer = lambda _: reference()
    assert kit.by_batch([ask("a")]) == [Reference("Yes.")]
    assert kit.endpoint.batches[theirs["id"]]["lines"] is not None
    assert [line["batch_id"] for line in kit.texts] == [ours]


def test_a_batch_that_the_provider_no_longer_knows_is_charged_in_full(kit: Kit) -> None:
    kit.endpoint.batch_polls = 25
    with pytest.raises(TeacherUnavailableError):
        kit.by_batch([ask("a")])
    kit.endpoint.batches.clear()
    assert kit.by_batch([ask("a")]) == [None]
    assert kit.totals.forfeited_calls == 1


def test_a_refusal_of_the_undertaking_keeps_the_other_replies(kit: Kit) -> None:
    refusal = Reply(text="", message={"stop_reason": "refusal", "stop_details": {"category": "frontier_llm"}})
    kit.endpoint.script.extend([reference("one"), refusal, reference("three")])
    with pytest.raises(TeacherRefusedError):
        kit.by_batch([ask("a"), ask("b"), ask("c")])
    assert (kit.totals.settled_calls, kit.totals.open_calls) == (3, 0)
    assert kit.teacher(cache_only=True).references([ask("a"), ask("c")]) == [Reference("one"), Reference("three")]


def test_replies_of_another_worker_s_batch_are_settled_even_when_they_are_not_needed_any_more(kit: Kit) -> None:
    kit.endpoint.answer = echo
    kit.endpoint.batch_polls = 25
    with pytest.raises(TeacherUnavailableError):
        kit.by_batch([ask("a"), ask("b")])
    assert kit.by_batch([ask("b")]) == [Reference("B")]
    assert (kit.totals.settled_calls, kit.totals.open_calls) == (2, 0)
    assert kit.teacher(cache_only=True).references([ask("a")]) == [Reference("A")]


def test_a_request_that_another_run_is_paying_for_is_left_out_and_waited_for(kit: Kit, tmp_path: Path) -> None:
    gate, arrived = threading.Event(), threading.Event()
    kit.endpoint.script.append(Reply(text=json.dumps({"reference": "shared"}), hold=gate, arrived=arrived))
    other = Kit(tmp_path / "home", kit.endpoint, run_id="run_2", owner="run_2:1")
    paying = threading.Thread(target=lambda: other.teacher().references([ask("a")]))
    paying.start()
    assert arrived.wait(30)
    with ThreadPoolExecutor(1) as pool:
        try:
            asking = pool.submit(kit.by_batch, [ask("a"), ask("b")])
            wait_until(lambda: kit.endpoint.batches and kit.time.slept > 31.0, 30, "the rest is done")
        finally:
            gate.set()
        found = asking.result(30)
    paying.join()
    assert found[0] == Reference("shared")
    assert len(kit.endpoint.calls) == 1
    assert [len(submission["requests"]) for submission in kit.endpoint.submissions] == [1]
