"""From states at completion positions to a loss: the output head, the divergence and their gradient, in chunks.

Logits are the largest arrays of a training step (positions × vocabulary, for student and teacher). `head_divergence`
and `head_nll` never hold more than one chunk of them: each chunk's logits, value and closed-form gradient with
respect to the *states* are computed once, and only the states' gradient (positions × width) is kept for the backward
pass. The idea is that of fused linear cross-entropy (Liger kernel, arXiv 2410.10989), here for divergences.

Both return a *sum*. The caller divides by the number of completion tokens of the whole optimizer step, so that the
loss does not depend on how the step was cut into micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import mlx.core as mx

from opd_core.training.cpu_functions import logsumexp, softmax_and_norm
from opd_core.training.divergence import divergence, divergence_terms

Head = Callable[[mx.array], mx.array]
"""Maps states (N, D) to logits (N, V)."""

CHUNK_LOGITS = 4 * 1024 * 1024
"""Most logits in one chunk: 16 MB in float32, of which a dozen and a half stand at once (measured on CPU)."""


class LogitTerms(NamedTuple):
    """From one chunk of logits (n, V): value (n,), its gradient on the logits (n, V), and further columns (n,)."""

    value: mx.array
    gradient: mx.array
    extras: tuple[mx.array, ...]


LogitTermsOf = Callable[[mx.array, mx.array], LogitTerms]
"""Called with a chunk's logits and the same rows of what they are compared with."""


class TokenDivergence(NamedTuple):
    """Per completion token, each of shape (N,); see `divergence.DivergenceTerms`."""

    value: mx.array
    reverse_kl: mx.array
    student_entropy: mx.array
    agreement: mx.array


def chunk_length(vocab_size: int) -> int:
    """Positions per chunk for a vocabulary of `vocab_size`."""
    return max(16, CHUNK_LOGITS // vocab_size)


def head_divergence(
    student_states: mx.array,
    student_head: Head,
    teacher_states: mx.array,
    teacher_head: Head,
    beta: float,
    positions_per_chunk: int,
) -> TokenDivergence:
    """Divergence at every position, differentiable with respect to `student_states` only.

    Args:
        student_states: (N, D) states from which the student's head predicts a completion token.
        student_head: the student's output head; its own parameters get no gradient here.
        teacher_states: (N, D') of the teacher at the same tokens.
        teacher_head: the teacher's output head, to the same vocabulary.
        beta: 1 reverse KL, 0 forward KL, between them JSD(beta).
        positions_per_chunk: how many positions' logits are held at once.
    """
    _check_lengths(student_states, teacher_states)
    teacher_states = mx.stop_gradient(teacher_states)

    def terms(logits: mx.array, teacher_rows: mx.array) -> LogitTerms:
        found = divergence_terms(logits, teacher_head(teacher_rows), beta)
        return LogitTerms(found.value, found.gradient, (found.reverse_kl, found.student_entropy, found.agreement))

    value, *figures = _fused(student_states, student_head, teacher_states, terms, positions_per_chunk)
    return TokenDivergence(value, *(mx.stop_gradient(figure) for figure in figures))


def head_divergence_plain(
    student_states: mx.array, student_head: Head, teacher_states: mx.array, teacher_head: Head, beta: float
) -> mx.array:
    """The same values by ordinary autodiff, all logits at once: for heads that are trained, and for tests."""
    _check_lengths(student_states, teacher_states)
    teacher_logits = mx.stop_gradient(teacher_head(mx.stop_gradient(teacher_states)))
    return divergence(student_head(student_states), teacher_logits, beta)


def score_divergence(
    student_states: mx.array,
    student_head: Head,
    teacher_states: mx.array,
    teacher_head: Head,
    beta: float,
    positions_per_chunk: int,
) -> TokenDivergence:
    """`head_divergence` without any gradient work: for evaluation."""
    _check_lengths(student_states, teacher_states)
    rows: list[list[mx.array]] = []
    for chunk in _chunks(student_states.shape[0], positions_per_chunk):
        chunk_states, teacher_rows = _after([student_states[chunk], teacher_states[chunk]], rows)
        terms = divergence_terms(student_head(chunk_states), teacher_head(teacher_rows), beta)
        rows.append([terms.value, terms.reverse_kl, terms.student_entropy, terms.agreement])
    return TokenDivergence(*_joined(rows))


def head_nll(states: mx.array, head: Head, targets: mx.array, positions_per_chunk: int) -> mx.array:
    """−log of the student's probability of each target id, (N,), differentiable with respect to `states`.

    With z the logits and s the softmax, ∂NLL/∂z = s − onehot(target).
    """
    _check_lengths(states, targets)

    def terms(logits: mx.array, target_rows: mx.array) -> LogitTerms:
        ids = target_rows[:, None]
        logits = logits.astype(mx.float32)
        probabilities, norm = softmax_and_norm(logits)
        gradient = mx.put_along_axis(probabilities, ids, mx.take_along_axis(probabilities, ids, axis=-1) - 1.0, axis=-1)
        return LogitTerms((norm - mx.take_along_axis(logits, ids, axis=-1))[:, 0], gradient, ())

    return _fused(states, head, targets, terms, positions_per_chunk)[0]


def score_nll(states: mx.array, head: Head, targets: mx.array, positions_per_chunk: int) -> mx.array:
    """`head_nll` without any gradient work: for evaluation and for frozen references."""
    _check_lengths(states, targets)
    rows: list[list[mx.array]] = []
    for chunk in _chunks(states.shape[0], positions_per_chunk):
        chunk_states, ids = _after([states[chunk], targets[chunk]], rows)
        logits = head(chunk_states).astype(mx.float32)
        chosen = mx.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
        rows.append([logsumexp(logits) - chosen])
    return _joined(rows)[0]


def kl_weight_at(
    step: int, weight: float, schedule: Literal["constant", "warmup", "cosine"], warmup_steps: int, total_steps: int
) -> float:
    """Weight of the divergence in the update that makes `step` (1-based).

    constant: `weight`. warmup: linear to `weight` at step `warmup_steps`. cosine: half a cosine from `weight` at the
    first step to 0 after the last.
    """
    if schedule == "warmup" and warmup_steps > 0:
        return weight * min(1.0, step / warmup_steps)
    if schedule == "cosine":
        return weight * 0.5 * (1.0 + math.cos(math.pi * (step - 1) / total_steps))
    return weight


def _fused(
    states: mx.array, head: Head, compared: mx.array, terms: LogitTermsOf, positions_per_chunk: int
) -> list[mx.array]:
    """Per position: the value, differentiable through `states`, then the extras. One chunk of logits at a time."""

    def forward(inner: mx.array) -> list[mx.array]:
        rows: list[list[mx.array]] = []
        for chunk in _chunks(inner.shape[0], positions_per_chunk):
            chunk_states, chunk_compared = _after([inner[chunk], compared[chunk]], rows)
            logits = head(chunk_states)
            found = terms(logits, chunk_compared)
            # the head's vector-Jacobian product; MLX drops the parts of the graph that nobody asks for, so a
            # linear head is not run a second time
            _, (gradient,) = mx.vjp(head, [chunk_states], [found.gradient.astype(logits.dtype)])
            rows.append([found.value, gradient, *found.extras])
        return _joined(rows)

    def backward(_: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
        return cotangents[0][:, None].astype(outputs[1].dtype) * outputs[1]

    fused = mx.custom_function(forward)
    fused.vjp(backward)
    value, _, *extras = cast(list[mx.array], fused(states))
    return [value, *extras]


def _after(inputs: list[mx.array], rows: list[list[mx.array]]) -> list[mx.array]:
    """Make a chunk wait for the one before it: else the lazy graph computes many chunks of logits side by side."""
    return mx.depends(inputs, rows[-1]) if rows else inputs


def _joined(rows: list[list[mx.array]]) -> list[mx.array]:
    return [mx.concatenate(list(column)) for column in zip(*rows, strict=True)]


def _chunks(length: int, positions_per_chunk: int) -> list[slice]:
    return [slice(start, min(start + positions_per_chunk, length)) for start in range(0, length, positions_per_chunk)]


def _check_lengths(first: mx.array, second: mx.array) -> None:
    if first.shape[0] != second.shape[0] or first.shape[0] == 0:
        raise ValueError(f"{first.shape[0]} and {second.shape[0]} positions: equal and at least one are needed")
