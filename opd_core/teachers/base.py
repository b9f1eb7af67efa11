"""What every teacher shares: its own context around the student's conversation.

A teacher that scores tokens satisfies `opd_core.training.teaching.TokenTeacher`. To add a kind: a file here, one line
in `build_teacher`, and the word in `config.RunConfig.teacher_kind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd_core.config import TeacherExample
from opd_core.training.tokenization import prompt_ids, teacher_messages
from opd_core.types import Message


@dataclass(frozen=True)
class TeacherContext:
    """What only the teacher sees: a system prompt, example turns, or neither."""

    system_prompt: str | None = None
    examples: tuple[TeacherExample, ...] = ()

    def ids(self, tokenizer: Any, conversation: Sequence[Message]) -> tuple[int, ...]:
        """The ids the teacher reads before a completion."""
        return prompt_ids(tokenizer, teacher_messages(conversation, self.system_prompt, self.examples))

    @property
    def empty(self) -> bool:
        """Whether the teacher sees just what the student sees."""
        return self.system_prompt is None and not self.examples
