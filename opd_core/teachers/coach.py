"""The student, frozen, with a text teacher's guidance in its context: a teacher that scores tokens.

Four kinds of context T(x, c) around the student's prompt x, from cheap to rich:

    examples    a few training prompts with the text teacher's answers, as turns before x     the same for the whole run
    lesson      rules drawn from a batch of the student's answers, as a system turn            one a batch
    critique    what is wrong with this very answer, step by step, after x                     one a rollout
    reference   the critique and the text teacher's own answer, after x                        one a rollout

The student's completion is appended to T(x, c) by its ids. The context never quotes the student's whole attempt: a
model copies what it has just read, and would then teach the student its own mistake. A rollout that needs no guidance
(the verdict is "correct") is left out: without notes the frozen student would only pull it back to where it began.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import mlx.core as mx

from opd_core.config import RunConfig, TeacherExample
from opd_core.errors import ConfigError
from opd_core.guidance import Guidance
from opd_core.prompt_files import PromptExample
from opd_core.teachers.base import TeacherContext
from opd_core.teachers.local import LocalTeacher
from opd_core.training.coach_update import GuidanceLevel
from opd_core.training.lora import LoadedBase, Student, initial_student
from opd_core.training.references import References
from opd_core.training.rollouts import Decoded
from opd_core.training.teaching import TextTeacher
from opd_core.types import Message, Rollout

NOTES = "Keep these notes in mind, and answer without mentioning them:\n{critique}"
GOOD_ANSWER = "A good answer is:\n{reference}"
MAX_EXAMPLE_CHARACTERS = 4096
EXAMPLE_ROUNDS = 3
"""How often prompts are drawn again for those whose reference could not be used."""


def _key(conversation: Sequence[Message], completion: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    return repr(tuple(conversation)), tuple(completion)


class CoachTeacher:
    """A `coach_update.GuidedTeacher`.

    Args:
        frozen: the student as the run began.
        examples: at level examples, what stands before every prompt.
    """

    def __init__(
        self,
        frozen: Student,
        text_teacher: TextTeacher,
        references: References,
        config: RunConfig,
        level: GuidanceLevel,
        examples: tuple[TeacherExample, ...] = (),
    ) -> None:
        self.level: GuidanceLevel = level
        self.is_fixed = level == "examples"
        self.name = f"{frozen.base.path.name} guided by {level}"
        self.head, self.vocab_size = frozen.scorer.head, frozen.scorer.vocab_size
        self._frozen, self._text, self._references, self._config = frozen, text_teacher, references, config
        self._context = TeacherContext(config.teacher_system_prompt, examples)
        self._guided: dict[tuple[str, tuple[int, ...]], list[Message]] = {}
        self._local = self._reader()

    def guide(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample]) -> list[bool]:
        """See `GuidedTeacher.guide`."""
        if self.level == "examples":
            return [True] * len(rollouts)
        if self.level == "lesson":
            lesson = self._text.lesson(rollouts)
            self.set_lesson(lesson or "")
            return [bool(lesson)] * len(rollouts)
        guidance = self._text.guidance(rollouts)
        notes = [item if item and item.verdict != "correct" and item.critique.strip() else None for item in guidance]
        references = self._reference_texts(rollouts, notes, examples)
        self._guided = {
            _key(rollout.messages, rollout.completion_ids): guided_messages(rollout.messages, note.critique, reference)
            for rollout, note, reference in zip(rollouts, notes, references, strict=True)
            if note is not None
        }
        self._local = self._reader()
        return [note is not None for note in notes]

    def set_lesson(self, lesson: str) -> None:
        """Put a lesson into the system turn, after the run's own teacher_system_prompt; empty: none."""
        system = "\n\n".join(text for text in (self._config.teacher_system_prompt, lesson.strip()) if text)
        self._context = TeacherContext(system or None)
        self._local = self._reader()

    def states(self, conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
        """See `TokenTeacher.states`; at levels with a context of their own for each rollout, `guide` comes first."""
        guided = [self._conversation(*pair) for pair in zip(conversations, completions, strict=True)]
        return self._local.states(guided, completions)

    def context_length(self, conversation: Sequence[Message]) -> int:
        """See `TokenTeacher.context_length`: the longest of the rollouts to this conversation."""
        text = _key(conversation, ())[0]
        contexts: list[Sequence[Message]] = [guided for key, guided in self._guided.items() if key[0] == text]
        return max(self._local.context_length(context) for context in contexts or [conversation])

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Decoded]:
        """See `TokenTeacher.generate`; without the guidance that belongs to single rollouts."""
        return self._local.generate(conversations, max_tokens)

    def answers(
        self, rollouts: Sequence[Rollout], max_tokens: int, should_stop: Callable[[], bool] = lambda: False
    ) -> list[Decoded]:
        """See `GuidedTeacher.answers`."""
        guided = [self._conversation(rollout.messages, rollout.completion_ids) for rollout in rollouts]
        return self._local.generate(guided, max_tokens, should_stop)

    def follow(self, step: int, adapter: dict[str, mx.array]) -> None:
        """See `GuidedTeacher.follow`: an exponential moving average, a copy every so many steps, or nothing."""
        rate, every = self._config.teacher_ema, self._config.teacher_refresh_steps
        if rate > 0:
            own = self._frozen.adapter_weights()
            self.load_arrays({name: (1.0 - rate) * own[name] + rate * value for name, value in adapter.items()})
        elif every is not None and step % every == 0:
            self.load_arrays(adapter)

    def arrays(self) -> dict[str, mx.array]:
        """See `Updater.arrays`: the adapter of a teacher that follows; none for one that stays."""
        follows = self._config.teacher_ema > 0 or self._config.teacher_refresh_steps is not None
        return self._frozen.adapter_weights() if follows else {}

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """See `Updater.load_arrays`."""
        if arrays:
            self._frozen.load_adapter_weights(arrays)
            mx.eval(self._frozen.model.parameters())
            self._local = self._reader()

    def _reader(self) -> LocalTeacher:
        """Made anew when weights or context change: it keeps ids and the context's key-value cache."""
        base = self._frozen.base
        return LocalTeacher(self.name, self._frozen.model, base.tokenizer, base.stop_ids, self._context)

    def _conversation(self, conversation: Sequence[Message], completion: Sequence[int]) -> Sequence[Message]:
        return conversation if self.level in ("examples", "lesson") else self._guided[_key(conversation, completion)]

    def _reference_texts(
        self, rollouts: Sequence[Rollout], notes: Sequence[Guidance | None], examples: Sequence[PromptExample]
    ) -> list[str | None]:
        """The references at level reference, for the rollouts with notes; a text a rollout."""
        if self.level != "reference":
            return [None] * len(rollouts)
        needed = {rollout.prompt_id for rollout, note in zip(rollouts, notes, strict=True) if note is not None}
        asked = [example for example in examples if example.prompt_id in needed]
        texts = dict(zip([example.prompt_id for example in asked], self._references.texts(asked), strict=True))
        return [texts.get(rollout.prompt_id) for rollout in rollouts]


def guided_messages(messages: Sequence[Message], critique: str, reference: str | None = None) -> list[Message]:
    """The conversation with notes after its last user turn."""
    parts = [messages[-1]["content"], NOTES.format(critique=critique.strip())]
    if reference is not None:
        parts.append(GOOD_ANSWER.format(reference=reference.strip()))
    return [*messages[:-1], {**messages[-1], "content": "\n\n".join(parts)}]


def build_coach(
    config: RunConfig,
    base: LoadedBase,
    text_teacher: TextTeacher,
    references: References,
    train_examples: Sequence[PromptExample],
    level: GuidanceLevel,
) -> CoachTeacher:
    """The guided teacher of a level; at level examples the references are asked for here.

    Raises:
        OPDError: the text teacher cannot be asked, or gave nothing that can be used.
    """
    shown = choose_examples(config, references, train_examples) if level == "examples" else ()
    follows = config.teacher_ema > 0 or config.teacher_refresh_steps is not None
    frozen = initial_student(config, base, is_trained=follows)
    return CoachTeacher(frozen, text_teacher, references, config, level, shown)


def choose_examples(
    config: RunConfig, references: References, train_examples: Sequence[PromptExample]
) -> tuple[TeacherExample, ...]:
    """The user's own `teacher_examples`, filled up to `num_guidance_examples` with training prompts and references.

    Raises:
        ConfigError: none of the references can be used.
    """
    chosen = list(config.teacher_examples)
    waiting = [example for example in train_examples if len(example.prompt) <= MAX_EXAMPLE_CHARACTERS]
    random.Random(f"{config.seed}/guidance examples").shuffle(waiting)
    for _ in range(EXAMPLE_ROUNDS):
        missing = config.num_guidance_examples - len(chosen)
        asked, waiting = waiting[: max(0, missing)], waiting[max(0, missing) :]
        for example, text in zip(asked, references.texts(asked), strict=True):
            if text is not None and len(text) <= MAX_EXAMPLE_CHARACTERS:
                chosen.append(TeacherExample(prompt=example.prompt, completion=text))
    if not chosen:
        raise ConfigError(
            "None of the teacher's answers to the training prompts can serve as an example: they were refused, cut "
            "off, longer than rollout_max_tokens, or failed the check. Look at the run's teacher_completions file, "
            "then give teacher_examples of your own, another check, or a larger rollout_max_tokens.",
            field="teacher_examples",
        )
    return tuple(chosen)
