"""Reading on from keys and values that several sequences share.

    read_on(trunk, prompts)                    each prompt once                  (prompts, …)
    read_on(trunk, completions, prompts' rows) every completion after its prompt (rollouts, …)

A prompt's keys and values are computed once, whoever continues it: another rollout, or another step with the same
fixed context. Nothing is written in place, so the gradient of all that follows flows back through the one reading, and
is exact. The trick is that of prefix caching, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

KeysValues = tuple[mx.array, mx.array]
Trunk = Callable[..., mx.array]


@dataclass(frozen=True)
class Read:
    """What the layers keep of ids that were read.

    Attributes:
        layers: keys and values of each layer, (B, heads, S, head width), padded on the right.
        lengths: how many of the S positions of each of the B rows are real.
    """

    layers: tuple[KeysValues, ...]
    lengths: tuple[int, ...]

    def rows(self, owners: Sequence[int]) -> Read:
        """One row for each entry of `owners`, the index of the row it continues."""
        each, rest = divmod(len(owners), len(self.lengths))
        index = mx.array(list(owners))
        evenly = rest == 0 and list(owners) == [row for row in range(len(self.lengths)) for _ in range(each)]

        def taken(values: mx.array) -> mx.array:  # the gradient of a repetition is a sum, that of taking rows a scatter
            return values if evenly and each == 1 else mx.repeat(values, each, axis=0) if evenly else values[index]

        layers = tuple((taken(keys), taken(values)) for keys, values in self.layers)
        return Read(layers, tuple(self.lengths[owner] for owner in owners))


class LayerReading:
    """One layer's side of `read_on`: what mlx-lm's attention asks of a cache, without writing in place.

    Attributes:
        offset: position of the first new id, one number or (B,).
        before: keys and values read before; None at the start.
        now: those with the new ones, once the layer was run.
    """

    def __init__(self, offset: int | mx.array, mask: mx.array | None, before: KeysValues | None) -> None:
        self.offset, self.before = offset, before
        self.now: KeysValues | None = None
        self._mask = mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """The keys and values an id may look at: those before, then the new ones."""
        if self.before is not None:
            keys = mx.concatenate([self.before[0], keys], axis=-2)
            values = mx.concatenate([self.before[1], values], axis=-2)
        self.now = (keys, values)
        return self.now

    def again(self, before: KeysValues | None) -> LayerReading:
        """The same reading of other arrays, for a layer that is worked out a second time."""
        return LayerReading(self.offset, self._mask, before)

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """What mlx-lm's `create_attention_mask` returns: an array only where rows are padded.

        Raises:
            ValueError: a sliding window is asked for, or an array where none is needed.
        """
        if window_size is not None or return_array:
            raise ValueError("a model with its own masks cannot read on from shared keys and values")
        return self._mask if self._mask is not None else "causal" if length > 1 else None


def read_on(
    trunk: Trunk, tokens: mx.array, lengths: Sequence[int], before: Read | None, count: int
) -> tuple[mx.array, Read]:
    """Read ids, after those of `before` where given.

    Args:
        trunk: a model, or its part before the output head.
        tokens: (B, L) ids, padded on the right.
        lengths: real ids in each row.
        before: as many rows, each what its ids continue.
        count: layers of the model.

    Returns:
        the trunk's states (B, L, D), and what to read on from (only if no row of `before` was padded).

    Raises:
        ValueError: the model's layers do not work this way.
    """
    offset: int | mx.array = 0
    mask = None
    old: Sequence[KeysValues | None] = [None] * count
    if before is not None:
        old, kept = before.layers, before.layers[0][0].shape[-2]
        offset = kept
        if any(length != kept for length in before.lengths):
            offset = mx.array(before.lengths)
            mask = _mask(before.lengths, kept, tokens.shape[1])
    layers = [LayerReading(offset, mask, keys_values) for keys_values in old]
    states = trunk(tokens, cache=layers)
    kept_now = tuple(layer.now for layer in layers if layer.now is not None)
    if len(kept_now) < count:
        raise ValueError(f"{count - len(kept_now)} of {count} layers did not use the keys and values they were given")
    held = before.lengths if before is not None else [0] * len(lengths)
    total = tuple(first + own for first, own in zip(held, lengths, strict=True))
    return states, Read(kept_now, total)


def layer_count(model: nn.Module) -> int | None:
    """How many layers keep keys and values; None where some keep anything else, which cannot be shared this way."""
    if not (hasattr(model, "make_cache") or hasattr(model, "layers")):
        return None
    caches: list[Any] = make_prompt_cache(model)
    return len(caches) if all(type(cache) is KVCache for cache in caches) else None


def _mask(lengths: Sequence[int], kept: int, new: int) -> mx.array:
    """(B, 1, new, kept + new): the real ones before, and the new ones up to oneself."""
    real = mx.arange(kept)[None] < mx.array(list(lengths))[:, None]
    causal = mx.arange(new)[:, None] >= mx.arange(new)[None]
    shape = (len(lengths), 1, new)
    return mx.concatenate(
        [
            mx.broadcast_to(real[:, None, None], (*shape, kept)),
            mx.broadcast_to(causal[None, None], (*shape, new)),
        ],
        axis=-1,
    )
