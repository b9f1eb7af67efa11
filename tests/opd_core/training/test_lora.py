"""Base, student and adapters: shared weights, exact continuation of an mlx-lm adapter, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load, load_model

from opd_core.config import parse_config
from opd_core.errors import CompatibilityError, ConfigError, ModelFileError
from opd_core.training.arrays import flat
from opd_core.training.lora import (
    LoadedBase,
    NewAdapter,
    Student,
    head_is_trained,
    initial_student,
    load_base,
    make_student,
    share_weights,
)
from tests.tiny import write_tiny_model

TOKENS = mx.array([[1, 50, 60, 70]])


def moved(student: Student, seed: int = 0) -> Student:
    """The student with a random, non-zero adapter."""
    keys = mx.random.split(mx.random.key(seed), len(student.adapter_weights()))
    weights = student.adapter_weights().items()
    student.load_adapter_weights(
        {
            name: value + 0.1 * mx.random.normal(value.shape, key=key)
            for key, (name, value) in zip(keys, weights, strict=True)
        }
    )
    return student


def save_adapter(student: Student, folder: Path) -> Path:
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), student.adapter_weights())
    (folder / "adapter_config.json").write_text(json.dumps(student.adapter_config))
    return folder


def same(left: nn.Module, right: nn.Module) -> bool:
    return bool(mx.allclose(left(TOKENS), right(TOKENS), atol=1e-5))


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_new_adapter_starts_as_the_identity_and_only_it_is_trainable(base: LoadedBase, use_dora: bool) -> None:
    student = make_student(base, None, NewAdapter(4, 2.0, None, use_dora), seed=1)
    assert same(student.model, base.model)
    names = set(student.adapter_weights())
    leaves = {"lora_a", "lora_b", "m"} if use_dora else {"lora_a", "lora_b"}
    assert {name.rsplit(".", 1)[-1] for name in names} == leaves
    assert any("mlp.down_proj" in name for name in names) and any("self_attn.q_proj" in name for name in names)


def test_students_share_the_bases_weights_and_nothing_else(base: LoadedBase) -> None:
    before = base.model(TOKENS)
    first = moved(make_student(base, None, NewAdapter(4, 2.0)))
    second = make_student(base, None, NewAdapter(4, 2.0))
    assert not same(first.model, base.model)
    assert same(second.model, base.model)
    assert bool(mx.array_equal(base.model(TOKENS), before))
    own = flat(share_weights(base.model).parameters())
    assert own and all(value is flat(base.model.parameters())[name] for name, value in own.items())


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_incoming_adapter_keeps_its_own_rank_scale_and_keys(
    base: LoadedBase, tmp_path: Path, use_dora: bool
) -> None:
    new = NewAdapter(3, 7.0, ("self_attn.v_proj", "mlp.up_proj"), use_dora)
    original = moved(make_student(base, None, new))
    folder = save_adapter(original, tmp_path / "adapter")
    continued = make_student(base, folder)
    assert same(continued.model, original.model)
    assert continued.adapter_config == original.adapter_config
    assert set(continued.adapter_weights()) == set(original.adapter_weights())


def test_mlx_lm_loads_what_a_student_saves(base: LoadedBase, tmp_path: Path) -> None:
    student = moved(make_student(base, None, NewAdapter(4, 2.0)))
    folder = save_adapter(student, tmp_path / "adapter")
    model, _ = load(str(base.path), adapter_path=str(folder))[:2]
    assert same(model, student.model)


def test_an_adapter_of_another_base_is_refused_by_tensor_and_shape(base: LoadedBase, tmp_path: Path) -> None:
    folder = save_adapter(make_student(base, None, NewAdapter(4, 2.0)), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 8
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CompatibilityError, match=r"lora_a.*\(32, 4\).*\(32, 8\)"):
        make_student(base, folder)


def test_lora_keys_the_model_has_not_are_refused_with_those_it_has(base: LoadedBase) -> None:
    with pytest.raises(ConfigError, match=r"'self_attn\.w_proj'.*self_attn\.q_proj"):
        make_student(base, None, NewAdapter(4, 2.0, ("self_attn.w_proj",)))


def test_weights_that_do_not_fit_change_nothing(base: LoadedBase) -> None:
    student = moved(make_student(base, None, NewAdapter(4, 2.0)))
    before = student.model(TOKENS)
    with pytest.raises(CompatibilityError, match="do not fit"):
        student.load_adapter_weights(make_student(base, None, NewAdapter(5, 2.0)).adapter_weights())
    assert bool(mx.array_equal(student.model(TOKENS), before))


def test_the_same_seed_gives_the_same_new_adapter(base: LoadedBase) -> None:
    first, second, other = (make_student(base, None, NewAdapter(4, 2.0), seed).adapter_weights() for seed in (5, 5, 6))
    assert all(bool(mx.array_equal(first[name], second[name])) for name in first)
    assert any(not bool(mx.array_equal(first[name], other[name])) for name in first)


def test_a_quantised_base_is_dequantised_once_on_cpu_and_computes_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "quantised")
    model, config = load_model(folder)
    nn.quantize(model, group_size=32, bits=8)
    mx.save_safetensors(str(folder / "model.safetensors"), flat(model.parameters()))
    config["quantization"] = {"group_size": 32, "bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    quantised = load_base(folder)
    assert bool(mx.allclose(quantised.model(TOKENS), model(TOKENS), atol=2e-2))
    if mx.default_device().type == mx.DeviceType.cpu:
        assert "dequantised" in quantised.notes[0]
        assert {value.dtype for value in flat(quantised.model.parameters()).values()} == {mx.float32}
    student = make_student(quantised, None, NewAdapter(4, 2.0))
    assert student.adapter_weights()


def test_half_precision_weights_become_float32_on_cpu(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "half")
    model = load(str(folder))[0]
    half = {name: value.astype(mx.bfloat16) for name, value in flat(model.parameters()).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), half)
    loaded = load_base(folder)
    if mx.default_device().type == mx.DeviceType.cpu:
        assert loaded.notes == ("weights converted from bfloat16 to float32 for the CPU",)
        assert {value.dtype for value in flat(loaded.model.parameters()).values()} == {mx.float32}


def test_a_damaged_model_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelFileError, match="damaged"):
        load_base(folder)


def test_an_adapter_on_the_output_head_is_noticed(tmp_path: Path) -> None:
    base = load_base(write_tiny_model(tmp_path / "untied", tied=False))
    assert not head_is_trained(make_student(base, None, NewAdapter(4, 2.0)))
    config = {"fine_tune_type": "lora", "num_layers": 2}
    config["lora_parameters"] = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["lm_head"]}
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"lm_head.lora_a": mx.zeros((32, 4))})
    assert head_is_trained(make_student(base, folder))


def test_a_16_bit_adapter_is_trained_in_float32_and_without_dropout(base: LoadedBase, tmp_path: Path) -> None:
    original = moved(make_student(base, None, NewAdapter(4, 2.0)))
    folder = save_adapter(original, tmp_path / "adapter")
    half = {name: value.astype(mx.bfloat16) for name, value in original.adapter_weights().items()}
    mx.save_safetensors(str(folder / "adapters.safetensors"), half)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_parameters"]["dropout"] = 0.5
    (folder / "adapter_config.json").write_text(json.dumps(config))
    student = make_student(base, folder)
    assert {value.dtype for value in student.adapter_weights().values()} == {mx.float32}
    student.model.train()
    assert bool(mx.array_equal(student.model(TOKENS), student.model(TOKENS)))


@pytest.mark.parametrize("has_adapter", [False, True])
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_layers_of_a_student_recompute_when_its_configuration_says_so(
    base: LoadedBase, tmp_path: Path, recomputes: bool, has_adapter: bool
) -> None:
    values: dict[str, object] = {"base_model_path": str(base.path), "prompts_path": "p", "lora_rank": 4}
    if has_adapter:
        folder = save_adapter(make_student(base, None, NewAdapter(4, 2.0)), tmp_path / "adapter")
        values["student_adapter_path"] = str(folder)
    config = parse_config({**values, **({"gradient_checkpointing": True} if recomputes else {})})
    student, usual = initial_student(config, base), {type(layer) for layer in base.model.layers}
    assert [type(layer) not in usual for layer in student.model.layers] == [recomputes] * len(base.model.layers)
    if not has_adapter:
        frozen = initial_student(config, base, is_trained=False)
        assert {type(layer) for layer in frozen.model.layers} == usual, "nothing is learned in it"
