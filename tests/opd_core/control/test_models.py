"""The list of local models and adapters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opd_core.control.machine import Memory, _linux_memory, parse_vm_stat
from opd_core.control.models import list_models
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from tests.model_folders import World, edit_json, make_adapter, make_model


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path)


def test_models_of_the_home_and_the_hub_cache_are_listed_with_their_problems(world: World, tmp_path: Path) -> None:
    make_model(tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc")
    edit_json(make_model(world.home.models / "unsafe") / "config.json", model_file="x.py")
    listed = {model.name: model.problem for model in list_models(world.home, world.roots).models}
    assert set(listed) == {"base", "unsafe", "org/tiny"}
    assert listed["base"] is None and listed["org/tiny"] is None and "model_file" in str(listed["unsafe"])


def test_adapters_of_runs_come_newest_first_and_damaged_ones_say_why(world: World) -> None:
    old = make_adapter(world.home.checkpoints("opd_1"))
    make_adapter(world.home.checkpoints("opd_2"), rank=8)
    os.utime(old / "adapters.safetensors", (1, 1))
    (world.home.checkpoints("opd_2") / "adapter_config.json").unlink()
    adapters = list_models(world.home, world.roots).adapters
    assert [adapter.name for adapter in adapters] == ["opd_2", "opd_1"]
    assert "adapter_config.json" in str(adapters[0].problem) and adapters[1].rank == 4
    assert adapters[1].modified_at == "1970-01-01T00:00:01Z"


def test_adapters_in_a_folder_a_person_named_are_listed_too(world: World, tmp_path: Path) -> None:
    make_adapter(tmp_path / "elsewhere" / "opd_3")
    roots = Roots.of(world.home.home, outputs=[tmp_path / "elsewhere"])
    assert [adapter.name for adapter in list_models(world.home, roots).adapters] == ["opd_3"]


def test_adapters_below_configured_roots_are_listed_once_with_base_rank_and_date(world: World, tmp_path: Path) -> None:
    tuned = make_adapter(tmp_path / "tunes" / "a" / "mine", rank=8, model=str(world.base))
    os.utime(tuned / "adapters.safetensors", (1, 1))
    run = make_adapter(world.home.checkpoints("opd_1"))
    adapters = list_models(world.home, world.roots, [tmp_path / "tunes", world.home.home]).adapters
    assert [(adapter.path, adapter.rank, adapter.base_model) for adapter in adapters] == [
        (run, 4, None),
        (tuned, 8, str(world.base)),
    ]
    assert adapters[1].modified_at == "1970-01-01T00:00:01Z"


def test_an_adapter_that_two_paths_lead_to_is_listed_once(world: World, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(world.home.home)
    linked = HomePaths(tmp_path / "link")
    run = make_adapter(linked.checkpoints("opd_1"))
    adapters = list_models(linked, Roots.of(linked.home), [world.home.home]).adapters
    assert [adapter.path for adapter in adapters] == [run]


def test_when_the_time_is_over_adapters_are_listed_unchecked(world: World) -> None:
    make_adapter(world.home.checkpoints("opd_1"), model="base")
    ticks = iter([0.0, 0.0, 99.0])
    (adapter,) = list_models(world.home, world.roots, clock=lambda: next(ticks)).adapters
    assert adapter.rank == 4 and adapter.loads is None
    (adapter,) = list_models(world.home, world.roots).adapters
    assert adapter.loads is True


def test_home_that_does_not_exist_has_nothing(tmp_path: Path, world: World) -> None:
    empty = type(world.home)(tmp_path / "none")
    assert list_models(empty, world.roots).models == () == list_models(empty, world.roots).adapters
    assert not empty.home.exists()


def test_memory_is_read_and_capped_by_the_containers_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2000 kB\nMemFree:  5 kB\nMemAvailable:    1500 kB\n")
    assert _linux_memory(meminfo, tmp_path) == Memory(2000 * 1024, 1500 * 1024)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert _linux_memory(meminfo, tmp_path) == Memory(1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert _linux_memory(meminfo, tmp_path) == Memory(2000 * 1024, 1500 * 1024)
    assert _linux_memory(tmp_path / "none", tmp_path) == Memory(None, None)


def test_free_memory_of_macos_is_read_from_vm_stat() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                                5.\nPages active:                           1000.\n"
        "Pages inactive:                            3.\nPages speculative:                         2.\n"
    )
    assert parse_vm_stat(text) == 10 * 16384
    assert parse_vm_stat("") is None
