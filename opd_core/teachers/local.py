"""A local MLX model as the teacher: full next-token distributions on the very ids the student wrote.

Two uses. Another model of the same tokenizer, usually larger; or the student's own base weights with a context the
student does not get (context distillation): the student learns to do without the context what the teacher does with
it. Then the base is in memory once, and the fixed context is read once, as a key-value cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from opd_core.config import RunConfig
from opd_core.errors import CompatibilityError, ConfigError
from opd_core.teachers.base import TeacherContext
from opd_core.training.decoding import decoding_model
from opd_core.training.logprobs import common_prefix_length, make_scorer, pack
from opd_core.training.lora import LoadedBase, load_base, make_student
from opd_core.training.rollouts import Decoded, decode
from opd_core.training.sampling import Sampling, random_key
from opd_core.training.tokenization import check_same_encoding
from opd_core.types import Message

MIN_PREFIX = 8
PROBE_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "apple"},),
    ({"role": "user", "content": "Zero 9"},),
)


class LocalTeacher:
    """A frozen model that scores ids; satisfies `training.teaching.TokenTeacher`."""

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Any, stop_ids: frozenset[int], context: TeacherContext
    ) -> None:
        scorer = make_scorer(model)
        self.name = name
        self.head = scorer.head
        self.vocab_size = scorer.vocab_size
        self._scorer = scorer
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._context = context
        self._ids: dict[str, tuple[int, ...]] = {}
        probes = [context.ids(tokenizer, conversation) for conversation in PROBE_CONVERSATIONS]
        self._prefix_ids = probes[0][: common_prefix_length(probes)]
        shared = len(self._prefix_ids) >= MIN_PREFIX and scorer.layers is not None
        self._prefix = scorer.read(self._prefix_ids) if shared else None

    def states(self, conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
        """See `TokenTeacher.states`. The fixed context is read from its cache when every prompt begins with it."""
        prompts = [self._prompt_ids(conversation) for conversation in conversations]
        prefix = self._prefix if all(map(self._is_begun, prompts)) else None
        batch = pack(prompts, completions, skip=len(self._prefix_ids) if prefix else 0)
        return mx.stop_gradient(self._scorer.states(batch, prefix))

    def context_length(self, conversation: Sequence[Message]) -> int:
        """See `TokenTeacher.context_length`; the fixed context has been read."""
        prompt = self._prompt_ids(conversation)
        return len(prompt) - (len(self._prefix_ids) if self._is_begun(prompt) else 0)

    def _is_begun(self, prompt: tuple[int, ...]) -> bool:
        """Whether the beginning of `prompt` has been read; a system turn of its own changes the context."""
        return self._prefix is not None and prompt[: len(self._prefix_ids)] == self._prefix_ids

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Decoded]:
        """See `TokenTeacher.generate`; empty when stopped on the way."""
        prompts = [self._prompt_ids(conversation) for conversation in conversations]
        greedy = Sampling(max_tokens, 0.0)
        return decode(
            decoding_model(self._scorer.model), prompts, 1, greedy, self._stop_ids, random_key(0), should_stop
        )

    def _prompt_ids(self, conversation: Sequence[Message]) -> tuple[int, ...]:
        key = repr(conversation)
        if key not in self._ids:
            self._ids[key] = self._context.ids(self._tokenizer, conversation)
        return self._ids[key]


def build_local_teacher(config: RunConfig, base: LoadedBase) -> LocalTeacher:
    """The local teacher a configuration names.

    Raises:
        CompatibilityError: its tokenizer is not the student's, or its logits are too narrow for it.
        ConfigError: it would be the student itself, with nothing to teach.
    """
    context = TeacherContext(config.teacher_system_prompt, config.teacher_examples)
    if config.teacher_model_id is None or Path(config.teacher_model_id) == base.path:
        if context.empty:
            raise ConfigError(
                "The teacher would be the student itself: name another model in teacher_model_id, or give this one "
                "teacher_system_prompt or teacher_examples.",
                field="teacher_model_id",
            )
        adapter = Path(config.student_adapter_path) if config.student_adapter_path else None
        model = make_student(base, adapter).model
        model.freeze()
        return LocalTeacher(f"{base.path.name} with its own context", model, base.tokenizer, base.stop_ids, context)
    other = load_base(Path(config.teacher_model_id))
    check_same_encoding(base.tokenizer, other.tokenizer, other.path.name)
    teacher = LocalTeacher(other.path.name, other.model, other.tokenizer, other.stop_ids, context)
    if teacher.vocab_size < len(base.tokenizer):
        raise CompatibilityError(
            f"The teacher {other.path.name!r} has {teacher.vocab_size} logits and the student's tokenizer "
            f"{len(base.tokenizer)} ids; choose a teacher of the student's model family.",
            field="teacher_model_id",
        )
    return teacher
