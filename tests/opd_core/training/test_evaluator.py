"""Held-out evidence: figures that follow from the answers and from nothing else."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest

from opd_core.config import parse_config
from opd_core.extractor import RegexCheck
from opd_core.teachers.local import LocalTeacher, build_local_teacher
from opd_core.training.arrays import number
from opd_core.training.divergence import reverse_kl
from opd_core.training.evaluator import evaluate
from opd_core.training.lora import LoadedBase, NewAdapter, Student, make_student
from opd_core.training.tokenization import prompt_ids
from tests.opd_core.training.conftest import example

EXAMPLES = [example("one"), example("two words"), example("and three words")]


@pytest.fixture
def student(base: LoadedBase) -> Student:
    return make_student(base, None, NewAdapter(4, 2.0))


def teacher_with(base: LoadedBase, system_prompt: str) -> LocalTeacher:
    config = {"base_model_path": str(base.path), "prompts_path": "x.txt", "teacher_system_prompt": system_prompt}
    return build_local_teacher(parse_config(config), base)


def test_reverse_kl_is_the_mean_over_the_answers_own_tokens(base: LoadedBase, student: Student) -> None:
    found = evaluate(student, teacher_with(base, "Shout."), EXAMPLES, max_tokens=6)
    assert found is not None
    for sample, rollout in zip(found.samples, found.rollouts, strict=True):
        context = [{"role": "system", "content": "Shout."}, *rollout.messages]
        values = []
        for position in range(len(rollout.completion_ids)):
            seen = list(rollout.completion_ids[:position])
            own = base.model(mx.array([[*rollout.prompt_ids, *seen]]))[:, -1]
            teachers = base.model(mx.array([[*prompt_ids(base.tokenizer, context), *seen]]))[:, -1]
            values.append(number(reverse_kl(own, teachers)[0]))
        assert sample.reverse_kl == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-4)


def test_answers_are_the_same_every_time(base: LoadedBase, student: Student) -> None:
    first, second = (evaluate(student, None, EXAMPLES, max_tokens=8) for _ in range(2))
    assert first is not None and second is not None
    assert first.samples == second.samples


def test_without_a_teacher_or_a_check_their_figures_are_absent_not_zero(student: Student) -> None:
    found = evaluate(student, None, EXAMPLES, max_tokens=4)
    assert found is not None
    summary = found.summary()
    assert summary["reverse_kl"] is None and summary["task_score"] is None and summary["teacher_agreement_pct"] is None
    assert summary["held_out_prompts"] == 3


def test_the_task_score_is_the_share_of_answers_the_check_accepts(student: Student) -> None:
    found = evaluate(student, None, EXAMPLES, max_tokens=8)
    assert found is not None
    pattern = "(?s)" + re.escape(found.samples[0].completion)
    check = RegexCheck(kind="regex", pattern=pattern, must_match="full")
    scored = evaluate(student, None, EXAMPLES, max_tokens=8, check=check)
    assert scored is not None
    scores = [sample.task_score for sample in scored.samples]
    assert scores[0] == 1.0
    assert scored.summary()["task_score"] == pytest.approx(sum(s or 0.0 for s in scores) / 3)


def test_a_stop_ends_an_evaluation_with_nothing(student: Student) -> None:
    assert evaluate(student, None, EXAMPLES, max_tokens=4, should_stop=lambda: True) is None


def test_progress_ends_at_the_number_of_prompts(student: Student) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(student, None, EXAMPLES, max_tokens=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert seen == sorted(seen)
