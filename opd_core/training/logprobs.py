"""Where ids and positions meet: the single shift-by-one in the house.

The state at position i predicts the id at position i + 1, so the states that predict a completion of length T after a
prompt of length P are those at P − 1 … P + T − 2. `pack` writes these positions down once; student and teacher,
training and evaluation, all read them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ConcatenateKVCache, KVCache, make_prompt_cache

from opd_core.training.losses import Head, chunk_length

PROBE_LENGTH = 8


@dataclass(frozen=True)
class PackedBatch:
    """Sequences padded on the right, and which of their positions predict completion ids.

    Attributes:
        tokens: (B, L) ids; a padded position never reaches a real one through a causal mask.
        rows, columns: (N,) positions of the predicting states, completion after completion.
        targets: (N,) the id each of those states predicts.
        lengths: completion tokens of each sequence; they sum to N.
    """

    tokens: mx.array
    rows: mx.array
    columns: mx.array
    targets: mx.array
    lengths: tuple[int, ...]


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], skip: int = 0) -> PackedBatch:
    """Lay prompts and completions side by side.

    Args:
        prompts: ids before each completion, at least one after `skip`.
        completions: ids of each completion, at least one, the stop token included.
        skip: leading ids of every prompt that a prefix cache already holds.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions")
    sequences: list[list[int]] = []
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(prompt) <= skip or not completion:
            raise ValueError(
                f"row {row} has {len(prompt)} prompt ids (more than {skip} needed) and {len(completion)} completion ids"
            )
        sequences.append([*prompt[skip:], *completion[:-1]])  # the last id predicts nothing that is scored
        first = len(prompt) - skip - 1
        rows += [row] * len(completion)
        columns += range(first, first + len(completion))
        targets += completion
    longest = max(len(sequence) for sequence in sequences)
    return PackedBatch(
        tokens=mx.array([sequence + [0] * (longest - len(sequence)) for sequence in sequences]),
        rows=mx.array(rows),
        columns=mx.array(columns),
        targets=mx.array(targets),
        lengths=tuple(len(completion) for completion in completions),
    )


@dataclass(frozen=True)
class Scorer:
    """A model cut into trunk (ids to states) and head (states to logits), so that logits are made only where needed."""

    model: nn.Module
    trunk: Callable[..., mx.array]
    head: Head
    vocab_size: int
    split: bool

    @property
    def positions_per_chunk(self) -> int:
        """How many positions' logits are held at once."""
        return chunk_length(self.vocab_size)

    def states(self, batch: PackedBatch, prefix: PrefixCache | None = None) -> mx.array:
        """The (N, D) states that predict the completion ids of `batch`."""
        if prefix is None:
            hidden = self.trunk(batch.tokens)
        else:
            hidden = self.trunk(batch.tokens, cache=prefix.layers(batch.tokens.shape[0]))
        return hidden[batch.rows, batch.columns]


def make_scorer(model: nn.Module) -> Scorer:
    """Cut `model` into trunk and head where that provably gives the model's own logits; else use it whole.

    mlx-lm models keep the trunk in `.model` and the head in `.lm_head` or the tied embedding. A model that does more
    to its logits (a soft cap, a scale) fails the comparison on probe ids and is used whole: correct, with more memory.
    """
    probe = mx.arange(1, PROBE_LENGTH + 1)[None]
    expected = model(probe)
    vocab_size = expected.shape[-1]
    trunk = getattr(model, "model", None)
    head = _find_head(model, trunk)
    if trunk is not None and head is not None:
        got = head(trunk(probe))
        if got.shape == expected.shape and bool(mx.allclose(got, expected, rtol=1e-3, atol=1e-3)):
            return Scorer(model, trunk, head, vocab_size, split=True)
    return Scorer(model, model, lambda states: states, vocab_size, split=False)


def _find_head(model: nn.Module, trunk: Any) -> Head | None:
    """The head is looked up at every call: LoRA may have replaced the layer since."""
    if "lm_head" in model:
        return lambda states: model.lm_head(states)
    if trunk is not None and "embed_tokens" in trunk:
        return lambda states: trunk.embed_tokens.as_linear(states)
    return None


class PrefixCache:
    """Keys and values of ids that begin every prompt (a fixed teacher context), computed once."""

    def __init__(self, model: nn.Module, ids: Sequence[int]) -> None:
        cache = make_prompt_cache(model)
        model(mx.array([list(ids)]), cache=cache)
        mx.eval([layer.state for layer in cache])
        self.length = len(ids)
        self._keys_values = [layer.keys_and_values() for layer in cache]

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether the model's cache is made of plain key-value layers, which is what can be shared this way."""
        return all(type(layer) is KVCache for layer in make_prompt_cache(model))

    def layers(self, batch_size: int) -> list[ConcatenateKVCache]:
        """Fresh caches for one forward pass over `batch_size` sequences; the stored arrays are shared, not copied."""
        caches = []
        for keys, values in self._keys_values:
            cache = ConcatenateKVCache()
            cache.keys = mx.broadcast_to(keys, (batch_size, *keys.shape[1:]))
            cache.values = mx.broadcast_to(values, (batch_size, *values.shape[1:]))
            cache.offset = self.length
            caches.append(cache)
        return caches


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading ids all sequences share, leaving each at least one of its own."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))  # what these share, all share
    length = 0
    for left, right in zip(first, last, strict=False):
        if left != right:
            break
        length += 1
    return min(length, min(len(sequence) for sequence in sequences) - 1)


def micro_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices cut into groups of similar length whose padded size stays within `tokens_per_batch`.

    Longest first, so that the largest group shows at once whether it fits in memory.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * lengths[group[0]] > tokens_per_batch:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def completion_logprobs(scorer: Scorer, batch: PackedBatch) -> mx.array:
    """log of the model's probability (natural, at temperature 1) of each completion id, (N,)."""
    logits = scorer.head(scorer.states(batch)).astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logprobs, batch.targets[:, None], axis=-1)[:, 0]
