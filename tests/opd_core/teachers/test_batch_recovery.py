"""Open batch calls after a death: taken over from a dead run, left to a living one, taken up by their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import TeacherRefusedError, TeacherUnavailableError
from opd_core.guidance import Reference
from opd_core.teachers import batches as batches_module
from opd_core.teachers.batch_client import BatchClient
from opd_core.teachers.retrying import CallFailed
from tests.endpoint import Reply, error
from tests.opd_core.teachers.batch_kit import leave_behind, other_run
from tests.opd_core.teachers.claude_kit import Kit, ask, reference
from tests.opd_core.teachers.dying_client import die

pytestmark = pytest.mark.usefixtures("echo")


# --- taking over from a dead worker of another run


@pytest.mark.parametrize("use_batches", [True, False])
def test_a_dead_run_s_batch_is_settled_for_it_and_everybody_goes_on(
    kit: Kit, tmp_path: Path, use_batches: bool
) -> None:
    leave_behind(kit, "a", "b")
    other = other_run(kit, tmp_path, kit.owner)
    teacher = other.teacher(use_batches=use_batches)
    assert teacher.references([ask("a")], may_wait=True) == [Reference("a")]
    assert len(kit.endpoint.submissions) == 1 and kit.endpoint.calls == []
    assert (kit.totals.settled_calls, kit.totals.open_calls) == (2, 0)
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0  # on the run that reserved it
    assert (other.totals.calls, other.totals.spent_pico, other.totals.cache_hits) == (0, 0, 1)
    stats = teacher.stats()
    assert (stats.calls, stats.cost_usd, stats.cache_hits) == (0, 0.0, 1)
    assert [(line["text"], line["cache_hit"]) for line in other.texts] == [('{"reference": "a"}', True)]
    assert [(line["text"], line["cost_pico"] > 0) for line in kit.texts] == [
        ('{"reference": "a"}', True),
        ('{"reference": "b"}', True),
    ]
    assert kit.by_batch([ask("a"), ask("b")]) == [Reference("a"), Reference("b")]
    assert len(kit.endpoint.submissions) == 1


def test_a_dead_run_s_batch_without_an_id_is_found_for_it(kit: Kit, tmp_path: Path) -> None:
    die(kit, "after_submit")
    other = other_run(kit, tmp_path, kit.owner)
    assert other.teacher().references([ask()]) == [Reference("Say yes.")]
    assert (kit.totals.settled_calls, other.totals.calls) == (2, 0)
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0


def test_a_living_run_s_batch_is_left_to_it(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a")
    other = other_run(kit, tmp_path)
    with pytest.raises(TeacherUnavailableError, match="Another run") as caught:
        other.teacher().references([ask("a")])
    assert caught.value.wake_in_seconds is not None
    assert (kit.totals.open_calls, other.totals.calls) == (1, 0)
    assert other.teacher().references([ask("b")]) == [Reference("b")]


def test_a_dead_run_s_batch_that_is_not_needed_is_not_waited_for(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a")
    kit.endpoint.batch_polls = 10**9
    other = other_run(kit, tmp_path, kit.owner)
    assert other.teacher().references([ask("b")]) == [Reference("b")]
    assert other.by_batch([ask("b")]) == [Reference("b")]
    assert kit.totals.open_calls == 1


def test_a_run_that_comes_back_to_life_settles_its_batch_itself(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a")
    other = other_run(kit, tmp_path)
    looks = iter([True])

    @contextmanager
    def hold(owner: str) -> Iterator[bool]:
        assert owner == kit.owner
        yield next(looks, False)

    teacher = other.teacher()
    teacher._hold_owner = hold
    with pytest.raises(TeacherUnavailableError, match="Another run"):
        teacher.references([ask("a")])
    assert kit.totals.open_calls == 1


def test_the_lock_is_not_held_while_the_provider_works(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a")
    [batch] = kit.endpoint.batches.values()
    kit.endpoint.batch_polls = batch["polls"] + 3
    other = other_run(kit, tmp_path)
    held_seconds = []

    @contextmanager
    def hold(owner: str) -> Iterator[bool]:
        began = other.time.seconds
        yield True
        held_seconds.append(other.time.seconds - began)

    teacher = other.teacher()
    teacher._hold_owner = hold
    assert teacher.references([ask("a")]) == [Reference("a")]
    assert other.time.slept > 0 and set(held_seconds) == {0.0}


def test_what_a_dead_run_had_reserved_and_not_sent_is_released_for_it(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module.Batcher, "_submit", _die)
    with pytest.raises(MemoryError):
        kit.by_batch([ask("a")])
    monkeypatch.undo()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    assert kit.totals.open_calls == 1
    assert other_run(kit, tmp_path, kit.owner).teacher().references([ask("a")]) == [Reference("a")]
    assert (kit.totals.released_calls, kit.totals.spent_pico) == (1, 0)


async def _die(*_: object) -> None:
    raise MemoryError


def test_only_a_refusal_of_what_this_run_wants_stops_it(kit: Kit, tmp_path: Path) -> None:
    leave_behind(kit, "a", "b")
    refusal = Reply(text="", message={"stop_reason": "refusal", "stop_details": {"category": "frontier_llm"}})
    kit.endpoint.script.extend([refusal, reference("b")])
    other = other_run(kit, tmp_path, kit.owner)
    assert other.teacher().references([ask("b")]) == [Reference("b")]
    leave_behind(kit, "c")
    kit.endpoint.script.append(refusal)
    with pytest.raises(TeacherRefusedError):
        other.teacher().references([ask("c")])
    assert kit.totals.open_calls == other.totals.calls == 0


# --- the run's own calls


def test_an_own_batch_in_the_way_of_a_direct_call_is_taken_up(kit: Kit) -> None:
    leave_behind(kit, "a")
    assert kit.teacher().references([ask("a")]) == [Reference("a")]
    assert kit.endpoint.calls == []
    assert kit.totals.settled_calls == 1


def test_an_own_batch_is_not_waited_for_by_what_cannot_wait(kit: Kit) -> None:
    leave_behind(kit, "a")
    kit.endpoint.batch_polls = 10**9
    kit.endpoint.script.append(json.dumps({"lesson": "x"}))
    assert kit.teacher(use_batches=True).lesson([]) == "x"
    assert kit.totals.open_calls == 1


def test_references_that_cannot_wait_are_asked_directly(kit: Kit) -> None:
    assert kit.teacher(use_batches=True).references([ask("a")]) == [Reference("a")]
    assert kit.endpoint.submissions == []


def test_a_reply_costs_what_the_day_of_its_reservation_says(kit: Kit) -> None:
    """Cache reads of this model became cheaper on 2026-10-07."""
    kit.time.seconds = -48 * 86400.0 + 11.9 * 3600  # 2026-10-06 23:54
    leave_behind(kit, "a")
    assert f"{kit.time.now():%m-%d}" == "10-07"
    kit.endpoint.script.append(Reply(text=reference(), usage={"input_tokens": 0, "cache_read_input_tokens": 1000}))
    kit.by_batch([ask("a")])
    written = kit.texts[-1]["output_tokens"]
    assert kit.totals.spent_pico == (1000 * 200_000 + written * 10_000_000) // 2


def test_a_failed_look_at_a_batch_is_repeated(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    json_of = BatchClient._json

    async def flaky(self: BatchClient, send: Any) -> Any:
        tries.append(1)
        if len(tries) in (2, 3):
            raise CallFailed("no", "forfeited", "uncertain", status=error(500).status)
        return await json_of(self, send)

    monkeypatch.setattr(BatchClient, "_json", flaky)
    assert kit.by_batch([ask("a")]) == [Reference("a")]
