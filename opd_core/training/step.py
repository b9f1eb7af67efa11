"""One training step: the student writes, the teacher scores the same ids, the divergence moves the adapter.

rollouts  y ~ student(·|x)                       decode(), once per prompt and rollout
teacher   states at the same ids                 no gradient
update    Σ_t D(student ‖ teacher)_t / Σ tokens  gradient through the student's distributions only, not through
                                                 the sampling (GKD, arXiv 2306.13649, on-policy λ = 1)
"""

from __future__ import annotations

import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from opd_core.config import RunConfig
from opd_core.paths import utc_now
from opd_core.prompt_files import PromptExample
from opd_core.training.arrays import floats, number
from opd_core.training.logprobs import PackedBatch, micro_batches, pack
from opd_core.training.lora import Student, decoding_model, head_is_trained
from opd_core.training.losses import TokenDivergence, head_divergence, head_divergence_plain, head_nll, kl_weight_at
from opd_core.training.rollouts import Sampling, decode, random_key, repetition_rate
from opd_core.training.sft_targets import SftTargets
from opd_core.training.teaching import TokenTeacher
from opd_core.training.tokenization import decode_completion, prompt_ids
from opd_core.types import Rollout

TRAINING_TOKENS_PER_BATCH = 4096


@dataclass
class StepResult:
    """What an update did; the lists have one entry per completion token of the step.

    Attributes:
        applied: False when loss or gradient was not finite and the update was skipped.
        gradient_norm: before clipping.
    """

    applied: bool
    kl_loss: float
    sft_loss: float
    gradient_norm: float
    kl_weight: float
    learning_rate: float
    values: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    teacher_seconds: float = 0.0
    update_seconds: float = 0.0


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
    student: Student, examples: Sequence[PromptExample], config: RunConfig, step: int, should_stop: Callable[[], bool]
) -> list[Rollout]:
    """The student's completions of a step's prompts; empty when stopped on the way."""
    tokenizer, per_prompt = student.base.tokenizer, config.num_rollouts_per_prompt
    prompts = [prompt_ids(tokenizer, example.messages) for example in examples]
    sampling = Sampling(config.rollout_max_tokens, config.rollout_temperature, config.rollout_top_p)
    key = random_key(config.seed, step, "rollouts")
    decoded = decode(decoding_model(student), prompts, per_prompt, sampling, student.base.stop_ids, key, should_stop)
    now = utc_now()
    return [
        Rollout(
            rollout_id=f"train_{step:06d}_{row:04d}",
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


class Updater:
    """Turns a step's rollouts into one optimizer update of the student's adapter."""

    def __init__(self, student: Student, teacher: TokenTeacher, config: RunConfig) -> None:
        self._student = student
        self._teacher = teacher
        self._config = config
        self._width = min(student.scorer.vocab_size, teacher.vocab_size)
        self._plain = head_is_trained(student)
        self._targets = SftTargets(student, teacher, config.rollout_max_tokens)
        self.optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=0.0, bias_correction=True)

    def update(self, rollouts: Sequence[Rollout], targets: Sequence[PromptExample], step: int) -> StepResult:
        """Apply one update for `rollouts`; `targets` are the examples whose answers the SFT mix-in adds."""
        config, tokens = self._config, sum(len(rollout.completion_ids) for rollout in rollouts)
        result = StepResult(
            applied=False,
            kl_loss=0.0,
            sft_loss=0.0,
            gradient_norm=0.0,
            kl_weight=kl_weight_at(
                step, config.kl_weight, config.kl_schedule, config.kl_warmup_steps, config.num_training_steps
            ),
            learning_rate=config.learning_rate * min(1.0, step / max(1, config.lr_warmup_steps)),
        )
        gradients = None
        for batch, conversations in self._micro_batches(rollouts):
            teacher_states = self._teacher_states(conversations, batch, result)
            gradients = _add(gradients, self._divergence_gradient(batch, teacher_states, tokens, result))
        if targets:
            gradients = _add(gradients, self._sft_gradient(targets, result))
        started = time.perf_counter()
        clipped, norm = optim.clip_grad_norm(gradients, config.gradient_clip_norm)
        result.gradient_norm = number(norm)
        result.applied = math.isfinite(result.gradient_norm) and math.isfinite(result.kl_loss + result.sft_loss)
        if result.applied:
            self.optimizer.learning_rate = result.learning_rate
            self.optimizer.update(self._student.model, clipped)
            mx.eval(self._student.model.trainable_parameters(), self.optimizer.state)
        result.update_seconds += time.perf_counter() - started
        return result

    def _micro_batches(self, rollouts: Sequence[Rollout]) -> list[tuple[PackedBatch, list[Rollout]]]:
        lengths = [
            max(len(rollout.prompt_ids), self._teacher.context_length(rollout.messages)) + len(rollout.completion_ids)
            for rollout in rollouts
        ]
        batches = []
        for group in micro_batches(lengths, TRAINING_TOKENS_PER_BATCH):
            members = [rollouts[index] for index in group]
            packed = pack([member.prompt_ids for member in members], [member.completion_ids for member in members])
            batches.append((packed, members))
        return batches

    def _teacher_states(self, members: Sequence[Rollout], batch: PackedBatch, result: StepResult) -> mx.array:
        started = time.perf_counter()
        states = self._teacher.states([m.messages for m in members], [m.completion_ids for m in members])
        mx.eval(states)
        result.teacher_seconds += time.perf_counter() - started
        return states

    def _divergence_gradient(
        self, batch: PackedBatch, teacher_states: mx.array, step_tokens: int, result: StepResult
    ) -> object:
        started = time.perf_counter()

        def loss(_: nn.Module) -> tuple[mx.array, TokenDivergence]:
            terms = self._divergence(self._student.scorer.states(batch), teacher_states)
            return result.kl_weight * mx.sum(terms.value) / step_tokens, terms

        (_, terms), gradient = nn.value_and_grad(self._student.model, loss)(self._student.model)
        mx.eval(gradient, terms)
        result.kl_loss += number(mx.sum(terms.value)) / step_tokens
        result.values += floats(terms.value)
        result.entropies += floats(terms.student_entropy)
        result.agreements += floats(terms.agreement)
        result.update_seconds += time.perf_counter() - started
        return gradient

    def _divergence(self, states: mx.array, teacher_states: mx.array) -> TokenDivergence:
        scorer, width, beta = self._student.scorer, self._width, self._config.beta

        def student_head(rows: mx.array) -> mx.array:
            return scorer.head(rows)[..., :width]

        def teacher_head(rows: mx.array) -> mx.array:
            return self._teacher.head(rows)[..., :width]

        terms = head_divergence(states, student_head, teacher_states, teacher_head, beta, scorer.positions_per_chunk)
        if self._plain:  # the adapter reaches the head itself: ordinary autodiff gives its gradient too
            value = head_divergence_plain(states, student_head, teacher_states, teacher_head, beta)
            return terms._replace(value=value)
        return terms

    def _sft_gradient(self, targets: Sequence[PromptExample], result: StepResult) -> object:
        started = time.perf_counter()
        student, scorer = self._student, self._student.scorer
        pairs = self._targets.pairs(targets)
        result.teacher_seconds += time.perf_counter() - started
        started = time.perf_counter()
        tokens = sum(len(completion) for _, completion in pairs)
        total = None
        for group in micro_batches([len(prompt) + len(done) for prompt, done in pairs], TRAINING_TOKENS_PER_BATCH):
            batch = pack([pairs[index][0] for index in group], [pairs[index][1] for index in group])

            def loss(_: nn.Module, batch: PackedBatch = batch) -> mx.array:
                nll = head_nll(scorer.states(batch), scorer.head, batch.targets, scorer.positions_per_chunk)
                return self._config.sft_weight * mx.sum(nll) / tokens

            value, gradient = nn.value_and_grad(student.model, loss)(student.model)
            total = _add(total, gradient)
            mx.eval(total)
            result.sft_loss += number(value) / self._config.sft_weight if self._config.sft_weight else 0.0
        result.update_seconds += time.perf_counter() - started
        return total


def _add(total: object, gradient: object) -> object:
    if total is None or gradient is None:
        return gradient if total is None else total
    return tree_map(mx.add, total, gradient)


def step_line(
    step: int, rollouts: Sequence[Rollout], result: StepResult, config: RunConfig, rollout_seconds: float
) -> dict[str, object]:
    """The metrics of a step, by the names of `state.metrics`; a step's token counts are completion tokens."""
    tokens = [len(rollout.completion_ids) for rollout in rollouts]
    total, seconds = sum(tokens), rollout_seconds + result.teacher_seconds + result.update_seconds
    nll = -statistics.fmean(value for rollout in rollouts for value in rollout.sampling_logprobs)
    line: dict[str, object] = {
        "step": step,
        "total_steps": config.num_training_steps,
        "kl_loss": result.kl_loss,
        "sft_loss": result.sft_loss,
        "total_loss": result.kl_weight * result.kl_loss
        + (config.sft_weight * result.sft_loss if result.sft_loss else 0.0),
        "kl_weight": result.kl_weight,
        "kl_divergence_mean": float(np.mean(result.values)),
        "kl_divergence_max": float(np.max(result.values)),
        "kl_divergence_min": float(np.min(result.values)),
        "kl_divergence_std": float(np.std(result.values)),
        "student_entropy": float(np.mean(result.entropies)),
        "teacher_alignment_pct": 100.0 * float(np.mean(result.agreements)),
        "perplexity": math.exp(min(nll, 80.0)),
        "gradient_norm": result.gradient_norm,
        "learning_rate": result.learning_rate,
        "update_skipped": not result.applied,
        "completion_tokens": total,
        "completion_tokens_mean": statistics.fmean(tokens),
        "truncation_rate": statistics.fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "repetition_rate": statistics.fmean(repetition_rate(rollout.completion_ids) for rollout in rollouts),
        "samples_processed": step * len(rollouts),
        "tokens_per_second": total / seconds,
        "rollout_tokens_per_second": total / rollout_seconds,
        "teacher_tokens_per_second": total / max(result.teacher_seconds, 1e-9),
        "update_tokens_per_second": total / max(result.update_seconds, 1e-9),
        "rollout_seconds": rollout_seconds,
        "teacher_seconds": result.teacher_seconds,
        "update_seconds": result.update_seconds,
        "step_seconds": seconds,
        "teacher_api_latency_ms": None,
        "teacher_api_calls": 0,
        "cumulative_cost_usd": 0.0,
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
