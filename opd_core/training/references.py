"""The teacher's own answers to prompts, asked for once and turned into ids once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd_core.prompt_files import PromptExample
from opd_core.training.answers import AnswerRule
from opd_core.training.teaching import TextTeacher
from opd_core.training.tokenization import completion_ids, prompt_ids
from opd_core.training.updates import IdPair


class References:
    """References by prompt. A prompt is asked for once in the life of this object, refusals included.

    A teacher's reference is not used when it is longer than the student may write (the student's own would be cut
    off) or fails the run's check.

    Args:
        teacher: asked for them; None: the prompt file's own completions are all there is.
        max_tokens: longest reference taken, its end-of-turn token included.
    """

    def __init__(self, teacher: TextTeacher | None, tokenizer: Any, max_tokens: int, rule: AnswerRule) -> None:
        self._teacher, self._tokenizer, self._max_tokens, self._rule = teacher, tokenizer, max_tokens, rule
        self._texts: dict[str, str | None] = {}

    def texts(self, examples: Sequence[PromptExample]) -> list[str | None]:
        """The reference of each example; None where the teacher gave none that can be used.

        Raises:
            OPDError: the teacher cannot be asked (budget, refusal, outage, stop).
        """
        if self._teacher is None:
            return [example.completion for example in examples]
        self._ask(self._teacher, examples, may_wait=False)
        return [self._texts[example.prompt_id] for example in examples]

    def ask_ahead(self, examples: Sequence[PromptExample]) -> None:
        """Ask for all of them at once, long before they are needed: so the teacher may take its time.

        Raises:
            OPDError: as `texts`.
        """
        if self._teacher is not None:
            self._ask(self._teacher, examples, may_wait=True)

    def answer_ids(self, examples: Sequence[PromptExample]) -> list[tuple[int, ...] | None]:
        """`texts` as ids, end-of-turn token included."""
        return [None if text is None else completion_ids(self._tokenizer, text) for text in self.texts(examples)]

    def pairs(self, examples: Sequence[PromptExample]) -> list[IdPair]:
        """Prompt and reference of each example that has one."""
        found = zip(examples, self.answer_ids(examples), strict=True)
        return [(prompt_ids(self._tokenizer, example.messages), ids) for example, ids in found if ids is not None]

    def _ask(self, teacher: TextTeacher, examples: Sequence[PromptExample], *, may_wait: bool) -> None:
        missing = list({e.prompt_id: e for e in examples if e.prompt_id not in self._texts}.values())
        if missing:
            replies = teacher.references([example.messages for example in missing], may_wait=may_wait)
            for example, reply in zip(missing, replies, strict=True):
                self._texts[example.prompt_id] = None if reply is None else self._usable(reply.text.strip(), example)

    def _usable(self, text: str, example: PromptExample) -> str | None:
        if not text or self._rule.is_wrong(text, example):
            return None
        return text if len(completion_ids(self._tokenizer, text)) <= self._max_tokens else None
