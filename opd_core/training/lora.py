"""Base model, student and frozen copies: one set of base weights, any number of adapters on it.

An adapter here is an ordinary mlx-lm adapter folder. An incoming one keeps its own rank, scale and keys; a new one
starts as the identity (`lora_b` is zero), so step 0 of a run is the model as it came.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, load_tokenizer

from opd_core.config import RunConfig
from opd_core.errors import CompatibilityError, ConfigError, ModelFileError
from opd_core.training.arrays import flat
from opd_core.training.cpu_layers import use_cpu_functions
from opd_core.training.lanes import feed_all_lanes
from opd_core.training.logprobs import Scorer, make_scorer
from opd_core.training.recomputing import recompute_layers
from opd_core.training.tokenization import stop_ids

ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
LINEAR_LAYERS = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory. `notes` says what was done to its weights for this device."""

    path: Path
    model: nn.Module
    tokenizer: Any
    config: dict[str, Any]
    stop_ids: frozenset[int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NewAdapter:
    """The shape of an adapter that starts from nothing; `keys` None means every linear layer of every block."""

    rank: int
    scale: float
    keys: tuple[str, ...] | None = None
    use_dora: bool = False


@dataclass(frozen=True)
class Student:
    """A model with an adapter on shared base weights; only the adapter is trainable."""

    base: LoadedBase
    model: nn.Module
    scorer: Scorer
    adapter_config: dict[str, Any] | None

    def adapter_weights(self) -> dict[str, mx.array]:
        """The adapter's arrays by name: what `adapters.safetensors` holds. Empty without an adapter."""
        return flat(self.model.trainable_parameters())

    def load_adapter_weights(self, weights: dict[str, mx.array]) -> None:
        """Set the adapter's arrays.

        Raises:
            CompatibilityError: names or shapes differ from the adapter's; nothing is changed.
        """
        own = self.adapter_weights()
        wrong = sorted(set(own) ^ set(weights)) or [name for name in own if own[name].shape != weights[name].shape]
        if wrong:
            raise CompatibilityError(
                f"The adapter weights do not fit the student: {wrong[0]!r} and {len(wrong) - 1} more differ."
            )
        self.model.load_weights(list(weights.items()), strict=False)


def load_base(path: Path) -> LoadedBase:
    """Load an MLX model folder. On CPU, weights become float32 once: 16-bit and quantised ones are slow there.

    Raises:
        ModelFileError: the folder is incomplete, damaged, or asks for custom code.
    """
    feed_all_lanes()
    try:
        model, config = load_model(path, lazy=True, trust_remote_code=False)
        tokenizer = load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
        notes = _to_float32(model) if mx.default_device().type == mx.DeviceType.cpu else ()
        use_cpu_functions(model)
        mx.eval(model.parameters())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(f"The model {str(path)!r} does not load: {error}. Check it with list_models.") from error
    model.freeze()
    return LoadedBase(path, model, tokenizer, config, stop_ids(tokenizer), notes)


def make_student(
    base: LoadedBase, adapter_path: Path | None = None, new_adapter: NewAdapter | None = None, seed: int = 0
) -> Student:
    """A model on `base`'s weights with the adapter of a folder, a new one, or none.

    Raises:
        CompatibilityError: the adapter was made for another base model.
        ConfigError: `new_adapter` names layers the model does not have.
    """
    model = share_weights(base.model)
    adapter_config: dict[str, Any] | None = None
    if adapter_path is not None:
        adapter_config = _attach_existing(model, adapter_path)
    elif new_adapter is not None:
        adapter_config = _attach_new(model, base, new_adapter, seed)
    model.freeze()
    for _, module in model.named_modules():
        if "lora_a" in module:
            # in 16 bits an update of one part in ten thousand rounds away
            module.update({leaf: module[leaf].astype(mx.float32) for leaf in ADAPTER_LEAVES if leaf in module})
            module.dropout = nn.Dropout(0.0)  # rollouts and loss must see the same model
            module.unfreeze(recurse=False, keys=[leaf for leaf in ADAPTER_LEAVES if leaf in module])
    model.eval()
    mx.eval(model.parameters())
    return Student(base, model, make_scorer(model), adapter_config)


def initial_student(config: RunConfig, base: LoadedBase, is_trained: bool = True) -> Student:
    """The student as a run begins: with the incoming adapter, else a new one that changes nothing yet.

    Args:
        is_trained: False: a new adapter, which is the identity, is left out, for a copy that stays as it is.

    Raises:
        CompatibilityError, ConfigError: as `make_student`.
    """
    if config.student_adapter_path is not None:
        student = make_student(base, Path(config.student_adapter_path))
    elif is_trained:
        new = NewAdapter(config.lora_rank or 32, config.lora_scale or 2.0, config.lora_keys, config.use_dora)
        student = make_student(base, None, new, config.seed)
    else:
        return make_student(base)
    if config.gradient_checkpointing:
        recompute_layers(student.model)
    return student


def share_weights(module: nn.Module) -> nn.Module:
    """A second module tree over the same arrays: changing one tree's layers leaves the other as it is."""
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__.update(
        {name: set(value) if isinstance(value, set) else value for name, value in module.__dict__.items()}
    )
    for name, value in module.items():
        dict.__setitem__(copy, name, _share_value(value))
    return copy


def _share_value(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return share_weights(value)
    if isinstance(value, list):
        return [_share_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _share_value(item) for name, item in value.items()}
    return value


def head_is_trained(student: Student) -> bool:
    """Whether the adapter reaches the output head, whose gradient the fused loss does not give."""
    return any(("lm_head" in name or "embed_tokens" in name) for name in student.adapter_weights())


def _attach_existing(model: nn.Module, adapter_path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = _read_json(adapter_path / "adapter_config.json")
        load_adapters(model, str(adapter_path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CompatibilityError(
            f"The adapter {str(adapter_path)!r} does not fit the base model: {str(error)[:400]} "
            "Give the adapter that was trained on this base model.",
            field="student_adapter_path",
        ) from error
    return config


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value


def _attach_new(model: nn.Module, base: LoadedBase, new: NewAdapter, seed: int) -> dict[str, Any]:
    available = sorted(
        {name for layer in model.layers for name, module in layer.named_modules() if isinstance(module, LINEAR_LAYERS)}
    )
    keys = list(new.keys) if new.keys is not None else available
    unknown = [key for key in keys if key not in available]
    if unknown:
        raise ConfigError(
            f"lora_keys names {unknown[0]!r}, which this model has not; its layers are {', '.join(available)}.",
            field="lora_keys",
        )
    parameters = {"rank": new.rank, "scale": new.scale, "dropout": 0.0, "keys": keys}
    mx.random.seed(seed)  # lora_a is drawn from the global stream
    linear_to_lora_layers(model, len(model.layers), {**parameters, "keys": set(keys)}, use_dora=new.use_dora)
    return {
        "fine_tune_type": "dora" if new.use_dora else "lora",
        "num_layers": len(model.layers),
        "lora_parameters": parameters,
        "model": str(base.path),
    }


def _to_float32(model: nn.Module) -> tuple[str, ...]:
    notes = []
    quantised = [(name, module) for name, module in model.named_modules() if hasattr(module, "scales")]
    if quantised:
        model.update_modules(tree_unflatten([(name, _dequantised(module, name)) for name, module in quantised]))
        notes.append(f"{len(quantised)} quantised layers dequantised to float32 for the CPU")
    dtypes = {str(value.dtype).removeprefix("mlx.core.") for value in flat(model.parameters()).values()}
    if dtypes - {"float32"}:
        model.update(tree_map(_widened, model.parameters()))
        notes.append(f"weights converted from {', '.join(sorted(dtypes - {'float32'}))} to float32 for the CPU")
    return tuple(notes)


def _widened(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


def _dequantised(module: nn.Module, name: str) -> nn.Module:
    if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        raise ModelFileError(
            f"Layer {name!r} is a {type(module).__name__}, which cannot be trained on a CPU; use a float model."
        )
    weight = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    ).astype(mx.float32)
    if isinstance(module, nn.QuantizedEmbedding):
        embedding = nn.Embedding(1, 1)
        embedding.weight = weight
        return embedding
    linear = nn.Linear(1, 1, bias="bias" in module)
    linear.weight = weight
    if "bias" in module:
        linear.bias = module.bias.astype(mx.float32)
    return linear
