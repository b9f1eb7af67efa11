"""A decoding step's products, block by block, are the plain ones, and used wherever shapes and BLAS allow."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest

from opd_core.training import thin_products
from opd_core.training.arrays import number
from opd_core.training.cpu_layers import CpuEmbedding, CpuLinear, use_cpu_functions
from opd_core.training.thin_products import MAX_ROWS, has_small_kernels, is_thin, thin_product

pytestmark = pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="on a GPU layers stay as they are"
)


def random(*shape: int, seed: int = 1) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.fixture(params=[True, False], ids=["with small kernels", "without"])
def small_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    present: bool = request.param
    monkeypatch.setattr(thin_products, "has_small_kernels", lambda: present)
    return present


@pytest.fixture
def symbols(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., bool]]:
    """What `has_small_kernels` says of a process with the named symbols and the named core."""

    def answer(core: bytes | None, *names: str) -> bool:
        class CoreName:
            restype: object = None

            def __call__(self) -> bytes | None:
                return core

        found = SimpleNamespace(openblas_get_corename=CoreName(), **dict.fromkeys(names))
        monkeypatch.setattr(ctypes, "CDLL", lambda _: found)
        has_small_kernels.cache_clear()
        return has_small_kernels()

    yield answer
    has_small_kernels.cache_clear()


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 576, 1536), (8, 1536, 576), (3, 7, 259), (32, 576, 49152), (5, 1, 12), (8, 30011, 32)],
)
def test_the_product_is_the_plain_one(rows: int, inputs: int, outputs: int) -> None:
    x, weight = random(rows, 1, inputs), random(outputs, inputs, seed=2)
    want = x @ weight.T
    got = thin_product(x, weight)
    assert got.shape == (rows, 1, outputs)
    assert number(mx.abs(got - want).max()) <= 2e-6 * inputs**0.5 * number(mx.abs(want).max())


def test_rows_that_are_a_strided_view_are_multiplied_as_they_read() -> None:
    states, weight = random(4, 6, 48), random(96, 48, seed=2)
    last = states[:, -1:]
    assert number(mx.abs(thin_product(last, weight) - last @ weight.T).max()) <= 1e-4


def test_its_gradient_is_the_plain_ones() -> None:
    x, weight = random(3, 1, 40), random(60, 40, seed=2)
    got = mx.grad(lambda rows: mx.sum(mx.sin(thin_product(rows, weight))))(x)
    want = mx.grad(lambda rows: mx.sum(mx.sin(rows @ weight.T)))(x)
    assert number(mx.abs(got - want).max()) <= 1e-4


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "why"),
    [
        ((2, 5, 64), (128, 64), "several positions"),
        ((MAX_ROWS + 1, 1, 64), (128, 64), "many rows"),
        ((8, 1, 64), (9973, 64), "a prime number of outputs"),
        ((8, 1, 30011), (24, 30011), "a block of too few rows"),
        ((0, 1, 64), (128, 64), "no rows"),
        ((64,), (128, 64), "one vector"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_everything_else_is_left_to_mlx(
    x_shape: tuple[int, ...], weight_shape: tuple[int, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin_products, "has_small_kernels", lambda: True)
    assert is_thin(random(8, 1, 64), random(128, 64))
    assert not is_thin(mx.zeros(x_shape), mx.zeros(weight_shape)), why


def test_16_bit_numbers_are_left_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin_products, "has_small_kernels", lambda: True)
    x, weight = random(8, 1, 64), random(128, 64)
    assert not is_thin(x.astype(mx.bfloat16), weight)
    assert not is_thin(x, weight.astype(mx.bfloat16))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 1, 48), (1, 1, 48), (2, 7, 48), (0, 1, 48), (48,)])
def test_layers_give_what_mlx_layers_give(small_kernels: bool, has_bias: bool, shape: tuple[int, ...]) -> None:
    linear, embedding = nn.Linear(48, 96, bias=has_bias), nn.Embedding(96, 48)
    x = random(*shape) if 0 not in shape else mx.zeros(shape)
    want = [linear(x), embedding.as_linear(x)]
    use_cpu_functions(linear)
    use_cpu_functions(embedding)
    assert (type(linear), type(embedding)) == (CpuLinear, CpuEmbedding)
    for got, wanted in zip([linear(x), embedding.as_linear(x)], want, strict=True):
        assert got.shape == wanted.shape
        assert bool(mx.allclose(got, wanted, rtol=1e-4, atol=1e-5))
    assert small_kernels == is_thin(random(8, 1, 48), linear.weight)


def test_only_an_openblas_that_has_the_kernels_and_uses_them_here_will_do(symbols: Callable[..., bool]) -> None:
    assert symbols(b"SkylakeX", "sgemm_small_kernel_nn")
    assert symbols(b"Cooperlake", "sgemm_small_kernel_nn_COOPERLAKE", "sgemm_small_kernel_nn_SKYLAKEX")
    assert not symbols(b"Cooperlake", "sgemm_small_kernel_nn_SKYLAKEX")
    assert not symbols(b"Haswell", "sgemm_small_kernel_nn")
    assert not symbols(b"SkylakeX")
    assert not symbols(None, "sgemm_small_kernel_nn")


def test_another_blas_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    has_small_kernels.cache_clear()
    assert not has_small_kernels()
    has_small_kernels.cache_clear()
