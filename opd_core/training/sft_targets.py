"""What the SFT mix-in learns from: the teacher's own answers, else the completions of the prompt file.

Reverse KL on the student's own rollouts seeks modes: a form that the student practically never begins gets no
gradient, and the student settles for the nearest thing it does write (a bare echo instead of the JSON the teacher
writes, on the embedded demo). A small share of NLL on the teacher's answers is the cold start that opens the way
(GKD, arXiv 2306.13649, on-policy share λ < 1; "Rethinking OPD", arXiv 2604.13016).
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from opd_core.prompt_files import PromptExample
from opd_core.training.arrays import ints
from opd_core.training.lora import Student
from opd_core.training.teaching import TokenTeacher
from opd_core.training.tokenization import completion_ids, prompt_ids

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of the student's prompt and of the answer to learn, its stop token included."""
SFT_ARRAYS = "answers/"


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

    def arrays(self) -> dict[str, mx.array]:
        """The answers so far, for a checkpoint: which prompts were answered side by side decides their last bits."""
        if not self._answers:
            return {}
        lengths = [-1 if ids is None else len(ids) for ids in self._answers.values()]
        return {
            f"{SFT_ARRAYS}prompt_ids": mx.array(list("\n".join(self._answers).encode()), dtype=mx.uint8),
            f"{SFT_ARRAYS}lengths": mx.array(lengths, dtype=mx.int32),
            # a last one that belongs to nobody: an empty array cannot be written
            f"{SFT_ARRAYS}ids": mx.array(
                [*(i for ids in self._answers.values() for i in ids or ()), 0], dtype=mx.int32
            ),
        }

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `arrays` gave."""
        if not arrays:
            return
        named, lengths, ids = (ints(arrays[f"{SFT_ARRAYS}{name}"]) for name in ("prompt_ids", "lengths", "ids"))
        start = 0
        for prompt_id, length in zip(bytes(named).decode().split("\n"), lengths, strict=True):
            self._answers[prompt_id] = None if length < 0 else tuple(ids[start : start + length])
            start += max(0, length)

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
