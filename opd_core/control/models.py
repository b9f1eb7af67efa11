"""What models and adapters this machine has, for people and assistants to choose from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opd_core.adapter_files import AdapterInfo, inspect_adapter
from opd_core.control.adapters import MAX_SECONDS, WEIGHTS_NAME, Clock, find_adapters, look_at_adapter
from opd_core.model_files import ModelInfo, inspect_model, known_models
from opd_core.paths import HomePaths
from opd_core.roots import Roots

MAX_ENTRIES = 200


@dataclass(frozen=True)
class LocalModels:
    """Everything found; an entry with a `problem` cannot be used, and the problem says why.

    `cut` says why not every folder was searched.
    """

    models: tuple[ModelInfo, ...]
    adapters: tuple[AdapterInfo, ...]
    cut: str | None = None


def list_models(
    home: HomePaths, roots: Roots, searched: Iterable[Path] = (), clock: Clock = time.monotonic
) -> LocalModels:
    """Models under OPD_HOME/models and in the hub cache; adapters of runs and below `searched`, newest first.

    Nothing is downloaded and nothing is raised for a damaged folder. The newest 200 adapters are listed; whether they
    fit their base models is looked at for as long as the time for it lasts.

    Args:
        searched: the folders a person named in OPD_ROOTS.
    """
    models = [inspect_model(path.resolve(), name) for name, path in list(known_models(home).items())[:MAX_ENTRIES]]
    found = find_adapters(searched, clock)
    by_place = {folder.resolve(): folder for folder in [*found.folders, *_adapters_of_runs(home, roots)]}
    folders = sorted(by_place.values(), key=_modified, reverse=True)
    deadline = clock() + MAX_SECONDS
    adapters = [
        look_at_adapter(folder, home, roots) if clock() < deadline else inspect_adapter(folder)
        for folder in folders[:MAX_ENTRIES]
    ]
    return LocalModels(tuple(models), tuple(adapters), found.cut)


def _adapters_of_runs(home: HomePaths, roots: Roots) -> list[Path]:
    """Run folders that hold an adapter, one level below each place where checkpoints may be."""
    places = [
        home.home / "checkpoints",
        *(folder for folder in roots.outputs if folder != home.home.resolve()),
    ]
    return [file.parent for place in places for file in place.glob(f"*/{WEIGHTS_NAME}")]


def _modified(folder: Path) -> float:
    try:
        return (folder / WEIGHTS_NAME).stat().st_mtime
    except OSError:
        return 0.0  # removed between the two looks
