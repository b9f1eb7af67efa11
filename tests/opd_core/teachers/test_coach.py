"""The guided student: what stands in its context, that ids are appended, that it is `kl` with another context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from opd_core.config import RunConfig, TeacherExample, parse_config
from opd_core.errors import ConfigError
from opd_core.guidance import Guidance
from opd_core.teachers.base import TeacherContext
from opd_core.teachers.coach import CoachTeacher, build_coach, choose_examples, guided_messages
from opd_core.teachers.local import LocalTeacher
from opd_core.training.answers import AnswerRule
from opd_core.training.arrays import flat
from opd_core.training.coach_update import CoachUpdater, GuidanceLevel, GuidedTeacher
from opd_core.training.kl_update import KlUpdater
from opd_core.training.lora import LoadedBase, Student, initial_student, load_base
from opd_core.training.references import References
from opd_core.training.tokenization import completion_ids, decode_completion, prompt_ids, teacher_messages
from opd_core.training.updates import StepResult, Updater
from opd_core.types import Message, Rollout
from tests.opd_core.training.conftest import example, rollout
from tests.opd_core.training.scripted_teacher import ScriptedTeacher
from tests.tiny import write_tiny_model

EXAMPLES = [example("one"), example("a longer prompt")]
INVALID_UTF8 = (225, 99, 200)  # decoded to replacement characters, which encode to other ids


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", gain=2.0))


def settings(**more: object) -> RunConfig:
    values = {"base_model_path": "m", "prompts_path": "p.txt", "kl_schedule": "constant", "learning_rate": 1e-2}
    return parse_config({**values, "lr_warmup_steps": 0, "method": "coach", "lora_rank": 4, **more})


def coach(base: LoadedBase, level: GuidanceLevel, teacher: ScriptedTeacher, **more: object) -> CoachTeacher:
    config = settings(**more)
    return build_coach(config, base, teacher, references(base, teacher), EXAMPLES, level)


def references(base: LoadedBase, teacher: ScriptedTeacher | None) -> References:
    return References(teacher, base.tokenizer, 64, AnswerRule())


def answers(base: LoadedBase) -> list[Rollout]:
    ids = [(60, *INVALID_UTF8, 2), (70, 71)]
    return [
        rollout(item.prompt, "text", completion, prompt_ids(base.tokenizer, item.messages))
        for item, completion in zip(EXAMPLES, ids, strict=True)
    ]


def note(critique: str, verdict: str = "repairable") -> Guidance:
    return Guidance(verdict, 0.5, critique, None, "lesson")  # type: ignore[arg-type]


def one_update(base: LoadedBase, make: object, method: type[KlUpdater | CoachUpdater]) -> tuple[StepResult, Student]:
    student = initial_student(settings(), base)
    updater = method(student, make, settings(), references(base, None).pairs)  # type: ignore[arg-type]
    return updater.update(answers(base), EXAMPLES, 1), student


def assert_same_update(base: LoadedBase, guided: CoachTeacher, context: TeacherContext) -> None:
    """One step of `coach` moves every weight to where one step of `kl` with the same context moves it."""
    local = LocalTeacher("same", base.model, base.tokenizer, base.stop_ids, context)
    by_coach, coached = one_update(base, guided, CoachUpdater)
    by_kl, taught = one_update(base, local, KlUpdater)
    assert by_coach.kl_loss == by_kl.kl_loss and (by_kl.kl_loss or 0.0) > 1e-3
    assert by_coach.gradient_norm == by_kl.gradient_norm > 0.0
    weights = taught.adapter_weights()
    assert all(bool(mx.array_equal(value, weights[name])) for name, value in coached.adapter_weights().items())


def test_coach_by_a_lesson_has_the_gradient_of_kl_with_the_same_guided_teacher(base: LoadedBase) -> None:
    guided = coach(base, "lesson", ScriptedTeacher(shared_lesson="Be loud."), teacher_system_prompt="Be brief.")
    assert_same_update(base, guided, TeacherContext("Be brief.\n\nBe loud."))


def test_coach_by_examples_has_the_gradient_of_kl_with_the_same_guided_teacher(base: LoadedBase) -> None:
    teacher = ScriptedTeacher(lambda prompt: f"{prompt}!")
    guided = coach(base, "examples", teacher, num_guidance_examples=2)
    shown = choose_examples(settings(num_guidance_examples=2), references(base, teacher), EXAMPLES)
    assert {(item.prompt, item.completion) for item in shown} == {(e.prompt, f"{e.prompt}!") for e in EXAMPLES}
    assert_same_update(base, guided, TeacherContext(None, shown))


def test_ids_are_appended_to_the_guidance_as_they_were_sampled(base: LoadedBase) -> None:
    tokenizer, rollouts = base.tokenizer, answers(base)
    text = decode_completion(tokenizer, rollouts[0].completion_ids, base.stop_ids)
    assert completion_ids(tokenizer, text) != rollouts[0].completion_ids  # re-tokenising would make other ids
    guided = coach(base, "critique", ScriptedTeacher(guide=lambda r: note(f"about {r.prompt}")))
    assert guided.guide(rollouts, EXAMPLES) == [True, True]
    got = guided.head(guided.states([r.messages for r in rollouts], [r.completion_ids for r in rollouts]))
    rows = []
    for item in rollouts:
        context = prompt_ids(tokenizer, guided_messages(item.messages, f"about {item.prompt}"))
        logits = base.model(mx.array([[*context, *item.completion_ids]]))[0]
        rows.append(logits[len(context) - 1 : len(context) - 1 + len(item.completion_ids)])
    assert float(mx.abs(got - mx.concatenate(rows)).max()) <= 1e-3


def test_each_rollout_has_the_guidance_on_itself(base: LoadedBase) -> None:
    rollouts = [rollout("one", "x", (60, 2)), rollout("one", "y", (61, 2))]  # two answers to one prompt
    guided = coach(base, "critique", ScriptedTeacher(guide=lambda r: note(f"about {r.completion}")))
    guided.guide(rollouts, EXAMPLES)
    both = guided.states([r.messages for r in rollouts], [r.completion_ids for r in rollouts])
    swapped = guided.states([r.messages for r in rollouts[::-1]], [r.completion_ids for r in rollouts[::-1]])
    assert float(mx.abs(both[:2] - both[2:]).max()) > 1e-2
    assert float(mx.abs(both - mx.concatenate([swapped[2:], swapped[:2]])).max()) <= 1e-4
    longest = max(
        len(prompt_ids(base.tokenizer, guided_messages(r.messages, f"about {r.completion}"))) for r in rollouts
    )
    assert guided.context_length(rollouts[0].messages) == longest
    with pytest.raises(KeyError):  # an answer without guidance is never scored as if it had some
        guided.states([rollouts[0].messages], [(99, 2)])


def test_the_reference_level_shows_critique_and_reference(base: LoadedBase) -> None:
    rollouts, teacher = answers(base), ScriptedTeacher(lambda p: f"ref {p}", lambda r: note("hm"))
    guided = coach(base, "reference", teacher)
    guided.guide(rollouts, EXAMPLES)
    got = guided.states([rollouts[0].messages], [rollouts[0].completion_ids])
    plain = LocalTeacher("same", base.model, base.tokenizer, base.stop_ids, TeacherContext())
    messages = guided_messages(rollouts[0].messages, "hm", "ref one")
    assert "hm" in messages[-1]["content"] and "ref one" in messages[-1]["content"]
    assert float(mx.abs(got - plain.states([messages], [rollouts[0].completion_ids])).max()) <= 1e-4


@pytest.mark.parametrize("level", ["examples", "lesson"])
def test_with_empty_guidance_the_loss_is_zero(base: LoadedBase, level: GuidanceLevel) -> None:
    frozen = initial_student(settings(), base)
    guided = CoachTeacher(frozen, ScriptedTeacher(), references(base, None), settings(), level)
    guided.set_lesson("")
    result, _ = one_update(base, guided, KlUpdater)
    assert result.kl_loss == pytest.approx(0.0, abs=1e-6) and result.gradient_norm < 1e-4


def test_answers_that_need_no_guidance_or_got_none_are_left_out(base: LoadedBase) -> None:
    replies = {"one": note("", "correct"), "a longer prompt": note("mend it")}
    guided = coach(base, "critique", ScriptedTeacher(guide=lambda r: replies[r.prompt]))
    result, _ = one_update(base, guided, CoachUpdater)
    assert result.extras["rollouts_without_guidance"] == 1 and result.learned_from == 1
    assert len(result.values) == len(answers(base)[1].completion_ids)
    for silent in (
        coach(base, "critique", ScriptedTeacher(guide=lambda r: None)),
        coach(base, "critique", ScriptedTeacher(guide=lambda r: note("all is well", "correct"))),
        coach(base, "lesson", ScriptedTeacher(shared_lesson=None)),
    ):
        result, student = one_update(base, silent, CoachUpdater)
        assert (result.applied, result.finite, result.learned_from) == (False, True, 0)
        fresh = initial_student(settings(), base).adapter_weights()
        assert all(bool(mx.array_equal(value, fresh[n])) for n, value in student.adapter_weights().items())


def test_the_context_never_holds_the_students_own_attempt(base: LoadedBase) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    guided = guided_messages(messages, " a note ", " ref ")
    assert [turn["role"] for turn in guided] == ["system", "user"] and guided[0] == messages[0]
    assert guided[1]["content"].startswith("q\n\n") and "a note" in guided[1]["content"]
    assert messages[1]["content"] == "q"


def test_only_examples_can_score_held_out_answers(base: LoadedBase) -> None:
    teacher, levels = ScriptedTeacher(), ("examples", "lesson", "critique", "reference")
    assert [coach(base, level, teacher).is_fixed for level in levels] == [True, False, False, False]  # type: ignore[arg-type]


def test_a_coach_that_stays_shares_the_bases_arrays(base: LoadedBase) -> None:
    guided = coach(base, "examples", ScriptedTeacher())
    own = flat(guided._frozen.model.parameters())
    assert own and all(value is flat(base.model.parameters())[name] for name, value in own.items())
    assert guided.arrays() == {}


def moved(student: Student, by: float) -> dict[str, mx.array]:
    return {name: value + by for name, value in student.adapter_weights().items()}


def logits(guided: CoachTeacher) -> mx.array:
    return guided.head(guided.states([EXAMPLES[0].messages], [(60, 61, 2)]))


def test_by_default_the_coach_stays_the_student_of_the_start(base: LoadedBase) -> None:
    guided, student = coach(base, "examples", ScriptedTeacher()), initial_student(settings(), base)
    before = logits(guided)
    guided.follow(1, moved(student, 0.2))
    assert bool(mx.array_equal(logits(guided), before))


def test_a_moving_average_follows_by_its_share(base: LoadedBase) -> None:
    guided = coach(base, "examples", ScriptedTeacher(), teacher_ema=0.25)
    start = guided.arrays()
    guided.follow(1, {name: value + 0.4 for name, value in start.items()})
    assert all(float(mx.abs(value - start[name] - 0.1).max()) < 1e-6 for name, value in guided.arrays().items())


def test_a_refresh_copies_the_student_every_so_many_steps(base: LoadedBase) -> None:
    guided = coach(base, "examples", ScriptedTeacher(), teacher_refresh_steps=3)
    student = initial_student(settings(), base)
    before, new = logits(guided), moved(student, 0.2)
    for step in (1, 2):
        guided.follow(step, new)
    assert bool(mx.array_equal(logits(guided), before))
    guided.follow(3, new)
    assert all(bool(mx.array_equal(value, new[name])) for name, value in guided.arrays().items())
    student.load_adapter_weights(new)
    context = guided._context
    same = LocalTeacher("same", student.model, base.tokenizer, base.stop_ids, context)
    want = same.head(same.states([EXAMPLES[0].messages], [(60, 61, 2)]))
    assert float(mx.abs(logits(guided) - want).max()) <= 1e-4  # the context's cached keys were made anew as well
    again = coach(base, "examples", ScriptedTeacher(), teacher_refresh_steps=3)
    again.load_arrays(guided.arrays())
    assert bool(mx.array_equal(logits(again), logits(guided)))


def test_the_coach_follows_after_an_update_only(base: LoadedBase) -> None:
    for guide, follows in ((lambda r: note("mend it"), True), (lambda r: None, False)):
        config = settings(teacher_ema=1.0)
        guided = coach(base, "critique", ScriptedTeacher(guide=guide), teacher_ema=1.0)
        student, before = initial_student(config, base), guided.arrays()
        updater: Updater = CoachUpdater(student, guided, config, references(base, None).pairs)
        updater.update(answers(base), EXAMPLES, 1)
        changed = [name for name, value in updater.arrays().items() if not bool(mx.array_equal(value, before[name]))]
        assert bool(changed) == follows
        now = student.adapter_weights()
        assert all(bool(mx.array_equal(value, now[name])) for name, value in updater.arrays().items()) or not follows


def test_the_incoming_adapter_is_part_of_the_coach(base: LoadedBase, tmp_path: Path) -> None:
    student = initial_student(settings(), base)
    student.load_adapter_weights(moved(student, 0.1))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), student.adapter_weights())
    (tmp_path / "adapter_config.json").write_text(__import__("json").dumps(student.adapter_config))
    with_adapter = coach(base, "examples", ScriptedTeacher(), student_adapter_path=str(tmp_path))
    assert float(mx.abs(logits(with_adapter) - logits(coach(base, "examples", ScriptedTeacher()))).max()) > 1e-2


def test_guided_answers_are_greedy_in_the_guided_context(base: LoadedBase) -> None:
    rollouts = answers(base)
    guided: GuidedTeacher = coach(base, "critique", ScriptedTeacher(guide=lambda r: note(f"about {r.prompt}")))
    guided.guide(rollouts, EXAMPLES)
    for item, answer in zip(rollouts, guided.answers(rollouts, 5), strict=True):
        ids = list(prompt_ids(base.tokenizer, guided_messages(item.messages, f"about {item.prompt}")))
        for token in answer.ids:
            assert token == int(mx.argmax(base.model(mx.array([ids]))[0, -1]).item())  # type: ignore[arg-type]
            ids.append(token)
    assert guided.answers(rollouts, 5, lambda: True) == []


def prompts(shown: Sequence[TeacherExample]) -> list[str]:
    return [item.prompt for item in shown]


def test_examples_begin_with_the_users_own_and_skip_what_cannot_be_used(base: LoadedBase) -> None:
    train = [example(f"p{index}") for index in range(12)]
    teacher = ScriptedTeacher(
        lambda prompt: None if prompt in ("p1", "p2", "p3") else "x" * (99 if prompt == "p4" else 3)
    )
    config = settings(teacher_examples=[{"prompt": "mine", "completion": "yes"}], num_guidance_examples=5)
    shown = choose_examples(config, references(base, teacher), train)
    assert prompts(shown)[0] == "mine" and len(shown) == 5
    assert not {"p1", "p2", "p3", "p4"} & set(prompts(shown))
    assert shown == choose_examples(config, references(base, teacher), train)
    other = choose_examples(config.model_copy(update={"seed": 1}), references(base, teacher), train)
    assert prompts(other) != prompts(shown)


def test_enough_examples_of_the_users_own_cost_no_call(base: LoadedBase) -> None:
    teacher, own = ScriptedTeacher(), [{"prompt": "mine", "completion": "yes"}]
    coach(base, "examples", teacher, teacher_examples=own, num_guidance_examples=1)
    assert teacher.calls == []


def test_without_any_example_the_level_is_refused(base: LoadedBase) -> None:
    with pytest.raises(ConfigError, match="None of the teacher's answers"):
        coach(base, "examples", ScriptedTeacher(lambda prompt: None))


def test_a_prompts_own_system_turn_stays_beside_the_lesson(base: LoadedBase) -> None:
    guided = coach(base, "lesson", ScriptedTeacher())
    guided.set_lesson("Be loud.")
    own: list[Message] = [{"role": "system", "content": "You are a bird."}, {"role": "user", "content": "one"}]
    context = prompt_ids(base.tokenizer, teacher_messages(own, "Be loud.", ()))
    want = base.model(mx.array([[*context, 60]]))[0, len(context) - 1 : len(context) + 1]
    assert float(mx.abs(guided.head(guided.states([own], [(60, 61)])) - want).max()) <= 1e-3
