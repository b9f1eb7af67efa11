"""Parts side by side: the same results, in order, whatever the number of lanes."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from opd_core.blas import core_count
from opd_core.training.lanes import MAX_LANES, Lanes, lanes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_and_do_not_depend_on_the_number_of_lanes(count: int) -> None:
    matrices = [mx.random.normal((16, 16), key=mx.random.key(seed)) for seed in range(7)]
    parts = [functools.partial(lambda matrix: (mx.exp(matrix @ matrix), {"sum": mx.sum(matrix)}), m) for m in matrices]
    for matrix, (product, sums) in zip(matrices, Lanes(count).run(parts), strict=True):
        assert np.array_equal(np.array(product), np.array(mx.exp(matrix @ matrix)))
        assert sums["sum"].item() == mx.sum(matrix).item()


def test_parts_after_the_first_round_are_built_when_their_turn_comes() -> None:
    built: list[int] = []

    def part(number: int) -> mx.array:
        built.append(number)
        return mx.array(number)

    def parts() -> Iterator[functools.partial[mx.array]]:
        yield from (functools.partial(part, number) for number in range(3))

    assert [rounds[0].args[0] for rounds in Lanes(2).rounds(list(parts()))] == [0, 2]
    Lanes(2).run(list(parts()))
    assert built == [0, 1, 2]


def test_a_cpu_has_a_lane_for_each_core() -> None:
    expected = min(core_count(), MAX_LANES) if mx.default_device().type == mx.DeviceType.cpu else 1
    assert lanes().count == expected
    assert lanes() is lanes()
