"""A reply that was paid for is not bought again, and one that might differ is asked for anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import TeacherCacheMissError, TeacherRefusedError
from opd_core.guidance import Reference, Templates
from tests.endpoint import Reply
from tests.opd_core.teachers.claude_kit import Kit, ask, reference


def test_a_second_run_pays_nothing_for_the_same_requests(kit: Kit, tmp_path: Path) -> None:
    kit.teacher().references([ask()])
    other = Kit(tmp_path / "home", kit.endpoint, run_id="run_2", limit_pico=0)
    assert other.teacher().references([ask()]) == kit.teacher().references([ask()])
    assert len(kit.endpoint.calls) == 1
    assert other.totals.spent_pico == 0
    assert other.totals.cache_hits == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "claude-opus-5-5"},
        {"max_tokens": 501},
        {"templates": Templates(task="Teach it.")},
        {"templates": Templates(rule="Be brief.")},
    ],
)
def test_whatever_changes_the_reply_is_asked_anew(kit: Kit, changed: dict[str, Any]) -> None:
    kit.teacher().references([ask()])
    kit.teacher(**changed).references([ask()])
    assert len(kit.endpoint.calls) == 2


def test_another_sample_of_the_same_request_is_another_reply(kit: Kit) -> None:
    kit.endpoint.script.extend([reference("one"), reference("two")])
    teacher = kit.teacher()
    assert teacher.references([ask()], sample_index=0) == [Reference("one")]
    assert teacher.references([ask()], sample_index=1) == [Reference("two")]
    assert teacher.references([ask()], sample_index=0) == [Reference("one")]


def test_equal_requests_of_one_batch_make_one_call(kit: Kit) -> None:
    found = kit.teacher().references([ask()] * 5)
    assert len(found) == 5
    assert len(set(found)) == 1
    assert len(kit.endpoint.calls) == 1


def test_cache_only_serves_what_is_cached_and_never_calls_out(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.teacher().references([ask()])
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    teacher = kit.teacher(cache_only=True, use_batches=True)
    teacher.check()
    assert teacher.references([ask()]) == [Reference(found) for found in [kit_reference(kit)]]
    with pytest.raises(TeacherCacheMissError, match="teacher_cache_only"):
        teacher.references([ask(), ask("another")])
    assert len(kit.endpoint.requests) == 1


def kit_reference(kit: Kit) -> str:
    found: str = json.loads(kit.texts[0]["text"])["reference"]
    return found


def test_a_truncated_reply_is_not_bought_again(kit: Kit) -> None:
    kit.endpoint.script.append(Reply(text='{"ref', message={"stop_reason": "max_tokens"}))
    teacher = kit.teacher()
    assert teacher.references([ask()]) == [None]
    assert teacher.references([ask()]) == [None]
    assert len(kit.endpoint.calls) == 1


def test_a_refusal_of_the_undertaking_is_asked_again_once_a_person_resumes(kit: Kit) -> None:
    kit.endpoint.script.append(
        Reply(text="", message={"stop_reason": "refusal", "stop_details": {"category": "frontier_llm"}})
    )
    with pytest.raises(TeacherRefusedError):
        kit.teacher().references([ask()])
    assert kit.teacher().references([ask()]) != [None]
    assert len(kit.endpoint.calls) == 2
