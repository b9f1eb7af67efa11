"""A series in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 40


def sparkline(values: Sequence[float], columns: int = COLUMNS) -> str:
    """`▁▃▅█ first 0.1, min 0.1, max 0.8, last 0.8`; more values than columns are averaged."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "no values"
    bars, low, high = _averaged(finite, columns), min(finite), max(finite)
    lowest, highest = f"{low:.3g}", f"{high:.3g}"
    if lowest == highest:  # differences that the figures do not show are not drawn as peaks
        low = high
    drawn = "".join(BLOCKS[_level(value, low, high)] for value in bars)
    return f"{drawn} first {finite[0]:.3g}, min {lowest}, max {highest}, last {finite[-1]:.3g}"


def _averaged(values: Sequence[float], columns: int) -> list[float]:
    if len(values) <= columns:
        return list(values)
    edges = [index * len(values) // columns for index in range(columns + 1)]
    parts = [values[start:end] for start, end in pairwise(edges)]
    return [sum(part) / len(part) for part in parts]


def _level(value: float, low: float, high: float) -> int:
    if high <= low:
        return len(BLOCKS) // 2
    return min(len(BLOCKS) - 1, int((value - low) / (high - low) * len(BLOCKS)))
