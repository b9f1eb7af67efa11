"""The sizes and weights of a Llama model out of a GGUF file, under their Hugging Face names.

Weights are dequantised, and the rows of the query and key projections put back into Hugging Face order.
A file with anything a plain Llama does not have is refused: left out silently, it would make another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from opd_core.errors import ModelFileError
from opd_core.training.gguf_file import GGUFHeader
from opd_core.types import clean_text

OUTPUT = "output.weight"
GROUP_SIZE = 32  # values a scale, in each GGUF quantisation MLX reads

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama model, and the settings that are not sizes."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    vocabulary: int
    rms_norm_eps: float
    rope_theta: float


def read_shape(header: GGUFHeader) -> LlamaShape:
    """The sizes a GGUF file states, checked against each other.

    Raises:
        ModelFileError: not a plain Llama, or a size is missing or impossible.
    """
    architecture = header.metadata.get("general.architecture")
    if architecture != "llama":
        raise ModelFileError(
            f"The GGUF architecture is {clean_text(str(architecture), 80)!r}; only 'llama' can be imported."
        )
    scaling = header.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.shapes:
        raise ModelFileError(
            "The GGUF file scales its rotary frequencies (as Llama 3.1 and later do), which is not imported. "
            "Use the model's original folder instead."
        )
    heads, hidden = _integer(header, "attention.head_count"), _integer(header, "embedding_length")
    shape = LlamaShape(
        layers=_integer(header, "block_count"),
        hidden=hidden,
        feed_forward=_integer(header, "feed_forward_length"),
        heads=heads,
        kv_heads=_integer(header, "attention.head_count_kv", heads),
        head_size=_integer(header, "attention.key_length", hidden // heads),
        context=_integer(header, "context_length"),
        vocabulary=header.shapes.get("token_embd.weight", (0,))[0],
        rms_norm_eps=_real(header, "attention.layer_norm_rms_epsilon", 1e-5),
        rope_theta=_real(header, "rope.freq_base", 10000.0),
    )
    rotary = _integer(header, "rope.dimension_count", shape.head_size)
    if rotary != shape.head_size or rotary % 2 or heads % shape.kv_heads or shape.layers > len(header.shapes):
        raise ModelFileError("The GGUF file's layer, head and rotary sizes do not fit each other.")
    return shape


def _integer(header: GGUFHeader, name: str, default: int | None = None) -> int:
    value = header.metadata.get(f"llama.{name}", default)
    if type(value) is not int or value < 1:
        raise ModelFileError(f"llama.{name} in the GGUF file is {value!s:.80}, not a positive whole number.")
    return value


def _real(header: GGUFHeader, name: str, default: float) -> float:
    value = header.metadata.get(f"llama.{name}", default)
    if type(value) is not float or not 0 < value < math.inf:
        raise ModelFileError(f"llama.{name} in the GGUF file is {value!s:.80}, not a positive number.")
    # GGUF keeps float32; seven digits give back the value that was written (1e-05, not 9.99999975e-06)
    return float(f"{value:.7g}")


def _expected_tensors(shape: LlamaShape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name to Hugging Face name and shape, for every tensor of the model."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sizes: dict[str, tuple[int, ...]] = {
        "attn_norm": (shape.hidden,),
        "ffn_norm": (shape.hidden,),
        "attn_q": (queries, shape.hidden),
        "attn_k": (keys, shape.hidden),
        "attn_v": (keys, shape.hidden),
        "attn_output": (shape.hidden, queries),
        "ffn_gate": (shape.feed_forward, shape.hidden),
        "ffn_up": (shape.feed_forward, shape.hidden),
        "ffn_down": (shape.hidden, shape.feed_forward),
    }
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (shape.vocabulary, shape.hidden)),
        "output_norm.weight": ("model.norm.weight", (shape.hidden,)),
        OUTPUT: ("lm_head.weight", (shape.vocabulary, shape.hidden)),
    }
    for layer in range(shape.layers):
        for name, size in sizes.items():
            expected[f"blk.{layer}.{name}.weight"] = (
                f"model.layers.{layer}.{LAYER_NAMES[name]}.weight",
                size,
            )
    return expected


def check_tensors(header: GGUFHeader, shape: LlamaShape) -> None:
    """Refuse a file whose tensors are not exactly those of the stated sizes.

    Raises:
        ModelFileError: names a tensor that is missing, unknown or of another shape.
    """
    expected = _expected_tensors(shape)
    # Without an output projection the embedding is used twice.
    missing = sorted(expected.keys() - header.shapes.keys() - {OUTPUT})
    extra = sorted(header.shapes.keys() - expected.keys())
    if missing or extra:
        problem = f"lacks the tensor {missing[0]!r}" if missing else f"has an unknown tensor {extra[0][:80]!r}"
        raise ModelFileError(f"The GGUF file {problem}; only plain Llama models can be imported.")
    for name, found in header.shapes.items():
        if found != expected[name][1]:
            raise ModelFileError(f"The GGUF tensor {name!r} has the shape {found}, not {expected[name][1]}.")


def converted_weights(path: Path, shape: LlamaShape, dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    """Each tensor under its Hugging Face name, dequantised in float32 and rounded once to `dtype`.

    Raises:
        ModelFileError: MLX cannot read the file after all.
    """
    try:
        arrays = mx.load(str(path), format="gguf")
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"MLX cannot read {str(path)!r}: {clean_text(str(error), 200)}.") from error
    assert isinstance(arrays, dict)  # the GGUF format always gives a dictionary
    for name, (target, (*_, columns)) in _expected_tensors(shape).items():
        if name not in arrays:
            continue
        weight = arrays.pop(name)
        stem = name.removesuffix("weight")
        if f"{stem}scales" in arrays:
            scales, biases = (arrays.pop(f"{stem}{part}").astype(mx.float32) for part in ("scales", "biases"))
            bits = weight.shape[-1] * 32 // columns
            weight = mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)
        if "attn_q" in name or "attn_k" in name:
            weight = _half_split_rows(weight, shape.heads if "attn_q" in name else shape.kv_heads)
        weight = weight.astype(dtype)
        mx.eval(weight)
        yield target, weight


def _half_split_rows(weight: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's row order of q and k, which puts the two rows of a rotary pair side by side in a head.

    Inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
