"""Ours: the engine's own doors, in the order in which `training/trainer.py` uses them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.opd_step_parts.works import Prompt, Work
from opd_core.config import RunConfig, parse_config
from opd_core.prompt_files import PromptExample
from opd_core.teachers.local import build_local_teacher
from opd_core.training.kl_update import KlUpdater
from opd_core.training.lora import initial_student, load_base
from opd_core.training.sft_targets import SftTargets
from opd_core.training.step import draw_rollouts
from opd_core.types import Message, Rollout


class Contestant:
    """A student, its teacher and the updater, ready for step 1."""

    def __init__(self, work: Work) -> None:
        self._work, self._config, self._steps = work, configuration(work), 0
        base = load_base(Path(work.model))
        # nothing stops the student: every contestant writes the same number of tokens
        self._student = initial_student(self._config, replace(base, stop_ids=frozenset()))
        self._student.load_adapter_weights(dict(loaded(work.lora)))
        teacher = build_local_teacher(self._config, base)
        targets = SftTargets(self._student, teacher, work.new_tokens)
        self._updater = KlUpdater(self._student, teacher, self._config, targets.pairs)

    def check(self) -> dict[str, float]:
        """See `pipe.Steps`."""
        result = self._updater.update(fixed_rollouts(self._work, self._config), self._examples(0), 1)
        assert result.kl_loss is not None
        return {"loss": result.kl_loss, "gradient_norm": result.gradient_norm}

    def step(self) -> dict[str, float]:
        """See `pipe.Steps`."""
        self._steps += 1
        started = time.perf_counter()
        examples = self._examples(self._steps)
        rollouts = draw_rollouts(self._student, examples, self._config, self._steps, lambda: False)
        drawn = time.perf_counter()
        result = self._updater.update(rollouts, examples, self._steps)
        ended = time.perf_counter()
        return {
            "rollout": drawn - started,
            "teacher": result.teacher_seconds,
            "update": ended - drawn - result.teacher_seconds,  # what the updater itself does not count is in it too
            "step": ended - started,
            "new_tokens": sum(len(rollout.completion_ids) for rollout in rollouts),
            "loss": result.kl_loss or 0.0,
            "peak_device_bytes": mx.get_peak_memory(),
        }

    def _examples(self, batch: int) -> list[PromptExample]:
        return [example(prompt) for prompt in self._work.batches[batch]]


def configuration(work: Work) -> RunConfig:
    """The run's configuration: everything that a step reads."""
    fields: dict[str, Any] = {
        "base_model_path": work.model,
        "teacher_model_id": None if work.teacher == work.model else work.teacher,
        "teacher_system_prompt": work.system_prompt,
        "teacher_examples": work.examples,
        "prompts_path": "made here.jsonl",
        "method": "kl",
        "batch_size": len(work.batches[0]),
        "num_rollouts_per_prompt": work.rollouts_per_prompt,
        "rollout_max_tokens": work.new_tokens,
        "learning_rate": work.learning_rate,
        "lr_warmup_steps": 0,
        "lora_rank": work.lora_rank,
        "lora_scale": work.lora_scale,
        "lora_keys": work.lora_keys,
        "kl_schedule": "constant",
        "use_sft_mixup": work.sft_weight > 0,
        "sft_weight": work.sft_weight,
    }
    return parse_config(fields)


def example(prompt: Prompt) -> PromptExample:
    """A prompt as a line of a prompt file."""
    return PromptExample(prompt.text[:64], (message(prompt),), None, None, 1)


def message(prompt: Prompt) -> Message:
    """A prompt as a conversation."""
    return {"role": "user", "content": prompt.text}


def fixed_rollouts(work: Work, config: RunConfig) -> list[Rollout]:
    """The check's completions, as if the student had written them."""
    return [
        Rollout(
            rollout_id=f"check_{row}",
            step=1,
            prompt_id=prompt.text[:64],
            messages=(message(prompt),),
            prompt_ids=prompt.ids,
            completion="",
            completion_ids=ids,
            sampling_logprobs=(0.0,) * len(ids),
            finish_reason="length",
            temperature=1.0,
            top_p=1.0,
            max_tokens=len(ids),
            seed=config.seed,
            timestamp="",
        )
        for row, (prompt, ids) in enumerate(zip(work.repeated(0), work.fixed, strict=True))
    ]


def loaded(path: str) -> dict[str, mx.array]:
    """A safetensors file's arrays."""
    arrays = mx.load(path)
    assert isinstance(arrays, dict)
    return arrays
