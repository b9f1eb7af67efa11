"""What the updates of all methods share: their protocol, one optimizer step, the likelihood of given texts.

    rollouts, examples → loss of the method → gradient on the adapter → clip → Adam → StepResult

Losses are sums over tokens or sequences with weights that the caller has divided already, so that nothing depends on
how a step was cut into micro-batches.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_unflatten

from opd_core.config import RunConfig
from opd_core.prompt_files import PromptExample
from opd_core.training.arrays import flat, floats, number
from opd_core.training.lanes import lanes
from opd_core.training.logprobs import PackedBatch, Scorer, completion_logprobs, pack
from opd_core.training.lora import Student, head_is_trained
from opd_core.training.losses import head_nll, score_nll
from opd_core.training.micro_batches import Size, micro_batches
from opd_core.types import Rollout

GPU_TOKENS_PER_BATCH = 4096
CPU_TOKENS_PER_LANE = 512
"""Ids in one forward and backward pass. More gains a CPU nothing and costs it memory; a GPU wants large ones."""
EXPLODED_LOSS = 1e4
"""Nats a token that no model that still is one loses; the update of such a step would only spread the damage."""

Values = TypeVar("Values")
Ids = tuple[int, ...]
IdPair = tuple[Ids, Ids]
"""The ids of a prompt and of one answer to it, its end-of-turn token included."""


@dataclass
class StepResult:
    """What an update did; the lists have one entry per completion token that a token-level teacher scored.

    Attributes:
        applied: whether the weights moved.
        finite: False when loss or gradient was not a finite number, or the loss exploded; the update was skipped.
        learned_from: rollouts or texts that took part; 0 when there was nothing to learn from in this step.
        kl_loss: None without a token-level teacher.
        gradient_norm: before clipping.
        extras: further figures of the method, by the names of `state.metrics`.
    """

    applied: bool = False
    finite: bool = True
    learned_from: int = 0
    kl_loss: float | None = None
    sft_loss: float = 0.0
    total_loss: float = 0.0
    gradient_norm: float = 0.0
    kl_weight: float | None = None
    learning_rate: float = 0.0
    values: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    extras: dict[str, float | int | None] = field(default_factory=dict)
    teacher_seconds: float = 0.0
    update_seconds: float = 0.0


class Updater(Protocol):
    """One method of learning: turns a step's rollouts and prompts into one update of the student's adapter."""

    optimizer: AdapterOptimizer

    def needs_rollouts(self, step: int) -> bool:
        """Whether the update of `step` reads what the student writes; if not, nothing need be written."""
        ...

    def update(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], step: int) -> StepResult:
        """Apply one update. `examples` are the step's prompts, `rollouts` the student's answers to them."""
        ...

    def arrays(self) -> dict[str, mx.array]:
        """What the method itself must keep over a restart, by name; the optimizer's state is not part of it."""
        ...

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `arrays` gave."""
        ...


class AdapterOptimizer:
    """Adam on the adapter, with linear warm-up and a cap on the global gradient norm."""

    def __init__(self, student: Student, config: RunConfig) -> None:
        self._student, self._config = student, config
        self._adam = optim.AdamW(learning_rate=config.learning_rate, weight_decay=0.0, bias_correction=True)

    def apply(self, gradients: object, step: int, result: StepResult) -> None:
        """Clip and apply `gradients`, unless they or the losses in `result` are not usable; fills in `result`."""
        started = time.perf_counter()
        result.learning_rate = self.learning_rate(step)
        clipped, norm = optim.clip_grad_norm(gradients, self._config.gradient_clip_norm)
        result.gradient_norm = number(norm)
        losses = (result.kl_loss or 0.0, result.sft_loss)
        result.finite = all(map(math.isfinite, (result.gradient_norm, result.total_loss))) and all(
            abs(loss) <= EXPLODED_LOSS for loss in losses
        )
        if result.finite:
            self._adam.learning_rate = result.learning_rate
            self._adam.update(self._student.model, clipped)
            mx.eval(self._student.model.trainable_parameters(), self._adam.state)
            result.applied = True
        result.update_seconds += time.perf_counter() - started

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step` (1-based)."""
        return self._config.learning_rate * min(1.0, step / max(1, self._config.lr_warmup_steps))

    def arrays(self) -> dict[str, mx.array]:
        """The optimizer's state by dotted name."""
        return flat(self._adam.state)

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `arrays` gave."""
        self._adam.state = tree_unflatten(list(arrays.items()))


def training_tokens_per_batch() -> int:
    """Ids that one forward and backward pass reads at most, padding included."""
    return CPU_TOKENS_PER_LANE if mx.default_device().type == mx.DeviceType.cpu else GPU_TOKENS_PER_BATCH


def adapter_gradient(student: Student, loss: Callable[[nn.Module], Values], scale: float) -> tuple[Values, object]:
    """Values of `loss` (the first is differentiated) and `scale` times its gradient on the adapter.

    The scale is applied to the adapter's float32 gradients, not to the loss: a loss divided by thousands of tokens
    would send numbers through a float16 model's backward pass that are too small for it. Models whose fast kernels
    have no gradient look at `training` to avoid them; dropout is off in either mode.
    """
    student.model.train()
    try:
        values, gradient = nn.value_and_grad(student.model, loss)(student.model)
    finally:
        student.model.eval()
    return values, tree_map(lambda value: scale * value, gradient)


def add_gradients(total: object, gradient: object) -> object:
    """Sum of two gradient trees; either may be None."""
    if total is None or gradient is None:
        return gradient if total is None else total
    return tree_map(mx.add, total, gradient)


def nll_gradient(student: Student, pairs: Sequence[IdPair], weights: Sequence[float]) -> tuple[object, list[float]]:
    """Gradient of Σ weights[i] · NLL(answer i), and each answer's NLL in nats, summed over its tokens.

    A weight may be negative: the answer is then made less likely. No pairs give no gradient (None).
    """
    sums = [0.0] * len(pairs)
    total: object = None
    for batches in lanes(student.model).rounds(_batches(student.model, pairs)):
        parts = [functools.partial(_nll_part, student, batch, group, weights) for group, batch in batches]
        for (group, batch), ((_, nll), gradient) in zip(batches, lanes(student.model).run(parts), strict=True):
            total = add_gradients(total, gradient)
            _fill(sums, group, batch, nll)
        mx.eval(total)
    return total, sums


def _nll_part(
    student: Student, batch: PackedBatch, group: Sequence[int], weights: Sequence[float]
) -> tuple[tuple[mx.array, mx.array], object]:
    rows = mx.array([weights[index] for index, length in zip(group, batch.lengths, strict=True) for _ in range(length)])

    def loss(_: nn.Module) -> tuple[mx.array, mx.array]:
        nll = _token_nll(student, batch)
        return mx.sum(rows * nll), nll

    return adapter_gradient(student, loss, 1.0)


def answer_nlls(scorer: Scorer, pairs: Sequence[IdPair]) -> list[float]:
    """The NLL of each answer in nats, summed over its tokens; no gradient work."""
    sums = [0.0] * len(pairs)
    batches = _batches(scorer.model, pairs)
    parts = [functools.partial(_score_part, scorer, batch) for _, batch in batches]
    for (group, batch), nll in zip(batches, lanes(scorer.model).run(parts), strict=True):
        _fill(sums, group, batch, nll)
    return sums


def _score_part(scorer: Scorer, batch: PackedBatch) -> mx.array:
    return score_nll(scorer.states(batch), scorer.head, batch.targets, scorer.positions_per_chunk)


def _token_nll(student: Student, batch: PackedBatch) -> mx.array:
    scorer = student.scorer
    if head_is_trained(student):  # the fused loss gives no gradient to the head's own parameters
        return -completion_logprobs(scorer, batch)
    return head_nll(scorer.states(batch), scorer.head, batch.targets, scorer.positions_per_chunk)


def _batches(model: nn.Module, pairs: Sequence[IdPair]) -> list[tuple[list[int], PackedBatch]]:
    sizes = [Size(prompt, len(prompt), len(answer)) for prompt, answer in pairs]
    return [
        (group, pack([pairs[index][0] for index in group], [pairs[index][1] for index in group]))
        for group in micro_batches(sizes, training_tokens_per_batch(), lanes(model).count)
    ]


def _fill(sums: list[float], group: Sequence[int], batch: PackedBatch, nll: mx.array) -> None:
    values = floats(nll)
    offset = 0
    for index, length in zip(group, batch.lengths, strict=True):
        sums[index] = math.fsum(values[offset : offset + length])
        offset += length
