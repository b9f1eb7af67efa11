"""Rotary positions for a CPU are MLX's, wherever positions begin, and their gradient is too."""

from __future__ import annotations

import mlx.core as mx
import pytest

from opd_core.training.arrays import number
from opd_core.training.cpu_rope import Rotation

OFFSETS = {"from the start": 0, "from 1000": 1000, "one number": mx.array(5), "each row its own": mx.array([3, 40, 0])}


def theirs(x: mx.array, rotation: Rotation, offset: int | mx.array) -> mx.array:
    return mx.fast.rope(
        x, rotation.dims, traditional=rotation.traditional, base=rotation.base, scale=rotation.scale, offset=offset
    )


@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS.keys())
@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("dims", [16, 10])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_values_and_gradients_are_mlxs(offset: int | mx.array, traditional: bool, dims: int, scale: float) -> None:
    rotation = Rotation(dims, traditional, 1e4, scale)
    x = mx.random.normal((3, 7, 2, 16), key=mx.random.key(1)).transpose(0, 2, 1, 3)  # a view, as heads come
    weights = mx.random.normal(x.shape, key=mx.random.key(2))
    assert number(mx.abs(rotation.rotated(x, offset) - theirs(x, rotation, offset)).max()) <= 1e-4
    got = mx.grad(lambda x: mx.sum(weights * rotation.rotated(x, offset)))(x)
    want = mx.grad(lambda x: mx.sum(weights * theirs(x, rotation, offset)))(x)
    assert number(mx.abs(got - want).max()) <= 1e-4


def test_a_position_and_its_negative_cancel_out() -> None:
    rotation = Rotation(16, False, 1e4, 1.0)
    x = mx.random.normal((1, 1, 1, 16), key=mx.random.key(1))
    assert number(mx.abs(rotation.rotated(rotation.rotated(x, 37), -37) - x).max()) <= 1e-5


def test_what_was_worked_out_for_one_length_width_or_model_is_not_taken_for_another() -> None:
    offset = mx.array([2, 9])
    for length, width in ((1, 16), (5, 16), (5, 20)):
        for rotation in (Rotation(16, False, 1e4, 1.0), Rotation(16, False, 5e5, 1.0)):
            x = mx.random.normal((2, 3, length, width), key=mx.random.key(length))
            assert number(mx.abs(rotation.rotated(x, offset) - theirs(x, rotation, offset)).max()) <= 1e-4
