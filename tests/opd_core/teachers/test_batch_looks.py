"""Looks at batches cost nothing: what they fail to show is asked for again, and never said to be what it is not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import TeacherUnavailableError
from opd_core.guidance import Reference
from opd_core.teachers.batch_client import SECONDS_PER_RESULT
from tests.endpoint import Endpoint, Reply, error, request_data
from tests.opd_core.teachers.batch_kit import leave_behind, other_run
from tests.opd_core.teachers.claude_kit import KEY, Kit, ask


@pytest.fixture(autouse=True)
def echo(endpoint: Endpoint) -> None:
    endpoint.answer = lambda params: {"reference": request_data(params)["conversation"][0]["content"]}


class Looks:
    """Answers the looks at what `part` names with a plan, and then as they should be."""

    def __init__(self, kit: Kit, part: str, *plan: Reply) -> None:
        self._part, self._plan = part, list(plan)
        kit.endpoint.look = self

    def __call__(self, path: str) -> Reply | None:
        if self._part not in path or not self._plan:
            return None
        return self._plan.pop(0)

    @property
    def left(self) -> int:
        return len(self._plan)


def result_line(kit: Kit, position: int) -> bytes:
    """One line of what the only batch has given."""
    [batch] = kit.endpoint.batches.values()
    return json.dumps(batch["lines"][position]).encode()


# --- results


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line_of_the_results(kit: Kit, separator: str) -> None:
    # as Python and browsers may write it, in the text of the reply as it stands
    text = json.dumps({"reference": f"a{separator}b"}, ensure_ascii=False)
    kit.endpoint.answer = lambda params: Reply(text=text)
    assert kit.by_batch([ask("x"), ask("y")]) == [Reference(f"a{separator}b")] * 2
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls) == (2, 0)
    assert kit.totals.spent_pico == kit.endpoint.billed_pico


@pytest.mark.parametrize("raw", [b"<html>try later</html>", b"", b"{}", b'{"custom_id": "x", "result"'])
def test_results_that_cannot_be_read_once_are_read_again(kit: Kit, raw: bytes) -> None:
    looks = Looks(kit, "/results", Reply(raw=raw), Reply(raw=raw))
    assert None not in kit.by_batch([ask(str(number)) for number in range(5)])
    assert looks.left == 0
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls) == (5, 0)
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
    assert ("Waiting for the teacher: the results of a batch have come and cannot be read.", 600.0) in kit.waits


def test_results_that_stay_unreadable_cost_what_was_reserved_for_them_and_the_others_are_kept(kit: Kit) -> None:
    def half(path: str) -> Reply | None:
        return Reply(raw=result_line(kit, 0) + b"\n<html>") if path.endswith("/results") else None

    kit.endpoint.look = half
    found = kit.by_batch([ask("a"), ask("b")])
    assert found == [None, Reference("b")]
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls, kit.endpoint.calls) == (1, 1, [])
    assert kit.time.slept >= 600.0
    kit.check_money()


def test_results_of_which_each_reading_loses_another_part_are_put_together(kit: Kit) -> None:
    readings = iter([0, 1])

    def one(path: str) -> Reply | None:
        return Reply(raw=result_line(kit, next(readings)) + b"\n{") if path.endswith("/results") else None

    kit.endpoint.look = one
    assert kit.by_batch([ask("a"), ask("b")]) == [Reference("a"), Reference("b")]


def test_a_lost_batch_whose_results_cannot_be_read_once_is_found_all_the_same(kit: Kit) -> None:
    kit.endpoint.batch_script.append(Reply(drop=True))
    Looks(kit, "/results", Reply(raw=b"<html>"))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.settled_calls, kit.totals.forfeited_calls, kit.endpoint.calls) == (1, 0, [])


def test_the_results_of_a_large_batch_may_take_longer_than_a_call(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []
    timeout = asyncio.timeout

    def noted(seconds: Any) -> Any:
        allowed.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", noted)
    kit.by_batch([ask(str(number)) for number in range(20)])
    assert max(allowed) == 120.0 + 20 * SECONDS_PER_RESULT > min(allowed) == 120.0


# --- failures


@pytest.mark.parametrize("status", [400, 403, 408, 409, 413, 500, 520, 599])
@pytest.mark.parametrize("part", ["msgbatch_", "/results"])
def test_a_failed_look_at_a_batch_is_repeated_whatever_its_status(kit: Kit, part: str, status: int) -> None:
    Looks(kit, part, error(status), error(status))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert (kit.totals.settled_calls, kit.totals.calls) == (1, 1)


@pytest.mark.parametrize("status", [400, 403, 409, 520])
def test_a_look_that_goes_on_failing_says_what_is_not_known_and_comes_back(kit: Kit, status: int) -> None:
    Looks(kit, "msgbatch_", *[error(status)] * 9)
    with pytest.raises(TeacherUnavailableError) as caught:
        kit.by_batch([ask("a")])
    assert str(caught.value) == f"The teacher's server did not say how a batch stands (status {status})."
    assert caught.value.wake_in_seconds == 300.0
    assert kit.totals.open_calls == 1


def test_a_key_that_is_not_accepted_is_said_to_be_so(kit: Kit) -> None:
    Looks(kit, "msgbatch_", error(401, "authentication_error"))
    with pytest.raises(TeacherUnavailableError, match="The API key is not accepted") as caught:
        kit.by_batch([ask("a")])
    assert caught.value.wake_in_seconds is None
    assert kit.totals.open_calls == 1


def test_a_batch_that_is_not_known_once_is_asked_about_again(kit: Kit) -> None:
    Looks(kit, "msgbatch_", error(404, "not_found_error"), error(404, "not_found_error"))
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert kit.totals.forfeited_calls == 0


@pytest.mark.parametrize("status", [403, 409, 520])
@pytest.mark.parametrize("use_batches", [True, False])
def test_a_dead_run_s_batch_that_cannot_be_seen_makes_another_run_wait_and_not_fail(
    kit: Kit, tmp_path: Path, status: int, use_batches: bool
) -> None:
    leave_behind(kit, "a")
    other = other_run(kit, tmp_path, kit.owner)
    looks = Looks(other, "msgbatch_", *[error(status)] * 3)
    teacher = other.teacher(use_batches=use_batches)
    with pytest.raises(TeacherUnavailableError, match=f"run {kit.run_id} left behind.*status {status}") as caught:
        teacher.references([ask("a")], may_wait=True)
    assert caught.value.wake_in_seconds == 300.0
    assert (kit.totals.open_calls, other.totals.calls) == (1, 0)
    assert teacher.references([ask("b")], may_wait=True) == [Reference("b")]  # no open call blocks this one
    assert looks.left == 0
    assert teacher.references([ask("a")], may_wait=True) == [Reference("a")]
    assert kit.totals.settled_calls == 1


def test_a_failing_batch_of_another_run_does_not_keep_a_run_s_own_from_being_settled(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a")
    other = other_run(kit, tmp_path, kit.owner)
    own = leave_behind(other, "b")

    def theirs(path: str) -> Reply | None:
        return error(403) if "msgbatch_" in path and own not in path else None

    kit.endpoint.look = theirs
    with pytest.raises(TeacherUnavailableError, match=f"run {kit.run_id} left behind"):
        other.by_batch([ask("a"), ask("b")])
    assert (other.totals.settled_calls, other.totals.open_calls, kit.totals.open_calls) == (1, 0, 1)


# --- ids


@pytest.mark.parametrize("secret", [KEY, "sk-ant-somebody-else-s-key-0123456789"])
def test_a_key_that_comes_back_as_the_id_of_a_batch_is_not_taken_for_one(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    view = kit.endpoint.batch_view
    monkeypatch.setattr(kit.endpoint, "batch_view", lambda name, poll=False: {**view(name, poll=poll), "id": secret})
    assert kit.by_batch([ask("a")]) == [Reference("a")]
    assert kit.totals.forfeited_calls == 1
    assert not any(secret.encode() in path.read_bytes() for path in kit.folder.iterdir())
    assert secret not in caplog.text
    assert not any(secret in path for _, path, _, _ in kit.endpoint.requests)
