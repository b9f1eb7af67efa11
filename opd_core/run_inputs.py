"""What a run was trained from, in a few hashes, and what has changed since: a resume goes on from the same things.

Prompt files and tokenizer files are hashed whole. Model weights may be many gigabytes: of each weight file the length,
the header and blocks spread over it are hashed, which any other training of the same shapes changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd_core.config import RunConfig
from opd_core.errors import CheckpointError
from opd_core.paths import write_json
from opd_core.types import clean_text

Inputs = Mapping[str, str]
"""Configuration field (`base_model_path:tokenizer` for a part of one) to sha256."""

SAMPLED_BLOCKS = 64
BLOCK_BYTES = 65536
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FREE_FIELDS = frozenset(
    {
        *("num_training_steps", "max_budget_usd", "run_id", "session_id", "client_request_id", "confirmed"),
        *("acknowledge_teacher_terms", "teacher_cache_only", "teacher_max_concurrent", "teacher_rate_limit_tpm"),
        *("teacher_timeout_seconds", "checkpoint_every_steps", "save_best_only", "early_stopping_patience"),
    }
)
"""What a resumed run may have otherwise than the run before it."""
ACCEPTED_FILE = "accepted_inputs.json"
"""Beside the checkpoints: the changed inputs that a person accepted for a resume."""


def fingerprint_inputs(config: RunConfig) -> dict[str, str]:
    """The hashes of a resolved configuration's prompt files, models and adapter; what is not there is left out."""
    found: dict[str, str] = {}
    for name in ("prompts_path", "validation_prompts_path"):
        path = getattr(config, name)
        if path is not None and Path(path).is_file():
            found[name] = _sha256([Path(path)])
    models = {"base_model_path": config.base_model_path, "student_adapter_path": config.student_adapter_path}
    if config.teacher_kind == "local":
        models["teacher_model_id"] = config.teacher_model_id
    for name, folder in models.items():
        if folder is not None and Path(folder).is_dir():
            found |= _fingerprint_model(name, Path(folder))
    return found


def changed_inputs(before: Inputs, now: Inputs) -> list[str]:
    """The names whose hash is another one, or which are only on one side."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def refuse_changes(state: Mapping[str, Any], config: RunConfig, now: Inputs, accepted: Inputs) -> None:
    """Refuse to go on from a checkpoint of other files or another configuration.

    Args:
        state: the checkpoint's `state.json`; one of a version that kept no hashes is taken as it is.
        accepted: changed inputs that a person accepted.

    Raises:
        CheckpointError: names everything that differs.
    """
    before: dict[str, Any] = state.get("config") or {}
    present = config.model_dump(mode="json")
    other = sorted(name for name in before.keys() & present.keys() - FREE_FIELDS if before[name] != present[name])
    if other:
        shown = "; ".join(f"{name} was {_shown(before[name])} and is {_shown(present[name])}" for name in other[:5])
        raise CheckpointError(
            f"This run's checkpoint belongs to another configuration: {shown}. Start a new run for another one.",
            field=other[0],
        )
    inputs: dict[str, str] = state.get("inputs") or {}
    changed = [name for name in changed_inputs(inputs, now) if now.get(name, "") != accepted.get(name)]
    if inputs and changed:
        raise CheckpointError(
            f"{_named(changed, config)} changed since this run was last trained, so it would not go on as it began. "
            "Put back what it was trained with, start a new run, or call resume_distillation with accept_changes true "
            "when the user wants to go on with what is there now.",
            field=changed[0].partition(":")[0],
        )


def changed_prompts_warning(state: Mapping[str, Any], config: RunConfig, now: Inputs) -> str | None:
    """What to say when a run is judged on prompt files that were edited after it."""
    before: dict[str, str] = state.get("inputs") or {}
    names = [name for name in changed_inputs(before, now) if name.endswith("prompts_path")] if before else []
    if not names:
        return None
    return f"{_named(names, config)} changed since the run: the held-out prompts may not be those it was judged on."


def accept_changes(state: Mapping[str, Any], now: Inputs, folder: Path) -> None:
    """Note that a run may go on with its inputs as they are now, and with no others."""
    before: dict[str, str] = state.get("inputs") or {}
    write_json(folder / ACCEPTED_FILE, {name: now.get(name, "") for name in changed_inputs(before, now)})


def read_accepted(folder: Path) -> dict[str, str]:
    """The changed inputs that were accepted for the run whose checkpoints lie in `folder`."""
    try:
        found = json.loads((folder / ACCEPTED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _named(names: Iterable[str], config: RunConfig) -> str:
    """`The file of prompts_path (/data/prompts.jsonl) and the tokenizer of base_model_path (…)`"""
    parts = []
    for name in names:
        field, _, part = name.partition(":")
        what = part or ("file" if field.endswith("prompts_path") else "weights")
        parts.append(f"the {what} of {field} ({_shown(getattr(config, field))})")
    text = " and ".join(parts)
    return text[0].upper() + text[1:]


def _shown(value: Any) -> str:
    return clean_text(str(value), 120)


def _fingerprint_model(name: str, folder: Path) -> dict[str, str]:
    weights = sorted(folder.glob("*.safetensors"))
    configs = [path for path in (folder / "config.json", folder / "adapter_config.json") if path.is_file()]
    tokenizer = [path for path in (folder / file for file in TOKENIZER_FILES) if path.is_file()]
    found = {name: _sha256(configs, sampled=weights)}
    return found | ({f"{name}:tokenizer": _sha256(tokenizer)} if tokenizer else {})


def _sha256(files: Iterable[Path], sampled: Iterable[Path] = ()) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    for path in sampled:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for block in range(SAMPLED_BLOCKS):
                file.seek(block * max(0, size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
