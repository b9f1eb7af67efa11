"""Let a loaded model use `cpu_functions` where its layers call mlx-lm's functions of the same meaning.

mlx-lm's layers find `swiglu` and `scaled_dot_product_attention` among the names of their module. A layer of the model
gets a class of its own, which differs from mlx-lm's in what these names mean to its `__call__`; mlx-lm itself is left
as it is. Norms and rotary positions are layers themselves, and get classes of ours.
"""

from __future__ import annotations

import functools
import types
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu as mlx_swiglu
from mlx_lm.models.base import scaled_dot_product_attention as mlx_attention

from opd_core.training.cpu_functions import attention, is_fast, rms_norm, swiglu
from opd_core.training.cpu_rope import Rotation

REPLACED = {"swiglu": (mlx_swiglu, swiglu), "scaled_dot_product_attention": (mlx_attention, attention)}


class CpuRMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` with a closed-form gradient."""

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.weight, self.eps)


class CpuRoPE(nn.RoPE):
    """`nn.RoPE` with angles that are worked out once for all layers."""

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        if x.ndim != 4 or not is_fast(x):
            return cast(mx.array, super().__call__(x, cast(int, offset)))  # an array is as good
        return Rotation(self.dims, self.traditional, self.base, self.scale).rotated(x, offset)


FOR_CPU: dict[Any, Any] = {
    nn.RMSNorm: CpuRMSNorm,
    nn.RoPE: CpuRoPE,
}


def use_cpu_functions(model: nn.Module) -> None:
    """Where MLX runs on a CPU: give the layers of `model` the faster functions. What they compute stays the same."""
    if mx.default_device().type != mx.DeviceType.cpu:
        return
    for _, module in model.named_modules():
        kind: Any = type(module)
        module.__class__ = _with_cpu_functions(kind)


@functools.cache
def _with_cpu_functions(kind: Any) -> Any:
    """`kind`, or where its `__call__` uses one of the functions or is one of `FOR_CPU`, a class that uses ours."""
    if kind in FOR_CPU:
        return FOR_CPU[kind]
    call = kind.__call__
    known = getattr(call, "__globals__", {})
    names = {name: ours for name, (theirs, ours) in REPLACED.items() if known.get(name) is theirs}
    if not names.keys() & set(getattr(getattr(call, "__code__", None), "co_names", ())):
        return kind
    faster = types.FunctionType(call.__code__, {**known, **names}, call.__name__, call.__defaults__, call.__closure__)
    faster.__kwdefaults__ = call.__kwdefaults__
    return type(kind.__name__, (kind,), {"__call__": faster, "__module__": kind.__module__})
