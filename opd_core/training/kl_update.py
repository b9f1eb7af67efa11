"""The update of `kl` and `coach`: the divergence from a token-level teacher at the ids the student wrote.

teacher   states at the same ids, in its own context      no gradient
loss      Σ_t w·D(student ‖ teacher)_t + κ·KL(student ‖ start)_t, over the tokens of the whole step

The gradient goes through the student's distributions only, not through the sampling (GKD, arXiv 2306.13649, on-policy
λ = 1). The second term is the anchor: the student as the run began, without any guidance, so that a context that
pulls hard does not pull the student off (κ = 0: none).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from opd_core.config import RunConfig
from opd_core.prompt_files import PromptExample
from opd_core.training.arrays import floats, number
from opd_core.training.lanes import lanes
from opd_core.training.logprobs import PackedBatch, pack
from opd_core.training.lora import Student, head_is_trained
from opd_core.training.losses import Head, TokenDivergence, head_divergence, head_divergence_plain, kl_weight_at
from opd_core.training.micro_batches import Size, micro_batches
from opd_core.training.teaching import TokenTeacher
from opd_core.training.updates import (
    AdapterOptimizer,
    IdPair,
    StepResult,
    adapter_gradient,
    add_gradients,
    nll_gradient,
    training_tokens_per_batch,
)
from opd_core.types import Rollout

MixinTargets = Callable[[Sequence[PromptExample]], list[IdPair]]
"""The answers that the SFT mix-in adds for a step's prompts; those without one are left out."""


class KlUpdater:
    """Turns a step's rollouts into one optimizer update of the student's adapter; an `updates.Updater`.

    Args:
        anchor: the student as the run began, frozen; needed when `anchor_weight` is above 0.
        mixin_targets: asked for when `use_sft_mixup` is on.
    """

    def __init__(
        self,
        student: Student,
        teacher: TokenTeacher,
        config: RunConfig,
        mixin_targets: MixinTargets,
        anchor: Student | None = None,
    ) -> None:
        self.optimizer = AdapterOptimizer(student, config)
        self._student, self._teacher, self._config = student, teacher, config
        self._mixin_targets = mixin_targets
        self._anchor = anchor if config.anchor_weight > 0 else None
        self._plain = head_is_trained(student)

    def needs_rollouts(self, step: int) -> bool:
        """See `Updater.needs_rollouts`."""
        return True

    def update(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], step: int) -> StepResult:
        """See `Updater.update`; the SFT mix-in takes the examples' answers."""
        config = self._config
        tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
        weight = kl_weight_at(
            step, config.kl_weight, config.kl_schedule, config.kl_warmup_steps, config.num_training_steps
        )
        result = StepResult(kl_loss=0.0, kl_weight=weight, learned_from=len(rollouts))
        gradients: object = None
        for groups in lanes(self._student.model).rounds(self._micro_batches(rollouts)):
            teacher_states = self._teacher_states(groups, result)
            gradients = add_gradients(gradients, self._gradient(groups, teacher_states, tokens, result))
        if config.use_sft_mixup:
            gradients = add_gradients(gradients, self._mixin_gradient(examples, result))
        self.optimizer.apply(gradients, step, result)
        return result

    def arrays(self) -> dict[str, mx.array]:
        """See `Updater.arrays`."""
        return {}

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """See `Updater.load_arrays`."""

    def _micro_batches(self, rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
        sizes = [
            Size(
                rollout.prompt_ids,
                max(len(rollout.prompt_ids), self._teacher.context_length(rollout.messages)),
                len(rollout.completion_ids),
            )
            for rollout in rollouts
        ]
        groups = micro_batches(sizes, training_tokens_per_batch(), lanes(self._student.model).count)
        return [[rollouts[index] for index in group] for group in groups]

    def _teacher_states(self, groups: Sequence[list[Rollout]], result: StepResult) -> list[mx.array]:
        started = time.perf_counter()
        found = lanes(self._student.model).run(
            [
                functools.partial(
                    self._teacher.states, [m.messages for m in members], [m.completion_ids for m in members]
                )
                for members in groups
            ]
        )
        result.teacher_seconds += time.perf_counter() - started
        return found

    def _gradient(
        self, groups: Sequence[list[Rollout]], teacher_states: Sequence[mx.array], tokens: int, result: StepResult
    ) -> object:
        """The gradient of groups that run side by side, and their figures."""
        started = time.perf_counter()
        batches = [pack([m.prompt_ids for m in members], [m.completion_ids for m in members]) for members in groups]
        parts = [
            functools.partial(self._part, batch, states, result.kl_weight or 0.0, tokens)
            for batch, states in zip(batches, teacher_states, strict=True)
        ]
        gradients: object = None
        for (value, terms, drift), gradient in lanes(self._student.model).run(parts):
            gradients = add_gradients(gradients, gradient)
            result.total_loss += number(value) / tokens
            result.kl_loss = (result.kl_loss or 0.0) + number(mx.sum(terms.value)) / tokens
            if self._anchor is not None:
                result.extras["anchor_kl"] = (result.extras.get("anchor_kl") or 0.0) + number(drift) / tokens
            result.values += floats(terms.reverse_kl)
            result.entropies += floats(terms.student_entropy)
            result.agreements += floats(terms.agreement)
        mx.eval(gradients)
        result.update_seconds += time.perf_counter() - started
        return gradients

    def _part(
        self, batch: PackedBatch, teacher_states: mx.array, weight: float, tokens: int
    ) -> tuple[tuple[mx.array, TokenDivergence, mx.array], object]:
        """What one group gives, not yet computed."""
        anchor_states = mx.stop_gradient(self._anchor.scorer.states(batch)) if self._anchor else None

        def loss(_: nn.Module) -> tuple[mx.array, TokenDivergence, mx.array]:
            states = self._student.scorer.states(batch)
            terms = self._divergence(states, teacher_states, self._teacher.head, self._teacher.vocab_size)
            total, drift = weight * mx.sum(terms.value), mx.zeros(())
            if self._anchor is not None and anchor_states is not None:
                scorer = self._anchor.scorer
                drift = mx.sum(self._divergence(states, anchor_states, scorer.head, scorer.vocab_size, 1.0).value)
                total = total + self._config.anchor_weight * drift
            return total, terms, drift

        return adapter_gradient(self._student, loss, 1.0 / tokens)

    def _divergence(
        self, states: mx.array, other_states: mx.array, other_head: Head, other_width: int, beta: float | None = None
    ) -> TokenDivergence:
        scorer = self._student.scorer
        width = min(scorer.vocab_size, other_width)
        chosen_beta = self._config.beta if beta is None else beta

        def student_head(rows: mx.array) -> mx.array:
            return scorer.head(rows)[..., :width]

        def narrowed(rows: mx.array) -> mx.array:
            return other_head(rows)[..., :width]

        chunk = scorer.positions_per_chunk
        terms = head_divergence(states, student_head, other_states, narrowed, chosen_beta, chunk)
        if self._plain:  # the adapter reaches the head itself: ordinary autodiff gives its gradient too
            return terms._replace(
                value=head_divergence_plain(states, student_head, other_states, narrowed, chosen_beta)
            )
        return terms

    def _mixin_gradient(self, examples: Sequence[PromptExample], result: StepResult) -> object:
        asked = time.perf_counter()
        pairs = self._mixin_targets(examples)
        started = time.perf_counter()
        tokens, weight = sum(len(answer) for _, answer in pairs), self._config.sft_weight
        gradient, sums = nll_gradient(self._student, pairs, [weight / tokens] * len(pairs)) if pairs else (None, [])
        result.sft_loss = sum(sums) / max(1, tokens)
        result.total_loss += weight * result.sft_loss
        result.teacher_seconds += started - asked
        result.update_seconds += time.perf_counter() - started
        return gradient
