"""`sft`: which text is the target, and the likelihood of it by hand."""

from __future__ import annotations

import mlx.core as mx
import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.extractor import RegexCheck
from opd_core.guidance import Guidance, Verdict
from opd_core.training.answers import AnswerRule
from opd_core.training.arrays import floats
from opd_core.training.logprobs import completion_logprobs, pack
from opd_core.training.lora import LoadedBase, NewAdapter, Student, make_student
from opd_core.training.references import References
from opd_core.training.sft_update import SftUpdater
from opd_core.training.tokenization import completion_ids, prompt_ids
from opd_core.types import Rollout
from tests.opd_core.training.conftest import example, rollout
from tests.opd_core.training.scripted_teacher import ScriptedTeacher

EXAMPLES = [example("one"), example("two")]


@pytest.fixture
def student(base: LoadedBase) -> Student:
    return make_student(base, None, NewAdapter(4, 2.0))


def updater(student: Student, teacher: ScriptedTeacher, **more: object) -> SftUpdater:
    config: RunConfig = parse_config(
        {"base_model_path": "m", "prompts_path": "p.txt", "method": "sft", "rollout_max_tokens": 12, **more}
    )
    references = References(teacher, student.base.tokenizer, config.rollout_max_tokens, AnswerRule.of(config))
    return SftUpdater(student, teacher, references, config)


def says(verdict: Verdict, edit: str | None = None) -> Guidance:
    return Guidance(verdict, 0.5, "critique", edit, "lesson")


def answer(student: Student, prompt: str, text: str, stopped: bool = True) -> Rollout:
    ids = completion_ids(student.base.tokenizer, text)
    messages = [{"role": "user", "content": prompt}]
    return rollout(prompt, text, ids if stopped else ids[:-1], prompt_ids(student.base.tokenizer, messages))


def nll(student: Student, pairs: list[tuple[str, str]]) -> float:
    """Per token, over all the answers."""
    tokenizer = student.base.tokenizer
    batch = pack(
        [prompt_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt, _ in pairs],
        [completion_ids(tokenizer, text) for _, text in pairs],
    )
    values = floats(completion_logprobs(student.scorer, batch))
    return -sum(values) / len(values)


@pytest.mark.parametrize(
    ("guidance", "stopped", "target", "kind"),
    [
        (says("repairable", "edited"), True, "edited", "targets_edit"),
        (says("wrong"), True, "ref one", "targets_reference"),
        (says("correct"), True, "own", "targets_own"),
        (says("correct"), False, "ref one", "targets_reference"),  # right so far, but it never ended
        (says("repairable", "an edit that is too long"), True, "ref one", "targets_reference"),
        (None, True, "ref one", "targets_reference"),
    ],
)
def test_the_target_follows_from_the_verdict(
    student: Student, guidance: Guidance | None, stopped: bool, target: str, kind: str
) -> None:
    teacher = ScriptedTeacher(lambda prompt: f"ref {prompt}", lambda rollout: guidance)
    want = nll(student, [("one", target)])
    result = updater(student, teacher).update([answer(student, "one", "own", stopped)], EXAMPLES, 1)
    assert result.sft_loss == result.total_loss == pytest.approx(want, rel=1e-4)
    assert result.extras[kind] == result.learned_from == 1 and result.applied
    assert teacher.count("reference") == (kind == "targets_reference")  # asked for only where one is needed


def test_the_loss_is_the_mean_over_all_target_tokens_of_the_step(student: Student) -> None:
    teacher = ScriptedTeacher(guide=lambda r: says("repairable", "a") if r.prompt == "one" else says("wrong"))
    want = nll(student, [("one", "a"), ("two", "two"), ("two", "two")])
    rollouts = [answer(student, name, text) for name, text in (("one", "x"), ("two", "y"), ("two", "z"))]
    assert updater(student, teacher).update(rollouts, EXAMPLES, 1).sft_loss == pytest.approx(want, rel=1e-4)


def test_texts_that_fail_the_check_are_not_learnt_from(student: Student) -> None:
    check = RegexCheck(kind="regex", pattern="[a-z]+").model_dump()
    for verdict, edit in (("repairable", "NO"), ("correct", None)):
        teacher = ScriptedTeacher(lambda prompt: "fine", lambda r, v=verdict, e=edit: says(v, e))  # type: ignore[misc]
        result = updater(student, teacher, check=check).update([answer(student, "one", "BAD")], EXAMPLES, 1)
        assert result.extras["targets_reference"] == 1
    bad = ScriptedTeacher(lambda prompt: "BAD", lambda r: says("wrong"))
    assert updater(student, bad, check=check).update([answer(student, "one", "x")], EXAMPLES, 1).learned_from == 0


def test_at_level_reference_the_student_writes_nothing_and_no_answer_is_judged(student: Student) -> None:
    teacher = ScriptedTeacher(lambda prompt: f"ref {prompt}")
    method = updater(student, teacher, guidance_level="reference")
    want = nll(student, [("one", "ref one"), ("two", "ref two")])
    assert not method.needs_rollouts(1)
    assert method.update([], EXAMPLES, 1).sft_loss == pytest.approx(want, rel=1e-4)
    assert [kind for kind, _ in teacher.calls] == ["reference", "reference"]


def test_refused_references_leave_the_weights_as_they_are(student: Student) -> None:
    before = student.adapter_weights()
    result = updater(student, ScriptedTeacher(lambda prompt: None), guidance_level="reference").update([], EXAMPLES, 1)
    assert not result.applied and result.finite and result.learned_from == 0
    assert all(bool(mx.array_equal(value, before[name])) for name, value in student.adapter_weights().items())


def test_the_loss_falls_and_ends_near_zero(student: Student) -> None:
    teacher = ScriptedTeacher(lambda prompt: f"ref {prompt}")
    method = updater(student, teacher, guidance_level="reference", learning_rate=1e-2, lr_warmup_steps=0)
    losses = [method.update([], EXAMPLES, step).sft_loss for step in range(1, 61)]
    assert losses[-1] < 0.1 * losses[0] and teacher.count("reference") == 2
