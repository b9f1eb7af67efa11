"""The student as it writes: the same function, in weights laid out for one position at a time.

They live as long as one phase of writing, and are made anew for the next: that costs a pass over the weights, and the
update has the memory for itself.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from opd_core.training.cpu_functions import is_fast
from opd_core.training.lanes import lanes
from opd_core.training.lora import share_weights
from opd_core.training.thin_products import cut_into_blocks, has_small_kernels, is_thin, rows_of_a_product, thin_product

MAX_COPIED_BYTES = 2 * 1024**3
"""Most bytes of weights laid out a second time."""


class BlockLinear(nn.Module):
    """A linear layer whose products with few rows go block by block.

    Args:
        blocks: of the layer's weight, from `cut_into_blocks`.
    """

    def __init__(self, linear: nn.Linear, blocks: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight, self._blocks = linear.weight, blocks  # with that name not counted as parameters
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, x: mx.array) -> mx.array:
        """x (..., inputs) times the weight (outputs, inputs), and the bias: (..., outputs)."""
        product = thin_product(x, self._blocks, self.weight.shape[0]) if is_thin(x) else x @ self.weight.T
        return product + self.bias if "bias" in self else product


class BlockEmbedding(nn.Module):
    """An embedding that is the output head as well, with blocks for the latter."""

    def __init__(self, embedding: nn.Embedding, blocks: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight, self._blocks = embedding.weight, blocks

    def __call__(self, ids: mx.array) -> mx.array:
        """Rows of the weight (V, D) for ids (...): (..., D)."""
        return self.weight[ids]

    def as_linear(self, states: mx.array) -> mx.array:
        """Logits (..., V) of states (..., D)."""
        return thin_product(states, self._blocks, self.weight.shape[0]) if is_thin(states) else states @ self.weight.T


def decoding_model(model: nn.Module) -> nn.Module:
    """`model` for decoding: float32 LoRA layers folded, products in blocks where that is faster, the rest shared.

    Adapters on every layer double the time of a decoding step, since its matrices are small and many. Folding is done
    in float32 only: 16-bit weights would round the adapter away. Layers get copies as long as those fit in
    `MAX_COPIED_BYTES`; the others stay as they are.
    """
    folded = _folded(model)
    copy = share_weights(model)
    copy.update_modules(tree_unflatten(folded))
    room = MAX_COPIED_BYTES - sum(linear.weight.nbytes for _, linear in folded)
    in_blocks = _in_blocks(copy, room) if has_small_kernels() else []
    if not folded and not in_blocks:
        return model
    copy.update_modules(tree_unflatten(in_blocks))
    mx.eval(copy.parameters())
    return copy


def _folded(model: nn.Module) -> list[tuple[str, Any]]:
    """Every LoRA layer as one linear layer, by name; none of them where one is not float32, or they do not all fit."""
    layers = [(name, module) for name, module in model.named_modules() if type(module) is LoRALinear]
    linears = [module.linear for _, module in layers]
    if any(type(linear) is not nn.Linear or linear.weight.dtype != mx.float32 for linear in linears):
        return []
    fits = sum(linear.weight.nbytes for linear in linears) <= MAX_COPIED_BYTES
    return [(name, module.fuse()) for name, module in layers] if fits else []


def _in_blocks(model: nn.Module, most_bytes: int) -> list[tuple[str, nn.Module]]:
    """The layers that get blocks, by name, as many as fit; in float32 on a CPU only."""
    head = None if "lm_head" in model else getattr(getattr(model, "model", None), "embed_tokens", None)
    # DoRA reads the weight of its linear layer, and never calls it
    unused = {f"{name}.linear" for name, module in model.named_modules() if "lora_a" in module and "m" in module}
    chosen: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        kind: Any = type(module)
        if (kind is nn.Linear and name not in unused) or (kind is nn.Embedding and module is head):
            weight: mx.array = module.weight
            fits = weight.nbytes <= most_bytes and rows_of_a_product(weight.shape[1]) > 0
            if fits and is_fast(weight):
                most_bytes -= weight.nbytes
                chosen.append((name, module))
    chosen.sort(key=lambda layer: layer[1].weight.nbytes)  # equal ones side by side keep all lanes busy
    blocks = lanes(model).run([functools.partial(cut_into_blocks, module.weight) for _, module in chosen])
    return [
        (name, (BlockLinear if isinstance(module, nn.Linear) else BlockEmbedding)(module, own))
        for (name, module), own in zip(chosen, blocks, strict=True)
    ]
