"""Where ids and positions meet: the single shift-by-one in the house.

The state at an id predicts the id after it, so the states that predict a completion of T ids are those at the last id
of its prompt and at its own first T − 1. `pack` writes this down once; student and teacher, training and evaluation,
all read it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from opd_core.training.arrays import number
from opd_core.training.losses import Head, chunk_length
from opd_core.training.reading import Read, layer_count, read_on

PROBE_LENGTH = 8
PROBES = ([[5, 6, 7, 8, 9], [3, 4, 5], [3, 4, 5]], [[1, 2, 3], [7, 8], [4, 4, 4]])
"""Prompts of unequal length, one of them with two completions."""
SHARED_READING_TOLERANCE = 0.03
"""Relative; 16-bit models round by a hundredth, while a wrong mask or position changes the states as a whole."""


@dataclass(frozen=True)
class PackedBatch:
    """Completions, and the prompts they follow, each of those once.

    Attributes:
        bodies: ids of each distinct prompt but the last; may be empty.
        owners: for each completion, the index of its prompt.
        tails: for each completion, the last id of its prompt and its own ids but the last.
        targets: (N,) the ids that the states at `tails` predict, completion after completion.
        lengths: ids of each completion; they sum to N.
    """

    bodies: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]
    targets: mx.array
    lengths: tuple[int, ...]


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], skip: int = 0) -> PackedBatch:
    """Lay completions side by side, and the prompts that several of them share once.

    Args:
        prompts: ids before each completion, at least one after `skip`.
        completions: ids of each completion, at least one, the stop token included.
        skip: leading ids of every prompt that were read before.

    Raises:
        ValueError: a prompt or a completion is too short.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions")
    bodies: dict[tuple[int, ...], int] = {}
    owners: list[int] = []
    tails: list[tuple[int, ...]] = []
    targets: list[int] = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(prompt) <= skip or not completion:
            raise ValueError(
                f"row {row} has {len(prompt)} prompt ids (more than {skip} needed) and {len(completion)} completion ids"
            )
        owners.append(bodies.setdefault(tuple(prompt[skip:-1]), len(bodies)))
        tails.append((prompt[-1], *completion[:-1]))  # the last id predicts nothing that is scored
        targets += completion
    return PackedBatch(
        bodies=tuple(bodies),
        owners=tuple(owners),
        tails=tuple(tails),
        targets=mx.array(targets),
        lengths=tuple(len(completion) for completion in completions),
    )


@dataclass(frozen=True)
class Scorer:
    """A model cut into trunk (ids to states) and head (states to logits), so that logits are made only where needed.

    Attributes:
        split: whether trunk and head are two parts; else the trunk is the model and the head does nothing.
        layers: of the model, where completions can read on from a prompt that was read once; else None.
    """

    model: nn.Module
    trunk: Callable[..., mx.array]
    head: Head
    vocab_size: int
    split: bool
    layers: int | None

    @property
    def positions_per_chunk(self) -> int:
        """How many positions' logits are held at once."""
        return chunk_length(self.vocab_size)

    def states(self, batch: PackedBatch, prefix: Read | None = None) -> mx.array:
        """The (N, D) states that predict the completion ids of `batch`.

        Args:
            prefix: one row, what `pack` was told to skip; from `read`.

        Raises:
            ValueError: a prefix for a model that cannot read on.
        """
        if self.layers is None:
            if prefix is not None:
                raise ValueError("this model cannot read on from a prefix")
            return self._whole_states(batch)
        before = prefix.rows([0] * len(batch.bodies)) if prefix is not None else None
        if any(batch.bodies):
            before = read_on(
                self.trunk, _padded(batch.bodies), [len(body) for body in batch.bodies], before, self.layers
            )[1]
        before = before.rows(batch.owners) if before is not None else None
        hidden, _ = read_on(self.trunk, _padded(batch.tails), batch.lengths, before, self.layers)
        return _real(hidden, batch.lengths, [0] * len(batch.lengths))

    def read(self, ids: Sequence[int]) -> Read:
        """Read `ids`, at least one, to go on from them later.

        Raises:
            ValueError: the model cannot read on.
        """
        if self.layers is None:
            raise ValueError("this model cannot read on from a prefix")
        _, found = read_on(self.trunk, mx.array([list(ids)]), [len(ids)], None, self.layers)
        mx.eval(found.layers)
        return found

    def _whole_states(self, batch: PackedBatch) -> mx.array:
        """Every prompt and completion as one sequence: for models with other caches, and the reference in tests."""
        starts = [len(batch.bodies[owner]) for owner in batch.owners]
        rows = [(*batch.bodies[owner], *tail) for owner, tail in zip(batch.owners, batch.tails, strict=True)]
        return _real(self.trunk(_padded(rows)), batch.lengths, starts)


def make_scorer(model: nn.Module) -> Scorer:
    """Cut `model` into trunk and head, and let it share prompts, where that provably changes nothing.

    mlx-lm models keep the trunk in `.model` and the head in `.lm_head` or the tied embedding. A model that does more
    to its logits (a soft cap, a scale) fails the comparison on probe ids and is used whole: correct, with more memory.
    So does one whose layers keep more than keys and values: it reads every prompt again for every completion.
    """
    probe = mx.arange(1, PROBE_LENGTH + 1)[None]
    expected = model(probe)
    vocab_size = expected.shape[-1]
    trunk = getattr(model, "model", None)
    head = _find_head(model, trunk)
    scorer = Scorer(model, model, lambda states: states, vocab_size, split=False, layers=None)
    if trunk is not None and head is not None:
        got = head(trunk(probe))
        if got.shape == expected.shape and bool(mx.allclose(got, expected, rtol=1e-3, atol=1e-3)):
            scorer = Scorer(model, trunk, head, vocab_size, split=True, layers=None)
    sharing = replace(scorer, layers=layer_count(model))
    return sharing if sharing.layers is not None and _shares(sharing, scorer) else scorer


def _shares(sharing: Scorer, plain: Scorer) -> bool:
    batch = pack(*PROBES)
    expected = plain.states(batch).astype(mx.float32)
    try:
        error = mx.abs(sharing.states(batch).astype(mx.float32) - expected)
        return number(mx.max(error)) <= SHARED_READING_TOLERANCE * number(mx.max(mx.abs(expected)))
    except (TypeError, ValueError, AttributeError):  # its attention wants more of a cache than ours is
        return False


def _find_head(model: nn.Module, trunk: Any) -> Head | None:
    """The head is looked up at every call: LoRA may have replaced the layer since."""
    if "lm_head" in model:
        return lambda states: model.lm_head(states)
    if trunk is not None and "embed_tokens" in trunk:
        return lambda states: trunk.embed_tokens.as_linear(states)
    return None


def _padded(rows: Sequence[Sequence[int]]) -> mx.array:
    longest = max(len(row) for row in rows)
    return mx.array([[*row, *[0] * (longest - len(row))] for row in rows])


def _real(hidden: mx.array, lengths: Sequence[int], starts: Sequence[int]) -> mx.array:
    """(N, D): of each row of (B, L, D), as many states as its length says, from its start on."""
    longest = hidden.shape[1]
    wanted = [
        row * longest + start + position
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
        for position in range(length)
    ]
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if len(wanted) == flat.shape[0] else flat[mx.array(wanted)]


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading ids all sequences share, leaving each at least one of its own."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))  # what these share, all share
    length = 0
    for left, right in zip(first, last, strict=False):
        if left != right:
            break
        length += 1
    return min(length, min(len(sequence) for sequence in sequences) - 1)


def completion_logprobs(scorer: Scorer, batch: PackedBatch) -> mx.array:
    """log of the model's probability (natural, at temperature 1) of each completion id, (N,)."""
    logits = scorer.head(scorer.states(batch)).astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logprobs, batch.targets[:, None], axis=-1)[:, 0]
