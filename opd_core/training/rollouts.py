"""The student writes: batched decoding with the log-probability of each id under the distribution it was drawn from.

mlx-lm's generator returns the log-probability *before* temperature and top-p (1.19 nats off at T = 0.7), so decoding
is done here over mlx-lm's own batch caches. One prompt is read once however many rollouts it gets, the ids that begin
every prompt are read once for all, and a finished row leaves the batch.

Randomness: one uniform number per (row, position), drawn from a key made of (seed, step) alone; the id is where the
cumulative distribution passes it. A rollout therefore depends on its row and on nothing that other rows do, and a
resumed run needs no saved random state.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from opd_core.errors import CompatibilityError
from opd_core.training.arrays import floats, ints
from opd_core.training.lanes import lanes
from opd_core.training.logprobs import common_prefix_length
from opd_core.types import clean_text

MIN_SHARED_PREFIX = 8
COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. `temperature` 0 is greedy: the most likely id, with log-probability 0."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Decoded:
    """One decoded completion; `logprobs` is parallel to `ids`, and the last id is a stop id if `stopped`."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


def random_key(*parts: object) -> mx.array:
    """A key that depends on `parts` only, the same on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return mx.random.key(int.from_bytes(digest[:8], "big"))


def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    rollouts_per_prompt: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    key: mx.array,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Decoded]:
    """Complete every prompt `rollouts_per_prompt` times; row = prompt index × rollouts_per_prompt + rollout index.

    Args:
        prompts: ids of each prompt, at least one id each.
        key: from `random_key`; not used when greedy.
        should_stop: asked before every position; when true, decoding ends early and returns an empty list.
    """
    uniforms = mx.random.uniform(shape=(sampling.max_tokens, len(prompts) * rollouts_per_prompt), key=key)
    rows = [prompt for prompt in prompts for _ in range(rollouts_per_prompt)]
    size = math.ceil(len(rows) / lanes(model).count)
    parts = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    writing = [_Writing(model, [rows[row] for row in part], uniforms[:, part.start : part.stop]) for part in parts]
    lanes(model).run([part.read for part in writing])
    for position in range(sampling.max_tokens):
        if should_stop():
            return []
        unfinished = [part for part in writing if part.alive]
        if not unfinished:
            break
        drawn = lanes(model).run([functools.partial(part.draw, position, sampling) for part in unfinished])
        for part, (tokens, logprobs) in zip(unfinished, drawn, strict=True):
            part.take(tokens, logprobs, stop_ids)
    return [decoded for part in writing for decoded in part.decoded(stop_ids)]


class _Writing:
    """Some rows of a batch, on a lane of their own; equal prompts are read once."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], uniforms: mx.array) -> None:
        self._model, self._prompts, self._uniforms = model, prompts, uniforms
        self._tokens = mx.array([prompt[-1] for prompt in prompts])
        self._cache: list[Any] = []
        self.alive = list(range(len(prompts)))
        self._in_cache = list(self.alive)
        self._ids: list[list[int]] = [[] for _ in prompts]
        self._logprobs: list[list[float]] = [[] for _ in prompts]

    def read(self) -> list[mx.array]:
        """Prefill; returns what is to be evaluated."""
        self._cache = _prefill(self._model, self._prompts)
        return [layer.state for layer in self._cache]

    def draw(self, position: int, sampling: Sampling) -> tuple[mx.array, mx.array]:
        """The next id of every row in the cache, and its log-probability."""
        logits = self._model(self._tokens[:, None], cache=self._cache)[:, -1]
        self._tokens, logprobs = sample(logits, self._uniforms[position, mx.array(self._in_cache)], sampling)
        return self._tokens, logprobs

    def take(self, tokens: mx.array, logprobs: mx.array, stop_ids: frozenset[int]) -> None:
        """Write down what was drawn, and let finished rows leave the cache when they are many."""
        for row, token, logprob in zip(self._in_cache, ints(tokens), floats(logprobs), strict=True):
            if not self._ids[row] or self._ids[row][-1] not in stop_ids:
                self._ids[row].append(token)
                self._logprobs[row].append(logprob)
        self.alive = [row for row in self._in_cache if self._ids[row][-1] not in stop_ids]
        if self.alive and len(self.alive) <= COMPACT_BELOW * len(self._in_cache):
            keep = mx.array([self._in_cache.index(row) for row in self.alive])
            for layer in self._cache:
                layer.filter(keep)
            self._tokens, self._in_cache = self._tokens[keep], self.alive

    def decoded(self, stop_ids: frozenset[int]) -> list[Decoded]:
        """What the rows have become."""
        return [
            Decoded(tuple(ids), tuple(logprobs), ids[-1] in stop_ids)
            for ids, logprobs in zip(self._ids, self._logprobs, strict=True)
        ]


def check_decodes(model: nn.Module, name: str) -> None:
    """Refuse a model whose caches do not batch, before any work is done: two prompts of unequal length must decode.

    Raises:
        CompatibilityError: mlx-lm's caches for this kind of model cannot do that.
    """
    try:
        decode(model, [[1, 2, 3, 4], [1, 2]], 2, Sampling(2), frozenset(), random_key(0))
    except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise CompatibilityError(
            f"{name!r} cannot write several answers at once with this version of mlx-lm "
            f"({type(error).__name__}: {clean_text(str(error), 160)}), so it cannot be distilled here. "
            "Choose a model of another family, or a newer mlx-lm."
        ) from error


def sample(logits: mx.array, uniform: mx.array, sampling: Sampling) -> tuple[mx.array, mx.array]:
    """Draw one id a row by inverting the cumulative distribution.

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
    probabilities = mx.softmax(logits.astype(mx.float32) / sampling.temperature, axis=-1, precise=True)
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


def _prefill(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """Caches with one row a prompt that hold all but its last id; nothing is evaluated yet.

    What all prompts begin with is read once, and equal prompts are.
    """
    bodies = [list(prompt[:-1]) for prompt in prompts]
    shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
    shared = min([shared, *(len(body) for body in bodies)])
    if shared < MIN_SHARED_PREFIX:
        shared = 0
    distinct = list(dict.fromkeys(tuple(body) for body in bodies))
    first = make_prompt_cache(model)
    if shared:
        model(mx.array([bodies[0][:shared]]), cache=first)
    cache = [layer.merge([layer] * len(distinct)) for layer in first]
    _prefill_rest(model, cache, [list(body[shared:]) for body in distinct])
    if len(distinct) < len(bodies):
        owners = {body: index for index, body in enumerate(distinct)}
        repeat = mx.array([owners[tuple(body)] for body in bodies])
        for layer in cache:
            layer.filter(repeat)
    return cache


def _prefill_rest(model: nn.Module, cache: list[Any], rest: list[list[int]]) -> None:
    lengths = [len(ids) for ids in rest]
    longest = max(lengths)
    if longest == 0:
        return
    padding = [longest - length for length in lengths]
    if max(padding) > 0:
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=padding)
    model(mx.array([ids + [0] * pad for ids, pad in zip(rest, padding, strict=True)]), cache=cache)
    if max(padding) > 0:
        for layer in cache:
            layer.finalize()


def repetition_rate(ids: Sequence[int], n: int = 4) -> float:
    """Share of a completion's n-grams that occurred before in it: 0 for varied text, near 1 for a loop."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
