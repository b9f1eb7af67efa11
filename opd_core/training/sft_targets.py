"""What the SFT mix-in learns from: the teacher's own answers, else the completions of the prompt file.

Reverse KL on the student's own rollouts seeks modes: a form that the student practically never begins gets no
gradient, and the student settles for the nearest thing it does write (a bare echo instead of the JSON the teacher
writes, on the embedded demo). A small share of NLL on the teacher's answers is the cold start that opens the way
(GKD, arXiv 2306.13649, on-policy share λ < 1; "Rethinking OPD", arXiv 2604.13016).
"""

from __future__ import annotations

from collections.abc import Sequence

from opd_core.prompt_files import PromptExample
from opd_core.training.lora import Student
from opd_core.training.teaching import TokenTeacher
from opd_core.training.tokenization import completion_ids, prompt_ids

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of the student's prompt and of the answer to learn, its stop token included."""


class SftTargets:
    """Answers of one teacher, written once a prompt (greedy) and kept as ids: same tokenizer, nothing re-encoded."""

    def __init__(self, student: Student, teacher: TokenTeacher, max_tokens: int) -> None:
        self._tokenizer, self._teacher, self._max_tokens = student.base.tokenizer, teacher, max_tokens
        self._answers: dict[str, tuple[int, ...] | None] = {}

    def pairs(self, examples: Sequence[PromptExample]) -> list[Pair]:
        """Prompt and answer of each example; one whose answers all lack an end is left out."""
        self._ask([example for example in examples if example.prompt_id not in self._answers])
        found = []
        for example in examples:
            answer = self._answers[example.prompt_id]
            if answer is not None:
                found.append((prompt_ids(self._tokenizer, example.messages), answer))
        return found

    def _ask(self, examples: Sequence[PromptExample]) -> None:
        if not examples:
            return
        decoded = self._teacher.generate([example.messages for example in examples], self._max_tokens)
        for example, answer in zip(examples, decoded, strict=True):
            if answer.stopped:
                self._answers[example.prompt_id] = answer.ids
            elif example.completion is not None:
                self._answers[example.prompt_id] = completion_ids(self._tokenizer, example.completion)
            else:  # cut off: learning it would teach the student not to stop
                self._answers[example.prompt_id] = None
