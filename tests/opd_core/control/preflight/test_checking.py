"""A configuration is checked as a whole before a run exists: refusals, decided defaults, warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd_core.control.machine import Memory
from opd_core.control.preflight import models
from opd_core.control.preflight.checking import Preflight, check
from opd_core.errors import CompatibilityError, ConfigError, ModelFileError, OPDError, PathError, PromptFileError
from opd_core.settings import Settings
from tests.model_folders import World, edit_json, make_adapter, make_model, tokenizer, write_json, write_prompts


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path)


def passed(world: World, **changes: Any) -> Preflight:
    return check(world.config(**changes), world.roots, Settings(world.home))


def refusal(world: World, **changes: Any) -> OPDError:
    before = sorted(world.home.home.rglob("*"))
    with pytest.raises(OPDError) as caught:
        passed(world, **changes)
    assert sorted(world.home.home.rglob("*")) == before, "a refused start leaves nothing behind"
    return caught.value


def test_good_configuration_is_resolved_completely(world: World) -> None:
    found = passed(world)
    config = found.config
    assert config.base_model_path == str(world.base.resolve())
    assert config.prompts_path == str(world.prompts.resolve())
    assert (config.method, config.teacher_model_id) == ("kl", None)
    assert (config.lora_rank, config.lora_scale, config.primary_metric) == (32, 2.0, "reverse_kl")
    assert found.train_count + found.held_out_count == 60 and found.held_out_count > 0


def test_resolved_configuration_passes_again_unchanged(world: World) -> None:
    write_prompts(world.prompts, reference="yes")
    adapter = make_adapter(world.home.home / "sft", kind="dora")
    first = passed(world, student_adapter_path=str(adapter)).config
    assert check(first, world.roots, Settings(world.home)).config == first


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"method": "coach"}, ConfigError, "available: auto, kl"),
        ({"teacher_kind": "endpoint"}, ConfigError, "available: local"),
        (
            {"teacher_batch_api": True, "teacher_max_concurrent": 9},
            ConfigError,
            "teacher_batch_api, teacher_max_concurrent",
        ),
        ({"primary_metric": "reference_nll"}, ConfigError, "with a local one: task_score, reverse_kl"),
        ({"primary_metric": "task_score"}, ConfigError, "needs a check"),
        ({"max_budget_usd": 200.0}, ConfigError, "OPD_MAX_BUDGET_USD"),
        ({"kl_weight": 0.0}, ConfigError, "nothing to learn"),
        ({"teacher_system_prompt": None}, ConfigError, "nothing to learn"),
        ({"base_model_path": "basis"}, PathError, "Models here: base"),
        ({"base_model_path": "/etc"}, PathError, "outside"),
        ({"prompts_path": "prompts.jsonl"}, PathError, "absolute"),
        ({"checkpoint_dir": "/etc"}, PathError, "OPD_CHECKPOINT_DIR"),
        ({"check": {"kind": "reference"}}, PromptFileError, "line"),
        ({"check": {"kind": "json_equals", "form": {"a": "{reference}"}}}, PromptFileError, "reference"),
    ],
)
def test_one_problem_is_one_plain_error_of_its_kind(
    world: World, changes: dict[str, Any], kind: type[OPDError], says: str
) -> None:
    error = refusal(world, **changes)
    assert type(error) is kind and says in str(error)
    assert "problems" not in str(error)


def test_every_problem_is_told_at_once(world: World) -> None:
    world.prompts.write_text('{"prompt": "fine"}\nnot json\n')
    error = refusal(world, method="pg", base_model_path="none", checkpoint_dir="/etc")
    assert type(error) is ConfigError
    for part in ("4 problems", "'pg'", "'none'", "/etc", "line 2"):
        assert part in str(error)


@pytest.mark.parametrize("make", ["missing", "folder", "empty", "bad line 7", "wrong ending"])
def test_prompt_file_that_cannot_be_read_is_named(world: World, make: str) -> None:
    file = world.home.home / ("p.csv" if make == "wrong ending" else "p.jsonl")
    if make == "folder":
        file.mkdir()
    elif make != "missing":
        good = '{"prompt": "fine"}\n'
        file.write_text({"empty": "", "bad line 7": good * 6 + '{"prompt": \n'}.get(make, good))
    error = refusal(world, prompts_path=str(file))
    assert isinstance(error, PathError | PromptFileError) and str(file) in str(error)
    assert make != "bad line 7" or "line 7" in str(error)


def test_default_budget_is_lowered_to_the_ceiling_and_an_asked_one_is_refused(world: World) -> None:
    lowered = check(world.config(), world.roots, Settings(world.home, max_budget_usd=5.0))
    assert lowered.config.max_budget_usd == 5.0
    with pytest.raises(ConfigError, match="max_budget_usd 6"):
        check(world.config(max_budget_usd=6.0), world.roots, Settings(world.home, max_budget_usd=5.0))


def test_incoming_adapter_keeps_its_own_shape(world: World) -> None:
    adapter = make_adapter(world.home.home / "sft", rank=4, kind="dora")
    config = passed(world, student_adapter_path=str(adapter), lora_rank=4).config
    assert (config.lora_rank, config.lora_scale, config.use_dora) == (4, 2.0, True)
    assert config.lora_keys == ("self_attn.q_proj", "self_attn.v_proj")


@pytest.mark.parametrize(
    "changes", [{"lora_rank": 8}, {"lora_scale": 4.0}, {"lora_keys": ["mlp.down_proj"]}, {"use_dora": True}]
)
def test_other_shape_than_the_incoming_adapters_is_refused(world: World, changes: dict[str, Any]) -> None:
    adapter = make_adapter(world.home.home / "sft", rank=4)
    error = refusal(world, student_adapter_path=str(adapter), **changes)
    assert next(iter(changes)) in str(error) and "keeps its own" in str(error)


def test_adapter_of_another_base_is_refused_with_both_shapes(world: World) -> None:
    adapter = make_adapter(world.home.home / "sft", hidden=64)
    error = refusal(world, student_adapter_path=str(adapter))
    assert isinstance(error, CompatibilityError) and "(64, 4)" in str(error) and "(32, 4)" in str(error)


def test_damaged_base_is_a_model_error(world: World) -> None:
    edit_json(world.base / "config.json", auto_map={"AutoModel": "x.py"})
    assert isinstance(refusal(world), ModelFileError)


def test_larger_teacher_of_the_same_tokenizer_is_accepted_without_context(world: World) -> None:
    teacher = make_model(world.home.models / "big", hidden=64)
    found = passed(world, teacher_model_id="big", teacher_system_prompt=None)
    assert found.config.teacher_model_id == str(teacher.resolve())
    assert found.teacher is not None and found.teacher.hidden_size == 64


def test_teacher_with_another_tokenizer_is_refused_with_the_reason(world: World) -> None:
    teacher = make_model(world.home.models / "other")
    write_json(teacher / "tokenizer.json", tokenizer(vocab={"<s>": 0, "x": 1}, merges=[]))
    error = refusal(world, teacher_model_id="other")
    assert isinstance(error, CompatibilityError) and "vocabularies differ" in str(error)


@pytest.mark.parametrize("spelling", ["base", "path", "link"])
def test_base_named_as_its_own_teacher_is_the_same_base(world: World, spelling: str) -> None:
    (world.home.models / "alias").symlink_to(world.base)
    named = {"base": "base", "path": str(world.base), "link": "alias"}[spelling]
    assert passed(world, teacher_model_id=named).config.teacher_model_id is None
    assert "nothing to learn" in str(refusal(world, teacher_model_id=named, teacher_system_prompt=None))


def test_examples_alone_are_context_enough(world: World) -> None:
    examples = [{"prompt": "a", "completion": "b"}]
    assert passed(world, teacher_system_prompt=None, teacher_examples=examples).teacher is None


def test_references_everywhere_make_the_check_and_the_primary_metric(world: World) -> None:
    write_prompts(world.prompts, reference="yes")
    config = passed(world).config
    assert config.check is not None and config.check.kind == "reference" and config.primary_metric == "task_score"


def test_check_makes_the_task_score_primary_unless_another_is_asked(world: World) -> None:
    regex = {"kind": "regex", "pattern": "x"}
    assert passed(world, check=regex).config.primary_metric == "task_score"
    assert passed(world, check=regex, primary_metric="reverse_kl").config.primary_metric == "reverse_kl"


def test_output_folders_become_absolute(world: World) -> None:
    folder = world.home.home / "x" / ".." / "out"
    assert passed(world, rollout_output_dir=str(folder)).config.rollout_output_dir == str(
        (world.home.home / "out").resolve()
    )


def test_separate_files_stay_disjoint_and_say_what_was_left_out(world: World) -> None:
    held_out = write_prompts(world.home.home / "held_out.jsonl", 25)
    found = passed(world, validation_prompts_path=str(held_out))
    assert (found.train_count, found.held_out_count) == (35, 25)
    assert any("25 training prompts were left out" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_training_steps": 5}, "never reaches kl_weight"),
        ({"learning_rate": 1e-5}, "0.0001"),
        ({"num_training_steps": 5, "kl_schedule": "constant"}, "lr_warmup_steps"),
        ({"batch_size": 100}, "repeat within a step"),
        ({"teacher_system_prompt": "x" * 4000}, "context of 512"),
        ({"eval_max_samples": 4}, "no difference can be shown"),
    ],
)
def test_what_will_run_but_not_as_meant_is_a_warning(world: World, changes: dict[str, Any], says: str) -> None:
    plain = passed(world, rollout_max_tokens=64)
    assert not any(says in warning for warning in plain.warnings)
    assert any(says in warning for warning in passed(world, rollout_max_tokens=64, **changes).warnings)


def test_model_larger_than_the_memory_is_refused_and_a_tight_one_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "read_memory", lambda: Memory(10**12, 1000))
    assert any("Memory is tight" in warning for warning in passed(world).warnings)
    monkeypatch.setattr(models, "read_memory", lambda: Memory(1000, 1000))
    assert "Choose a smaller base model" in str(refusal(world))


def test_full_disk_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_disk_bytes", lambda folder: 1000)
    assert "disk" in str(refusal(world))


def test_text_from_a_configuration_is_escaped_in_errors(world: World) -> None:
    assert "\x1b" not in str(refusal(world, base_model_path="\x1b[31mred"))


def test_prompt_with_a_system_turn_counts_into_the_context(world: World) -> None:
    turns = [{"role": "system", "content": "y" * 3000}, {"role": "user", "content": "hello"}]
    lines = [json.dumps({"messages": turns}), json.dumps({"prompt": "another"})]
    world.prompts.write_text("\n".join(lines))
    assert any("context of 512" in warning for warning in passed(world, rollout_max_tokens=8).warnings)
