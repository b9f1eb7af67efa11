"""Softmax, SwiGLU, RMS norm and attention for a CPU, where MLX works exponentials out one number at a time.

There `exp` takes 9 ns a number, `sigmoid` 14 and `where` 4, but an addition or a multiplication 0.1 to 0.2 (measured).
So exponentials are polynomials here and masks are added. On a GPU, and for what is not float32, MLX's own is used.
Values differ from MLX's in the last digits only; gradients are given in closed form.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.activations import swiglu as mlx_swiglu
from mlx_lm.models.base import scaled_dot_product_attention as mlx_attention

from opd_core.training.thin_products import has_small_kernels

LOG2_E = 1.0 / math.log(2.0)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts, the first with so few digits that multiples of it are exact."""
EXP_OF_REST = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""exp(r) ≈ 1 + r + r²·polynomial(r) for |r| ≤ ln(2)/2, highest power first (Cephes, `expf`)."""
ROUNDING = 1.5 * 2.0**23
"""Added to a small float32 number, it leaves the nearest whole number in the last bits."""
EXPONENT_BIAS, EXPONENT_PLACE = 127, 23
TANH_ODD = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
"""tanh(x) ≈ x·odd(x²)/even(x²), highest power first (the rational approximation of Eigen), within `TANH_RANGE`."""
TANH_RANGE = 7.90531110763549805
CAUSAL_ROWS = 128
"""Rows of queries that look at their keys together."""
FEW_QUERIES, MANY_KEYS = 8, 256
HIDDEN = -1e30
"""Added to the score of a position that may not be looked at."""


@dataclass(frozen=True)
class SharedPrefix:
    """What a cache of a batch may say of itself, as its `shared_prefix`: rows that follow one another begin alike.

    Attributes:
        rows: of each group that does; divides the batch.
        length: leading positions in the cache that hold the same keys and values in all rows of a group.
    """

    rows: int
    length: int


def is_fast(values: mx.array) -> bool:
    """Whether this module's ways are the faster ones for `values`."""
    return values.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu


def softmax(scores: mx.array) -> mx.array:
    """exp(scores) / Σ exp(scores) over the last axis, in float32 arithmetic; scores far below the largest give 0."""
    return cast(mx.array, _softmax(scores)) if is_fast(scores) else mx.softmax(scores, axis=-1, precise=True)


def softmax_and_norm(scores: mx.array) -> tuple[mx.array, mx.array]:
    """Softmax (..., V) and logsumexp (..., 1) of float32 scores, for one exponential a score; without a gradient."""
    if not is_fast(scores):
        probabilities = mx.softmax(scores, axis=-1, precise=True)
        # for the largest entry of each: its logarithm is its score less the norm
        largest, most = mx.max(scores, axis=-1, keepdims=True), mx.max(probabilities, axis=-1, keepdims=True)
        return probabilities, largest - mx.log(most)
    largest, weights, total = _weights(scores)
    return weights / total, largest + mx.log(total)


def logsumexp(scores: mx.array) -> mx.array:
    """log Σ exp(scores) over the last axis of float32 scores; without a gradient."""
    if not is_fast(scores):
        return mx.logsumexp(scores, axis=-1)
    largest, _, total = _weights(scores)
    return (largest + mx.log(total))[..., 0]


def swiglu(gate: mx.array, values: mx.array) -> mx.array:
    """gate · sigmoid(gate) · values; the stand-in for `mlx_lm.models.activations.swiglu`."""
    return cast(mx.array, _swiglu(gate, values) if is_fast(gate) else mlx_swiglu(gate, values))


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / √(mean(x²) + eps) · weight, of x (..., D) and a weight (D,): (..., D); as `mx.fast.rms_norm`.

    (Zhang & Sennrich, arXiv 1910.07467, equation 4.)
    """
    return cast(mx.array, _rms_norm(eps)(x, weight)[0]) if is_fast(x) else mx.fast.rms_norm(x, weight, eps)


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """The stand-in for `mlx_lm.models.base.scaled_dot_product_attention`, with the same arguments.

    Query heads that share keys are multiplied with them at once; so are, at a single new position, rows whose prefix is
    the same by the cache's word (Juravsky et al., Hydragen, arXiv 2402.05099).

    Args:
        queries: (B, H, L, D).
        keys, values: (B, K, S, D) and (B, K, S, D'), H a multiple of K.
        cache: looked at for its `shared_prefix`; a quantised one is left to mlx-lm.
        mask: "causal", or True where a query may look, or numbers to add; broadcast to (B, H, L, S).

    Returns:
        (B, H, L, D').
    """
    if sinks is not None or hasattr(cache, "bits") or not is_fast(queries):
        return mlx_attention(queries, keys, values, cache, scale, cast(mx.array, mask), sinks)  # a word is as good
    length, before = queries.shape[2], keys.shape[2] - queries.shape[2]
    prefix: SharedPrefix | None = getattr(cache, "shared_prefix", None)
    if prefix is not None and length == 1 and not isinstance(mask, str):
        return _attended_from(prefix, queries * scale, keys, values, mask)
    if not isinstance(mask, str) or length <= CAUSAL_ROWS:
        return _attended(queries * scale, keys, values, mask)
    # what a block of rows may look at ends with its last row: that saves up to half of the scores
    blocks = [(start, min(start + CAUSAL_ROWS, length)) for start in range(0, length, CAUSAL_ROWS)]
    return mx.concatenate(
        [
            _attended(
                queries[:, :, start:end] * scale, keys[:, :, : before + end], values[:, :, : before + end], "causal"
            )
            for start, end in blocks
        ],
        axis=2,
    )


def _attended(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None) -> mx.array:
    """`attention` of scaled queries, all scores at once."""
    batch, heads, length, _ = queries.shape
    shared, reach = keys.shape[1:3]
    together = (batch, shared, heads // shared * length, -1)
    scores = _products(queries.reshape(together), keys)
    if mask is not None:
        hidden = _causal(length, reach) if isinstance(mask, str) else _masks.to_add(mask)
        scores = scores.reshape(batch, heads, length, reach) + hidden
    weights = softmax(scores.reshape(together))
    return (weights @ values).reshape(batch, heads, length, -1)


def _attended_from(
    prefix: SharedPrefix, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
) -> mx.array:
    """`attention` of one scaled query a row; the keys and values of a prefix are read once for its rows."""
    batch, heads, _, width = queries.shape
    shared, each = keys.shape[1], heads // keys.shape[1]
    groups, rows, length = batch // prefix.rows, prefix.rows, prefix.length

    def grouped(numbers: mx.array) -> mx.array:  # (B, K, H / K, …) → (B / rows, K, rows · H / K, …)
        apart = numbers.reshape(groups, rows, shared, each, -1)
        return apart.swapaxes(1, 2).reshape(groups, shared, rows * each, -1)

    def by_row(numbers: mx.array) -> mx.array:
        together = numbers.reshape(groups, shared, rows, each, -1)
        return together.swapaxes(1, 2).reshape(batch, shared, each, -1)

    by_head = queries.reshape(batch, shared, each, width)
    of_prefix = by_row(_products(grouped(by_head), keys[::rows, :, :length]))
    scores = mx.concatenate([of_prefix, _products(by_head, keys[:, :, length:])], axis=-1)
    weights = softmax(scores if mask is None else scores + _masks.to_add(mask))
    from_prefix = by_row(grouped(weights[..., :length]) @ values[::rows, :, :length])
    found = from_prefix + weights[..., length:] @ values[:, :, length:]
    return found.reshape(batch, heads, 1, -1)


def _products(queries: mx.array, keys: mx.array) -> mx.array:
    """queries (B, K, G, D) times keys (B, K, S, D): (B, K, G, S).

    Few queries and many keys are multiplied the other way round, since OpenBLAS packs what is transposed.
    """
    if queries.shape[2] > FEW_QUERIES or keys.shape[2] < MANY_KEYS or not has_small_kernels():
        return queries @ keys.swapaxes(-1, -2)
    return mx.contiguous((keys @ mx.contiguous(queries.swapaxes(-1, -2))).swapaxes(-1, -2))


@functools.lru_cache(maxsize=32)
def _causal(length: int, reach: int) -> mx.array:
    """(length, reach) numbers that hide, from each of the last rows, what comes after it."""
    hidden = mx.where(mx.arange(reach - length, reach)[:, None] >= mx.arange(reach), 0.0, HIDDEN)
    mx.eval(hidden)
    return hidden


class _Masks:
    """Masks as numbers to add. All layers of a model ask for the same one, so the last is kept."""

    def __init__(self) -> None:
        self._mask: mx.array | None = None
        self._found: mx.array | None = None

    def to_add(self, mask: mx.array) -> mx.array:
        """What hides positions when it is added to their scores, of the mask's shape."""
        if mask.dtype != mx.bool_:
            return mask
        if self._found is None or self._mask is not mask:
            self._mask, self._found = mask, mx.where(mask, 0.0, HIDDEN)
        return self._found


_masks = _Masks()


def _polynomial(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    value = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _exp_of_negative(x: mx.array) -> mx.array:
    """exp(x) for x ≤ 0 as 2ⁿ·exp(r), n whole; within 3e-7 of it, and 0 where it is below float32's range."""
    rounded, exp_of_rest = _exp_parts(x)
    power = (rounded.view(mx.int32) + EXPONENT_BIAS) << EXPONENT_PLACE  # n moves from the last bits to the exponent
    return exp_of_rest * power.view(mx.float32)


@functools.partial(mx.compile, shapeless=True)
def _exp_parts(x: mx.array) -> tuple[mx.array, mx.array]:
    x = mx.maximum(x, -EXPONENT_BIAS / LOG2_E)  # there the exponent's bits are all zeros, and stand for 0
    rounded = x * LOG2_E + ROUNDING
    whole = rounded - ROUNDING
    rest = (x - whole * LN2_HIGH) - whole * LN2_LOW
    return rounded, _polynomial(EXP_OF_REST, rest) * (rest * rest) + rest + 1.0


def _weights(scores: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The largest score (..., 1), exp(scores − largest) (..., V), and the sum of those (..., 1)."""
    largest = mx.max(scores, axis=-1, keepdims=True)
    weights = _exp_of_negative(scores - largest)
    return largest, weights, _total(weights)


def _softmax_forward(scores: mx.array) -> mx.array:
    _, weights, total = _weights(scores)
    return weights * (1.0 / total)


def _softmax_backward(_: mx.array, cotangent: mx.array, probabilities: mx.array) -> mx.array:
    return probabilities * (cotangent - _total(cotangent * probabilities))


@functools.cache
def _rms_norm(eps: float) -> Any:
    """(x, weight) → what `rms_norm` returns, and 1 / √(mean(x²) + eps) for the way back."""

    def forward(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
        inverse = mx.rsqrt(_mean(x * x) + eps)
        return x * inverse * weight, inverse

    def backward(
        inputs: tuple[mx.array, mx.array], cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
    ) -> tuple[mx.array, mx.array]:
        (x, weight), (cotangent, _), (_, inverse) = inputs, cotangents, outputs
        direct, unit = cotangent * weight, x * inverse
        of_weight = mx.sum(cotangent * unit, axis=tuple(range(x.ndim - 1)))  # not worked out unless it is asked for
        return inverse * (direct - unit * _mean(direct * unit)), of_weight

    function = mx.custom_function(forward)
    function.vjp(backward)
    return function


def _mean(x: mx.array) -> mx.array:
    """Mean (..., 1) over the last axis."""
    return x @ _column(x.shape[-1], 1.0 / x.shape[-1])


def _total(x: mx.array) -> mx.array:
    """Sum (..., 1) over the last axis, as a product: a third of the time of MLX's sum."""
    return x @ _column(x.shape[-1], 1.0)


@functools.lru_cache(maxsize=32)
def _column(count: int, value: float) -> mx.array:
    """(count, 1), each `value`."""
    column = mx.full((count, 1), value)
    mx.eval(column)
    return column


def _sigmoid(x: mx.array) -> mx.array:
    half = mx.clip(0.5 * x, -TANH_RANGE, TANH_RANGE)
    square = half * half
    return 0.5 + 0.5 * (half * _polynomial(TANH_ODD, square) / _polynomial(TANH_EVEN, square))


@functools.partial(mx.compile, shapeless=True)
def _swiglu_forward(gate: mx.array, values: mx.array) -> mx.array:
    return gate * _sigmoid(gate) * values


@functools.partial(mx.compile, shapeless=True)
def _swiglu_gradients(gate: mx.array, values: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = _sigmoid(gate)
    return cotangent * values * sigmoid * (1.0 + gate * (1.0 - sigmoid)), cotangent * gate * sigmoid


def _swiglu_backward(inputs: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    return _swiglu_gradients(*inputs, cotangent)


_softmax = mx.custom_function(_softmax_forward)
_softmax.vjp(_softmax_backward)
_swiglu = mx.custom_function(_swiglu_forward)
_swiglu.vjp(_swiglu_backward)
