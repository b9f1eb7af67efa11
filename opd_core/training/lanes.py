"""All cores busy: work that is cut into parts, the parts side by side on streams of their own.

MLX runs the operations of one CPU stream on one thread, and small matrix products gain little from BLAS threads: two
streams of half the rows each were 1.95 times as fast as one on two cores. On a GPU there is one lane.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from opd_core.blas import core_count
from opd_core.training.arrays import flat

MAX_LANES = 8
"""Every lane reads all the weights; measured on two cores only."""
SMALL_TRUNK_PARAMETERS = 5_000_000
OPERATIONS_AHEAD = 1000
"""Of a training step's graph no more than some hundred operations are ready at a time."""

Found = TypeVar("Found")
Part = TypeVar("Part")


def feed_all_lanes() -> None:
    """Let MLX order operations so that all lanes have work; to be called before anything was evaluated.

    It walks a graph breadth first while that is no wider than `MLX_BFS_MAX_WIDTH` (20), and else depth first, which
    fills one lane after the other: an update with two lanes took 1.9 times as long. What stands in the environment
    already stays.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", str(OPERATIONS_AHEAD))


class Lanes:
    """Streams to run parts on."""

    def __init__(self, count: int) -> None:
        device = mx.default_device()
        self._streams = [mx.default_stream(device), *(mx.new_stream(device) for _ in range(count - 1))]

    @property
    def count(self) -> int:
        """How many parts run side by side."""
        return len(self._streams)

    def rounds(self, parts: Sequence[Part]) -> list[Sequence[Part]]:
        """`parts` in order, as many at a time as run side by side."""
        return [parts[start : start + self.count] for start in range(0, len(parts), self.count)]

    def run(self, parts: Sequence[Callable[[], Found]]) -> list[Found]:
        """Call each part and evaluate what it returns, arrays or trees of them, as many at a time as there are lanes.

        The parts must only build: one that waits for its own result would hold up the others. What a part computes
        does not depend on the lane it gets.
        """
        found: list[Found] = []
        for together in self.rounds(parts):
            built = self._built(together)
            mx.eval(built)  # in one call: else one lane after the other
            found += built
        return found

    def start(self, parts: Sequence[Callable[[], Found]]) -> None:
        """As `run`, for no more parts than there are lanes; does not wait until they are evaluated."""
        mx.async_eval(self._built(parts))

    def _built(self, parts: Sequence[Callable[[], Found]]) -> list[Found]:
        built = []
        for stream, part in zip(self._streams, parts, strict=False):
            with mx.stream(stream):
                built.append(part())
        return built


def lanes(model: nn.Module) -> Lanes:
    """The lanes for work with `model`: one a core on a CPU; one on a GPU, and for a model with layers so small that
    waiting for each other would cost its parts more than they gain (beside a busy server, half the speed of a toy
    model). The embedding does not count: its product is one, and large."""
    trunk: Sequence[nn.Module] = getattr(model, "layers", [model])
    parameters = sum(value.size for layer in trunk for value in flat(layer.parameters()).values())
    is_small = parameters < SMALL_TRUNK_PARAMETERS
    return _one_lane() if is_small or mx.default_device().type != mx.DeviceType.cpu else _lane_a_core()


@functools.cache
def _one_lane() -> Lanes:
    return Lanes(1)


@functools.cache
def _lane_a_core() -> Lanes:
    return Lanes(min(core_count(), MAX_LANES))
