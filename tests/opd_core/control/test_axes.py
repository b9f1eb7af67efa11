"""Scales of a chart: round ticks around every value."""

from __future__ import annotations

import pytest

from opd_core.control.axes import Scale, tick_label


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0, 1.0], 0, 1), ([0.013, 0.87], 0, 1), ([5.0], 4.5, 5.5), ([0.0], 0, 1), ([], 0, 1)],
)
def test_a_scale_has_round_ticks_that_hold_every_value(values: list[float], low: float, high: float) -> None:
    scale = Scale.over(values)
    assert scale.low <= low + 1e-9 and scale.high >= high - 1e-9
    assert 3 <= len(scale.ticks) <= 8 and (scale.place(scale.low), scale.place(scale.high)) == (0.0, 1.0)


def test_ticks_are_written_shortly() -> None:
    assert [tick_label(value) for value in (0.0, 0.25, -0.5, 1200.0, 1e-7, 2e9)] == [
        "0",
        "0.25",
        "-0.5",
        "1,200",
        "1e-07",
        "2e+09",
    ]
