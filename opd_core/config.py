"""The configuration of one run: every field, its default and its meaning, written here and nowhere else.

Two forms hold the same fields. The flat form (`RunConfig` itself) is the public one: tool arguments, HTTP bodies.
The grouped form is the YAML a person writes and the one kept with each run; a group drops its own prefix
(`teacher: {timeout_seconds}` is `teacher_timeout_seconds`). `config_io.py` reads and writes files of either form.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from opd_core.errors import ConfigError
from opd_core.extractor import CheckSpec, ExtractorSpec
from opd_core.types import clean_text

GROUPS: dict[str, tuple[str, ...]] = {
    "models": ("base_model_path", "student_adapter_path", "teacher_model_id"),
    "data": ("prompts_path", "validation_prompts_path", "rollout_output_dir", "val_rollout_dir"),
    "training": (
        "method", "num_rollouts_per_prompt", "rollout_max_tokens", "rollout_temperature", "rollout_top_p",
        "batch_size", "num_training_steps", "learning_rate", "lr_warmup_steps", "gradient_clip_norm",
        "gradient_checkpointing", "lora_rank", "lora_scale", "lora_keys", "use_dora",
    ),
    "loss": (
        "beta", "token_weighting", "kl_weight", "kl_schedule", "kl_warmup_steps", "use_sft_mixup", "sft_weight",
        "anchor_weight", "dpo_beta", "nll_weight", "dpo_round_steps", "sft_warmup_steps",
    ),
    "teacher": (
        "teacher_kind", "teacher_system_prompt", "teacher_examples", "teacher_template", "teacher_cache_only",
        "teacher_batch_api", "teacher_max_concurrent", "teacher_rate_limit_tpm", "teacher_timeout_seconds",
        "max_budget_usd", "guidance_level", "num_guidance_examples", "teacher_ema", "teacher_refresh_steps",
        "probe_max_prompts", "overlap_teacher", "acknowledge_teacher_terms",
    ),
    "checkpointing": ("checkpoint_dir", "checkpoint_every_steps", "save_best_only"),
    "evaluation": (
        "eval_every_steps", "eval_max_samples", "check", "extractor", "primary_metric", "early_stopping_patience",
    ),
    "reproducibility": ("seed",),
}  # fmt: skip
"""Grouped form: group name to the flat names in it. Fields in no group stand at the top of the YAML."""

Text = Annotated[str, Field(min_length=1, max_length=4096)]
Weight = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class Frozen(BaseModel):
    """Immutable, exact types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TeacherExample(Frozen):
    """One example turn pair in the teacher's own context: what was asked and the ideal answer."""

    prompt: Text
    completion: Text


class RunConfig(Frozen):
    """Everything that decides a run. Units stand in the names; `None` means "decided when the run is resolved"."""

    base_model_path: Text = Field(description="MLX model folder, or a name that list_models shows.")
    student_adapter_path: Text | None = Field(
        None, description="mlx-lm adapter folder to continue from; its rank, scale and keys are kept."
    )
    teacher_model_id: Text | None = Field(
        None,
        description="Local teacher: an MLX model with the student's tokenizer. Left out: the student's own base model, "
        "which then needs teacher_system_prompt or teacher_examples.",
    )
    prompts_path: Text | None = Field(
        None, description="Training prompts: .jsonl with prompt, messages, completion, reference; or .txt."
    )
    validation_prompts_path: Text | None = Field(
        None, description="Held-out prompts. With only one of the two files, it is split by a seeded hash."
    )
    rollout_output_dir: Text | None = Field(None, description="Folder under OPD_HOME for training rollouts.")
    val_rollout_dir: Text | None = Field(None, description="Folder under OPD_HOME for held-out rollouts.")

    method: Literal["auto", "kl", "coach", "contrast", "sft", "span", "pg", "hybrid"] = Field(
        "auto", description="auto picks by teacher; a local teacher with the student's tokenizer means kl."
    )
    num_rollouts_per_prompt: int = Field(3, ge=1, le=256, description="Completions the student writes per prompt.")
    rollout_max_tokens: int = Field(512, ge=1, le=32768, description="Longest completion, in tokens.")
    rollout_temperature: float = Field(1.0, gt=0.0, le=5.0, description="Sampling temperature of training rollouts.")
    rollout_top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus mass kept when sampling; 1 keeps all.")
    batch_size: int = Field(4, ge=1, le=4096, description="Prompts per training step.")
    num_training_steps: int = Field(1000, ge=1, le=1_000_000, description="Optimizer updates.")
    learning_rate: float = Field(
        1e-5, gt=0.0, le=1.0, description="Adam learning rate. LoRA usually learns better at 1e-4 to 5e-4."
    )
    lr_warmup_steps: int = Field(5, ge=0, le=1_000_000, description="Steps of linear learning-rate warm-up.")
    gradient_clip_norm: float = Field(1.0, gt=0.0, le=1e6, description="Largest global gradient norm.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute each layer on the way back: less memory in the update, one more forward pass."
    )
    lora_rank: int | None = Field(None, ge=1, le=1024, description="Rank of a new adapter (default 32).")
    lora_scale: float | None = Field(None, gt=0.0, le=1e4, description="mlx-lm scale of a new adapter (default 2).")
    lora_keys: Annotated[tuple[Text, ...], Strict(False)] | None = Field(
        None, description="Layers a new adapter changes, such as self_attn.q_proj; default all linear layers."
    )
    use_dora: bool = Field(False, description="DoRA instead of LoRA for a new adapter.")

    beta: float = Field(1.0, ge=0.0, le=1.0, description="1 reverse KL, 0 forward KL, between: generalised JSD.")
    token_weighting: Literal["uniform"] = Field("uniform", description="Weight of each completion token in the loss.")
    kl_weight: Weight = Field(1.0, description="Weight of the divergence loss after its schedule.")
    kl_schedule: Literal["constant", "warmup", "cosine"] = Field(
        "warmup", description="warmup: linear from 0 over kl_warmup_steps; cosine: falls to 0 at the last step."
    )
    kl_warmup_steps: int = Field(100, ge=0, le=1_000_000, description="Steps of the warmup schedule.")
    use_sft_mixup: bool = Field(
        False, description="Add sft_weight × NLL of the teacher's own answers to the loss: a cold start."
    )
    sft_weight: Weight = Field(0.1, description="Weight of that NLL.")
    anchor_weight: Weight = Field(
        0.0, description="coach: weight of a KL to the student as it began, unguided; 0.02 to 0.1 against drift."
    )
    dpo_beta: float = Field(
        0.1, gt=0.0, le=10.0, description="contrast: strength of the tie to the policy at the round's start."
    )
    nll_weight: Weight = Field(
        0.2, description="contrast: weight of the NLL per token of the teacher's answer, which holds its likelihood up."
    )
    dpo_round_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="contrast: steps of a round; default one pass over the prompts."
    )
    sft_warmup_steps: int | None = Field(
        None, ge=0, le=1_000_000, description="contrast: steps of SFT first; default one pass, at most half the run."
    )

    teacher_kind: Literal["local", "claude", "endpoint"] = Field("local", description="What the teacher is.")
    teacher_system_prompt: Annotated[str, Field(min_length=1, max_length=65536)] | None = Field(
        None, description="System prompt that only the teacher sees; the student learns to do without it."
    )
    teacher_examples: Annotated[tuple[TeacherExample, ...], Strict(False), Field(max_length=64)] = Field(
        (), description="Example turns (prompt, completion) that only the teacher sees."
    )
    teacher_template: Text | None = Field(None, description="Template of requests to a text teacher.")
    teacher_cache_only: bool = Field(False, description="Use cached teacher replies alone; never call out.")
    teacher_batch_api: bool = Field(False, description="Half-price batch requests where answers can wait.")
    teacher_max_concurrent: int = Field(5, ge=1, le=256, description="Remote teacher calls at one time.")
    teacher_rate_limit_tpm: int = Field(10_000, ge=1, description="Remote teacher tokens per minute.")
    teacher_timeout_seconds: float = Field(120.0, gt=0.0, le=3600.0, description="Deadline of one teacher call.")
    max_budget_usd: float = Field(
        100.0, ge=0.0, le=1e6, description="Most this run may spend; a local teacher is free."
    )
    guidance_level: Literal["examples", "lesson", "critique", "reference"] | None = Field(
        None,
        description="coach: what the student reads to be guided; default examples. sft: reference leaves the student's "
        "own answers out.",
    )
    num_guidance_examples: int = Field(
        4, ge=1, le=64, description="Example turns at guidance_level examples; one teacher call each."
    )
    teacher_ema: float = Field(
        0.0, ge=0.0, le=1.0, description="coach: share of the student that enters the guided copy at each step; 0 none."
    )
    teacher_refresh_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="coach: steps after which the guided copy becomes the student of then."
    )
    probe_max_prompts: int = Field(
        32, ge=1, le=10_000, description="auto: most held-out prompts on which the levels of guidance are tried."
    )
    overlap_teacher: bool = Field(False, description="Draw the next rollouts while a remote teacher works.")
    acknowledge_teacher_terms: bool = Field(False, description="The user has read the provider's terms on training.")

    checkpoint_dir: Text | None = Field(None, description="Folder for checkpoints; default OPD_HOME/checkpoints.")
    checkpoint_every_steps: int = Field(100, ge=1, description="Steps between checkpoints.")
    save_best_only: bool = Field(False, description="Keep the best checkpoint and the newest two only.")
    eval_every_steps: int = Field(100, ge=1, description="Steps between held-out evaluations.")
    eval_max_samples: int = Field(100, ge=1, le=10_000, description="Most held-out prompts used in an evaluation.")
    check: CheckSpec | None = Field(
        None, description="Task score of one answer: kind regex, json_schema, json_equals or reference."
    )
    extractor: ExtractorSpec | None = Field(None, description="Takes the final answer out of a text before a check.")
    primary_metric: Literal["task_score", "reverse_kl", "reference_nll"] | None = Field(
        None, description="Picks the best adapter; default task_score when there is a check or references."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without a better primary metric."
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of rollouts, order, split and new adapter weights.")

    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = Field(
        None, description="Made when left out."
    )
    session_id: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="Links runs that belong together."
    )
    client_request_id: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="Any unique text; a repeated start with the same one returns the same run."
    )
    confirmed: bool = Field(
        False, description="The user agreed to what estimate_cost said; needed for a paid budget above $1."
    )

    @model_validator(mode="after")
    def _has_prompts(self) -> RunConfig:
        if self.prompts_path is None and self.validation_prompts_path is None:
            raise ValueError("give prompts_path or validation_prompts_path: a .jsonl or .txt file of prompts")
        return self

    @model_validator(mode="after")
    def _follows_in_one_way(self) -> RunConfig:
        if self.teacher_ema > 0 and self.teacher_refresh_steps is not None:
            raise ValueError("give teacher_ema or teacher_refresh_steps, not both: they are two ways to follow")
        return self


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from the flat or the grouped form.

    Raises:
        ConfigError: lists every problem at once, in plain words, with near names for unknown keys.
    """
    flat, problems = flatten(data)
    try:
        config = RunConfig(**flat)
    except ValidationError as error:
        raise config_error([*problems, *explain_validation(error, RunConfig.model_fields)]) from None
    if problems:
        raise config_error(problems)
    return config


def config_error(problems: list[str]) -> ConfigError:
    """One error for all problems of a configuration."""
    head = (
        "The configuration has a problem: "
        if len(problems) == 1
        else f"The configuration has {len(problems)} problems: "
    )
    return ConfigError(head + "; ".join(problems) + ". Correct it and call again; nothing was started.")


def flatten(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Turn the grouped form (or a mixture) into the flat one; also returns the problems met on the way."""
    flat: dict[str, Any] = {}
    problems: list[str] = []

    def put(name: str, value: Any) -> None:
        if name in flat:
            problems.append(f"{name} is given twice")
        flat[name] = value

    for key, value in data.items():
        if key not in GROUPS:
            put(str(key), value)
        elif not isinstance(value, Mapping):
            problems.append(f"{key} is a group and needs fields inside, not {describe(value)}")
        else:
            for inner, inner_value in value.items():
                name = f"{key}_{inner}" if f"{key}_{inner}" in GROUPS[key] else str(inner)
                if name not in GROUPS[key]:
                    problems.append(unknown_key(f"{key}.{inner}", [short_name(key, field) for field in GROUPS[key]]))
                else:
                    put(name, inner_value)
    return flat, problems


def short_name(group: str, field: str) -> str:
    """The name of a flat field inside its group."""
    return field.removeprefix(f"{group}_")


def grouped(config: RunConfig) -> dict[str, Any]:
    """The grouped form as plain data: every field, defaults included."""
    flat = config.model_dump(mode="json")
    groups = {name: {short_name(name, field): flat.pop(field) for field in fields} for name, fields in GROUPS.items()}
    return {**flat, **groups}


def unknown_key(name: str, allowed: Iterable[str]) -> str:
    """`'learnin_rate' is not known here; did you mean 'learning_rate'`"""
    names = list(allowed)
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], names, n=1)
    if near:
        return f"{clean_text(name, 80)!r} is not known here; did you mean {near[0]!r}"
    hint = f"; allowed are {', '.join(sorted(names)[:60])}" if names else ""
    return f"{clean_text(name, 80)!r} is not known here{hint}"


def explain_validation(error: ValidationError, allowed: Iterable[str]) -> list[str]:
    """Each problem of a pydantic error in our words: name, value, what is allowed."""
    problems = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(unknown_key(name, allowed if len(item["loc"]) == 1 else ()))
        elif item["type"] == "missing":
            problems.append(f"{name} is missing")
        elif not item["loc"]:
            problems.append(str(item.get("ctx", {}).get("error", item["msg"])))
        else:
            problems.append(f"{name} is {describe(item['input'])}: {plain_rule(item)}")
    return problems


def plain_rule(item: Mapping[str, Any]) -> str:
    """What pydantic wanted, as the end of a sentence."""
    message = str(item["msg"])
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"its kind must be one of {item['ctx'].get('expected_tags', 'the documented ones')}"
    if item["type"] == "string_pattern_mismatch":
        return "use 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit"
    if item["type"] in ("float_type", "int_type") and _is_number_text(item["input"]):
        return "it must be a number, not text: write it without quotes, and 1e-4 as 0.0001 or 1.0e-4"
    for prefix in ("Input should be ", "Value error, "):
        if message.startswith(prefix):
            rest = message.removeprefix(prefix)
            return f"it must be {rest}" if prefix.startswith("Input") else rest
    return message[:1].lower() + message[1:]


def _is_number_text(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):  # the last: a whole number of hundreds of digits
        return False
    return isinstance(value, str)


def describe(value: Any) -> str:
    """A short picture of a wrong value, with its type where that is what is wrong."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return f"the text {clean_text(value, 60)!r}"
    if isinstance(value, list | tuple):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"
