"""Arrays to plain Python values, with the type said once: to a checker MLX's `tolist` and `item` may be many things."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten


def floats(array: mx.array) -> list[float]:
    """A one-dimensional float array as a list."""
    return cast(list[float], array.tolist())


def ints(array: mx.array) -> list[int]:
    """A one-dimensional integer array as a list."""
    return cast(list[int], array.tolist())


def number(array: mx.array) -> float:
    """A scalar array as a float."""
    return float(cast(float, array.item()))


def flat(tree: object) -> dict[str, mx.array]:
    """A tree of arrays (parameters, optimizer state) by dotted name."""
    return cast(dict[str, mx.array], dict(tree_flatten(tree)))
