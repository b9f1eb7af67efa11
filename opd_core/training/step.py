"""What frames every training step: which prompts, what the student writes to them, and the metrics line.

rollouts  y ~ student(·|x)     decode(), once per prompt and rollout
update    an `updates.Updater`: kl_update, coach_update, contrast or sft_update
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from opd_core.config import RunConfig
from opd_core.paths import utc_now
from opd_core.prompt_files import PromptExample
from opd_core.training.ahead import PARTS
from opd_core.training.decoding import decoding_model
from opd_core.training.lora import Student
from opd_core.training.rollouts import decode, repetition_rate
from opd_core.training.sampling import Sampling, random_key
from opd_core.training.tokenization import decode_completion, prompt_ids
from opd_core.training.updates import StepResult
from opd_core.types import Rollout

MAX_DECODE_ROWS = 64
"""Answers written side by side; more would let the key-value caches grow without a gain in speed."""


def batch_for_step(examples: Sequence[PromptExample], step: int, batch_size: int, seed: int) -> list[PromptExample]:
    """The prompts of a step (1-based): a seeded shuffle of each pass over the file, by (seed, step) alone."""
    chosen = []
    for position in range((step - 1) * batch_size, step * batch_size):
        epoch, index = divmod(position, len(examples))
        chosen.append(examples[_shuffled(len(examples), epoch, seed)[index]])
    return chosen


@functools.lru_cache(maxsize=2)  # a step touches two passes at most, and a pass may be a million prompts long
def _shuffled(count: int, epoch: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def draw_rollouts(
    student: Student,
    examples: Sequence[PromptExample],
    config: RunConfig,
    step: int,
    should_stop: Callable[[], bool],
    on_part: Callable[[Sequence[Rollout]], None] | None = None,
) -> list[Rollout]:
    """The student's completions of a step's prompts; empty when stopped on the way.

    Args:
        on_part: given, the prompts are answered in `ahead.PARTS` parts, and it gets each as soon as it is written.
    """
    model = decoding_model(student.model)
    size = len(examples) if on_part is None else math.ceil(len(examples) / PARTS)
    size = min(size, max(1, MAX_DECODE_ROWS // config.num_rollouts_per_prompt))
    rollouts: list[Rollout] = []
    for start in range(0, len(examples), size):
        key = random_key(config.seed, step, "rollouts", *([] if size == len(examples) else [start]))
        first_row = start * config.num_rollouts_per_prompt
        part = _draw(student, model, examples[start : start + size], config, step, key, first_row, should_stop)
        if not part:
            return []
        rollouts += part
        if on_part is not None:
            on_part(part)
    return rollouts


def _draw(
    student: Student,
    model: nn.Module,
    examples: Sequence[PromptExample],
    config: RunConfig,
    step: int,
    key: mx.array,
    first_row: int,
    should_stop: Callable[[], bool],
) -> list[Rollout]:
    tokenizer, per_prompt = student.base.tokenizer, config.num_rollouts_per_prompt
    prompts = [prompt_ids(tokenizer, example.messages) for example in examples]
    sampling = Sampling(config.rollout_max_tokens, config.rollout_temperature, config.rollout_top_p)
    decoded = decode(model, prompts, per_prompt, sampling, student.base.stop_ids, key, should_stop)
    now = utc_now()
    return [
        Rollout(
            rollout_id=f"train_{step:06d}_{first_row + row:04d}",
            step=step,
            prompt_id=examples[row // per_prompt].prompt_id,
            messages=examples[row // per_prompt].messages,
            prompt_ids=prompts[row // per_prompt],
            completion=decode_completion(tokenizer, item.ids, student.base.stop_ids),
            completion_ids=item.ids,
            sampling_logprobs=item.logprobs,
            finish_reason="stop" if item.stopped else "length",
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=config.seed,
            timestamp=now,
        )
        for row, item in enumerate(decoded)
    ]


def step_line(
    step: int, rollouts: Sequence[Rollout], result: StepResult, config: RunConfig, rollout_seconds: float
) -> dict[str, object]:
    """The metrics of a step, by the names of `state.metrics`; a step's token counts are completion tokens.

    What was not measured is None: figures of the rollouts when the step wrote none, `kl_*`, entropy and alignment
    without a token-level teacher.
    """
    seconds = rollout_seconds + result.teacher_seconds + result.update_seconds
    line: dict[str, object] = {
        "step": step,
        "total_steps": config.num_training_steps,
        "kl_loss": result.kl_loss,
        "sft_loss": result.sft_loss,
        "total_loss": result.total_loss,
        "kl_weight": result.kl_weight,
        **_divergence_figures(result),
        "gradient_norm": result.gradient_norm,
        "learning_rate": result.learning_rate,
        "update_skipped": not result.applied,
        **_rollout_figures(rollouts),
        "samples_processed": step * (len(rollouts) or result.learned_from),
        **_rates(sum(len(rollout.completion_ids) for rollout in rollouts), result, rollout_seconds, seconds),
        "rollout_seconds": rollout_seconds,
        "teacher_seconds": result.teacher_seconds,
        "update_seconds": result.update_seconds,
        "step_seconds": seconds,
        "teacher_api_latency_ms": None,
        "teacher_api_calls": 0,
        "cumulative_cost_usd": 0.0,
        **result.extras,
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


def _divergence_figures(result: StepResult) -> dict[str, float | None]:
    values = result.values
    return {
        "kl_divergence_mean": float(np.mean(values)) if values else None,
        "kl_divergence_max": float(np.max(values)) if values else None,
        "kl_divergence_min": float(np.min(values)) if values else None,
        "kl_divergence_std": float(np.std(values)) if values else None,
        "student_entropy": float(np.mean(result.entropies)) if values else None,
        "teacher_alignment_pct": 100.0 * float(np.mean(result.agreements)) if values else None,
    }


def _rollout_figures(rollouts: Sequence[Rollout]) -> dict[str, float | int | None]:
    if not rollouts:
        names = ("perplexity", "completion_tokens_mean", "truncation_rate", "repetition_rate")
        return {"completion_tokens": 0, **dict.fromkeys(names)}
    tokens = [len(rollout.completion_ids) for rollout in rollouts]
    nll = -statistics.fmean(value for rollout in rollouts for value in rollout.sampling_logprobs)
    return {
        "perplexity": math.exp(min(nll, 80.0)),
        "completion_tokens": sum(tokens),
        "completion_tokens_mean": statistics.fmean(tokens),
        "truncation_rate": statistics.fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "repetition_rate": statistics.fmean(repetition_rate(rollout.completion_ids) for rollout in rollouts),
    }


def _rates(tokens: int, result: StepResult, rollout_seconds: float, seconds: float) -> dict[str, float | None]:
    parts = {
        "tokens_per_second": seconds,
        "rollout_tokens_per_second": rollout_seconds,
        "teacher_tokens_per_second": result.teacher_seconds,
        "update_tokens_per_second": result.update_seconds,
    }
    return {name: tokens / part if tokens and part > 0 else None for name, part in parts.items()}
