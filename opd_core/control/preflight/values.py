"""What can be said about a configuration's values alone, before any file is opened."""

from __future__ import annotations

from opd_core.config import RunConfig
from opd_core.errors import ConfigError

AVAILABLE_METHODS = {"local": ("auto", "kl"), "claude": ("auto", "coach", "contrast", "sft")}
"""Teacher kind to the methods it can serve."""
REMOTE_ONLY_FIELDS = (
    "teacher_template",
    "teacher_cache_only",
    "teacher_batch_api",
    "teacher_max_concurrent",
    "teacher_rate_limit_tpm",
    "teacher_timeout_seconds",
    "guidance_level",
    "overlap_teacher",
)
RECOMMENDED_LEARNING_RATE = 1e-4
LOW_LEARNING_RATE = 2e-5
NEW_ADAPTER_RANK = 32
NEW_ADAPTER_SCALE = 2.0


def value_problems(config: RunConfig, max_budget_usd: float) -> list[ConfigError]:
    """Everything this version cannot do, or that contradicts itself, one error each.

    Args:
        max_budget_usd: the most a person allowed for one run.
    """
    return [
        *_not_available(config),
        *_metric_problems(config),
        *_budget(config, max_budget_usd),
        *_nothing_to_learn(config),
    ]


def value_warnings(config: RunConfig) -> list[str]:
    """What will run but probably not as meant."""
    steps = config.num_training_steps
    warnings = []
    has_kl = config.method not in ("contrast", "sft")
    if has_kl and config.kl_schedule == "warmup" and config.kl_warmup_steps > steps:
        warnings.append(
            f"kl_warmup_steps {config.kl_warmup_steps} is longer than the run of {steps} steps, so the KL weight "
            f"never reaches kl_weight; set kl_schedule to constant, or kl_warmup_steps to {max(1, steps // 10)}."
        )
    if config.learning_rate <= LOW_LEARNING_RATE:
        warnings.append(
            f"learning_rate {config.learning_rate:g} is low for LoRA, which learns better at "
            f"{RECOMMENDED_LEARNING_RATE:g} or above (the default is one for training all weights)."
        )
    if config.lr_warmup_steps >= steps:
        warnings.append(
            f"lr_warmup_steps {config.lr_warmup_steps} lasts as long as the run of {steps} steps; the learning rate "
            "never reaches learning_rate."
        )
    return warnings


def above_ceiling(name: str, budget_usd: float, ceiling_usd: float) -> str:
    """The refusal of a budget that a person did not allow."""
    return (
        f"{name} {budget_usd:g} is above the {ceiling_usd:g} dollars a person allowed with OPD_MAX_BUDGET_USD. Ask for "
        "less, or have a person raise it; a local teacher costs nothing."
    )


def _not_available(config: RunConfig) -> list[ConfigError]:
    methods = AVAILABLE_METHODS.get(config.teacher_kind)
    if methods is None:
        return [
            ConfigError(
                f"teacher_kind {config.teacher_kind!r} is not in this version; available: local (an MLX model on this "
                "machine, or the student's own base model with teacher_system_prompt or teacher_examples) and claude.",
                field="teacher_kind",
            )
        ]
    problems = _remote_only(config) if config.teacher_kind == "local" else []
    if config.method not in methods:
        other = next((kind for kind, served in AVAILABLE_METHODS.items() if config.method in served), None)
        hint = f" {config.method} needs teacher_kind {other!r}." if other else ""
        problems.append(
            ConfigError(
                f"method {config.method!r} is not available with teacher_kind {config.teacher_kind!r}; available: "
                f"{', '.join(methods)}.{hint}",
                field="method",
            )
        )
    return problems


def _metric_problems(config: RunConfig) -> list[ConfigError]:
    metric, method = config.primary_metric, config.method
    if metric == "reference_nll" and config.teacher_kind == "local":
        why = "needs a teacher that writes references (teacher_kind 'claude'); with a local one: task_score, reverse_kl"
    elif metric == "reverse_kl" and (method in ("contrast", "sft")):
        why = f"needs a teacher that scores tokens, and method {method} has none: use task_score or reference_nll"
    else:
        return []
    return [ConfigError(f"primary_metric {metric!r} {why}.", field="primary_metric")]


def _remote_only(config: RunConfig) -> list[ConfigError]:
    fields = RunConfig.model_fields
    given = [name for name in REMOTE_ONLY_FIELDS if getattr(config, name) != fields[name].default]
    if not given:
        return []
    return [
        ConfigError(
            f"{', '.join(given)}: only for a remote teacher (teacher_kind 'claude'), and this run's teacher is local. "
            f"Leave {'it' if len(given) == 1 else 'them'} out.",
            field=given[0],
        )
    ]


def _budget(config: RunConfig, ceiling: float) -> list[ConfigError]:
    if "max_budget_usd" not in config.model_fields_set or config.max_budget_usd <= ceiling:
        return []
    return [ConfigError(above_ceiling("max_budget_usd", config.max_budget_usd, ceiling), field="max_budget_usd")]


def _nothing_to_learn(config: RunConfig) -> list[ConfigError]:
    if config.method in ("contrast", "sft"):
        return []
    if config.kl_weight > 0 or (config.use_sft_mixup and config.sft_weight > 0):
        return []
    return [
        ConfigError(
            "kl_weight is 0 and there is no SFT mix-in, so there is nothing to learn. Give kl_weight above 0.",
            field="kl_weight",
        )
    ]
