"""Parts side by side: the same results, in order, whatever the number of lanes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from opd_core.blas import core_count
from opd_core.training.arrays import flat
from opd_core.training.lanes import MAX_LANES, OPERATIONS_AHEAD, Lanes, feed_all_lanes, lanes
from opd_core.training.lora import LoadedBase, NewAdapter, make_student
from opd_core.training.rollouts import decode
from opd_core.training.sampling import Sampling, random_key
from opd_core.training.updates import nll_gradient
from tests.tiny import tiny_llama


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


def test_what_was_started_is_there_when_it_is_looked_at() -> None:
    results: list[mx.array] = []

    def part(number: int) -> mx.array:
        results.append(mx.full((8, 8), number) @ mx.eye(8))
        return results[-1]

    Lanes(2).start([functools.partial(part, number) for number in range(2)])
    assert [result[0, 0].item() for result in results] == [0, 1]


def test_a_cpu_gets_a_wider_walk_of_the_graph_unless_someone_chose_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = mx.default_device()
    try:
        mx.set_default_device(mx.Device(mx.DeviceType.cpu))
        monkeypatch.setenv("MLX_BFS_MAX_WIDTH", "7")
        feed_all_lanes()
        assert os.environ["MLX_BFS_MAX_WIDTH"] == "7"
        monkeypatch.delenv("MLX_BFS_MAX_WIDTH")
        feed_all_lanes()
        assert int(os.environ["MLX_BFS_MAX_WIDTH"]) == OPERATIONS_AHEAD
    finally:
        mx.set_default_device(device)


def test_a_cpu_has_a_lane_for_each_core_and_a_toy_model_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    assert lanes(model).count == 1
    monkeypatch.setattr("opd_core.training.lanes.SMALL_TRUNK_PARAMETERS", 1)
    expected = min(core_count(), MAX_LANES) if mx.default_device().type == mx.DeviceType.cpu else 1
    assert lanes(model).count == expected
    assert lanes(model) is lanes(model)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_answers_do_not_depend_on_the_lanes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    prompts = [[9, 8, 7, 6, 5], [4, 3], [9, 8, 7, 6, 5]]

    def answers() -> list[tuple[int, ...]]:
        return [item.ids for item in decode(model, prompts, rows, Sampling(12), frozenset({2}), random_key(3))]

    alone = answers()
    monkeypatch.setattr("opd_core.training.rollouts.lanes", lambda model: Lanes(2))
    assert answers() == alone
    assert answers() == answers()


def test_gradients_do_not_depend_on_the_lanes_and_are_bit_equal_each_time(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_student(base, None, NewAdapter(2, 2.0), seed=1)
    pairs = [((5, 6, 7), (8, 2)), ((5, 6, 7), (9, 9, 2)), ((4, 3), (7, 2)), ((3, 4, 5, 6), (1, 2))]
    one, _ = nll_gradient(student, pairs, [1.0] * 4)
    monkeypatch.setattr("opd_core.training.updates.lanes", lambda model: Lanes(2))
    two, _ = nll_gradient(student, pairs, [1.0] * 4)
    again, _ = nll_gradient(student, pairs, [1.0] * 4)
    for name, value in flat(two).items():
        assert np.array_equal(np.array(value), np.array(flat(again)[name]))
        assert np.allclose(np.array(value), np.array(flat(one)[name]), atol=1e-5)
