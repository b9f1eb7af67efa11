"""Divergences between a student's and a teacher's next-token distribution, per position and over the full vocabulary.

Every function takes two arrays of *logits* of shape (..., V), student first, and returns nats of shape (...):
never negative beyond rounding, zero where the two agree. No mask, no mean, no temperature, no weight in here.
Arithmetic is float32 whatever comes in.

`divergence_terms` gives the same values with their gradient in closed form. With student probabilities s,
teacher probabilities t and z the student's logits:

    reverse KL   KL(s‖t) = Σ s log(s/t)                        ∂/∂z = s · (log(s/t) − KL(s‖t))
    forward KL   KL(t‖s) = Σ t log(t/s)                        ∂/∂z = s − t
    JSD(β)       β·KL(t‖m) + (1−β)·KL(s‖m), m = (1−β)s + βt    ∂/∂z = (1−β) · s · (log(s/m) − KL(s‖m))

The generalised JSD is Eq. (1) of GKD (Agarwal et al., arXiv 2306.13649) as TRL orders it: `beta` 1 names reverse KL
and 0 forward KL. The formula itself tends to 0 at both ends, so the ends are separate functions and a β very near
an end gives a far smaller loss than the end itself. The reverse-KL gradient is also that of MiniLLM
(Gu et al., arXiv 2306.08543) for a single step with the sum over the vocabulary taken exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from opd_core.training.cpu_functions import logsumexp, softmax_and_norm


class DivergenceTerms(NamedTuple):
    """What one pass over the logits yields, per position.

    Attributes:
        value: the divergence in nats, shape (...).
        gradient: ∂value/∂student_logits, shape (..., V).
        reverse_kl: KL(student ‖ teacher) in nats whatever `beta` is, shape (...).
        student_entropy: −Σ s log s in nats, shape (...).
        agreement: 1 where student and teacher have the same most likely token, else 0, shape (...).
    """

    value: mx.array
    gradient: mx.array
    reverse_kl: mx.array
    student_entropy: mx.array
    agreement: mx.array


def reverse_kl(student_logits: mx.array, teacher_logits: mx.array) -> mx.array:
    """KL(student ‖ teacher) = Σ s (log s − log t): mode-seeking; +, in nats, shape (...)."""
    student, teacher = _log_softmax_pair(student_logits, teacher_logits)
    return mx.sum(mx.exp(student) * (student - teacher), axis=-1)


def forward_kl(student_logits: mx.array, teacher_logits: mx.array) -> mx.array:
    """KL(teacher ‖ student) = Σ t (log t − log s): mass-covering; +, in nats, shape (...)."""
    student, teacher = _log_softmax_pair(student_logits, teacher_logits)
    return mx.sum(mx.exp(teacher) * (teacher - student), axis=-1)


def jensen_shannon(student_logits: mx.array, teacher_logits: mx.array, beta: float) -> mx.array:
    """Generalised Jensen-Shannon divergence for 0 < beta < 1; +, in nats, shape (...).

    Raises:
        ValueError: beta is at or beyond an end; use `forward_kl` or `reverse_kl` there.
    """
    _check_inner(beta)
    student, teacher = _log_softmax_pair(student_logits, teacher_logits)
    mixture = _log_mixture(student, teacher, beta)
    to_teacher = mx.sum(mx.exp(teacher) * (teacher - mixture), axis=-1)
    to_student = mx.sum(mx.exp(student) * (student - mixture), axis=-1)
    return beta * to_teacher + (1.0 - beta) * to_student


def divergence(student_logits: mx.array, teacher_logits: mx.array, beta: float) -> mx.array:
    """The divergence that `beta` names: 1 reverse KL, 0 forward KL, between them JSD(beta)."""
    if beta == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    if beta == 0.0:
        return forward_kl(student_logits, teacher_logits)
    return jensen_shannon(student_logits, teacher_logits, beta)


def divergence_terms(student_logits: mx.array, teacher_logits: mx.array, beta: float) -> DivergenceTerms:
    """Value, closed-form gradient, entropy and agreement in one pass: two exponentials a logit for the KL ends.

    Args:
        student_logits: (..., V).
        teacher_logits: (..., V), no gradient is taken.
        beta: 1 reverse KL, 0 forward KL, between them JSD(beta).
    """
    _check_shapes(student_logits, teacher_logits)
    student_logits = student_logits.astype(mx.float32)
    teacher_logits = teacher_logits.astype(mx.float32)
    student, student_norm = softmax_and_norm(student_logits)
    entropy = student_norm[..., 0] - mx.sum(student * student_logits, axis=-1)
    agreement = mx.argmax(student_logits, axis=-1) == mx.argmax(teacher_logits, axis=-1)

    if beta == 1.0:
        log_ratio = (student_logits - teacher_logits) - (student_norm - logsumexp(teacher_logits)[..., None])
        value = reverse = mx.sum(student * log_ratio, axis=-1)
        gradient = student * (log_ratio - value[..., None])
    elif beta == 0.0:
        teacher, teacher_norm = softmax_and_norm(teacher_logits)
        log_ratio = (student_logits - teacher_logits) - (student_norm - teacher_norm)
        value = -mx.sum(teacher * log_ratio, axis=-1)
        reverse = mx.sum(student * log_ratio, axis=-1)
        gradient = student - teacher
    else:
        value, gradient, reverse = _jensen_shannon_terms(student_logits, teacher_logits, student, student_norm, beta)
    return DivergenceTerms(value, gradient, reverse, entropy, agreement.astype(mx.float32))


def _jensen_shannon_terms(
    student_logits: mx.array, teacher_logits: mx.array, student: mx.array, student_norm: mx.array, beta: float
) -> tuple[mx.array, mx.array, mx.array]:
    _check_inner(beta)
    teacher, teacher_norm = softmax_and_norm(teacher_logits)
    student_logprobs = student_logits - student_norm
    teacher_logprobs = teacher_logits - teacher_norm
    mixture = _log_mixture(student_logprobs, teacher_logprobs, beta)
    log_ratio = student_logprobs - mixture
    to_student = mx.sum(student * log_ratio, axis=-1)
    to_teacher = mx.sum(teacher * (teacher_logprobs - mixture), axis=-1)
    value = beta * to_teacher + (1.0 - beta) * to_student
    reverse = mx.sum(student * (student_logprobs - teacher_logprobs), axis=-1)
    return value, (1.0 - beta) * student * (log_ratio - to_student[..., None]), reverse


def _log_mixture(student_logprobs: mx.array, teacher_logprobs: mx.array, beta: float) -> mx.array:
    """log((1−β)·s + β·t), computed in log space so that tiny probabilities survive."""
    weights = mx.log(mx.array([1.0 - beta, beta]))
    return mx.logaddexp(student_logprobs + weights[0], teacher_logprobs + weights[1])


def _log_softmax_pair(student_logits: mx.array, teacher_logits: mx.array) -> tuple[mx.array, mx.array]:
    _check_shapes(student_logits, teacher_logits)
    student = student_logits.astype(mx.float32)
    teacher = teacher_logits.astype(mx.float32)
    return (
        student - mx.logsumexp(student, axis=-1, keepdims=True),
        teacher - mx.logsumexp(teacher, axis=-1, keepdims=True),
    )


def _check_shapes(student_logits: mx.array, teacher_logits: mx.array) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "differ in shape"
        )


def _check_inner(beta: float) -> None:
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta {beta} is not between 0 and 1; the ends are forward_kl (0) and reverse_kl (1)")
