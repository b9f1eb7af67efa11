"""What models and adapters this machine has, for people and assistants to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opd_core.adapter_files import AdapterInfo, inspect_adapter
from opd_core.model_files import ModelInfo, inspect_model, known_models
from opd_core.paths import HomePaths
from opd_core.roots import Roots

MAX_ENTRIES = 200


@dataclass(frozen=True)
class LocalModels:
    """Everything found; an entry with a `problem` cannot be used, and the problem says why."""

    models: tuple[ModelInfo, ...]
    adapters: tuple[AdapterInfo, ...]


def list_models(home: HomePaths, roots: Roots) -> LocalModels:
    """Models under OPD_HOME/models and in the hub cache; adapters under the checkpoint folders, newest first.

    Nothing is downloaded and nothing is raised for a damaged folder. The newest 200 adapters are listed.
    """
    models = [inspect_model(path.resolve(), name) for name, path in list(known_models(home).items())[:MAX_ENTRIES]]
    folders = sorted(_adapter_folders(home, roots), key=_modified, reverse=True)
    return LocalModels(tuple(models), tuple(inspect_adapter(folder) for folder in folders[:MAX_ENTRIES]))


def _adapter_folders(home: HomePaths, roots: Roots) -> list[Path]:
    """Run folders that hold an adapter, one level below each place where checkpoints may be."""
    places = [home.home / "checkpoints", *(folder for folder in roots.outputs if folder != home.home.resolve())]
    return [file.parent for place in places for file in place.glob("*/adapters.safetensors")]


def _modified(folder: Path) -> float:
    try:
        return (folder / "adapters.safetensors").stat().st_mtime
    except OSError:
        return 0.0  # removed between the two looks
