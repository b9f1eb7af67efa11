"""A decoding step's products, block by block, are the plain ones, and each stays within what the BLAS calls small."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import mlx.core as mx
import pytest

from opd_core.training.arrays import number
from opd_core.training.thin_products import (
    BLOCK,
    MAX_MULTIPLICATIONS,
    MAX_ROWS,
    cut_into_blocks,
    has_small_kernels,
    is_thin,
    rows_of_a_product,
    thin_product,
)


def random(*shape: int, seed: int = 1) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


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
    [
        (1, 576, 1536),
        (8, 1536, 576),
        (3, 7, 259),
        (32, 576, 4915),
        (5, 1, 12),
        (11, 1536, 64),
        (4, 15000, 32),
        (7, 4096, 64),
    ],
)
def test_the_product_is_the_plain_one(rows: int, inputs: int, outputs: int) -> None:
    x, weight = random(rows, 1, inputs), random(outputs, inputs, seed=2)
    want = x @ weight.T
    got = thin_product(x, cut_into_blocks(weight), outputs)
    assert got.shape == (rows, 1, outputs)
    assert number(mx.abs(got - want).max()) <= 2e-6 * inputs**0.5 * number(mx.abs(want).max())


def test_rows_that_are_a_strided_view_are_multiplied_as_they_read() -> None:
    states, weight = random(4, 6, 48), random(96, 48, seed=2)
    last = states[:, -1:]
    assert number(mx.abs(thin_product(last, cut_into_blocks(weight), 96) - last @ weight.T).max()) <= 1e-4


def test_a_block_holds_its_columns_together_and_the_last_is_filled_up_with_nothing() -> None:
    weight = random(BLOCK + 3, 5)
    blocks = cut_into_blocks(weight)
    assert blocks.shape == (2, 5, BLOCK)
    assert bool(mx.array_equal(blocks[0], weight[:BLOCK].T))
    assert bool(mx.array_equal(blocks[1, :, :3], weight[BLOCK:].T))
    assert number(mx.abs(blocks[1, :, 3:]).max()) == 0.0


@pytest.mark.parametrize("inputs", [64, 576, 1536, 4096, 14336, 16384])
def test_every_product_is_one_that_the_blas_calls_small(inputs: int) -> None:
    together = rows_of_a_product(inputs)
    assert together * inputs * BLOCK <= MAX_MULTIPLICATIONS < (together + 1) * inputs * BLOCK


@pytest.mark.parametrize(("inputs", "most"), [(576, MAX_ROWS), (1536, MAX_ROWS), (4864, 12), (14336, 4), (16384, 0)])
def test_the_wider_the_weight_the_fewer_rows_are_thin(inputs: int, most: int) -> None:
    for rows in range(1, MAX_ROWS + 2):
        assert is_thin(mx.zeros((rows, 1, inputs))) == (rows <= most)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((2, 5, 64), "several positions"),
        ((MAX_ROWS + 1, 1, 64), "many rows"),
        ((0, 1, 64), "no rows"),
        ((64,), "one vector"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_everything_else_is_not_thin(shape: tuple[int, ...], why: str) -> None:
    assert is_thin(random(MAX_ROWS, 1, 64))
    assert not is_thin(mx.zeros(shape)), why


def test_only_an_openblas_that_has_the_kernels_and_uses_them_here_will_do(symbols: Callable[..., bool]) -> None:
    assert symbols(b"SkylakeX", "sgemm_small_kernel_nn")
    assert symbols(b"SKYLAKEX", "sgemm_small_kernel_nn")  # a build for one CPU, as the one that pip brings
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
