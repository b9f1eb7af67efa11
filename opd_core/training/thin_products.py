"""Products of a weight with the few rows of a decoding step, for a CPU whose BLAS has kernels for small matrices.

OpenBLAS copies ("packs") the weight into another layout before each product, which for one row takes longer than the
product. Its kernels for small matrices, written for AVX-512, do not, but are taken only for products of up to 10⁶
multiplications in which neither matrix is transposed. So the weight is cut into blocks of rows, as it lies in memory,
and each block is multiplied with the transposed rows. Measured on SmolLM2-135M, all products of one position:
36 ms to 16 for 1 row, 48 to 31 for 8, 84 to 63 for 32.
"""

from __future__ import annotations

import ctypes
import functools

import mlx.core as mx

from opd_core.training.cpu_functions import is_fast

MAX_ROWS = 32
"""With more, packing is paid back."""
MAX_MULTIPLICATIONS = 1_000_000
"""What OpenBLAS calls small (`sgemm_small_matrix_permit` for SkylakeX)."""
MIN_BLOCK, MAX_BLOCK = 12, 512
"""Weight rows in one product: with fewer the calls cost more than packing."""
CORES = ("SkylakeX", "Cooperlake", "SapphireRapids")
KERNEL = "sgemm_small_kernel_nn"


def is_thin(x: mx.array, weight: mx.array) -> bool:
    """Whether `thin_product` is the faster way for x (..., K) and a weight (N, K).

    That depends on shapes, type and BLAS alone, never on a timing: a resumed run must compute what the first one did.
    """
    if x.ndim < 2 or x.shape[-2] != 1 or not is_fast(x) or weight.dtype != mx.float32:
        return False
    rows = x.size // x.shape[-1]
    return 0 < rows <= MAX_ROWS and has_small_kernels() and _block(*weight.shape, rows) >= MIN_BLOCK


def thin_product(x: mx.array, weight: mx.array) -> mx.array:
    """x @ weight.T, block by block; for an x of which `is_thin` is true.

    Args:
        x: (..., 1, K), at most `MAX_ROWS` rows.
        weight: (N, K).

    Returns:
        (..., 1, N), the same numbers but for the order of summing.
    """
    outputs, inputs = weight.shape
    rows = x.size // inputs
    blocks = weight.reshape(-1, _block(outputs, inputs, rows), inputs)
    columns = mx.contiguous(x.reshape(rows, inputs).T)
    # the leading axis: without it MLX makes one large product of all the blocks
    products = blocks @ columns[None]
    return products.reshape(outputs, rows).T.reshape(*x.shape[:-1], outputs)


@functools.cache
def has_small_kernels() -> bool:
    """Whether the BLAS in this process is an OpenBLAS with these kernels, on a CPU it uses them for."""
    symbols = ctypes.CDLL(None)
    core_name = getattr(symbols, "openblas_get_corename", None)
    if core_name is None:
        return False
    core_name.restype = ctypes.c_char_p
    core = (core_name() or b"").decode("ascii", "replace")
    # a build for several CPUs names each one's kernel
    return core in CORES and any(hasattr(symbols, name) for name in (KERNEL, f"{KERNEL}_{core.upper()}"))


@functools.cache
def _block(outputs: int, inputs: int, rows: int) -> int:
    """The most weight rows to a product that is still small, of sizes that divide them all."""
    most = min(MAX_BLOCK, MAX_MULTIPLICATIONS // (inputs * rows))
    return next((size for size in range(most, 0, -1) if outputs % size == 0), 0)
