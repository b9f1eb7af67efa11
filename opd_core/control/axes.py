"""Scales of a chart: round ticks, their labels, and where a value lies; shared by the report's curves and the plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
MIN_TICKS = 4


@dataclass(frozen=True)
class Scale:
    """From `low` to `high`, both ticks; `ticks` are round numbers between them."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], ticks: int = MIN_TICKS) -> Scale:
        """A scale with about `ticks` round steps that holds every finite value; one value gets room around it."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            room = abs(high) * 0.1
            low, high = (low - room, high + room) if room else (0.0, 1.0)
        step = _round_step((high - low) / ticks)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        numbers = tuple(round(index * step, 12) for index in range(first, last + 1))
        return cls(numbers[0], numbers[-1], numbers)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, the next one above."""
    size = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * (1 - 1e-9)))


def tick_label(value: float) -> str:
    """`0.25`, `1,200`, `1.5e-05`: as short as it can be without being wrong."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000_000 or abs(value) < 0.0001:
        return f"{value:.2g}"
    return f"{value:,.10f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
