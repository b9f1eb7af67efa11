"""References that may wait for a batch: who asks for which, when, and what happens while they do not come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import BudgetExceededError, TeacherUnavailableError
from tests.opd_core.training.scripted_teacher import ScriptedTeacher
from tests.opd_core.training.text_run_kit import CHECK, TRAIN, Recorder, decide, run, settings


@pytest.mark.parametrize(
    ("method", "more", "held_out"),
    [
        ("contrast", {}, 3),
        ("contrast", {"check": CHECK}, 0),
        ("sft", {"guidance_level": "reference", "check": CHECK}, 0),
        ("sft", {"check": CHECK}, 0),
    ],
)
def test_references_for_batches_are_asked_for_all_at_once_before_the_first_step(
    model: Path, tmp_path: Path, method: str, more: dict[str, object], held_out: int
) -> None:
    teacher, recorder = ScriptedTeacher(), Recorder()
    run(settings(model, method, teacher_batch_api=True, **more), tmp_path / "run", recorder, teacher)
    assert teacher.patient == [True] * (len(TRAIN) + held_out)
    assert {kind for kind, _ in teacher.calls[: len(teacher.patient)]} == {"reference"}


def test_only_the_references_that_the_steps_to_come_need_are_asked_for(model: Path, tmp_path: Path) -> None:
    teacher, config = ScriptedTeacher(), settings(model, "contrast", teacher_batch_api=True, check=CHECK)
    run(config.model_copy(update={"num_training_steps": 1}), tmp_path / "run", Recorder(), teacher)
    assert teacher.patient == [True] * 3
    first = {prompt for _, prompt in teacher.calls}
    again = ScriptedTeacher()
    run(config.model_copy(update={"num_training_steps": 2}), tmp_path / "run", Recorder(), again, resume=True)
    assert again.patient == [True] * 3
    assert first.isdisjoint(prompt for _, prompt in again.calls)


@pytest.mark.parametrize("level", ["examples", "reference"])
def test_a_coach_waits_for_no_batch(model: Path, tmp_path: Path, level: str) -> None:
    teacher = ScriptedTeacher()
    config = settings(model, "coach", teacher_batch_api=True, guidance_level=level, num_training_steps=1)
    run(config, tmp_path / "run", Recorder(), teacher)
    assert teacher.patient and not any(teacher.patient)


def test_a_budget_too_small_for_all_references_trains_on_those_that_were_got(model: Path, tmp_path: Path) -> None:
    class Poor(ScriptedTeacher):
        def references(self, conversations: Any, *, sample_index: int = 0, may_wait: bool = False) -> Any:
            if may_wait:
                raise BudgetExceededError("used up", scope="run", left_pico=0, needed_pico=1)
            return super().references(conversations, sample_index=sample_index)

    recorder = Recorder()
    outcome = run(settings(model, "contrast", teacher_batch_api=True, check=CHECK), tmp_path / "run", recorder, Poor())
    assert outcome.end_reason == "finished"
    assert any("not all references are within the budget" in message for message in recorder.messages)


def test_a_batch_that_takes_long_keeps_what_the_probe_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = decide(monkeypatch, "contrast", None)

    def wait(calls: int) -> None:
        raise TeacherUnavailableError("a batch", wake_in_seconds=600.0)

    config = settings(model, "auto", teacher_batch_api=True, check=CHECK)
    with pytest.raises(TeacherUnavailableError):
        run(config, tmp_path / "run", Recorder(), ScriptedTeacher(before_call=wait))
    teacher = ScriptedTeacher()
    run(config, tmp_path / "run", Recorder(), teacher, resume=True)
    assert len(asked) == 1
    assert teacher.patient == [True] * len(TRAIN)
