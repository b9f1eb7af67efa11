"""Which checkpoints there are, whether each is what was written, and which one a resume takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from opd_core.checkpoint_files import (
    chosen_checkpoint,
    discard,
    fingerprint_file,
    list_checkpoints,
    newest_sound_checkpoint,
    read_state,
    remove_leftovers,
    set_aside_after,
    verify_checkpoint,
)
from opd_core.errors import CheckpointError
from opd_core.training.checkpoint import load_checkpoint, save_checkpoint


def save(folder: Path, step: int) -> Path:
    adapter = {"layer.lora_a": mx.full((4, 2), float(step)), "layer.lora_b": mx.full((2, 4), 1.0)}
    return save_checkpoint(folder, step, adapter, {}, {"step": mx.array(step)}, {"memory": {"step": step}})


def flip_bit(content: bytearray) -> None:
    content[-3] ^= 1


def zero_tail(content: bytearray) -> None:
    content[-16:] = bytes(16)


def truncate(content: bytearray) -> None:
    del content[-5:]


def append(content: bytearray) -> None:
    content += b"\0"


def empty(content: bytearray) -> None:
    content.clear()


DAMAGES: list[Callable[[bytearray], None]] = [flip_bit, zero_tail, truncate, append, empty]


def damage(file: Path, how: Callable[[bytearray], None]) -> None:
    content = bytearray(file.read_bytes())
    how(content)
    file.write_bytes(content)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["adapters.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_any_damage_to_the_newest_is_refused_and_the_sound_one_before_it_is_named(
    tmp_path: Path, name: str, how: Callable[[bytearray], None]
) -> None:
    save(tmp_path, 20), save(tmp_path, 40)
    damage(save(tmp_path, 60) / name, how)
    with pytest.raises(CheckpointError, match=r"step_000060.*from_step 40") as caught:
        newest_sound_checkpoint(tmp_path)
    assert name in str(caught.value)
    assert chosen_checkpoint(tmp_path, 40).name == "step_000040", "taken when it is asked for"


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_config.json", "state.json", "MANIFEST.json"])
def test_a_missing_file_is_damage_and_not_a_reason_to_take_an_earlier_one(tmp_path: Path, name: str) -> None:
    save(tmp_path, 20)
    (save(tmp_path, 40) / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        newest_sound_checkpoint(tmp_path)


def test_a_manifest_that_says_nothing_vouches_for_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "MANIFEST.json").write_text("{}")
    with pytest.raises(CheckpointError, match="wrong about"):
        verify_checkpoint(path)


def test_a_whole_folder_of_another_layout_is_refused_by_its_header(tmp_path: Path) -> None:
    """Even when somebody made a new manifest: bytes that no tensor owns are not weights."""
    path = save(tmp_path, 1)
    file = path / "adapters.safetensors"
    file.write_bytes(file.read_bytes() + bytes(64))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps(manifest | {file.name: fingerprint_file(file)}))
    with pytest.raises(CheckpointError, match=r"holds \d+ bytes of tensors where \d+"):
        load_checkpoint(path)


def test_when_no_earlier_one_is_sound_none_is_offered(tmp_path: Path) -> None:
    for step in (20, 40):
        damage(save(tmp_path, step) / "state.json", truncate)
    with pytest.raises(CheckpointError, match=r"No earlier checkpoint is sound\. Start a new run"):
        newest_sound_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="damaged"):
        chosen_checkpoint(tmp_path, 20)


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(tmp_path: Path) -> None:
    save(tmp_path, 20), save(tmp_path, 40)
    with pytest.raises(CheckpointError, match=r"of step 30; there are: 20, 40") as caught:
        chosen_checkpoint(tmp_path, 30)
    assert caught.value.field == "from_step"


def test_a_run_without_checkpoints_has_none_to_refuse(tmp_path: Path) -> None:
    assert newest_sound_checkpoint(tmp_path / "no such folder") is None


def test_later_checkpoints_lose_their_names_at_once_and_their_bytes_when_the_worker_cleans_up(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        save(tmp_path, step)
    (tmp_path / ".tmp-step_000080-ab").mkdir()
    (tmp_path / ".adapter_config.json.77.abcd.tmp").touch()
    set_aside_after(tmp_path, 20)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000020"]
    assert len(list(tmp_path.iterdir())) == 5
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000020"]
    assert read_state(tmp_path / "step_000020") == {"memory": {"step": 20}}


def test_a_checkpoint_loses_its_name_before_any_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)
    seen: list[list[str]] = []
    monkeypatch.setattr("shutil.rmtree", lambda trash: seen.append([trash.name, *map(str, list_checkpoints(tmp_path))]))
    discard(path)
    assert len(seen) == 1 and seen[0][0].startswith(".trash-step_000001") and len(seen[0]) == 1
