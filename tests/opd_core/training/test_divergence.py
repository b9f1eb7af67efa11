"""Each divergence four ways: by hand, against a slow sum, by its gradient in float64, and where student is teacher."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from opd_core.training.arrays import floats, number
from opd_core.training.divergence import (
    divergence,
    divergence_terms,
    forward_kl,
    jensen_shannon,
    reverse_kl,
)

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
BETAS = (0.0, 0.25, 0.5, 1.0)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    exps = [math.exp(value - top) for value in logits]
    return [value / sum(exps) for value in exps]


def slow_divergence(student_logits: list[float], teacher_logits: list[float], beta: float) -> float:
    """The definition, one token at a time."""
    student, teacher = softmax(student_logits), softmax(teacher_logits)
    if beta == 1.0:
        return sum(s * math.log(s / t) for s, t in zip(student, teacher, strict=True))
    if beta == 0.0:
        return sum(t * math.log(t / s) for s, t in zip(student, teacher, strict=True))
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        mixture = (1 - beta) * s + beta * t
        total += beta * t * math.log(t / mixture) + (1 - beta) * s * math.log(s / mixture)
    return total


def exact_gradient(student_logits: Matrix, teacher_logits: Matrix, beta: float) -> Matrix:
    """∂D/∂student_logits in float64, by the chain rule through the softmax."""

    def normalised(logits: Matrix) -> Matrix:
        shifted = logits - logits.max(-1, keepdims=True)
        exps = np.exp(shifted)
        result: Matrix = exps / exps.sum(-1, keepdims=True)
        return result

    student, teacher = normalised(student_logits), normalised(teacher_logits)
    if beta == 1.0:
        by_probability = np.log(student / teacher) + 1.0
    elif beta == 0.0:
        by_probability = -teacher / student
    else:
        mixture = (1 - beta) * student + beta * teacher
        by_probability = (1 - beta) * (
            -beta * teacher / mixture + np.log(student / mixture) + 1.0 - (1 - beta) * student / mixture
        )
    result: Matrix = student * (by_probability - (student * by_probability).sum(-1, keepdims=True))
    return result


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    generator = np.random.default_rng(seed)
    # student and teacher related, as in practice; rounded to float32 so that both precisions see the same numbers
    student = generator.normal(size=(rows, vocabulary)) * 3.0
    teacher = student + generator.normal(size=(rows, vocabulary))
    return student.astype(np.float32).astype(np.float64), teacher.astype(np.float32).astype(np.float64)


def as_array(matrix: Matrix) -> mx.array:
    return mx.array(matrix.astype(np.float32))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # student (1/2, 1/2), teacher (1/4, 3/4)
        (reverse_kl, 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)),
        (forward_kl, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        # mixture (3/8, 5/8)
        (
            lambda s, t: jensen_shannon(s, t, 0.5),
            0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))
            + 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)),
        ),
    ],
)
def test_two_token_case_by_hand(function: Callable[[mx.array, mx.array], mx.array], expected: float) -> None:
    student = mx.log(mx.array([[0.5, 0.5]]))
    teacher = mx.log(mx.array([[0.25, 0.75]]))
    assert number(function(student, teacher)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_values_equal_the_slow_reference(beta: float) -> None:
    student, teacher = random_logits(5, 37)
    expected = [slow_divergence(list(s), list(t), beta) for s, t in zip(student, teacher, strict=True)]
    assert floats(divergence(as_array(student), as_array(teacher), beta)) == pytest.approx(expected, rel=1e-5)
    assert floats(divergence_terms(as_array(student), as_array(teacher), beta).value) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("vocabulary", "tolerance"), [(64, 1e-5), (1024, 1e-5), (49152, 5e-4)])
def test_gradients_equal_the_analytic_gradient_in_float64(beta: float, vocabulary: int, tolerance: float) -> None:
    student, teacher = random_logits(4, vocabulary, seed=vocabulary)
    exact = exact_gradient(student, teacher, beta)
    closed_form = np.array(divergence_terms(as_array(student), as_array(teacher), beta).gradient)
    by_autodiff = np.array(mx.grad(lambda z: mx.sum(divergence(z, as_array(teacher), beta)))(as_array(student)))
    for got in (closed_form, by_autodiff):
        error = np.linalg.norm(got - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert error.max() <= tolerance


@pytest.mark.parametrize("beta", BETAS)
def test_student_equal_to_teacher_gives_no_loss_and_no_gradient(beta: float) -> None:
    student, _ = random_logits(3, 1024)
    terms = divergence_terms(as_array(student), as_array(student), beta)
    assert np.abs(np.array(terms.value)).max() <= 1e-5
    assert np.abs(np.array(terms.gradient)).max() <= 1e-5
    assert floats(terms.agreement) == [1.0, 1.0, 1.0]


def test_the_two_ends_are_different_divergences() -> None:
    student, teacher = random_logits(1, 16)
    ends = [number(divergence(as_array(student), as_array(teacher), beta)[0]) for beta in (0.0, 1.0)]
    assert abs(ends[0] - ends[1]) > 0.01


def test_jsd_at_one_half_is_symmetric_and_elsewhere_not() -> None:
    student, teacher = (as_array(matrix) for matrix in random_logits(1, 16))
    halves = number(jensen_shannon(student, teacher, 0.5)[0]), number(jensen_shannon(teacher, student, 0.5)[0])
    quarters = number(jensen_shannon(student, teacher, 0.25)[0]), number(jensen_shannon(teacher, student, 0.25)[0])
    assert halves[0] == pytest.approx(halves[1], rel=1e-5)
    assert quarters[0] != pytest.approx(quarters[1], rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5])
def test_jsd_refuses_its_ends(beta: float) -> None:
    with pytest.raises(ValueError, match="forward_kl"):
        jensen_shannon(mx.zeros((1, 4)), mx.zeros((1, 4)), beta)


def test_shapes_that_differ_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 5\)"):
        reverse_kl(mx.zeros((2, 4)), mx.zeros((2, 5)))


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = random_logits(2, 4096)
    half = divergence_terms(as_array(student).astype(mx.bfloat16), as_array(teacher).astype(mx.bfloat16), 1.0)
    same = divergence_terms(
        as_array(student).astype(mx.bfloat16).astype(mx.float32),
        as_array(teacher).astype(mx.bfloat16).astype(mx.float32),
        1.0,
    )
    assert half.value.dtype == mx.float32
    assert floats(half.value) == floats(same.value)


def test_entropy_equals_its_definition() -> None:
    student, teacher = random_logits(3, 50)
    expected = [-sum(s * math.log(s) for s in softmax(list(row))) for row in student]
    assert floats(divergence_terms(as_array(student), as_array(teacher), 1.0).student_entropy) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("beta", BETAS)
def test_the_reverse_kl_is_told_whatever_divergence_is_trained(beta: float) -> None:
    student, teacher = random_logits(4, 61)
    expected = [slow_divergence(list(s), list(t), 1.0) for s, t in zip(student, teacher, strict=True)]
    terms = divergence_terms(as_array(student), as_array(teacher), beta)
    assert floats(terms.reverse_kl) == pytest.approx(expected, rel=1e-5)
