"""The configuration: two forms, one meaning, and errors that say what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_core.config import GROUPS, RunConfig, flatten, grouped, parse_config
from opd_core.config_io import parse_yaml, read_config, to_yaml
from opd_core.errors import ConfigError

MINIMAL = {"base_model_path": "/models/m", "prompts_path": "p.jsonl"}

DESIGN_YAML = """
run_id: opd_20261123_123456
session_id: null
models: {base_model_path: /models/m, student_adapter_path: /adapters/a, teacher_model_id: /models/t}
data: {prompts_path: p.jsonl, validation_prompts_path: v.jsonl, rollout_output_dir: null, val_rollout_dir: null}
training: {num_rollouts_per_prompt: 3, rollout_max_tokens: 512, batch_size: 4, num_training_steps: 1000,
  learning_rate: 0.00001}
loss: {kl_weight: 1.0, kl_schedule: warmup, kl_warmup_steps: 100, use_sft_mixup: false, sft_weight: 0.1}
teacher: {max_concurrent: 5, rate_limit_tpm: 10000, timeout_seconds: 120, max_budget_usd: 100.0}
checkpointing: {checkpoint_dir: null, checkpoint_every_steps: 100, save_best_only: false}
evaluation: {eval_every_steps: 100, eval_max_samples: 100}
reproducibility: {seed: 42}
"""


def test_the_grouped_form_of_the_design_loads_and_equals_the_defaults() -> None:
    config = parse_config(parse_yaml(DESIGN_YAML, "design"))
    given = {"run_id": "opd_20261123_123456", "student_adapter_path": "/adapters/a", "teacher_model_id": "/models/t"}
    assert config == parse_config({**MINIMAL, **given, "validation_prompts_path": "v.jsonl"})
    assert config.teacher_timeout_seconds == 120.0


def test_the_resolved_yaml_gives_the_same_configuration_back(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "teacher_examples": [{"prompt": "a", "completion": "b"}],
        "lora_keys": ["self_attn.q_proj"],
        "check": {"kind": "regex", "pattern": "[0-9]+"},
        "teacher_system_prompt": "two\nlines: – “quoted”",
        "learning_rate": 3e-7,
    }
    config = parse_config({**MINIMAL, **more})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert read_config(file) == config


def test_the_resolved_yaml_holds_every_field() -> None:
    text = to_yaml(parse_config(MINIMAL))
    flat, problems = flatten(parse_yaml(text, "text"))
    assert set(flat) == set(RunConfig.model_fields) and not problems


def test_every_grouped_field_exists_and_stands_in_one_group() -> None:
    fields = [field for group in GROUPS.values() for field in group]
    assert len(fields) == len(set(fields)) and set(fields) <= set(RunConfig.model_fields)


def test_every_field_is_described() -> None:
    assert all(field.description for field in RunConfig.model_fields.values())


def test_a_json_file_and_a_flat_file_load_as_well(tmp_path: Path) -> None:
    for name, text in (
        ("a.json", '{"base_model_path": "/m", "prompts_path": "p.txt"}'),
        ("b.yaml", "base_model_path: /m\nprompts_path: p.txt\n"),
    ):
        (tmp_path / name).write_text(text)
        assert read_config(tmp_path / name).prompts_path == "p.txt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learnin_rate": 0.1}, ["'learnin_rate' is not known", "'learning_rate'"]),
        ({"training": {"batchsize": 3}}, ["'training.batchsize'", "'batch_size'"]),
        ({"training": 3}, ["training is a group"]),
        ({"batch_size": 0}, ["batch_size is 0", "greater than or equal to 1"]),
        ({"batch_size": 2.5}, ["batch_size is 2.5", "integer"]),
        ({"batch_size": True}, ["batch_size is True"]),
        ({"learning_rate": "1e-4"}, ["learning_rate is the text '1e-4'", "number"]),
        ({"learning_rate": float("nan")}, ["learning_rate is nan"]),
        ({"max_budget_usd": -5.0}, ["max_budget_usd is -5.0", "greater than or equal to 0"]),
        ({"rollout_top_p": 0.0}, ["rollout_top_p"]),
        ({"method": "magic"}, ["method is the text 'magic'", "'kl'"]),
        ({"kl_schedule": None}, ["kl_schedule is None"]),
        ({"teacher_examples": [{"prompt": "a"}]}, ["teacher_examples.0.completion is missing"]),
        ({"run_id": "../x"}, ["run_id"]),
        ({"seed": 1, "reproducibility": {"seed": 2}}, ["seed is given twice"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, **change})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "pydantic" not in message and "http" not in message
    assert "nothing was started" in message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"3 problems.*batchsize.*seed.*learning_rate|3 problems") as caught:
        parse_config({**MINIMAL, "batchsize": 1, "seed": -1, "learning_rate": "x"})
    assert all(word in str(caught.value) for word in ("batchsize", "seed", "learning_rate"))


def test_a_configuration_without_prompts_or_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompts_path or validation_prompts_path"):
        parse_config({"base_model_path": "/m"})
    with pytest.raises(ConfigError, match="base_model_path is missing"):
        parse_config({"prompts_path": "p.txt"})


def test_only_held_out_prompts_are_enough() -> None:
    assert parse_config({"base_model_path": "/m", "validation_prompts_path": "v.txt"}).prompts_path is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("seed: 1\nseed: 2\n", "twice"),
        ("seed: [1\n", "line 2"),
        ("? [a]\n: 1\n", "not text"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: 12:30\n", "'12:30' is not a number in plain digits"),
        ("a: 010\n", "'010' is not"),
        ("a: 0x10\n", "'0x10' is not"),
        ("a: 1:30.5\n", "'1:30.5' is not"),
        (f"a: {'9' * 5000}\n", "is not a number in plain digits"),
        ("a: 2026-99-99\n", "month must be"),
        ("a: !!timestamp x\n", "not valid YAML"),
        ("a: !!int x\n", "'x' is not a number"),
    ],
)
def test_hostile_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_yaml(text, "file.yaml")


@pytest.mark.parametrize(
    "text", ["seed: no\n", "seed: 1e-4\n", "seed: '42'\n", "learning_rate: 1e-4\n", "teacher_timeout_seconds: 'x'\n"]
)
def test_yaml_surprises_are_caught_by_the_types(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("base_model_path: /m\nprompts_path: p.txt\n" + text)
    with pytest.raises(ConfigError):
        read_config(file)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- a\n- b\n", b"just text"])
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_config(file)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_config(path)


def test_a_configuration_cannot_be_changed() -> None:
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_groups_drop_their_own_prefix_only() -> None:
    teacher = grouped(parse_config(MINIMAL))["teacher"]
    assert {"kind", "timeout_seconds", "max_budget_usd", "overlap_teacher"} <= set(teacher)
