"""The divergence update: its value by a slow way, the anchor, the SFT mix-in."""

from __future__ import annotations

import mlx.core as mx
import pytest

from opd_core.config import RunConfig, TeacherExample, parse_config
from opd_core.teachers.base import TeacherContext
from opd_core.teachers.local import LocalTeacher
from opd_core.training.answers import AnswerRule
from opd_core.training.arrays import number
from opd_core.training.divergence import reverse_kl
from opd_core.training.kl_update import KlUpdater
from opd_core.training.lora import LoadedBase, NewAdapter, Student, make_student
from opd_core.training.references import References
from opd_core.training.tokenization import prompt_ids, teacher_messages
from opd_core.types import Message, Rollout
from tests.opd_core.training.conftest import example, rollout

EXAMPLES = [example("one", completion="yes"), example("two words")]
CONTEXT = TeacherContext("Shout.", (TeacherExample(prompt="q", completion="A!"),))


@pytest.fixture
def student(base: LoadedBase) -> Student:
    return make_student(base, None, NewAdapter(4, 2.0))


def settings(**more: object) -> RunConfig:
    values = {"base_model_path": "m", "prompts_path": "p.txt", "kl_schedule": "constant", "learning_rate": 1e-2}
    return parse_config({**values, "lr_warmup_steps": 0, **more})


def local(student: Student, context: TeacherContext) -> LocalTeacher:
    base = student.base
    return LocalTeacher("teacher", base.model, base.tokenizer, base.stop_ids, context)


def updater(student: Student, context: TeacherContext = CONTEXT, **more: object) -> KlUpdater:
    references = References(None, student.base.tokenizer, 64, AnswerRule())
    anchor = make_student(student.base)
    return KlUpdater(student, local(student, context), settings(**more), references.pairs, anchor)


def answers(student: Student) -> list[Rollout]:
    ids = [(60, 61, 62, 2), (70, 2)]
    tokenizer = student.base.tokenizer
    return [
        rollout(item.prompt, "text", completion, prompt_ids(tokenizer, item.messages))
        for item, completion in zip(EXAMPLES, ids, strict=True)
    ]


def move(student: Student) -> None:
    """As if some training had been done."""
    keys = mx.random.split(mx.random.key(3), len(student.adapter_weights()))
    student.load_adapter_weights(
        {
            name: value + 0.05 * mx.random.normal(value.shape, key=key)
            for key, (name, value) in zip(keys, sorted(student.adapter_weights().items()), strict=True)
        }
    )


def moved_by(student: Student, method: KlUpdater) -> dict[str, mx.array]:
    """The adapter after one update, which is then taken back."""
    before = student.adapter_weights()
    method.update(answers(student), EXAMPLES, 1)
    after = student.adapter_weights()
    student.load_adapter_weights(before)
    return after


def differences(student: Student, rollouts: list[Rollout], context: TeacherContext) -> list[float]:
    """Reverse KL at every completion token, one forward pass a position."""
    values = []
    for item in rollouts:
        messages: list[Message] = teacher_messages(item.messages, context.system_prompt, context.examples)
        seen_by_teacher = prompt_ids(student.base.tokenizer, messages)
        for position in range(len(item.completion_ids)):
            seen = list(item.completion_ids[:position])
            own = student.model(mx.array([[*item.prompt_ids, *seen]]))[:, -1]
            teachers = student.base.model(mx.array([[*seen_by_teacher, *seen]]))[:, -1]
            values.append(number(reverse_kl(own, teachers)[0]))
    return values


def test_the_loss_is_the_mean_over_all_tokens_of_the_step(student: Student) -> None:
    move(student)
    want = differences(student, answers(student), CONTEXT)
    result = updater(student, kl_weight=0.5).update(answers(student), EXAMPLES, 1)
    assert result.kl_loss == pytest.approx(sum(want) / 6, rel=1e-3)
    assert result.total_loss == pytest.approx(0.5 * sum(want) / 6, rel=1e-3)
    assert len(result.values) == result.learned_from * 3 == 6


def test_a_teacher_equal_to_the_student_gives_no_loss_and_no_movement(student: Student) -> None:
    before = student.adapter_weights()
    method = updater(student, TeacherContext())
    result = method.update(answers(student), EXAMPLES, 1)
    assert result.kl_loss == pytest.approx(0.0, abs=1e-6) and result.gradient_norm < 1e-4
    assert all(value == pytest.approx(0.0, abs=1e-5) for value in result.values)
    assert before.keys() == student.adapter_weights().keys()


def test_the_anchor_is_zero_at_the_start_and_the_way_gone_from_it_later(student: Student) -> None:
    result = updater(student, anchor_weight=0.3).update(answers(student), EXAMPLES, 1)
    assert result.extras["anchor_kl"] == pytest.approx(0.0, abs=1e-6)
    move(student)
    want = differences(student, answers(student), TeacherContext())
    result = updater(student, anchor_weight=0.3).update(answers(student), EXAMPLES, 1)
    assert result.extras["anchor_kl"] == pytest.approx(sum(want) / 6, rel=1e-3)
    assert result.total_loss == pytest.approx((result.kl_loss or 0.0) + 0.3 * sum(want) / 6, rel=1e-4)


def test_the_anchor_alone_pulls_as_a_teacher_without_guidance_would(student: Student) -> None:
    move(student)
    by_anchor = moved_by(student, updater(student, anchor_weight=1.0, kl_weight=0.0))
    by_teacher = moved_by(student, updater(student, TeacherContext()))
    for name, value in by_anchor.items():
        assert float(mx.abs(value - by_teacher[name]).max()) <= 2e-4  # steps of Adam are 1e-2 long


def test_the_anchor_does_not_depend_on_beta(student: Student) -> None:
    move(student)
    drifts = [
        updater(student, anchor_weight=1e-9, beta=beta, learning_rate=1e-12)
        .update(answers(student), EXAMPLES, 1)
        .extras["anchor_kl"]
        for beta in (0.0, 1.0)
    ]
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-4)


def test_without_a_weight_there_is_no_anchor(student: Student) -> None:
    assert "anchor_kl" not in updater(student).update(answers(student), EXAMPLES, 1).extras


def test_the_mix_in_takes_the_examples_that_have_an_answer(student: Student) -> None:
    result = updater(student, use_sft_mixup=True, sft_weight=0.5).update(answers(student), EXAMPLES, 1)
    assert result.sft_loss > 0
    assert result.total_loss == pytest.approx((result.kl_loss or 0.0) + 0.5 * result.sft_loss, rel=1e-5)
    nothing = updater(student, use_sft_mixup=True).update(answers(student), EXAMPLES[1:], 1)
    assert nothing.sft_loss == 0.0 and nothing.applied
