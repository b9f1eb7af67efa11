"""What a run was trained from is told apart from what is there now, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_core import run_inputs
from opd_core.config import RunConfig, parse_config
from opd_core.errors import CheckpointError
from opd_core.run_inputs import (
    accept_changes,
    changed_inputs,
    changed_prompts_warning,
    fingerprint_inputs,
    read_accepted,
    refuse_changes,
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    for name in ("base", "adapter", "teacher"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / ("adapter_config.json" if name == "adapter" else "config.json")).write_text("{}")
        (folder / ("adapters.safetensors" if name == "adapter" else "model.safetensors")).write_bytes(bytes(9_000_000))
        if name != "adapter":
            (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"prompt": "one"}\n')
    (tmp_path / "held.jsonl").write_text('{"prompt": "two"}\n')
    values = {"base_model_path": "base", "student_adapter_path": "adapter", "teacher_model_id": "teacher"}
    values |= {"prompts_path": "train.jsonl", "validation_prompts_path": "held.jsonl"}
    return parse_config({name: str(tmp_path / value) for name, value in values.items()})


def state_of(config: RunConfig) -> dict[str, Any]:
    return {"config": config.model_dump(mode="json"), "inputs": fingerprint_inputs(config)}


def change(file: Path, position: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(position)
        handle.write(b"x" * 300_000)


@pytest.mark.parametrize(
    ("file", "name", "told"),
    [
        ("train.jsonl", "prompts_path", "The file of prompts_path"),
        ("held.jsonl", "validation_prompts_path", "The file of validation_prompts_path"),
        ("base/tokenizer.json", "base_model_path:tokenizer", "The tokenizer of base_model_path"),
        ("base/config.json", "base_model_path", "The weights of base_model_path"),
        ("base/model.safetensors", "base_model_path", "The weights of base_model_path"),
        ("adapter/adapters.safetensors", "student_adapter_path", "The weights of student_adapter_path"),
        ("teacher/model.safetensors", "teacher_model_id", "The weights of teacher_model_id"),
    ],
)
def test_each_changed_input_is_refused_by_its_name_unless_it_was_accepted(
    tmp_path: Path, config: RunConfig, file: str, name: str, told: str
) -> None:
    state = state_of(config)
    change(tmp_path / file, 4_000_000 if file.endswith("safetensors") else 0)
    now = fingerprint_inputs(config)
    assert changed_inputs(state["inputs"], now) == [name]
    with pytest.raises(CheckpointError, match=f"{told}.*accept_changes true") as caught:
        refuse_changes(state, config, now, {})
    assert caught.value.field == name.partition(":")[0]
    accept_changes(state, now, tmp_path)
    refuse_changes(state, config, now, read_accepted(tmp_path))
    change(tmp_path / file, 100)  # what was accepted was this content, and no other
    with pytest.raises(CheckpointError):
        refuse_changes(state, config, fingerprint_inputs(config), read_accepted(tmp_path))


def test_the_same_inputs_are_taken(config: RunConfig) -> None:
    refuse_changes(state_of(config), config, fingerprint_inputs(config), {})


def test_an_input_that_is_gone_is_a_change(tmp_path: Path, config: RunConfig) -> None:
    state = state_of(config)
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer of base_model_path"):
        refuse_changes(state, config, fingerprint_inputs(config), {})


def test_another_configuration_is_refused_by_the_names_of_the_differences(config: RunConfig) -> None:
    state = state_of(config)
    other = config.model_copy(
        update={"learning_rate": 0.5, "beta": 0.0, "num_training_steps": 7, "max_budget_usd": 9.0}
    )
    with pytest.raises(CheckpointError, match=r"beta was 1\.0 and is 0\.0; learning_rate was .* and is 0\.5") as caught:
        refuse_changes(state, other, state["inputs"], state["inputs"])
    assert "num_training_steps" not in str(caught.value) and "max_budget_usd" not in str(caught.value)


def test_a_checkpoint_of_before_there_were_hashes_is_taken(config: RunConfig) -> None:
    refuse_changes({"memory": {}}, config, fingerprint_inputs(config), {})
    assert changed_prompts_warning({}, config, fingerprint_inputs(config)) is None


def test_a_comparison_on_edited_prompts_is_warned_about(tmp_path: Path, config: RunConfig) -> None:
    state = state_of(config)
    assert changed_prompts_warning(state, config, fingerprint_inputs(config)) is None
    change(tmp_path / "held.jsonl", 0)
    warning = changed_prompts_warning(state, config, fingerprint_inputs(config))
    assert warning is not None and warning.startswith("The file of validation_prompts_path") and "held-out" in warning


def test_the_blocks_of_a_large_file_reach_from_its_first_byte_to_its_last(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_inputs, "BLOCK_BYTES", 1000)
    before = fingerprint_inputs(config)
    for position in (0, 8_999_999):
        with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        now = fingerprint_inputs(config)
        assert changed_inputs(before, now) == ["base_model_path"]
        before = now


def test_what_was_accepted_and_cannot_be_read_was_not_accepted(tmp_path: Path) -> None:
    assert read_accepted(tmp_path) == {}
    (tmp_path / "accepted_inputs.json").write_text("[1")
    assert read_accepted(tmp_path) == {}
