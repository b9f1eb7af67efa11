"""The mix-in's targets: the teacher's own ids first, then the file's completion, never an answer without an end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from opd_core.training.lora import LoadedBase, make_student
from opd_core.training.losses import Head
from opd_core.training.rollouts import Decoded
from opd_core.training.sft_targets import SftTargets
from opd_core.training.tokenization import completion_ids, prompt_ids
from opd_core.types import Message
from tests.opd_core.training.conftest import example


class Writer:
    """A teacher that answers "good" prompts with an end and others without; counts what it was asked."""

    def __init__(self) -> None:
        self.name, self.vocab_size = "writer", 259
        self.head: Head = lambda states: states
        self.asked: list[str] = []

    def states(self, conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
        raise NotImplementedError

    def context_length(self, conversation: Sequence[Message]) -> int:
        return 1

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Decoded]:
        prompts = [conversation[-1]["content"] for conversation in conversations]
        self.asked += prompts
        answers = [(70, 71, 2) if "good" in prompt else (70, 71, 72) for prompt in prompts]
        return [Decoded(ids, (0.0, 0.0, 0.0), ids[-1] == 2) for ids in answers]


def test_the_teachers_ids_are_taken_as_they_are(base: LoadedBase) -> None:
    targets = SftTargets(make_student(base), Writer(), 3)
    wanted = example("good prompt", completion="other")
    assert targets.pairs([wanted]) == [(prompt_ids(base.tokenizer, wanted.messages), (70, 71, 2))]


def test_an_answer_that_was_cut_off_gives_way_to_the_files_completion_or_is_left_out(base: LoadedBase) -> None:
    targets = SftTargets(make_student(base), Writer(), 3)
    with_completion, without = example("long", completion="yes"), example("longer")
    pairs = targets.pairs([with_completion, without])
    assert [answer for _, answer in pairs] == [completion_ids(base.tokenizer, "yes")]


def test_a_prompt_is_asked_once(base: LoadedBase) -> None:
    teacher = Writer()
    targets = SftTargets(make_student(base), teacher, 3)
    for _ in range(3):
        targets.pairs([example("good one"), example("long")])
    assert teacher.asked == ["good one", "long"]


def test_answers_survive_a_restart_and_are_not_asked_for_again(base: LoadedBase) -> None:
    student, teacher = make_student(base), Writer()
    prompts = [example("good one"), example("a long good one"), example("long")]
    before = SftTargets(student, teacher, 3)
    assert before.arrays() == {}
    pairs = before.pairs(prompts)
    after, silent = SftTargets(student, teacher, 3), len(teacher.asked)
    after.load_arrays(before.arrays())
    assert after.pairs(prompts) == pairs and len(teacher.asked) == silent
    assert after.pairs([example("good new one")]) and teacher.asked[silent:] == ["good new one"]


def test_answers_that_are_all_left_out_survive_a_restart_in_a_file(base: LoadedBase, tmp_path: Path) -> None:
    teacher = Writer()
    before, after = SftTargets(make_student(base), teacher, 3), SftTargets(make_student(base), teacher, 3)
    before.pairs([example("long")])
    mx.save_safetensors(str(tmp_path / "a.safetensors"), before.arrays())
    loaded = mx.load(str(tmp_path / "a.safetensors"))
    assert isinstance(loaded, dict)
    after.load_arrays(loaded)
    assert after.pairs([example("long")]) == [] and teacher.asked == ["long"]
