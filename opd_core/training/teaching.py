"""What training asks of a teacher that scores tokens. The teachers themselves live in `opd_core.teachers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from opd_core.training.losses import Head
from opd_core.training.rollouts import Decoded
from opd_core.types import Message


class TokenTeacher(Protocol):
    """A teacher with the student's tokenizer: it gives a distribution for every id the student wrote.

    Attributes:
        name: for people.
        head: maps the teacher's states (N, D) to logits (N, vocab_size).
        vocab_size: width of those logits; at least the tokenizer's size.
    """

    name: str
    head: Head
    vocab_size: int

    def states(self, conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
        """The teacher's states, (N, D), that predict each completion's ids after the conversation in its own context.

        Rows follow one another completion after completion, as in `logprobs.PackedBatch`. No gradient is taken.
        """
        ...

    def context_length(self, conversation: Sequence[Message]) -> int:
        """How many ids the teacher reads before a completion."""
        ...

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Decoded]:
        """The teacher's own greedy answers in its own context: the ceiling of what it can teach."""
        ...
