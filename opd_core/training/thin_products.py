"""Products of a weight with the few rows of a decoding step, for a CPU whose BLAS has kernels for small matrices.

OpenBLAS copies ("packs") a weight into another layout before each product, which for a few rows takes longer than the
product. Its kernels for small matrices, written for AVX-512, do not, but are taken only for products of up to 10⁶
multiplications in which neither matrix is transposed. They run along the columns of the right-hand matrix. So the
weight is laid out once as blocks of `BLOCK` such columns, each block together in memory, and the rows are multiplied
with one block after the other. Measured on SmolLM2-135M, all products of one
position: with 1 row 60 ms packed, 25 in blocks; with 8 rows 79 and 33.
"""

from __future__ import annotations

import ctypes
import functools
import math

import mlx.core as mx

BLOCK = 64
"""Columns of a block: four registers of AVX-512. 32 was no faster, 96 slower, and from 192 on nothing was won."""
MAX_ROWS, MAX_GROUPS = 32, 4
"""Rows, and groups of rows that each are multiplied by themselves: with more, packing is paid back."""
MAX_MULTIPLICATIONS = 1_000_000
"""What OpenBLAS calls small (`sgemm_small_matrix_permit` for SkylakeX)."""
CORES = ("SKYLAKEX", "COOPERLAKE", "SAPPHIRERAPIDS")
KERNEL = "sgemm_small_kernel_nn"


def rows_of_a_product(inputs: int) -> int:
    """How many rows one block of a weight with so many inputs is multiplied with at most; 0: it is too large."""
    return MAX_MULTIPLICATIONS // (BLOCK * inputs)


def cut_into_blocks(weight: mx.array) -> mx.array:
    """A weight (outputs, inputs) as blocks (⌈outputs / 64⌉, inputs, 64), the last one filled up with zeros."""
    outputs, inputs = weight.shape
    padded = mx.pad(weight, [(0, -outputs % BLOCK), (0, 0)]) if outputs % BLOCK else weight
    return mx.contiguous(padded.reshape(-1, BLOCK, inputs).swapaxes(1, 2))


def is_thin(x: mx.array) -> bool:
    """Whether x (..., L, D) is one position of few rows, for which `thin_product` is the faster way.

    That depends on shapes alone, never on a timing: a resumed run must compute what the first one did.
    """
    if x.ndim < 2 or x.shape[-2] != 1:
        return False
    inputs = x.shape[-1]
    rows = x.size // inputs
    return 0 < rows <= min(MAX_ROWS, MAX_GROUPS * rows_of_a_product(inputs))


def thin_product(x: mx.array, blocks: mx.array, outputs: int) -> mx.array:
    """x @ weight.T, block by block; for an x of which `is_thin` is true.

    Args:
        x: (..., 1, D).
        blocks: the weight's, from `cut_into_blocks`.
        outputs: columns of the product.

    Returns:
        (..., 1, outputs), the same numbers but for the order of summing.
    """
    inputs = blocks.shape[1]
    rows = x.size // inputs
    groups = math.ceil(rows / rows_of_a_product(inputs))
    together = math.ceil(rows / groups)
    padded = mx.pad(x.reshape(rows, inputs), [(0, groups * together - rows), (0, 0)]) if rows % groups else x
    # groups of rows vary fastest, so that a block is read from memory once for all of them
    products = padded.reshape(1, groups, together, inputs) @ blocks[:, None]
    product = products.transpose(1, 2, 0, 3).reshape(groups * together, -1)
    whole = product.shape == (rows, outputs)
    return (product if whole else product[:rows, :outputs]).reshape(*x.shape[:-1], outputs)


@functools.cache
def has_small_kernels() -> bool:
    """Whether the BLAS in this process is an OpenBLAS with these kernels, on a CPU it uses them for."""
    symbols = ctypes.CDLL(None)
    core_name = getattr(symbols, "openblas_get_corename", None)
    if core_name is None:
        return False
    core_name.restype = ctypes.c_char_p
    core = (
        (core_name() or b"").decode("ascii", "replace").upper()
    )  # a build for one CPU writes SKYLAKEX, others SkylakeX
    # a build for several CPUs names each one's kernel
    return core in CORES and any(hasattr(symbols, name) for name in (KERNEL, f"{KERNEL}_{core}"))
