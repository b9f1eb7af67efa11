"""Which models there are and what a model folder holds, by its files alone: no weight is loaded, no code run.

A model folder is one that mlx-lm loads: config.json, model*.safetensors, tokenizer.json and a chat template.
Adapter folders: `adapter_files.py`. Whether two tokenizers are the same: `tokenizer_files.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.errors import ModelFileError, PathError
from opd_core.paths import HomePaths
from opd_core.roots import Roots, hub_cache
from opd_core.tensor_files import (
    count_parameters,
    json_dict,
    json_int,
    logit_width,
    model_tensors,
    read_json_object,
    weight_files,
)
from opd_core.types import clean_text

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
MODEL_TYPE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_NAMED = 20
CUSTOM_CODE_KEYS = ("auto_map", "model_file")


@dataclass(frozen=True)
class ModelInfo:
    """A model folder. With a `problem` the model cannot be used and the numbers may be 0.

    `vocab_size` is the width of a logit row; `num_parameters` counts unpacked weights; `quantization` is a
    short text such as "4-bit, group 64"; `bytes` is the size of the weight files.
    """

    path: Path
    name: str
    model_type: str = ""
    architecture: str = ""
    hidden_size: int = 0
    num_layers: int = 0
    vocab_size: int = 0
    context_length: int | None = None
    quantization: str | None = None
    bytes: int = 0
    num_parameters: int = 0
    has_chat_template: bool = False
    eos_token_ids: tuple[int, ...] = ()
    problem: str | None = None


def resolve_model(name_or_path: str, home: HomePaths, roots: Roots, field: str = "base_model_path") -> Path:
    """The folder of a model given as a path, a name under OPD_HOME/models, or a cached hub id 'org/name'.

    Raises:
        PathError: outside the roots, not a folder, or unknown here; the message says what there is.
    """
    if name_or_path.endswith(".gguf"):
        raise PathError(
            f"{field} {clean_text(name_or_path, 300)!r} is a GGUF file; MLX needs a model folder. "
            f"Convert it once with: opd import-gguf FILE {home.models}/NAME, then give NAME.",
            field=field,
        )
    if name_or_path.startswith(("/", "~")):
        folder = roots.check(name_or_path, field, "folder")
    else:
        folder = _named_model(name_or_path, home, field)
        roots.check(folder, field, "folder")
    roots.check_links(folder, field)
    return folder


def _named_model(name: str, home: HomePaths, field: str) -> Path:
    """A model by its short name or hub id."""
    if _is_name(name):
        folder = home.models / name if "/" not in name else hub_snapshot(name)
        if folder is not None and folder.is_dir():
            return folder.resolve()
    known = sorted(filter(_is_name, known_models(home)))
    more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
    raise PathError(
        f"{field} {clean_text(name, 200)!r} is no model on this machine. "
        f"Models here: {', '.join(known[:MAX_NAMED]) or 'none yet'}{more}. "
        "Give one of these names, the absolute path of an MLX model folder, or import one with: "
        f"opd import-gguf FILE {home.models}/NAME.",
        field=field,
    )


def _is_name(name: str) -> bool:
    """Whether it can be the short name of a model or a hub id."""
    parts = name.split("/")
    return len(parts) <= 2 and all(NAME_PATTERN.fullmatch(part) for part in parts)


def known_models(home: HomePaths) -> dict[str, Path]:
    """Name to folder of every model under OPD_HOME/models and in the hub cache; nothing is opened."""
    found: dict[str, Path] = {}
    if home.models.is_dir():
        folders = sorted(path for path in home.models.iterdir() if path.is_dir())
        found.update({path.name: path for path in folders if not path.name.startswith(".")})
    cache = hub_cache()
    if cache.is_dir():
        for folder in sorted(cache.glob("models--*--*")):
            name = "/".join(folder.name.split("--")[1:])
            snapshot = hub_snapshot(name)
            if snapshot is not None and any(snapshot.glob("model*.safetensors")):
                found[name] = snapshot
    return found


def hub_snapshot(repo_id: str) -> Path | None:
    """The cached snapshot of a hub model: the one `main` points to, else the newest; `None` without one."""
    folder = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    except OSError:
        pass  # fetched by commit: there is no refs/main
    if not (folder / "snapshots").is_dir():
        return None
    return max((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, default=None)


def inspect_model(path: Path, name: str | None = None) -> ModelInfo:
    """Read a model folder for a list: whatever is wrong with it stands in `problem`; nothing is raised."""
    try:
        return read_model(path, name)
    except ModelFileError as error:
        return ModelInfo(path, name or path.name, problem=str(error))


def read_model(path: Path, name: str | None = None) -> ModelInfo:
    """Read a model folder.

    Raises:
        ModelFileError: incomplete, damaged, unsafe (custom code, pickled weights) or without a chat template.
    """
    try:
        return _read_model(path, name or path.name)
    except OSError as error:
        raise ModelFileError(f"The model folder {path} cannot be read: {error.strerror}.") from error


def _read_model(path: Path, name: str) -> ModelInfo:
    config = _model_config(path)
    text_config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    tensors = model_tensors(path).tensors
    quantization = json_dict(config, "quantization") or json_dict(config, "quantization_config")
    if not (path / "tokenizer.json").is_file():
        raise ModelFileError(f"The model folder {path} has no tokenizer.json. Copy it from the model's original files.")
    if not _has_chat_template(path):
        raise ModelFileError(
            f"The model folder {path} has no chat template (chat_template in tokenizer_config.json, or "
            "chat_template.jinja). Use an instruction-tuned model, or add its template."
        )
    return ModelInfo(
        path=path,
        name=name,
        model_type=str(config["model_type"]),
        architecture=clean_text(str((config.get("architectures") or [""])[0]), 80),
        hidden_size=json_int(text_config, "hidden_size"),
        num_layers=json_int(text_config, "num_hidden_layers"),
        vocab_size=logit_width(tensors) or json_int(text_config, "vocab_size"),
        context_length=json_int(text_config, "max_position_embeddings") or None,
        quantization=_describe_quantization(quantization),
        bytes=sum(file.stat().st_size for file in weight_files(path)),
        num_parameters=count_parameters(tensors, quantization),
        has_chat_template=True,
        eos_token_ids=_eos_ids(path, config),
    )


def _model_config(path: Path) -> dict[str, Any]:
    """config.json, refused when it asks for code of its own."""
    if not (path / "config.json").is_file():
        raise ModelFileError(f"{path} is no model folder: it has no config.json. Give an MLX model folder.")
    config = read_json_object(path / "config.json")
    tokenizer_file = path / "tokenizer_config.json"
    tokenizer_config = read_json_object(tokenizer_file) if tokenizer_file.is_file() else {}
    for key in CUSTOM_CODE_KEYS:
        if key in config or key in tokenizer_config:
            raise ModelFileError(
                f"The model folder {path} asks to run its own code ({key}), which this server never does. "
                "Use a model of a type that mlx-lm knows, with that key removed from its config files."
            )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not MODEL_TYPE_PATTERN.fullmatch(model_type):
        raise ModelFileError(f"{path / 'config.json'} names no usable model_type. Give an MLX model folder.")
    return config


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    config = path / "tokenizer_config.json"
    settings = read_json_object(config) if config.is_file() else {}
    return bool(settings.get("chat_template") or settings.get("chat_template_type"))


def _eos_ids(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Ids that end a turn; generation_config.json wins over config.json, as in mlx-lm."""
    generation = path / "generation_config.json"
    value = read_json_object(generation).get("eos_token_id") if generation.is_file() else None
    value = config.get("eos_token_id") if value is None else value
    return tuple(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))


def _describe_quantization(quantization: dict[str, Any]) -> str | None:
    bits, group = quantization.get("bits"), quantization.get("group_size")
    if isinstance(bits, int):
        return f"{bits}-bit, group {group}" if isinstance(group, int) else f"{bits}-bit"
    return "quantised" if quantization else None
