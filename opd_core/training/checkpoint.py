"""Writing and reading checkpoints: published by one rename, verified by sha256, loadable by mlx-lm as they are.

Which files there are, and which checkpoint a resume takes: `opd_core/checkpoint_files.py`. safetensors carries no
checksum, and a bit flip or a zeroed tail loads without an error; hence the manifest. A checkpoint is written into a
temporary folder, flushed file by file, the manifest last, and renamed.

No random state is kept, since none lives from one step to the next: every draw is made from (seed, step), the order of
the prompts from (seed, pass).
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from opd_core.checkpoint_files import (
    MANIFEST,
    TENSOR_FILES,
    discard,
    fingerprint_file,
    list_checkpoints,
    read_state,
    remove_leftovers,
    set_aside_after,
    verify_checkpoint,
)
from opd_core.errors import CheckpointError, ModelFileError
from opd_core.paths import fsync_path, write_whole
from opd_core.tensor_files import read_exact_header

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in memory and verified.

    Attributes:
        adapter: the adapter's arrays by name.
        optimizer: the optimizer's flattened state by name.
        state: the run's memory, file positions, configuration, hashes of its inputs and versions, as JSON data.
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
    flush: Callable[[Path], None] = fsync_path,
) -> Path:
    """Publish `folder/step_<step>`; an older one of the same step is replaced. Returns its path.

    Args:
        flush: puts a file or a folder on the disk before the next thing is done.

    Raises:
        CheckpointError: the disk refused (full, read-only); earlier checkpoints are untouched.
    """
    target = folder / f"step_{step:06d}"
    temporary = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            flush(folder.parent)
        temporary.mkdir(mode=0o700)
        # in the order of their names, so that equal arrays make equal files
        adapter, optimizer = dict(sorted(adapter.items())), dict(sorted(optimizer.items()))
        mx.save_safetensors(str(temporary / "adapters.safetensors"), adapter, metadata={"format": "mlx"})
        mx.save_safetensors(str(temporary / "optimizer.safetensors"), optimizer)
        _write_json(temporary / "adapter_config.json", adapter_config)
        _write_json(temporary / "state.json", state)
        for name in TENSOR_FILES:
            read_exact_header(temporary / name)  # a manifest must not vouch for a file that was cut off
        manifest = {file.name: fingerprint_file(file) for file in sorted(temporary.iterdir())}
        for name in manifest:
            (temporary / name).chmod(0o600)
            flush(temporary / name)
        _write_json(temporary / MANIFEST, manifest)
        flush(temporary / MANIFEST)
        flush(temporary)
        discard(target)
        temporary.rename(target)
        flush(folder)
    except (OSError, RuntimeError, ModelFileError) as error:
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
    adapter, optimizer = (_load_arrays(path / name) for name in TENSOR_FILES)
    for name, value in [*adapter.items(), *optimizer.items()]:
        if not bool(mx.all(mx.isfinite(value))):
            raise CheckpointError(f"The checkpoint {path} holds a value that is not finite in {name}.")
    return Checkpoint(path, adapter, optimizer, read_state(path))


def check_fits(saved: Checkpoint, adapter: Mapping[str, mx.array]) -> None:
    """Check the checkpoint's arrays against the student's adapter: names, shapes and types, and Adam's beside them.

    Raises:
        CheckpointError: names the first array that does not fit.
    """
    odd = sorted(set(adapter) ^ set(saved.adapter)) or [
        name for name, own in adapter.items() if not _is_alike(saved.adapter[name], own)
    ]
    for name, value in saved.optimizer.items():
        stem, _, moment = name.rpartition(".")
        if moment in ("m", "v") and stem in adapter and not _is_alike(value, adapter[stem]):
            odd.append(name)
    if odd:
        raise CheckpointError(
            f"The checkpoint {saved.path} does not fit the run's student: {odd[0]!r} and {len(odd) - 1} more differ. "
            "Was it copied from another run?"
        )


def _is_alike(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def publish_best(folder: Path, checkpoint: Path) -> None:
    """Make `checkpoint`'s adapter the one that `folder` itself holds; its config never changes within a run."""
    write_whole(folder / "adapter_config.json", (checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    temporary = folder / f".tmp-adapters-{secrets.token_hex(4)}"
    try:
        shutil.copyfile(checkpoint / "adapters.safetensors", temporary)
        temporary.chmod(0o600)
        fsync_path(temporary)
        temporary.replace(folder / "adapters.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(folder)


def prune_checkpoints(folder: Path, best: Path | None, keep_newest: int = 2) -> None:
    """Remove all but the best and the newest checkpoints; nothing while one of the newest is damaged."""
    found = list_checkpoints(folder)
    for path in found[-keep_newest:]:
        verify_checkpoint(path)
    for path in found[:-keep_newest]:
        if best is None or path.name != best.name:
            discard(path)


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints later than `step` and unfinished ones: a resumed run writes them anew."""
    set_aside_after(folder, step)
    remove_leftovers(folder)


def _load_arrays(path: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path))
        mx.eval(arrays)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not load: {error}.") from error
    if not isinstance(arrays, dict):
        raise CheckpointError(f"{path} holds no named arrays.")
    return arrays


def _write_json(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8"
    )
    path.chmod(0o600)
