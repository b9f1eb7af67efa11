"""The local teacher: its own context, one copy of the base, exact scores, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.errors import CompatibilityError, ConfigError
from opd_core.teachers import build_teacher
from opd_core.teachers.local import LocalTeacher, build_local_teacher
from opd_core.training.arrays import flat, number
from opd_core.training.logprobs import common_prefix_length
from opd_core.training.lora import LoadedBase, NewAdapter, load_base, make_student
from opd_core.training.tokenization import prompt_ids, teacher_messages
from opd_core.types import Message
from tests.tiny import write_tiny_model

CONVERSATIONS: list[list[Message]] = [[{"role": "user", "content": text}] for text in ("one", "a longer prompt")]
COMPLETIONS = [[60, 61, 62, 2], [70, 2]]


@pytest.fixture
def base(tmp_path: Path) -> LoadedBase:
    return load_base(write_tiny_model(tmp_path / "tiny"))


def config(base: LoadedBase, **more: object) -> RunConfig:
    return parse_config({"base_model_path": str(base.path), "prompts_path": "x.txt", **more})


def scores(teacher: LocalTeacher) -> mx.array:
    return teacher.head(teacher.states(CONVERSATIONS, COMPLETIONS))


def test_it_scores_the_students_own_ids_in_its_own_context(base: LoadedBase) -> None:
    more = {"teacher_system_prompt": "Be brief.", "teacher_examples": [{"prompt": "q", "completion": "a"}]}
    settings = config(base, **more)
    got = scores(build_local_teacher(settings, base))
    rows = []
    for conversation, completion in zip(CONVERSATIONS, COMPLETIONS, strict=True):
        context = teacher_messages(conversation, "Be brief.", settings.teacher_examples)
        prompt = list(prompt_ids(base.tokenizer, context))
        logits = base.model(mx.array([prompt + completion]))[0]
        rows.append(logits[len(prompt) - 1 : len(prompt) - 1 + len(completion)])
    assert float(mx.abs(got - mx.concatenate(rows)).max()) <= 1e-3


def test_a_prompt_with_its_own_system_turn_is_scored_in_the_merged_context(base: LoadedBase) -> None:
    teacher = build_local_teacher(config(base, teacher_system_prompt="Be brief, always."), base)
    own: list[Message] = [{"role": "system", "content": "You are a bird."}, {"role": "user", "content": "one"}]
    prompt = prompt_ids(base.tokenizer, teacher_messages(own, "Be brief, always.", ()))
    expected = base.model(mx.array([[*prompt, 60]]))[0, len(prompt) - 1 : len(prompt) + 1]
    got = teacher.head(teacher.states([own], [[60, 61]]))
    assert float(mx.abs(got - expected).max()) <= 1e-3


def test_a_context_distillation_teacher_shares_the_bases_arrays(base: LoadedBase) -> None:
    teacher = build_local_teacher(config(base, teacher_system_prompt="Be brief."), base)
    own = flat(teacher._scorer.model.parameters())
    assert own and all(value is flat(base.model.parameters())[name] for name, value in own.items())


def test_the_teacher_keeps_the_incoming_adapter_when_the_student_moves_on(base: LoadedBase, tmp_path: Path) -> None:
    student = make_student(base, None, NewAdapter(4, 2.0))
    moved = {name: value + 0.2 for name, value in student.adapter_weights().items()}
    student.load_adapter_weights(moved)
    folder = tmp_path / "adapter"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), student.adapter_weights())
    (folder / "adapter_config.json").write_text(__import__("json").dumps(student.adapter_config))
    settings = config(base, teacher_system_prompt="Be brief.", student_adapter_path=str(folder))
    teacher = build_local_teacher(settings, base)
    before = scores(teacher)
    without = scores(build_local_teacher(config(base, teacher_system_prompt="Be brief."), base))
    assert float(mx.abs(before - without).max()) > 1e-2
    continued = make_student(base, folder)
    continued.load_adapter_weights({name: value * 0.0 for name, value in continued.adapter_weights().items()})
    assert bool(mx.array_equal(scores(teacher), before))


def test_no_gradient_reaches_the_teacher(base: LoadedBase) -> None:
    teacher = build_local_teacher(config(base, teacher_system_prompt="Be brief."), base)
    weight = base.model.model.norm.weight

    def loss(value: mx.array) -> mx.array:
        teacher._scorer.model.model.norm.weight = value
        return mx.sum(teacher.states(CONVERSATIONS, COMPLETIONS))

    assert float(mx.abs(mx.grad(loss)(weight)).max()) == 0.0


def test_a_teacher_that_is_the_student_itself_is_refused(base: LoadedBase) -> None:
    for more in ({}, {"teacher_model_id": str(base.path)}):
        with pytest.raises(ConfigError, match="student itself"):
            build_local_teacher(config(base, **more), base)


def test_another_model_of_the_same_tokenizer_teaches(base: LoadedBase, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=9)
    teacher = build_teacher(config(base, teacher_model_id=str(other)), base)
    prompt = prompt_ids(base.tokenizer, CONVERSATIONS[0])
    expected = load_base(other).model(mx.array([[*prompt, 60]]))[0, -1]
    assert float(mx.abs(teacher.head(teacher.states([CONVERSATIONS[0]], [[60, 61]]))[1] - expected).max()) <= 1e-3


def test_a_teacher_with_another_tokenizer_is_refused(base: LoadedBase, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", extra_token="th")
    with pytest.raises(CompatibilityError, match="another tokenizer"):
        build_teacher(config(base, teacher_model_id=str(other)), base)


def test_its_own_answers_are_greedy_in_its_own_context(base: LoadedBase) -> None:
    teacher = build_local_teacher(config(base, teacher_system_prompt="Be brief."), base)
    answers = teacher.generate(CONVERSATIONS, 5)
    for conversation, answer in zip(CONVERSATIONS, answers, strict=True):
        ids = list(prompt_ids(base.tokenizer, teacher_messages(conversation, "Be brief.", ())))
        for token in answer.ids:
            assert token == number(mx.argmax(base.model(mx.array([ids]))[0, -1]))
            ids.append(token)


def test_the_context_length_leaves_out_a_fixed_context_that_was_read_once_for_all(base: LoadedBase) -> None:
    teacher = build_local_teacher(config(base, teacher_system_prompt="Be brief."), base)

    def whole(conversation: list[Message]) -> tuple[int, ...]:
        return prompt_ids(base.tokenizer, teacher_messages(conversation, "Be brief.", ()))

    prompts = [whole(conversation) for conversation in CONVERSATIONS]
    read = common_prefix_length(prompts)
    assert read > len("Be brief.")
    for conversation, prompt in zip(CONVERSATIONS, prompts, strict=True):
        assert teacher.context_length(conversation) == len(prompt) - read
    own: list[Message] = [{"role": "system", "content": "Shout."}, *CONVERSATIONS[0]]
    assert teacher.context_length(own) == len(whole(own))
