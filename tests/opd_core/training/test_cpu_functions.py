"""The functions for a CPU are MLX's functions: values, gradients, masks and the ends of float32's range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.activations import swiglu as mlx_swiglu
from mlx_lm.models.base import scaled_dot_product_attention as mlx_attention
from mlx_lm.models.cache import QuantizedKVCache

from opd_core.training import cpu_functions
from opd_core.training.arrays import number
from opd_core.training.cpu_functions import (
    SharedPrefix,
    attention,
    is_fast,
    logsumexp,
    rms_norm,
    softmax,
    softmax_and_norm,
    swiglu,
)

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@pytest.fixture(autouse=True)
def on_a_cpu() -> Iterator[None]:
    """These ways are for a CPU, also where the tests run on a machine with a GPU."""
    device = mx.default_device()
    mx.set_default_device(mx.Device(mx.DeviceType.cpu))
    yield
    mx.set_default_device(device)


def spread(shape: tuple[int, ...], scale: float, seed: int = 0) -> mx.array:
    """Normal numbers of a standard deviation."""
    return scale * mx.random.normal(shape, key=mx.random.key(seed))


def exact_softmax(scores: mx.array) -> Floats:
    """The slow reference, in float64."""
    values = np.array(scores, dtype=np.float64)
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    found: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return found


def assert_close(got: mx.array, want: Any, relative: float) -> None:
    """Relative to each number, and nothing absolute but what float32 cannot hold."""
    np.testing.assert_allclose(np.array(got, dtype=np.float64), np.array(want, dtype=np.float64), relative, 1e-37)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 60.0])
def test_softmax_and_its_norm_are_those_of_float64(scale: float) -> None:
    scores = spread((7, 1031), scale)
    wanted = exact_softmax(scores)
    probabilities, norm = softmax_and_norm(scores)
    for got in (softmax(scores), probabilities):
        assert_close(got, wanted, 3e-6 + 2e-7 * scale)
    values = np.array(scores, dtype=np.float64)
    exact_norm = np.log(np.exp(values - values.max()).sum(axis=-1)) + values.max()
    for got in (norm[:, 0], logsumexp(scores)):
        np.testing.assert_allclose(np.array(got), exact_norm, 2e-6, 2e-6)


def test_scores_out_of_reach_get_nothing_and_a_single_score_everything() -> None:
    scores = mx.array([[0.0, -87.0, -88.5, -1e4, -3e38, -np.inf]])
    got = np.array(softmax(scores))[0]
    assert got[0] == 1.0 and got[1] == pytest.approx(np.exp(-87.0), rel=1e-5)
    assert got[2:].tolist() == [0.0] * 4
    assert np.array(softmax(mx.array([[5.0], [-1e30]]))).tolist() == [[1.0], [1.0]]
    assert number(logsumexp(mx.array([[3.0, -np.inf]]))) == 3.0


def test_a_score_that_is_no_number_is_not_hidden() -> None:
    scores = mx.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])
    probabilities, norm = softmax_and_norm(scores)
    for got in (softmax(scores), probabilities, norm, logsumexp(scores)):
        rows = np.isnan(np.array(got).reshape(2, -1))
        assert rows[0].any() and not rows[1].any()


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_swiglu_is_mlx_lms(scale: float) -> None:
    gate, values = spread((5, 257), scale), spread((5, 257), 2.0, seed=1)
    exact = np.array(gate, dtype=np.float64)
    exact = exact / (1.0 + np.exp(-exact)) * np.array(values, dtype=np.float64)
    assert np.abs(np.array(swiglu(gate, values)) - exact).max() <= 1e-6 * np.abs(exact).max()
    assert_close(swiglu(mx.array([np.inf, 1e30]), mx.ones(2)), [np.inf, 1e30], 1e-6)


def gradients(function: Callable[..., mx.array], *inputs: mx.array) -> list[mx.array]:
    """Gradient of a weighted sum of the outputs, the weights different everywhere, for every input."""

    def loss(*arrays: mx.array) -> mx.array:
        found = function(*arrays)
        return mx.sum(found * mx.cos(mx.arange(found.size)).reshape(found.shape))

    found = mx.grad(loss, argnums=list(range(len(inputs))))(*inputs)
    return [found] if len(inputs) == 1 else list(found)


@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_gradients_are_mlxs(scale: float) -> None:
    scores, values = spread((6, 97), scale), spread((6, 97), 1.0, seed=1)
    pairs = [
        (gradients(softmax, scores), gradients(lambda x: mx.softmax(x, axis=-1), scores)),
        (gradients(swiglu, scores, values), gradients(mlx_swiglu, scores, values)),
    ]
    for found, wanted in pairs:
        for got, want in zip(found, wanted, strict=True):
            assert number(mx.abs(got - want).max()) <= 3e-6 * number(mx.abs(want).max())


def test_gradients_are_the_slopes() -> None:
    scores, direction, width = spread((3, 11), 1.0), spread((3, 11), 1.0, seed=2), 1e-2
    weights = mx.cos(mx.arange(33)).reshape(3, 11)
    for function in (softmax, lambda x: swiglu(x, direction)):
        ahead, behind = (mx.sum(function(scores + sign * width * direction) * weights) for sign in (1, -1))
        slope = number(ahead - behind) / (2 * width)
        assert number(mx.sum(gradients(function, scores)[0] * direction)) == pytest.approx(slope, rel=1e-3, abs=1e-4)


HEADS, SHARED, LENGTH, REACH, WIDTH = 6, 2, 5, 9, 8


def look(batch: int = 2, length: int = LENGTH) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values."""
    keys, values = (spread((batch, SHARED, REACH, WIDTH), 1.0, seed) for seed in (1, 2))
    return spread((batch, HEADS, length, WIDTH), 1.0), keys, values


BLOCKED = mx.random.uniform(shape=(2, 1, LENGTH, REACH), key=mx.random.key(4)) < 0.6
BLOCKED[:, :, :, 0] = True  # everyone sees something
MASKS: dict[str, mx.array | str | None] = {
    "none": None,
    "causal": "causal",
    "a row's own": BLOCKED,
    "for all rows": BLOCKED[0, 0],
    "to add": mx.where(BLOCKED, 0.0, -1e9),
    "a bias": spread((1, HEADS, LENGTH, REACH), 1.0, seed=5),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_attention_is_mlx_lms_with_its_gradients(mask: mx.array | str | None) -> None:
    inputs = look()

    def ours(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        return attention(queries, keys, values, None, 0.3, mask)

    def theirs(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        return mlx_attention(queries, keys, values, None, 0.3, cast(mx.array, mask))

    assert number(mx.abs(ours(*inputs) - theirs(*inputs)).max()) <= 2e-6
    for got, want in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        assert number(mx.abs(got - want).max()) <= 1e-5


def test_a_single_new_position_looks_at_all() -> None:
    queries, keys, values = look(length=1)
    got = attention(queries, keys, values, None, 0.3, None)
    assert number(mx.abs(got - mlx_attention(queries, keys, values, None, 0.3, None)).max()) <= 2e-6
    assert mx.array_equal(attention(queries, keys, values, None, 0.3, "causal"), got)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_the_rms_norm_is_mlxs_with_both_gradients(scale: float) -> None:
    x, weight, weights = spread((4, 6, 96), scale), spread((96,), 1.0, 1), spread((4, 6, 96), 1.0, 2)

    def found(norm: Callable[..., mx.array]) -> list[mx.array]:
        def total(x: mx.array, weight: mx.array) -> mx.array:
            return mx.sum(weights * norm(x, weight, 1e-5))

        return [norm(x, weight, 1e-5), *mx.grad(total, argnums=(0, 1))(x, weight)]

    for got, want in zip(found(rms_norm), found(mx.fast.rms_norm), strict=True):
        assert number(mx.abs(got - want).max()) <= 1e-5 * number(mx.abs(want).max())


def test_the_gradient_of_the_rms_norm_is_the_slope() -> None:
    x, along, weight = spread((1, 12), 1.0), spread((1, 12), 1.0, 1), spread((12,), 1.0, 2)
    exact_x, exact_along, exact_weight = (np.array(found, dtype=np.float64) for found in (x, along, weight))

    def exact(step: float) -> float:
        moved = exact_x + step * exact_along
        return float(np.sum(np.sin(moved / np.sqrt(np.mean(moved**2) + 1e-5) * exact_weight)))

    slope = (exact(1e-5) - exact(-1e-5)) / 2e-5
    gradient = mx.grad(lambda x: mx.sum(mx.sin(rms_norm(x, weight, 1e-5))))(x)
    assert number(mx.sum(gradient * along)) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_a_mask_is_not_taken_for_the_one_before_it() -> None:
    queries, keys, values = spread((1, 2, 3, 4), 1.0), spread((1, 2, 3, 4), 1.0, 1), spread((1, 2, 3, 4), 1.0, 2)
    for mask in ("causal", mx.array([[True, False, True]] * 3), mx.array([[False, True, True]] * 3), "causal"):
        got = attention(queries, keys, values, None, 0.5, mask)
        want = mlx_attention(queries, keys, values, None, 0.5, cast(mx.array, mask))
        assert number(mx.abs(got - want).max()) <= 1e-5
        shorter = attention(queries[:, :, 1:], keys, values, None, 0.5, "causal")
        wanted = mlx_attention(queries[:, :, 1:], keys, values, None, 0.5, cast(mx.array, "causal"))
        assert number(mx.abs(shorter - wanted).max()) <= 1e-5


class Telling:
    """A cache that tells of a shared prefix."""

    def __init__(self, rows: int, length: int) -> None:
        self.shared_prefix = SharedPrefix(rows, length)


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(1, 5), (2, 5), (3, 300), (6, 1)])
def test_a_prefix_that_rows_share_is_read_once_and_changes_nothing(rows: int, length: int, hides: bool) -> None:
    prefix = spread((6 // rows, 2, length, 8), 1.0)
    keys = mx.concatenate([mx.repeat(prefix, rows, axis=0), spread((6, 2, 4, 8), 1.0, 1)], axis=2)
    values = mx.concatenate([mx.repeat(2.0 * prefix, rows, axis=0), spread((6, 2, 4, 8), 1.0, 2)], axis=2)
    queries = spread((6, 4, 1, 8), 1.0, 3)
    seen = mx.arange(length + 4)[None] >= mx.array([0, 1, 2, 0, 3, 1])[:, None] * (length > 4)
    mask = seen[:, None, None] if hides else None
    got = attention(queries, keys, values, Telling(rows, length), 0.35, mask)
    want = mlx_attention(queries, keys, values, None, 0.35, cast(mx.array, mask))
    assert got.shape == want.shape
    assert number(mx.abs(got - want).max()) <= 1e-5
    keys[0, :, 0] = 100.0  # of the first row of a group the prefix is read, of the others it is not
    others = attention(queries, keys, values, Telling(rows, length), 0.35, None)[1:rows]
    unchanged = attention(queries, keys, values, None, 0.35, None)[1:rows]
    assert rows == 1 or number(mx.abs(others - unchanged).max()) > 1e-3


def test_what_is_hidden_does_not_count_whatever_stands_there() -> None:
    queries, keys, values = look()
    mask = mx.arange(REACH) < 4
    other = mx.where(mask[:, None], keys, 50.0)
    assert mx.array_equal(
        attention(queries, keys, values, None, 0.3, mask), attention(queries, other, values, None, 0.3, mask)
    )


def test_other_types_devices_caches_and_sinks_get_what_mlx_has(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = look()
    half, short, wide = (array.astype(mx.float16) for array in (queries, keys, values))
    assert not is_fast(half)
    assert softmax(half).dtype == mx.float16
    wanted = mlx_attention(half, short, wide, None, 0.3, None)
    assert mx.array_equal(attention(half, short, wide, None, 0.3, None), wanted)
    asked: list[object] = []

    def asked_for(*arguments: object) -> mx.array:
        asked.append(arguments[6])
        return mx.zeros(())

    monkeypatch.setattr(cpu_functions, "mlx_attention", asked_for)
    sinks = mx.zeros(HEADS)
    attention(queries, keys, values, None, 0.3, None, sinks)
    attention(queries, keys, values, QuantizedKVCache(), 0.3, None)
    assert asked[0] is sinks and asked[1] is None and len(asked) == 2


@pytest.mark.parametrize("function", [lambda x: softmax_and_norm(x)[0], softmax, logsumexp])
def test_the_way_of_a_gpu_computes_the_same(
    function: Callable[[mx.array], mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = spread((4, 50), 3.0)
    fast = function(scores)
    monkeypatch.setattr(cpu_functions, "is_fast", lambda values: False)
    assert number(mx.abs(function(scores) - fast).max()) <= 2e-6
    assert number(mx.abs(softmax_and_norm(scores)[1][:, 0] - mx.logsumexp(scores, axis=-1)).max()) <= 2e-6
