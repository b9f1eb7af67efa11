"""The part of the preflight that reads the prompt files and decides how answers are scored."""

from __future__ import annotations

from opd_core.config import RunConfig
from opd_core.control.findings import Findings
from opd_core.control.prompts.token_counts import CHARACTERS_PER_TOKEN
from opd_core.errors import PromptFileError
from opd_core.extractor import ReferenceCheck, needs_reference
from opd_core.intervals import FEW_HELD_OUT, MIN_PAIRS
from opd_core.model_files import ModelInfo
from opd_core.prompt_files import PromptExample
from opd_core.roots import Roots
from opd_core.run_prompts import RunPrompts, load_run_prompts


def read_run_prompts(config: RunConfig, roots: Roots, findings: Findings) -> RunPrompts | None:
    """The run's prompts, their paths decided; `None` when a file cannot be used."""
    paths: dict[str, str | None] = {}
    for name in ("prompts_path", "validation_prompts_path"):
        given = getattr(config, name)
        if given is not None:
            path = findings.attempt(roots.check, given, name, "file")
            paths[name] = None if path is None else str(path)
    if None in paths.values():
        return None
    findings.decided |= paths
    return findings.attempt(load_run_prompts, config.model_copy(update=paths))


def check_scoring(config: RunConfig, prompts: RunPrompts, findings: Findings) -> None:
    """Decide the check and the primary metric; refuse what the file's lines cannot give."""
    without = [example for example in prompts.held_out if example.reference is None]
    scored = config.check is not None
    if config.check is not None and needs_reference(config.check) and without:
        findings.problems.append(_lacking("check", "a reference", without, len(prompts.held_out), "held-out"))
    elif config.check is None and not without:
        findings.decided["check"], scored = ReferenceCheck(kind="reference"), True
    elif config.check is None and len(without) < len(prompts.held_out):
        findings.warnings.append(
            f"{len(without)} of {len(prompts.held_out)} held-out prompts have no reference, so there is no task score."
        )
    if config.primary_metric is None:
        # without a check, a text teacher's run takes what its method has: only then is it known
        token_level = "reverse_kl" if config.teacher_kind == "local" else None
        findings.decided["primary_metric"] = "task_score" if scored else token_level
    elif config.primary_metric == "task_score" and not scored:
        findings.refuse(
            "primary_metric 'task_score' needs a check, or a reference for every held-out prompt. Give one, or leave "
            "primary_metric out.",
            "primary_metric",
        )


def _lacking(field_name: str, what: str, examples: list[PromptExample], total: int, which: str) -> PromptFileError:
    return PromptFileError(
        f"{field_name} needs {what} for {which} prompts, but {len(examples)} of {total} have none (first: line "
        f"{examples[0].line_number}). Add it to those lines of the prompt file, or leave {field_name} out.",
        field=field_name,
    )


def check_amounts(config: RunConfig, prompts: RunPrompts, base: ModelInfo | None, findings: Findings) -> None:
    """Warn about too few prompts and about prompts longer than the model's context."""
    held_out, train = len(prompts.held_out), len(prompts.train)
    if held_out < FEW_HELD_OUT:
        shown = "no difference can be shown" if held_out < MIN_PAIRS else "only large differences can be shown"
        findings.warnings.append(f"There are only {held_out} held-out prompts: {shown}. 40 or more are better.")
    if config.batch_size > train:
        findings.warnings.append(
            f"batch_size {config.batch_size} is more than the {train} training prompts; prompts repeat within a step."
        )
    if base is None or base.context_length is None:
        return
    longest = max(
        sum(len(turn["content"]) for turn in example.messages) for example in prompts.train + prompts.held_out
    )
    context = len(config.teacher_system_prompt or "")
    context += sum(len(example.prompt) + len(example.completion) for example in config.teacher_examples)
    tokens = (longest + context) // CHARACTERS_PER_TOKEN + config.rollout_max_tokens
    if tokens > base.context_length:
        findings.warnings.append(
            f"The longest prompt with the teacher's context and rollout_max_tokens may take about {tokens} tokens, "
            f"more than the model's context of {base.context_length}."
        )
