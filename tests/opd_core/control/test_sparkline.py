"""A series in one line."""

from __future__ import annotations

from opd_core.control.sparkline import sparkline


def test_a_sparkline_tells_first_lowest_highest_and_last() -> None:
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅ first 0, min 0, max 1, last 0.5"
    assert sparkline([]) == "no values"
    assert sparkline([0.70001, 0.70002]) == "▅▅ first 0.7, min 0.7, max 0.7, last 0.7"
    assert sparkline([2.0]) == "▅ first 2, min 2, max 2, last 2"
    assert len(sparkline([float(value) for value in range(1000)]).split()[0]) == 40
