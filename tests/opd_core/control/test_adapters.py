"""Searching folders for adapters in bounded time, and whether an adapter loads by its files alone."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from opd_core.control import adapters
from opd_core.control.adapters import find_adapters, look_at_adapter
from tests.model_folders import World, edit_json, make_adapter, make_model


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path)


def weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapters.safetensors").write_bytes(b"")
    return folder


def test_a_root_that_is_an_adapter_and_folders_below_are_found_nearest_first(tmp_path: Path) -> None:
    deep, near = weights(tmp_path / "a/b/c"), weights(tmp_path / "z")
    alone = weights(tmp_path / "a/alone")
    assert find_adapters([tmp_path]).folders == (near, alone, deep)
    assert find_adapters([deep]).folders == (deep,)


def test_checkpoints_inside_an_adapter_are_not_adapters_of_their_own(tmp_path: Path) -> None:
    adapter = weights(tmp_path / "mine")
    weights(tmp_path / "mine/0000100")
    assert find_adapters([tmp_path]).folders == (adapter,)


def test_links_hidden_folders_and_great_depths_are_not_entered(tmp_path: Path) -> None:
    outside = weights(tmp_path / "outside/x")
    root = tmp_path / "root"
    weights(root / ".hidden")
    weights(root / "node_modules/x")
    weights(root / "1/2/3/4/5/6")
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root)
    assert find_adapters([root]).folders == ()
    at_limit = weights(root / "a/b/c/d/e")
    assert find_adapters([root]).folders == (at_limit,)


def test_a_root_that_is_missing_or_a_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = find_adapters([tmp_path / "none", tmp_path / "file"])
    assert found.folders == () and found.cut is None


def test_the_search_ends_after_a_number_of_entries_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights(tmp_path / "a")
    for number in range(20):
        (tmp_path / f"many/{number}").mkdir(parents=True)
    weights(tmp_path / "many/0/late")
    monkeypatch.setattr(adapters, "MAX_ENTRIES", 15)
    found = find_adapters([tmp_path])
    assert found.folders == (first,)
    assert found.cut is not None and "15 entries" in found.cut and "OPD_ROOTS" in found.cut


def test_the_search_ends_after_its_time_and_says_so(tmp_path: Path) -> None:
    first = weights(tmp_path / "a")
    for number in range(5):
        (tmp_path / f"many/{number}").mkdir(parents=True)
    clock = itertools.count(0.0, 0.4)  # 1.5 seconds are four looks at the clock
    found = find_adapters([tmp_path], clock=lambda: next(clock))
    assert found.folders == (first,) and found.cut is not None and "1.5 seconds" in found.cut


def test_an_adapter_loads_when_its_tensors_fit_the_base_it_names(world: World, tmp_path: Path) -> None:
    by_name = make_adapter(tmp_path / "home/one", model="base")
    by_path = make_adapter(tmp_path / "home/two", model=str(world.base))
    for folder in (by_name, by_path):
        info = look_at_adapter(folder, world.home, world.roots)
        assert (info.loads, info.problem) == (True, None)


def test_an_adapter_of_another_base_is_told_by_its_shapes(world: World, tmp_path: Path) -> None:
    make_model(world.home.models / "wide", hidden=64)
    info = look_at_adapter(make_adapter(tmp_path / "one", model="wide"), world.home, world.roots)
    assert info.loads is False and "does not fit" in str(info.problem) and info.rank == 4


@pytest.mark.parametrize("base", [None, "org/absent", "../base", "/etc"])
def test_without_its_base_here_nothing_is_said_about_loading(world: World, tmp_path: Path, base: str | None) -> None:
    folder = make_adapter(tmp_path / "one")
    edit_json(folder / "adapter_config.json", model=base)
    info = look_at_adapter(folder, world.home, world.roots)
    assert (info.loads, info.problem) == (None, None)


def test_damaged_and_mixed_up_adapters_do_not_load(world: World, tmp_path: Path) -> None:
    cut = make_adapter(tmp_path / "cut")
    data = (cut / "adapters.safetensors").read_bytes()
    (cut / "adapters.safetensors").write_bytes(data[:-10])
    swapped = make_adapter(tmp_path / "swapped", rank=4)
    edit_json(swapped / "adapter_config.json", lora_parameters={"rank": 8, "scale": 2.0})
    make_adapter(tmp_path / "empty", layers=())
    model = make_adapter(tmp_path / "model")
    (model / "adapters.safetensors").write_bytes((world.base / "model.safetensors").read_bytes())
    fifo = make_adapter(tmp_path / "fifo")
    (fifo / "adapters.safetensors").unlink()
    os.mkfifo(fifo / "adapters.safetensors")
    told = {"cut": "cut short", "swapped": "rank 4", "empty": "empty", "model": "no LoRA", "fifo": "no mlx-lm adapter"}
    for name, words in told.items():
        info = look_at_adapter(tmp_path / name, world.home, world.roots)
        assert info.loads is False and words in str(info.problem), name


def test_dora_adapters_are_looked_at_too(world: World, tmp_path: Path) -> None:
    info = look_at_adapter(make_adapter(tmp_path / "one", kind="dora", model="base"), world.home, world.roots)
    assert (info.loads, info.problem, info.fine_tune_type) == (True, None, "dora")
