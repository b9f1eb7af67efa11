"""A stop ends a wait at once, asks for nothing more and lets calls under way end."""

from __future__ import annotations

from typing import Any

import pytest

from opd_core.errors import TeacherStoppedError
from tests.endpoint import error
from tests.opd_core.teachers.claude_kit import Kit, ask, reference


def test_a_stop_ends_a_long_wait_within_a_second(kit: Kit) -> None:
    kit.endpoint.script.append(error(429, "rate_limit_error", headers={"retry-after": "300"}))
    teacher = kit.teacher()
    asked_at: list[float] = []

    def stop_soon(reason: str, seconds: float) -> None:
        kit.waits.append((reason, seconds))
        asked_at.append(kit.time.seconds)
        kit.stop = True

    teacher._waits._on_wait = stop_soon
    with pytest.raises(TeacherStoppedError):
        teacher.references([ask()])
    assert kit.time.seconds - asked_at[0] < 1.0
    assert kit.waits[0][1] == 300.0
    assert kit.waits[-1] == ("", 0.0)
    assert kit.totals.released_calls == 1


def test_after_a_stop_nothing_is_asked(kit: Kit) -> None:
    kit.stop = True
    with pytest.raises(TeacherStoppedError):
        kit.teacher().references([ask()])
    assert kit.endpoint.requests == []


def test_a_stop_lets_calls_under_way_end(kit: Kit) -> None:
    def answer(params: dict[str, Any]) -> str:
        kit.stop = True
        return reference()

    kit.endpoint.answer = answer
    with pytest.raises(TeacherStoppedError):
        kit.teacher(max_concurrent=1).references([ask("a"), ask("b")])
    assert kit.totals.settled_calls == 1
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
