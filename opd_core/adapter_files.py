"""What an mlx-lm adapter folder holds and whether it fits a base model, by the files alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opd_core.errors import CompatibilityError, ModelFileError
from opd_core.tensor_files import (
    Tensor,
    json_dict,
    json_int,
    model_tensors,
    read_header,
    read_json_object,
    read_quantization,
    unpacked_shape,
)
from opd_core.types import clean_text, plain_name

LAYER_PATTERN = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+){0,9}")
ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
EMBEDDING_NAMES = ("embed_tokens", "wte", "tok_embeddings", "embeddings")


@dataclass(frozen=True)
class AdapterInfo:
    """An mlx-lm adapter folder. With a `problem` it cannot be used.

    `num_layers` counts the changed blocks from the last one; `keys` are the changed layers inside a block,
    `None` when the adapter's config leaves them to mlx-lm's default; `base_model` is the config's own
    hint, unchecked. `loads`: its tensors fit that base model; `None` when nobody looked or the base is not here.
    """

    path: Path
    name: str
    fine_tune_type: str = "lora"
    rank: int = 0
    scale: float = 0.0
    keys: tuple[str, ...] | None = None
    num_layers: int = 0
    base_model: str | None = None
    modified_at: str = ""
    bytes: int = 0
    problem: str | None = None
    loads: bool | None = None


def read_adapter(path: Path, name: str | None = None) -> AdapterInfo:
    """Read an mlx-lm adapter folder.

    Raises:
        ModelFileError: incomplete, of another library, or with settings mlx-lm would not load.
    """
    try:
        return _read_adapter(path, name or path.name)
    except OSError as error:
        raise ModelFileError(f"The adapter folder {path} cannot be read: {error.strerror}.") from error


def _read_adapter(path: Path, name: str) -> AdapterInfo:
    if not (path / "adapter_config.json").is_file() or not (path / "adapters.safetensors").is_file():
        hint = " It looks like a PEFT adapter; convert it to mlx-lm's form first." if (
            (path / "adapter_model.safetensors").exists() or (path / "adapter_model.bin").exists()
        ) else " Give the folder that `mlx_lm.lora --adapter-path` wrote."  # fmt: skip
        raise ModelFileError(
            f"{path} is no mlx-lm adapter: it needs adapter_config.json and adapters.safetensors.{hint}"
        )
    config = read_json_object(path / "adapter_config.json")
    kind = str(config.get("fine_tune_type", "lora"))
    if kind not in ("lora", "dora"):
        raise ModelFileError(
            f"The adapter {path} has fine_tune_type {plain_name(kind)}; only lora and dora can be continued."
        )
    rank, scale, keys = _lora_parameters(path, config)
    weights = path / "adapters.safetensors"
    modified = datetime.fromtimestamp(weights.stat().st_mtime, UTC)
    base = config.get("model")
    return AdapterInfo(
        path=path,
        name=name,
        fine_tune_type=kind,
        rank=rank,
        scale=scale,
        keys=keys,
        num_layers=json_int(config, "num_layers"),
        base_model=clean_text(base, 200) if isinstance(base, str) else None,
        modified_at=modified.isoformat(timespec="seconds").replace("+00:00", "Z"),
        bytes=weights.stat().st_size,
    )


def inspect_adapter(path: Path, name: str | None = None) -> AdapterInfo:
    """Read an adapter folder for a list: whatever is wrong with it stands in `problem`; nothing is raised."""
    try:
        return read_adapter(path, name)
    except ModelFileError as error:
        return AdapterInfo(path, name or path.name, problem=str(error))


def _lora_parameters(path: Path, config: dict[str, Any]) -> tuple[int, float, tuple[str, ...] | None]:
    """Rank, scale and keys of an adapter's config."""
    parameters = json_dict(config, "lora_parameters")
    rank, scale, keys = parameters.get("rank"), parameters.get("scale"), parameters.get("keys")
    fine = isinstance(rank, int) and rank > 0 and isinstance(scale, int | float) and math.isfinite(scale)
    if not fine or not isinstance(config.get("num_layers"), int):
        raise ModelFileError(
            f"{path / 'adapter_config.json'} lacks num_layers, or lora_parameters with rank and scale "
            "(mlx-lm's 'scale', not 'alpha'). Give a folder that mlx_lm.lora wrote."
        )
    assert isinstance(rank, int) and isinstance(scale, int | float)
    if not isinstance(keys, list):
        return rank, float(scale), None
    if not all(isinstance(key, str) and LAYER_PATTERN.fullmatch(key) for key in keys):
        raise ModelFileError(
            f"{path / 'adapter_config.json'} names a layer in lora_parameters.keys that no model has. Layers are "
            "written like self_attn.q_proj; give a folder that mlx_lm.lora wrote."
        )
    return rank, float(scale), tuple(keys)


def check_adapter_weights(info: AdapterInfo) -> None:
    """Refuse an adapter whose weight file is damaged or is not what its config says, without knowing its base model.

    Raises:
        ModelFileError: the file cannot be read, is cut short, is empty, or has other tensors or another rank.
    """
    file = info.path / "adapters.safetensors"
    tensors = read_header(file).tensors
    if not tensors:
        raise ModelFileError(f"{file} is empty: the fine-tune saved nothing. Run it again.")
    for name, tensor in tensors.items():
        leaf, shape = name.rpartition(".")[2], tensor.shape
        if leaf not in ADAPTER_LEAVES:
            raise ModelFileError(f"{file} holds {plain_name(name)}, which is no LoRA or DoRA weight.")
        rank = {"lora_a": shape[-1:], "lora_b": shape[-2:-1]}.get(leaf) if len(shape) == 2 else None
        if rank is not None and rank != (info.rank,):
            raise ModelFileError(
                f"{file} has rank {rank[0]} in {plain_name(name)}, its adapter_config.json says {info.rank}. "
                "The two files belong to different fine-tunes."
            )


def check_adapter_fits(adapter: Path, model: Path) -> None:
    """Refuse an adapter that was made for another base model, by comparing every tensor's shape.

    mlx-lm's shapes, for a layer of weight (out, in) and rank r: lora_a (in, r), lora_b (r, out), DoRA's m
    (out,). An embedding counts the other way round; a layer of experts has them in front: (e, r, in), (e,
    out, r).

    Raises:
        CompatibilityError: names the first tensor that does not fit, with both shapes.
        ModelFileError: a file cannot be read.
    """
    info = read_adapter(adapter)
    tensors = read_header(adapter / "adapters.safetensors").tensors
    base = model_tensors(model)
    layers = _layers_by_tail(base.tensors)
    # Names in files not written by mlx may differ from mlx-lm's own; then only layers that are found are
    # compared.
    names_are_mlx = base.metadata.get("format") == "mlx"
    quantization = read_quantization(model)
    found = 0
    for name in sorted(tensors, key=_natural):
        layer, _, leaf = name.rpartition(".")
        if leaf not in ADAPTER_LEAVES:
            raise _misfit(adapter, model, f"its tensor {plain_name(name)} is no LoRA or DoRA weight")
        base_layer = layers.get(_tail(layer))
        if base_layer is None:
            if names_are_mlx:
                raise _misfit(adapter, model, f"its tensor {plain_name(name)} changes a layer the model lacks")
            continue
        found += 1
        expected = _expected_shape(layer, leaf, unpacked_shape(base_layer, base.tensors, quantization), info.rank)
        if expected is not None and tensors[name].shape != expected:
            detail = f"its tensor {plain_name(name)} has shape {tensors[name].shape}, the model needs {expected}"
            raise _misfit(adapter, model, detail)
    if not found:
        raise _misfit(adapter, model, "none of the layers it changes is in the model" if tensors else "it is empty")


def _misfit(adapter: Path, model: Path, detail: str) -> CompatibilityError:
    return CompatibilityError(
        f"The adapter {adapter} does not fit the model {model}: {detail}. "
        "Give the base model it was trained on, or leave student_adapter_path out.",
        field="student_adapter_path",
    )


def _expected_shape(layer: str, leaf: str, weight: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """The shape mlx-lm gives an adapter tensor; `None` where this program knows no rule."""
    if len(weight) == 3:
        experts, outputs, inputs = weight
        return {"lora_a": (experts, rank, inputs), "lora_b": (experts, outputs, rank)}.get(leaf)
    if len(weight) != 2:
        return None
    rows, columns = weight
    if leaf == "m":
        return (rows,)
    inputs, outputs = (rows, columns) if layer.rpartition(".")[2] in EMBEDDING_NAMES else (columns, rows)
    return (inputs, rank) if leaf == "lora_a" else (rank, outputs)


def _layers_by_tail(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Layer names by their part from `layers.` on, so that a differing prefix does not matter."""
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    return {_tail(name): name for name in names}


def _tail(layer: str) -> str:
    position = layer.rfind("layers.")
    return layer[position:] if position >= 0 else layer.rpartition("model.")[2]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: block 2 before block 10, so that "the first tensor" is the one a person would call first."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def layer_names(model: Path) -> list[str]:
    """The names `lora_keys` may hold: the matrices inside a model's blocks, such as `self_attn.q_proj`.

    Raises:
        ModelFileError: the model's weights cannot be read.
    """
    tensors, quantization = model_tensors(model).tensors, read_quantization(model)
    names = set()
    for layer in _layers_by_tail(tensors).values():
        if "layers." in layer and len(unpacked_shape(layer, tensors, quantization)) >= 2:
            names.add(layer.rpartition("layers.")[2].partition(".")[2])
    return sorted(names)


def changed_parameters(model: Path, rank: int, keys: tuple[str, ...] | None) -> int:
    """Number of weights of a LoRA adapter on a model: rank × (in + out) for each layer it changes.

    `keys` None means every linear layer of every block. A layer of experts counts once for each expert.

    Raises:
        ModelFileError: the model's weights cannot be read.
    """
    tensors, quantization = model_tensors(model).tensors, read_quantization(model)
    total = 0
    for layer in _layers_by_tail(tensors).values():
        inside = layer.rpartition("layers.")[2].partition(".")[2] if "layers." in layer else None
        shape = unpacked_shape(layer, tensors, quantization)
        if len(shape) < 2 or (inside is None if keys is None else (inside or layer) not in keys):
            continue
        total += rank * (shape[-1] + shape[-2]) * math.prod(shape[:-2])
    return total
