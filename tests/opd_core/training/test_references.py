"""References: asked for once, used only when they can be learnt from; what the teacher has cost so far."""

from __future__ import annotations

import pytest

from opd_core.extractor import ReferenceCheck, RegexCheck
from opd_core.training.answers import AnswerRule
from opd_core.training.lora import LoadedBase
from opd_core.training.meter import TeacherMeter
from opd_core.training.references import References
from opd_core.training.tokenization import completion_ids, prompt_ids
from tests.opd_core.training.conftest import example
from tests.opd_core.training.scripted_teacher import PRICE, ScriptedTeacher

ONE, TWO = example("one"), example("two", completion="from the file")


def test_each_prompt_is_asked_for_once_refused_ones_included(base: LoadedBase) -> None:
    teacher = ScriptedTeacher(lambda prompt: None if prompt == "one" else f" {prompt}! ")
    references = References(teacher, base.tokenizer, 64, AnswerRule())
    assert references.texts([ONE, TWO, TWO]) == [None, "two!", "two!"]
    assert references.texts([TWO, ONE]) == ["two!", None]
    assert teacher.count("reference") == 2


def test_what_is_asked_ahead_may_wait_and_is_not_asked_for_again(base: LoadedBase) -> None:
    teacher = ScriptedTeacher()
    references = References(teacher, base.tokenizer, 64, AnswerRule())
    references.ask_ahead([ONE, ONE])
    assert references.texts([ONE, TWO]) == ["one", "two"]
    assert teacher.patient == [True, False]
    References(None, base.tokenizer, 64, AnswerRule()).ask_ahead([ONE])


def test_ids_end_with_the_end_of_turn(base: LoadedBase) -> None:
    references = References(ScriptedTeacher(), base.tokenizer, 64, AnswerRule())
    assert references.answer_ids([ONE]) == [completion_ids(base.tokenizer, "one")]
    assert references.pairs([ONE]) == [
        (prompt_ids(base.tokenizer, ONE.messages), completion_ids(base.tokenizer, "one"))
    ]
    assert references.pairs([ONE])[0][1][-1] == 2


@pytest.mark.parametrize(("max_tokens", "want"), [(4, "one"), (3, None)])
def test_a_reference_longer_than_the_student_may_write_is_not_used(
    base: LoadedBase, max_tokens: int, want: str | None
) -> None:
    assert References(ScriptedTeacher(), base.tokenizer, max_tokens, AnswerRule()).texts([ONE]) == [want]


def test_a_reference_that_fails_the_check_is_not_used(base: LoadedBase) -> None:
    rule = AnswerRule(RegexCheck(kind="regex", pattern="t.*"))
    references = References(ScriptedTeacher(), base.tokenizer, 64, rule)
    assert references.texts([ONE, TWO]) == [None, "two"]
    assert references.pairs([ONE, TWO])[0][0] == prompt_ids(base.tokenizer, TWO.messages)


def test_a_check_that_lacks_its_reference_judges_nothing(base: LoadedBase) -> None:
    rule = AnswerRule(ReferenceCheck(kind="reference"))
    assert rule.score("one", ONE) is None and not rule.is_wrong("one", ONE)
    assert rule.score("6", example("one", reference="7")) == 0.0
    assert References(ScriptedTeacher(), base.tokenizer, 64, rule).texts([ONE]) == ["one"]


def test_without_a_teacher_the_files_completions_are_the_references(base: LoadedBase) -> None:
    references = References(None, base.tokenizer, 3, AnswerRule())
    assert references.texts([ONE, TWO]) == [None, "from the file"]
    assert [len(answer) for _, answer in references.pairs([ONE, TWO])] == [len("from the file") + 1]


def test_the_meter_counts_over_restarts() -> None:
    teacher = ScriptedTeacher()
    meter = TeacherMeter(teacher)
    assert meter.step_figures()["teacher_api_latency_ms"] is None
    teacher.references([ONE.messages, TWO.messages])
    figures = meter.step_figures()
    assert figures["teacher_api_calls"] == 2 and figures["teacher_api_latency_ms"] == pytest.approx(20.0)
    assert figures["cumulative_cost_usd"] == pytest.approx(2 * PRICE)
    assert meter.step_figures()["teacher_api_latency_ms"] is None  # no call since
    again = TeacherMeter(ScriptedTeacher())
    again.resume(meter.totals())
    assert again.totals() == meter.totals()


def test_without_a_text_teacher_everything_is_zero() -> None:
    figures = TeacherMeter(None).step_figures()
    assert figures.pop("teacher_api_latency_ms") is None and set(figures.values()) == {0}
