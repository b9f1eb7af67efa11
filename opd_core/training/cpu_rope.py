"""Rotary positions for a CPU, where MLX works out angles, cosines and sines anew in each layer, in some thirty passes.

With C and S the cosines and sines of every position's angles, laid out as the head's entries are, and P the matrix that
puts each entry's partner in its place, with its sign, the rotation of x is x∘C + (x P)∘S. (RoFormer, arXiv 2104.09864,
equation 34.) C and S are the same for all heads and layers, so they are kept.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import mlx.core as mx

KEPT_TABLES = 32


@dataclass(frozen=True)
class Rotation:
    """How positions turn a head's entries; as `mlx.nn.RoPE` has it.

    Attributes:
        dims: entries that turn; those behind them stay as they are.
        traditional: partners are neighbours; else the entry half of `dims` away.
        base, scale: entry pair i turns by position · scale · base^(−2i / dims).
    """

    dims: int
    traditional: bool
    base: float
    scale: float

    def rotated(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Turn x (B, H, L, D), D ≥ dims, in float32.

        Args:
            offset: position of the first of the L entries: one number, or (B,).
        """
        x = mx.contiguous(x)  # heads come as a transposed view
        length, width = x.shape[-2:]
        cosines, sines = (
            _tables_from(self, length, width, offset)
            if isinstance(offset, int)
            else _last.tables(self, length, width, offset)
        )
        return x * cosines + (x @ _partners(self, width)) * sines


class _LastTables:
    """The tables of the last array of offsets, which all layers of a model ask for one after the other."""

    def __init__(self) -> None:
        self._asked: tuple[Rotation, int, int] | None = None
        self._offset: mx.array | None = None
        self._found: tuple[mx.array, mx.array] | None = None

    def tables(self, rotation: Rotation, length: int, width: int, offset: mx.array) -> tuple[mx.array, mx.array]:
        """Cosines and sines (B, 1, L, D), or (L, D) for an offset that is one number."""
        if self._found is None or self._offset is not offset or self._asked != (rotation, length, width):
            positions = (offset[..., None] if offset.ndim else offset) + mx.arange(length)
            positions = positions[:, None] if offset.ndim else positions
            self._asked, self._offset = (rotation, length, width), offset
            self._found = _tables(rotation, positions, width)
        return self._found


_last = _LastTables()


@functools.lru_cache(maxsize=KEPT_TABLES)
def _tables_from(rotation: Rotation, length: int, width: int, offset: int) -> tuple[mx.array, mx.array]:
    found = _tables(rotation, mx.arange(offset, offset + length), width)
    mx.eval(found)
    return found


def _tables(rotation: Rotation, positions: mx.array, width: int) -> tuple[mx.array, mx.array]:
    """Cosines and sines (..., D) for positions (...)."""
    half = rotation.dims // 2
    speeds = rotation.scale * mx.exp(mx.arange(half) * (-math.log(rotation.base) / half))
    angles = positions[..., None].astype(mx.float32) * speeds
    angles = mx.repeat(angles, 2, axis=-1) if rotation.traditional else mx.concatenate([angles, angles], axis=-1)
    still = [(0, 0)] * (angles.ndim - 1) + [(0, width - rotation.dims)]
    return mx.pad(mx.cos(angles), still, constant_values=1.0), mx.pad(mx.sin(angles), still)


@functools.cache
def _partners(rotation: Rotation, width: int) -> mx.array:
    """(D, D): x @ it has, at each entry, its partner with the sign that the sine gets there."""
    half = rotation.dims // 2
    pairs = [(2 * i, 2 * i + 1) for i in range(half)] if rotation.traditional else [(i, i + half) for i in range(half)]
    rows = [[0.0] * width for _ in range(width)]
    for first, second in pairs:
        rows[second][first], rows[first][second] = -1.0, 1.0
    matrix = mx.array(rows)
    mx.eval(matrix)
    return matrix
