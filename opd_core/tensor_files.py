"""Tensor names, shapes and types of safetensors files, read by hand from their headers; no weight is loaded.

Format (safetensors README): 8 bytes little-endian header length, that many bytes of JSON mapping a tensor
name to `{dtype, shape, data_offsets}` plus an optional `__metadata__`, then the data.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opd_core.errors import ModelFileError
from opd_core.safe_open import open_regular, read_regular, resolved
from opd_core.types import clean_text

MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 200_000_000
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""The types that our own files may hold, by their names in safetensors."""
VOCABULARY_TENSORS = ("lm_head.weight", "embed_tokens.weight", "wte.weight", "tok_embeddings.weight")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its type as safetensors names it (F32, BF16, U32, …) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of stored elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors header says; `metadata` is its free key-value part (`{"format": "mlx"}`)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> TensorFile:
    """Read the names, shapes and types of a safetensors file.

    Raises:
        ModelFileError: the file cannot be read, is cut short, or is no safetensors file.
    """
    header, data_bytes = _read_header_json(path)
    return _parse_header(path, header, data_bytes)


def read_exact_header(path: Path) -> TensorFile:
    """`read_header` for files written here, where every byte must be accounted for.

    Each tensor's type is a known one and its bytes are as many as its shape asks for; tensors follow one another from
    the first byte of the data to the last. (MLX itself takes a file with bytes beyond the last tensor.)

    Raises:
        ModelFileError: as `read_header`, and names the tensor that is not so.
    """
    header, data_bytes = _read_header_json(path)
    file = _parse_header(path, header, data_bytes)
    end = 0
    entries = [(header[name]["data_offsets"], name, tensor) for name, tensor in file.tensors.items()]
    for (first, last), name, tensor in sorted(entries, key=lambda entry: entry[0]):
        shown = f"{path}: tensor {clean_text(name, 80)!r}"
        if tensor.dtype not in ELEMENT_BYTES:
            raise ModelFileError(f"{shown} is of type {clean_text(tensor.dtype, 20)!r}, which is not used here.")
        if first != end or last - first != tensor.size * ELEMENT_BYTES[tensor.dtype]:
            raise ModelFileError(f"{shown} does not lie where its shape and the tensors before it put it.")
        end = last
    if end != data_bytes:
        raise ModelFileError(f"{path} holds {data_bytes} bytes of tensors where {end} are described.")
    return file


def _read_header_json(path: Path) -> tuple[Any, int]:
    """The header as JSON data, and how many bytes follow it."""
    try:
        with open_regular(resolved(path)) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ModelFileError(f"{path} is not a safetensors file: its first 8 bytes give no header length.")
            header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
            return header, file.seek(0, 2) - 8 - length
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path} cannot be read as safetensors: {_reason(error)}. Copy it again.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _parse_header(path: Path, header: Any, data_bytes: int) -> TensorFile:
    """Check the header's JSON against what the file holds."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    last_byte = 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                metadata = {str(key): str(value) for key, value in (entry or {}).items()}  # MLX writes null
                continue
            shape = tuple(entry["shape"])
            if not all(isinstance(size, int) and size >= 0 for size in shape):
                raise ValueError(name)
            first, last = entry["data_offsets"]
            if type(first) is not int or type(last) is not int:
                raise ValueError(name)
            tensors[name] = Tensor(str(entry["dtype"]), shape)
            last_byte = max(last_byte, last)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelFileError(f"{path} has a damaged safetensors header. Copy or export it again.") from error
    if last_byte > data_bytes:
        raise ModelFileError(
            f"{path} is cut short: {max(data_bytes, 0)} of {last_byte} bytes of weights are there. "
            "Copy or download it again."
        )
    return TensorFile(tensors, metadata)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        ModelFileError: missing, too large, not JSON, or not an object.
    """
    try:
        data = json.loads(read_regular(path, MAX_JSON_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {_reason(error)}.") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{path} must hold a JSON object, not a {type(data).__name__}.")
    return data


def json_dict(data: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key, or an empty one where there is none or something else stands there."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def json_int(data: dict[str, Any], key: str) -> int:
    """The whole number under a key, or 0."""
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def weight_files(path: Path) -> list[Path]:
    """The weight files mlx-lm would load, in name order."""
    return sorted(file for file in path.glob("model*.safetensors") if file.is_file())


def model_tensors(path: Path) -> TensorFile:
    """Names and shapes of every tensor of a model folder, all shards together.

    Raises:
        ModelFileError: no weights, only pickled ones, a shard that is missing or damaged.
    """
    files = weight_files(path)
    if not files:
        pickled = any(file.suffix in PICKLED_SUFFIXES for file in path.iterdir())
        raise ModelFileError(
            f"The model folder {path} has only pickled weights (.bin, .pt), which can run code when loaded. "
            "Convert the model with mlx_lm.convert."
            if pickled
            else f"The model folder {path} has no model*.safetensors. Give a complete MLX model folder."
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        listed = json_dict(read_json_object(index), "weight_map")
        missing = sorted({str(file) for file in listed.values()} - {file.name for file in files})
        if missing:
            raise ModelFileError(
                f"The model folder {path} lacks {len(missing)} of its weight files, first "
                f"{clean_text(missing[0], 80)!r}. Finish the download."
            )
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        part = read_header(file)
        tensors.update(part.tensors)
        metadata.update(part.metadata)
    return TensorFile(tensors, metadata)


def logit_width(tensors: dict[str, Tensor]) -> int:
    """Rows of the output head, or of the embedding it is tied to; 0 when neither has a known name."""
    for ending in VOCABULARY_TENSORS:
        for name, tensor in tensors.items():
            if (name == ending or name.endswith(f".{ending}")) and tensor.shape:
                return tensor.shape[0]
    return 0


def unpacked_shape(layer: str, tensors: dict[str, Tensor], quantization: dict[str, Any]) -> tuple[int, ...]:
    """The shape of `{layer}.weight` as the layer sees it: a quantised one is stored as packed 32-bit words.

    `quantization` is the model config's part of that name, with the layer's own entry where it differs.
    """
    tensor = tensors[f"{layer}.weight"]
    own = quantization.get(layer)
    bits = (own if isinstance(own, dict) else quantization).get("bits")
    if tensor.dtype != "U32" or f"{layer}.scales" not in tensors or not isinstance(bits, int) or bits < 1:
        return tensor.shape
    return (*tensor.shape[:-1], tensor.shape[-1] * 32 // bits)


def read_quantization(path: Path) -> dict[str, Any]:
    """The quantisation part of a model's config.json; empty for plain weights."""
    config = read_json_object(path / "config.json")
    return json_dict(config, "quantization") or json_dict(config, "quantization_config")


def count_parameters(tensors: dict[str, Tensor], quantization: dict[str, Any]) -> int:
    """Weights of a model, quantised ones counted unpacked and their scales and biases left out."""
    total = 0
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases") and f"{layer}.scales" in tensors:
            continue
        packed = leaf == "weight" and f"{layer}.scales" in tensors
        total += math.prod(unpacked_shape(layer, tensors, quantization)) if packed else tensor.size
    return total


def _reason(error: Exception) -> str:
    """Why a file could not be read, without repeating its path."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return clean_text(str(error), 200) or type(error).__name__
