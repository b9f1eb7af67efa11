"""Gradient checkpointing by choice: a layer keeps its input and works the rest out again on the way back.

Costs one more forward pass in the update, and saves all but one layer's inner arrays. As `mlx_lm.tuner.trainer`
does it, but for one model's layers rather than for a class, and also where layers read on from shared keys and values.
(Chen et al., arXiv 1604.06174.)
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from opd_core.training.reading import LayerReading


def recompute_layers(model: nn.Module) -> None:
    """Let the layers of `model` recompute while it trains; evaluation and decoding stay as they are."""
    kinds: dict[Any, Any] = {}
    for layer in model.layers:
        kind = type(layer)
        if kind not in kinds:
            kinds[kind] = _recomputing(kind)
        layer.__class__ = kinds[kind]


def _recomputing(kind: Any) -> Any:
    class Recomputing(kind):  # type: ignore[misc]
        def __call__(self, states: mx.array, mask: Any = None, cache: Any = None) -> Any:
            if not self.training or not (cache is None or isinstance(cache, LayerReading)):
                return super().__call__(states, mask, cache)
            plain = super().__call__

            def inner(parameters: Any, states: mx.array, before: Any) -> Any:
                self.update(parameters)
                reading = None if cache is None else cache.again(before)
                return plain(states, mask, reading), None if reading is None else reading.now

            before = None if cache is None else cache.before
            found, now = mx.checkpoint(inner)(self.trainable_parameters(), states, before)
            if cache is not None:
                cache.now = now
            return found

    Recomputing.__name__ = Recomputing.__qualname__ = kind.__name__
    return Recomputing
