"""What training asks of a teacher that scores tokens, and of one that writes text.

The teachers themselves live in `opd_core.teachers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from opd_core.guidance import Guidance, Judgement, JudgePair, Reference
from opd_core.training.losses import Head
from opd_core.training.rollouts import Decoded
from opd_core.types import Message, Rollout


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
        """How many ids the teacher reads before a completion, those aside that it has read once for all."""
        ...

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Decoded]:
        """The teacher's own greedy answers in its own context: the ceiling of what it can teach."""
        ...


@dataclass(frozen=True)
class TeacherStats:
    """What a text teacher has done since it was made.

    Attributes:
        calls: requests answered by the provider, batches included.
        cache_hits: requests answered without it.
        latency_ms_mean: of the calls alone; 0 without one.
        cost_usd: what the calls cost, those included that were charged without a usable reply.
        cost_before_usd: what the ledger had charged the run before; None where there is no ledger.
        refused, truncated, malformed: replies that were counted and never given out.
    """

    calls: int = 0
    cache_hits: int = 0
    latency_ms_mean: float = 0.0
    cost_usd: float = 0.0
    cost_before_usd: float | None = None
    refused: int = 0
    truncated: int = 0
    malformed: int = 0


class TextTeacher(Protocol):
    """A teacher that gives text and no log-probabilities.

    `None` in an answer stands for a reply that was refused, truncated or malformed: counted, charged, never trained on.
    A call may raise BudgetExceededError, BudgetFrozenError, TeacherRefusedError (the run stops),
    TeacherUnavailableError (the run waits, or stops when `wake_in_seconds` is None) or TeacherStoppedError; replies
    got before are cached, so asking again costs nothing for them. Methods may be called from any thread.
    """

    name: str

    def references(
        self, conversations: Sequence[Sequence[Message]], *, sample_index: int = 0, may_wait: bool = False
    ) -> list[Reference | None]:
        """The answers the student should have given, one a conversation.

        Args:
            may_wait: they are not needed soon: a teacher that is cheaper for those who wait may take hours.
        """
        ...

    def guidance(self, rollouts: Sequence[Rollout]) -> list[Guidance | None]:
        """What is right and wrong in each rollout."""
        ...

    def lesson(self, rollouts: Sequence[Rollout]) -> str | None:
        """One lesson from all the rollouts, by one call."""
        ...

    def judge(self, pairs: Sequence[JudgePair]) -> list[Judgement | None]:
        """Which answer of each pair is better, asked in both orders without naming the authors."""
        ...

    def stats(self) -> TeacherStats:
        """Counts since the teacher was made."""
        ...
