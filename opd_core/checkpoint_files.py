"""The checkpoints of a run as files: which there are, whether each is what was written, which one a resume takes.

    checkpoints/<run_id>/                 adapters.safetensors, adapter_config.json: the best adapter so far
    checkpoints/<run_id>/step_000100/     the same two files of that step, and optimizer.safetensors, state.json,
                                          MANIFEST.json (bytes and sha256 of each file)
    checkpoints/<run_id>/.tmp-*           being written; .trash-*: being deleted; left behind by a kill

A folder gets its name `step_…` by one rename when it is complete, and loses it by one rename before anything in it is
deleted. So one that lacks a file, or whose file differs from its manifest, was damaged afterwards: it is refused, never
passed over in silence. No MLX here: a resume is refused in the tool call, not minutes later in the worker.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from opd_core.errors import CheckpointError, ModelFileError
from opd_core.tensor_files import read_exact_header, read_json_object

TENSOR_FILES = ("adapters.safetensors", "optimizer.safetensors")
CHECKPOINT_FILES = frozenset({*TENSOR_FILES, "adapter_config.json", "state.json"})
MANIFEST = "MANIFEST.json"
STEP_PATTERN = re.compile(r"step_(\d{6,})")


def list_checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints of a run, damaged ones included, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((entry for entry in folder.iterdir() if STEP_PATTERN.fullmatch(entry.name)), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = STEP_PATTERN.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint folder: its name must be step_000123.")
    return int(match.group(1))


def fingerprint_file(path: Path) -> dict[str, Any]:
    """Length and sha256 of a file, as a manifest holds them."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify_checkpoint(path: Path) -> None:
    """Check that every file of a checkpoint is there, laid out as its header says and as its manifest says.

    Raises:
        CheckpointError: says which file is missing or differs.
    """
    try:
        manifest = read_json_object(path / MANIFEST)
        if set(manifest) != CHECKPOINT_FILES:
            odd = sorted(CHECKPOINT_FILES ^ set(manifest))[0]
            raise CheckpointError(f"The checkpoint {path} is damaged: its {MANIFEST} is wrong about {odd[:80]!r}.")
        for name in TENSOR_FILES:
            read_exact_header(path / name)
        for name, expected in manifest.items():
            if fingerprint_file(path / name) != expected:
                raise CheckpointError(f"The checkpoint {path} is damaged: {name} is not what was written.")
    except ModelFileError as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: {error}") from error
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} is incomplete: {error}.") from error


def newest_sound_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, verified; None when there is none at all.

    Raises:
        CheckpointError: it is damaged; names the newest sound one before it, which is taken only when asked for.
    """
    found = list_checkpoints(folder)
    if not found:
        return None
    try:
        verify_checkpoint(found[-1])
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_what_to_do(found[:-1])}") from error
    return found[-1]


def chosen_checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of this very step, verified.

    Raises:
        CheckpointError: there is none, or it is damaged; names those there are.
    """
    found = {checkpoint_step(path): path for path in list_checkpoints(folder)}
    if step not in found:
        there = ", ".join(map(str, found)) or "none"
        raise CheckpointError(f"There is no checkpoint of step {step}; there are: {there}.", field="from_step")
    verify_checkpoint(found[step])
    return found[step]


def read_state(path: Path) -> dict[str, Any]:
    """The `state.json` of a verified checkpoint."""
    try:
        return read_json_object(path / "state.json")
    except ModelFileError as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: {error}") from error


def set_aside_after(folder: Path, step: int) -> None:
    """Take the name off every checkpoint later than `step`, at once; the bytes go with `remove_leftovers`."""
    for path in list_checkpoints(folder):
        if checkpoint_step(path) > step:
            _set_aside(path)


def discard(path: Path) -> None:
    """Rename first, then delete: a half-deleted folder never carries a checkpoint's name."""
    if path.exists():
        shutil.rmtree(_set_aside(path))


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted. The caller holds the run's lock."""
    for leftover in [path for pattern in (".tmp-*", ".trash-*", ".*.tmp") for path in folder.glob(pattern)]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _set_aside(path: Path) -> Path:
    return path.rename(path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}"))


def _what_to_do(earlier: list[Path]) -> str:
    for path in reversed(earlier):
        try:
            verify_checkpoint(path)
        except CheckpointError:
            continue
        step = checkpoint_step(path)
        return (
            f"The newest sound checkpoint before it is that of step {step}: call resume_distillation with from_step "
            f"{step} to go on from there; the steps after it are trained again."
        )
    return "No earlier checkpoint is sound. Start a new run; answers already paid for cost nothing again."
