"""What a run was made of: hashes of model, adapters and prompt files, versions, as files and records have them.

Hashes are taken when asked, so they tell whether a file has changed since the checkpoint's own manifest was written.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core import __version__
from opd_core.safe_open import open_regular, read_regular

MAX_HASHED_BYTES = 2 * 1024**3
"""Of a model's weights; larger ones would keep the caller waiting, so only their size is given."""
MAX_RECORD_BYTES = 16 * 1024 * 1024
_BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileHash:
    """One file: sha256, or why there is none."""

    name: str
    bytes: int | None
    sha256: str | None
    note: str = ""


def hash_file(path: Path, room: int = MAX_HASHED_BYTES) -> FileHash:
    """The sha256 of a file of at most `room` bytes; a file of the hub's cache is named by its own."""
    try:
        size, target = path.stat().st_size, path.resolve()
        if path.is_symlink() and target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
            return FileHash(path.name, size, target.name, "by the hub cache's own name for it")
        if size > room:
            return FileHash(path.name, size, None, "not hashed, too large")
        with open_regular(target, max_bytes=room) as file:
            return FileHash(path.name, size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        return FileHash(path.name, None, None, f"cannot be read: {error.strerror}")


def hash_model(folder: Path) -> list[FileHash]:
    """config.json, tokenizer.json and the weights of a model folder."""
    names = ["config.json", "tokenizer.json"]
    names += sorted(path.name for path in folder.glob("*.safetensors"))[:32] if folder.is_dir() else []
    room, found = MAX_HASHED_BYTES, []
    for name in names:
        entry = hash_file(folder / name, room)
        room -= (entry.bytes or 0) if entry.sha256 is not None and not entry.note else 0
        found.append(entry)
    return found


def hash_adapter(folder: Path) -> list[FileHash]:
    """The two files of an adapter folder."""
    return [hash_file(folder / name) for name in ("adapters.safetensors", "adapter_config.json")]


def checkpoint_records(folder: Path, step: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(manifest, state) of a run's checkpoint: that of `step`, else the newest; empty where there is none."""
    steps = sorted(path for path in folder.glob("step_*") if (path / "MANIFEST.json").is_file())
    wanted = [path for path in steps if step is not None and path.name == f"step_{step:06d}"] or steps[-1:]
    if not wanted:
        return {}, {}
    return _read(wanted[0] / "MANIFEST.json"), _read(wanted[0] / "state.json")


def versions(state: Mapping[str, Any]) -> dict[str, str]:
    """Versions at the checkpoint, and of this program now."""
    recorded = state.get("versions")
    kept = {str(name): str(value) for name, value in recorded.items()} if isinstance(recorded, Mapping) else {}
    return {**kept, "opd-server": __version__, "platform": f"{platform.system()} {platform.machine()}"}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
