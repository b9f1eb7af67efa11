"""Asking ahead: in the background, once, and never in the way of an error or a stop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.errors import TeacherRefusedError
from opd_core.guidance import Guidance, JudgePair
from opd_core.training.ahead import Ahead, RememberingTeacher
from opd_core.training.answers import AnswerRule
from opd_core.training.lora import LoadedBase, NewAdapter, make_student
from opd_core.training.references import References
from opd_core.training.step import draw_rollouts
from opd_core.types import Rollout
from tests.opd_core.training.conftest import example, rollout
from tests.opd_core.training.scripted_teacher import ScriptedTeacher

ONE, TWO = rollout("one", "x", (60, 2)), rollout("two", "y", (61, 2))
EXAMPLES = [example(f"prompt {index}") for index in range(6)]


@dataclass
class Slow(ScriptedTeacher):
    """Answers when the gate is opened, and remembers in which thread it was asked."""

    gate: threading.Event = field(default_factory=threading.Event)
    threads: list[str] = field(default_factory=list)

    def guidance(self, rollouts: Sequence[Rollout]) -> list[Guidance | None]:
        self.threads.append(threading.current_thread().name)
        assert self.gate.wait(10)
        return super().guidance(rollouts)


def references(base: LoadedBase, teacher: ScriptedTeacher) -> References:
    return References(teacher, base.tokenizer, 64, AnswerRule())


def test_guidance_asked_ahead_is_there_when_it_is_needed_and_was_asked_for_once(base: LoadedBase) -> None:
    slow = Slow()
    teacher = RememberingTeacher(slow)
    ahead = Ahead(teacher, references(base, slow), "guidance")
    ahead.written([ONE])  # comes back at once, though the gate is closed
    slow.gate.set()
    ahead.join()
    both = teacher.guidance([TWO, ONE])
    assert [item.critique for item in both if item] == ["say two", "say one"]
    assert [about for _, about in slow.calls] == [ONE.rollout_id, TWO.rollout_id]
    assert slow.threads[0].startswith("ask-ahead") and slow.threads[1] == threading.current_thread().name
    ahead.close()


def test_a_reply_is_given_out_once_so_that_none_outlives_its_step() -> None:
    scripted = ScriptedTeacher()
    teacher = RememberingTeacher(scripted)
    teacher.ask_ahead([ONE])
    teacher.guidance([ONE])
    teacher.guidance([ONE])
    assert scripted.count("guidance") == 2


def test_the_first_error_of_a_step_is_raised_and_nothing_more_is_asked(base: LoadedBase) -> None:
    asked: list[int] = []

    def refuse(calls: int) -> None:
        asked.append(calls)
        raise TeacherRefusedError("the provider refuses")

    scripted = ScriptedTeacher(before_call=refuse)
    ahead = Ahead(RememberingTeacher(scripted), references(base, ScriptedTeacher()), "guidance")
    for _ in range(3):
        ahead.written([ONE])
    with pytest.raises(TeacherRefusedError):
        ahead.join()
    ahead.close()
    assert len(asked) == 1, "a refusal met once is not paid for again"


@pytest.mark.parametrize(("wanted", "asked"), [("references", ["reference"] * 6), ("nothing", [])])
def test_only_what_is_wanted_is_asked(base: LoadedBase, wanted: str, asked: list[str]) -> None:
    scripted = ScriptedTeacher()
    ahead = Ahead(RememberingTeacher(scripted), references(base, scripted), wanted)  # type: ignore[arg-type]
    ahead.begin(EXAMPLES)
    ahead.written([ONE])
    ahead.join()
    ahead.close()
    assert [kind for kind, _ in scripted.calls] == asked


def test_everything_else_passes_through() -> None:
    scripted = ScriptedTeacher(prefer=lambda pair: "first")
    teacher = RememberingTeacher(scripted)
    assert teacher.lesson([ONE]) == "Be loud." and teacher.name == "scripted"
    assert [item.text for item in teacher.references([ONE.messages]) if item] == ["one"]
    assert [item.preferred for item in teacher.judge([JudgePair(ONE.messages, "a", "b")]) if item] == ["first"]
    assert teacher.stats() == scripted.stats()


def config() -> RunConfig:
    values = {"base_model_path": "m", "prompts_path": "p.txt", "rollout_max_tokens": 4, "num_rollouts_per_prompt": 2}
    return parse_config(values)


def test_a_step_drawn_in_parts_has_the_same_rows_in_the_same_order(base: LoadedBase) -> None:
    student = make_student(base, None, NewAdapter(2, 2.0))
    parts: list[Sequence[Rollout]] = []
    whole = draw_rollouts(student, EXAMPLES, config(), 1, lambda: False)
    drawn = draw_rollouts(student, EXAMPLES, config(), 1, lambda: False, parts.append)
    assert [len(part) for part in parts] == [4, 4, 4] and [item for part in parts for item in part] == drawn
    assert [(r.rollout_id, r.prompt_id) for r in drawn] == [(r.rollout_id, r.prompt_id) for r in whole]
    again = draw_rollouts(student, EXAMPLES, config(), 1, lambda: False, lambda part: None)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in drawn]
    firsts = [r.completion_ids for r in drawn]
    assert len(set(firsts)) > 4  # the parts have random numbers of their own


def test_a_stop_between_the_parts_leaves_nothing(base: LoadedBase) -> None:
    parts: list[Sequence[Rollout]] = []
    student = make_student(base, None, NewAdapter(2, 2.0))
    assert draw_rollouts(student, EXAMPLES, config(), 1, lambda: bool(parts), parts.append) == []
    assert len(parts) == 1
