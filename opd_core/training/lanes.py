"""All cores busy: work that is cut into parts, the parts side by side on streams of their own.

MLX runs the operations of one CPU stream on one thread, and small matrix products gain little from BLAS threads: two
streams of half the rows each were 1.95 times as fast as one on two cores. On a GPU there is one lane.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

from opd_core.blas import core_count

MAX_LANES = 8
"""Every lane reads all the weights; measured on two cores only."""

Found = TypeVar("Found")
Part = TypeVar("Part")


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
            built = []
            for stream, part in zip(self._streams, together, strict=False):
                with mx.stream(stream):
                    built.append(part())
            mx.eval(built)  # in one call: MLX looks a few operations ahead, and would else fill one lane after another
            found += built
        return found


@functools.cache
def lanes() -> Lanes:
    """The process's lanes: as many as it has cores on a CPU, one on a GPU."""
    return Lanes(min(core_count(), MAX_LANES) if mx.default_device().type == mx.DeviceType.cpu else 1)
