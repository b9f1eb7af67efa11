"""The student writes: batched decoding with the log-probability of each id under the distribution it was drawn from.

mlx-lm's generator returns the log-probability *before* temperature and top-p (1.19 nats off at T = 0.7), so decoding
is done here over mlx-lm's own batch caches. One prompt is read once however many rollouts it gets, the ids that begin
every prompt are read once for all, and a finished row leaves the batch.

Randomness: one uniform number per (row, position), drawn from a key made of (seed, step) alone; the id is where the
cumulative distribution passes it. A rollout therefore depends on its row and on nothing that other rows do, and a
resumed run needs no saved random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from opd_core.errors import CompatibilityError
from opd_core.training.arrays import floats, ints
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
    rows = len(prompts) * rollouts_per_prompt
    cache = _prefill(model, prompts, rollouts_per_prompt)
    tokens = mx.array([prompt[-1] for prompt in prompts for _ in range(rollouts_per_prompt)])
    uniforms = mx.random.uniform(shape=(sampling.max_tokens, rows), key=key)
    alive = list(range(rows))
    in_cache = list(alive)
    ids: list[list[int]] = [[] for _ in range(rows)]
    logprobs: list[list[float]] = [[] for _ in range(rows)]
    for position in range(sampling.max_tokens):
        if should_stop():
            return []
        logits = model(tokens[:, None], cache=cache)[:, -1]
        tokens, drawn = sample(logits, uniforms[position, mx.array(in_cache)], sampling)
        mx.async_eval(tokens, drawn)
        for row, token, logprob in zip(in_cache, ints(tokens), floats(drawn), strict=True):
            if not ids[row] or ids[row][-1] not in stop_ids:
                ids[row].append(token)
                logprobs[row].append(logprob)
        alive = [row for row in in_cache if ids[row][-1] not in stop_ids]
        if not alive:
            break
        if len(alive) <= COMPACT_BELOW * len(in_cache):
            keep = mx.array([in_cache.index(row) for row in alive])
            for layer in cache:
                layer.filter(keep)
            tokens, in_cache = tokens[keep], alive
    return [
        Decoded(tuple(row_ids), tuple(row_logprobs), row_ids[-1] in stop_ids)
        for row_ids, row_logprobs in zip(ids, logprobs, strict=True)
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
    cumulative = mx.cumsum(probabilities, axis=-1)
    # a hair below the total: rounding must never push the target past the last cumulative value
    target = uniform[:, None] * cumulative[:, -1:] * (1.0 - 1e-6)
    ids = mx.argmax(cumulative > target, axis=-1)
    return ids, mx.log(mx.take_along_axis(probabilities, ids[:, None], axis=-1)[:, 0])


def _prefill(model: nn.Module, prompts: Sequence[Sequence[int]], rollouts_per_prompt: int) -> list[Any]:
    """Read all but the last id of every prompt once; returns caches with one row per rollout."""
    bodies = [list(prompt[:-1]) for prompt in prompts]
    shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
    shared = min([shared, *(len(body) for body in bodies)])
    if shared < MIN_SHARED_PREFIX:
        shared = 0
    first = make_prompt_cache(model)
    if shared:
        model(mx.array([bodies[0][:shared]]), cache=first)
        mx.eval([layer.state for layer in first])
    cache = [layer.merge([layer] * len(prompts)) for layer in first]
    _prefill_rest(model, cache, [body[shared:] for body in bodies])
    if rollouts_per_prompt > 1:
        repeat = mx.array([row for row in range(len(prompts)) for _ in range(rollouts_per_prompt)])
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
    mx.eval([layer.state for layer in cache])


def repetition_rate(ids: Sequence[int], n: int = 4) -> float:
    """Share of a completion's n-grams that occurred before in it: 0 for varied text, near 1 for a loop."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
