"""Adapter folders below the folders a person named, and whether one loads: by files alone, in bounded time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from opd_core.adapter_files import AdapterInfo, check_adapter_fits, check_adapter_weights, inspect_adapter
from opd_core.errors import CompatibilityError, ModelFileError, OPDError
from opd_core.model_files import resolve_model
from opd_core.paths import HomePaths
from opd_core.roots import Roots

MAX_DEPTH = 5
MAX_ENTRIES = 20_000
MAX_SECONDS = 1.5
# Large, and never where a fine-tune is written.
SKIPPED_NAMES = frozenset({"node_modules", "site-packages", "__pycache__", "Library"})
WEIGHTS_NAME = "adapters.safetensors"
Clock = Callable[[], float]


@dataclass(frozen=True)
class FoundAdapters:
    """The folders with adapter weights; `cut` says in a sentence why not everything was searched."""

    folders: tuple[Path, ...]
    cut: str | None = None


def find_adapters(roots: Iterable[Path], clock: Clock = time.monotonic) -> FoundAdapters:
    """Search folders for adapters, nearest first.

    Not followed: symbolic links, hidden folders, what is deeper than five levels. It ends after 20,000 entries or a
    second and a half, so that a huge or slow tree cannot hang a call. Folders inside an adapter are its checkpoints.
    """
    found: dict[Path, None] = {}
    waiting = deque((root.resolve(), 0) for root in roots)
    deadline, entries = clock() + MAX_SECONDS, 0
    while waiting:
        folder, depth = waiting.popleft()
        inner: list[Path] = []
        try:
            with os.scandir(folder) as listed:
                for entry in listed:
                    entries += 1
                    if entries > MAX_ENTRIES or clock() > deadline:
                        return FoundAdapters(tuple(found), _cut(entries))
                    if entry.name == WEIGHTS_NAME:
                        found[folder] = None
                        inner = []
                        break
                    if depth < MAX_DEPTH and _is_searched(entry):
                        inner.append(folder / entry.name)
        except OSError:
            continue  # gone, or not ours to read
        waiting.extend((path, depth + 1) for path in sorted(inner))
    return FoundAdapters(tuple(found))


def _is_searched(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name not in SKIPPED_NAMES and entry.is_dir(follow_symlinks=False)


def _cut(entries: int) -> str:
    why = f"{MAX_ENTRIES:,} entries" if entries > MAX_ENTRIES else f"{MAX_SECONDS:g} seconds"
    return (
        f"The search for adapters below OPD_ROOTS ended after {why}; there may be more. Name the folders that hold "
        "adapters in OPD_ROOTS, not the ones far above them."
    )


def look_at_adapter(folder: Path, home: HomePaths, roots: Roots) -> AdapterInfo:
    """An adapter folder with the verdict whether it loads: its config, its header, and its base's shapes if here.

    Nothing is raised: what is wrong stands in `problem`. `loads` stays None when its base model is not found here.
    """
    info = inspect_adapter(folder)
    if info.problem is not None:
        return replace(info, loads=False)
    try:
        check_adapter_weights(info)
        base = _base(info, home, roots)
        if base is None:
            return info
        check_adapter_fits(folder, base)
    except (CompatibilityError, ModelFileError) as error:
        return replace(info, loads=False, problem=str(error))
    except OSError:
        return replace(info, loads=False, problem=f"{folder} was changed or removed while it was read.")
    return replace(info, loads=True)


def _base(info: AdapterInfo, home: HomePaths, roots: Roots) -> Path | None:
    """The folder of the base model that an adapter names, when it is one this server may read."""
    if not info.base_model:
        return None
    try:
        return resolve_model(info.base_model, home, roots)
    except OPDError:
        return None
