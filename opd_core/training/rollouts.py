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
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

from opd_core.errors import CompatibilityError
from opd_core.training.arrays import floats, ints
from opd_core.training.cpu_functions import SharedPrefix
from opd_core.training.lanes import Lanes, lanes
from opd_core.training.logprobs import common_prefix_length
from opd_core.training.sampling import Sampling, random_key, sample
from opd_core.types import clean_text

MIN_SHARED_PREFIX = 8
LONG_PREFIX = 128
"""Ids before the rollouts of a prompt; with fewer, grouping the rows costs more than reading their keys anew."""
COMPACT_BELOW = 0.75
ROWS_PER_LANE = 16
"""Writing with fewer takes as long as reading the weights does, which two lanes do twice and at 1.4 times the speed."""


@dataclass(frozen=True)
class Decoded:
    """One decoded completion; `logprobs` is parallel to `ids`, and the last id is a stop id if `stopped`."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


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
    rows = [tuple(prompt) for prompt in prompts for _ in range(rollouts_per_prompt)]
    uniforms = mx.random.uniform(shape=(sampling.max_tokens, len(rows)), key=key)
    side_by_side = lanes(model)
    writing = _read(model, rows, uniforms, side_by_side)
    for position in range(sampling.max_tokens):
        if should_stop():
            return []
        unfinished = [part for part in writing if part.alive]
        if not unfinished:
            break
        side_by_side.start([functools.partial(part.draw, position, sampling) for part in unfinished])
        for part in writing:  # only now, while the arithmetic of this position runs, the ids of the one before
            part.write_down(stop_ids, leave=1)
    for part in writing:
        part.write_down(stop_ids)
    return [decoded for part in writing for decoded in part.decoded(stop_ids)]


class _Writing:
    """Rows of a batch that are written together, their prompts in the cache but for the last ids."""

    def __init__(self, model: nn.Module, cache: list[Any], last_ids: list[int], uniforms: mx.array) -> None:
        self._model, self._cache, self._uniforms = model, cache, uniforms
        self._tokens = mx.array(last_ids)
        self.alive = list(range(len(last_ids)))
        self._in_cache = list(self.alive)
        self._drawn: list[tuple[list[int], mx.array, mx.array]] = []
        self._ids: list[list[int]] = [[] for _ in last_ids]
        self._logprobs: list[list[float]] = [[] for _ in last_ids]

    def draw(self, position: int, sampling: Sampling) -> tuple[mx.array, mx.array]:
        """The next id of every row in the cache, and its log-probability; nothing is evaluated yet."""
        self._share_offsets()
        logits = self._model(self._tokens[:, None], cache=self._cache)[:, -1]
        self._tokens, logprobs = sample(logits, self._uniforms[position, mx.array(self._in_cache)], sampling)
        self._drawn.append((self._in_cache, self._tokens, logprobs))
        return self._tokens, logprobs

    def _share_offsets(self) -> None:
        """Give all layers the same array for the same positions, so that what depends on it is worked out once."""
        layers = [layer for layer in self._cache if isinstance(layer, BatchKVCache)]
        for layer in layers[1:]:
            layer.offset = layers[0].offset

    def write_down(self, stop_ids: frozenset[int], leave: int = 0) -> None:
        """Look at what was drawn, but for the last `leave` positions; finished rows leave the cache when many are."""
        while len(self._drawn) > leave:
            rows, tokens, logprobs = self._drawn.pop(0)
            for row, token, logprob in zip(rows, ints(tokens), floats(logprobs), strict=True):
                if not self._is_finished(row, stop_ids):
                    self._ids[row].append(token)
                    self._logprobs[row].append(logprob)
            self.alive = [row for row in self._in_cache if not self._is_finished(row, stop_ids)]
            if self.alive and len(self.alive) <= COMPACT_BELOW * len(self._in_cache):
                keep = mx.array([self._in_cache.index(row) for row in self.alive])
                for layer in self._cache:
                    layer.filter(keep)
                    layer.shared_prefix = None
                self._tokens, self._in_cache = self._tokens[keep], self.alive

    def decoded(self, stop_ids: frozenset[int]) -> list[Decoded]:
        """What the rows have become."""
        return [
            Decoded(tuple(ids), tuple(logprobs), self._is_finished(row, stop_ids))
            for row, (ids, logprobs) in enumerate(zip(self._ids, self._logprobs, strict=True))
        ]

    def _is_finished(self, row: int, stop_ids: frozenset[int]) -> bool:
        return bool(self._ids[row]) and self._ids[row][-1] in stop_ids


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


def _read(model: nn.Module, rows: Sequence[tuple[int, ...]], uniforms: mx.array, side_by_side: Lanes) -> list[_Writing]:
    """Read the prompts on all lanes, and cut the rows into as many parts as are written faster side by side."""
    size = math.ceil(len(rows) / side_by_side.count)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    caches = [cache for cache, _ in side_by_side.run([functools.partial(_prefill, model, part) for part in parts])]
    together = math.ceil(len(caches) / max(1, len(rows) // ROWS_PER_LANE))
    writing = []
    for first in range(0, len(caches), together):
        cache, *others = caches[first : first + together]
        for other in others:
            for layer, more in zip(cache, other, strict=True):
                layer.extend(more)
        taken = slice(first * size, (first + together) * size)
        _tell_shared_prefix(cache, rows[taken])
        writing.append(_Writing(model, cache, [row[-1] for row in rows[taken]], uniforms[:, taken]))
    return writing


def _tell_shared_prefix(cache: list[Any], rows: Sequence[tuple[int, ...]]) -> None:
    """Let attention know which rows hold the same prompt, where reading its keys and values once is worth it."""
    each = next((place for place, row in enumerate(rows) if row != rows[0]), len(rows))
    alike = len(rows) % each == 0 and all(row == rows[place - place % each] for place, row in enumerate(rows))
    for layer in cache if alike and each > 1 else ():
        if type(layer) is BatchKVCache and layer.size() >= LONG_PREFIX:
            vars(layer)["shared_prefix"] = SharedPrefix(each, layer.size())


def _prefill(model: nn.Module, prompts: Sequence[tuple[int, ...]]) -> tuple[list[Any], list[Any]]:
    """Caches with one row a prompt that hold all but its last id, and what of them is still to be evaluated.

    What all prompts begin with is read once, and equal prompts are.
    """
    bodies = [prompt[:-1] for prompt in prompts]
    shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
    shared = min([shared, *(len(body) for body in bodies)])
    if shared < MIN_SHARED_PREFIX:
        shared = 0
    distinct = list(dict.fromkeys(bodies))
    first = make_prompt_cache(model)
    if shared:
        model(mx.array([bodies[0][:shared]]), cache=first)
    cache = [layer.merge([layer] * len(distinct)) for layer in first]
    _prefill_rest(model, cache, [list(body[shared:]) for body in distinct])
    if len(distinct) < len(bodies):
        owners = {body: index for index, body in enumerate(distinct)}
        repeat = mx.array([owners[body] for body in bodies])
        for layer in cache:
            layer.filter(repeat)
    return cache, [layer.state for layer in cache]


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
