"""One id a row, drawn with one uniform number by inverting the cumulative distribution."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

import mlx.core as mx

from opd_core.training.cpu_functions import softmax


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. `temperature` 0 is greedy: the most likely id, with log-probability 0."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


def random_key(*parts: object) -> mx.array:
    """A key that depends on `parts` only, the same on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return mx.random.key(int.from_bytes(digest[:8], "big"))


def sample(logits: mx.array, uniform: mx.array, sampling: Sampling) -> tuple[mx.array, mx.array]:
    """Draw one id a row.

    Args:
        logits: (B, V).
        uniform: (B,) in [0, 1).

    Returns:
        ids (B,) and the natural-log probability (B,) of each under the distribution sampled from, that is after
        temperature and top-p. Greedy gives 0.
    """
    if sampling.temperature == 0.0:
        ids = mx.argmax(logits, axis=-1)
        return ids, mx.zeros(ids.shape, dtype=mx.float32)
    probabilities = softmax(logits.astype(mx.float32) / sampling.temperature)
    if sampling.top_p >= 1.0:
        return _invert(probabilities, uniform)
    order = mx.argsort(-probabilities, axis=-1)
    ordered = mx.take_along_axis(probabilities, order, axis=-1)
    before = mx.cumsum(ordered, axis=-1) - ordered
    # keeps the smallest set whose mass reaches top_p: a token stays if the mass before it has not
    kept = mx.where(before < sampling.top_p, ordered, 0.0)
    ranks, logprobs = _invert(kept / mx.sum(kept, axis=-1, keepdims=True), uniform)
    return mx.take_along_axis(order, ranks[:, None], axis=-1)[:, 0], logprobs


def _invert(probabilities: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array]:
    """The first id at which the cumulative distribution passes `uniform`: first which block of ids, then where in it.

    Summing blocks costs one pass over the vocabulary, where a running sum over all of it costs three.
    """
    rows, vocabulary = probabilities.shape
    blocks = probabilities.reshape(rows, -1, _block_size(vocabulary))
    sums = mx.sum(blocks, axis=-1)
    block, rest = _passes(sums, uniform[:, None] * mx.sum(sums, axis=-1, keepdims=True))
    inside = mx.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place, _ = _passes(inside, rest[:, None])
    ids = block * blocks.shape[-1] + place
    return ids, mx.log(mx.take_along_axis(probabilities, ids[:, None], axis=-1)[:, 0])


def _passes(masses: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
    """Where (B,) the running sum of (B, n) masses passes (B, 1) targets, and how much of the target is left there."""
    cumulative = mx.cumsum(masses, axis=-1)
    # a hair below the total: rounding must never push the target past the last cumulative value
    target = mx.clip(target, 0.0, cumulative[:, -1:] * (1.0 - 1e-6))
    index = mx.argmax(cumulative > target, axis=-1)
    before = mx.take_along_axis(cumulative - masses, index[:, None], axis=-1)
    return index, (target - before)[:, 0]


@functools.cache
def _block_size(vocabulary: int) -> int:
    """The largest divisor up to the square root: both running sums are short then."""
    return max(size for size in range(1, math.isqrt(vocabulary) + 1) if vocabulary % size == 0)
