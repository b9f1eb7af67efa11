"""Checkpoints: whole or not there, verified on load, kept by rule."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from opd_core.checkpoint_files import list_checkpoints
from opd_core.errors import CheckpointError
from opd_core.training.arrays import number
from opd_core.training.checkpoint import (
    discard_after,
    load_checkpoint,
    prune_checkpoints,
    publish_best,
    save_checkpoint,
)

CONFIG = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0}}


def save(folder: Path, step: int, value: float = 1.0) -> Path:
    adapter = {"layer.lora_a": mx.full((4, 2), value), "layer.lora_b": mx.full((2, 4), value)}
    return save_checkpoint(folder, step, adapter, CONFIG, {"step": mx.array(step)}, {"memory": {"step": step}})


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = save(tmp_path, 7, 2.5)
    found = load_checkpoint(path)
    assert path.name == "step_000007"
    assert bool(mx.array_equal(found.adapter["layer.lora_a"], mx.full((4, 2), 2.5)))
    assert number(found.optimizer["step"]) == 7
    assert found.state == {"memory": {"step": 7}}
    assert json.loads((path / "adapter_config.json").read_text()) == CONFIG
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", ["bit", "tail", "truncated", "missing", "appended"])
@pytest.mark.parametrize("name", ["adapters.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 1)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        if damage == "bit":
            content[-3] ^= 1
        elif damage == "tail":
            content[-8:] = bytes(8)
        elif damage == "truncated":
            del content[-5:]
        else:
            content += b"\n"
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"layer\.lora_[ab]"):
        load_checkpoint(save(tmp_path, 1, float("nan")))


def test_only_published_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    for step in (20, 5, 100):
        save(tmp_path, step)
    (tmp_path / ".tmp-step_000300-ab").mkdir()
    (tmp_path / ".trash-step_000001-ab").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000005", "step_000020", "step_000100"]


def test_a_failed_write_leaves_the_earlier_checkpoints_and_no_litter(tmp_path: Path) -> None:
    save(tmp_path, 1)
    unwritable: dict[str, object] = {"value": float("nan")}  # JSON has no NaN: fails half-way through the files
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 2, {"a": mx.zeros(1)}, CONFIG, {}, unwritable)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_the_same_step_written_again_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 3, 1.0)
    found = load_checkpoint(save(tmp_path, 3, 9.0))
    assert number(found.adapter["layer.lora_a"][0, 0]) == 9.0
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_the_best_adapter_lies_in_the_runs_own_folder(tmp_path: Path) -> None:
    publish_best(tmp_path, save(tmp_path, 1, 1.0))
    publish_best(tmp_path, save(tmp_path, 2, 2.0))
    weights = mx.load(str(tmp_path / "adapters.safetensors"))
    assert isinstance(weights, dict) and number(weights["layer.lora_a"][0, 0]) == 2.0
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == CONFIG


def test_pruning_keeps_the_newest_two_and_the_best(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (10, 20, 30, 40, 50)]
    prune_checkpoints(tmp_path, best=paths[1])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000020", "step_000040", "step_000050"]


def test_resuming_discards_later_checkpoints_and_leftovers(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    (tmp_path / ".tmp-step_000040-ab").mkdir()
    (tmp_path / ".trash-step_000005-cd").mkdir()
    discard_after(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000020"]
