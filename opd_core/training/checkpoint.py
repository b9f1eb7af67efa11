"""Checkpoints: published by one rename, verified by sha256, loadable by mlx-lm as they are.

    checkpoints/<run_id>/                 adapters.safetensors, adapter_config.json: the best adapter so far
    checkpoints/<run_id>/step_000100/     the same two files of that step, and optimizer.safetensors, state.json,
                                          MANIFEST.json (bytes and sha256 of each file)

safetensors carries no checksum, and a bit flip or a zeroed tail loads without an error; hence the manifest. A
checkpoint is written into a temporary folder, flushed file by file, the manifest last, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from opd_core.errors import CheckpointError
from opd_core.paths import fsync_path, write_whole

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json")
STEP_PATTERN = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in memory and verified.

    Attributes:
        adapter: the adapter's arrays by name.
        optimizer: the optimizer's flattened state by name.
        state: step, evaluation memory, file positions and the configuration's hash, as plain JSON data.
    """

    path: Path
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    adapter: dict[str, mx.array],
    adapter_config: dict[str, Any],
    optimizer: dict[str, mx.array],
    state: dict[str, Any],
) -> Path:
    """Publish `folder/step_<step>`; an older one of the same step is replaced. Returns its path.

    Raises:
        CheckpointError: the disk refused (full, read-only); earlier checkpoints are untouched.
    """
    target = folder / f"step_{step:06d}"
    temporary = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(mode=0o700, parents=True)
        mx.save_safetensors(str(temporary / "adapters.safetensors"), adapter, metadata={"format": "mlx"})
        mx.save_safetensors(str(temporary / "optimizer.safetensors"), optimizer)
        _write_json(temporary / "adapter_config.json", adapter_config)
        _write_json(temporary / "state.json", state)
        manifest = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        for name in manifest:
            (temporary / name).chmod(0o600)
            fsync_path(temporary / name)
        _write_json(temporary / "MANIFEST.json", manifest)
        fsync_path(temporary / "MANIFEST.json")
        fsync_path(temporary)
        _discard(target)
        temporary.rename(target)
        fsync_path(folder)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint of step {step} could not be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after checking every file against the manifest.

    Raises:
        CheckpointError: a file is missing, was changed, or holds numbers that are not finite; names the file.
    """
    verify_checkpoint(path)
    adapter, optimizer = (_load_arrays(path / name) for name in ("adapters.safetensors", "optimizer.safetensors"))
    for name, value in adapter.items():
        if not bool(mx.all(mx.isfinite(value))):
            raise CheckpointError(f"The checkpoint {path} holds a value that is not finite in {name}.")
    return Checkpoint(path, adapter, optimizer, json.loads((path / "state.json").read_text(encoding="utf-8")))


def verify_checkpoint(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: says which file is missing or differs.
    """
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if _fingerprint(path / name) != expected:
                raise CheckpointError(f"The checkpoint {path} is damaged: {name} is not what was written.")
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"The checkpoint {path} is incomplete: {error}.") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        entry
        for entry in folder.iterdir()
        if STEP_PATTERN.fullmatch(entry.name) and (entry / "MANIFEST.json").is_file()
    ]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = STEP_PATTERN.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint folder: its name must be step_000123.")
    return int(match.group(1))


def publish_best(folder: Path, checkpoint: Path) -> None:
    """Make `checkpoint`'s adapter the one that `folder` itself holds; its config never changes within a run."""
    write_whole(folder / "adapter_config.json", (checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    temporary = folder / f".tmp-adapters-{secrets.token_hex(4)}"
    shutil.copyfile(checkpoint / "adapters.safetensors", temporary)
    temporary.chmod(0o600)
    fsync_path(temporary)
    temporary.replace(folder / "adapters.safetensors")
    fsync_path(folder)


def prune_checkpoints(folder: Path, best: Path | None, keep_newest: int = 2) -> None:
    """Remove all but the best and the newest checkpoints."""
    for path in list_checkpoints(folder)[:-keep_newest]:
        if best is None or path.name != best.name:
            _discard(path)


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints later than `step` and unfinished ones: a resumed run writes them anew."""
    for path in list_checkpoints(folder):
        if checkpoint_step(path) > step:
            _discard(path)
    for leftover in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _discard(path: Path) -> None:
    """Rename first, then delete: a half-deleted folder never carries a checkpoint's name."""
    if path.exists():
        trash = path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")
        path.rename(trash)
        shutil.rmtree(trash)


def _load_arrays(path: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path))
        mx.eval(arrays)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not load: {error}.") from error
    if not isinstance(arrays, dict):
        raise CheckpointError(f"{path} holds no named arrays.")
    return arrays


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8"
    )
    path.chmod(0o600)
