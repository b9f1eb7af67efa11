"""Which gradient an estimator of the KL has: pinned, since several published losses minimise another one than named.

Expectations are taken exactly, by summing over all ids with the sampling probabilities held fixed, as in training on
sampled rollouts. s is the student, t the teacher, r = log s − log t at the sampled id.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from opd_core.training.arrays import number
from opd_core.training.divergence import divergence_terms, forward_kl, reverse_kl

STUDENT, TEACHER = (mx.random.normal((9,), key=mx.random.key(seed)) * 1.5 for seed in (1, 2))
Estimator = Callable[[mx.array], mx.array]


def log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits)


def log_ratio(logits: mx.array) -> mx.array:
    return log_softmax(logits) - log_softmax(TEACHER)


def k1(logits: mx.array) -> mx.array:
    return log_ratio(logits)


def k2(logits: mx.array) -> mx.array:
    return 0.5 * mx.square(log_ratio(logits))


def k3(logits: mx.array) -> mx.array:
    return mx.exp(-log_ratio(logits)) - 1.0 + log_ratio(logits)


def policy_gradient_k1(logits: mx.array) -> mx.array:
    """The surrogate whose gradient is r·∇log s, r without gradient."""
    return mx.stop_gradient(log_ratio(logits)) * log_softmax(logits)


def expected_gradient(estimator: Estimator) -> mx.array:
    """E over sampled ids of the estimator's gradient."""
    sampling = mx.softmax(STUDENT)
    gradient: mx.array = mx.grad(lambda logits: mx.sum(sampling * estimator(logits)))(STUDENT)
    return gradient


def gradient_of(divergence: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
    gradient: mx.array = mx.grad(lambda logits: divergence(logits, TEACHER))(STUDENT)
    return gradient


def assert_close(got: mx.array, want: mx.array) -> None:
    assert np.allclose(np.array(got), np.array(want), atol=2e-6)


def test_the_two_directions_differ_here_so_that_the_tests_below_can_tell_them_apart() -> None:
    forward, reverse = gradient_of(forward_kl), gradient_of(reverse_kl)
    cosine = mx.sum(forward * reverse) / (mx.linalg.norm(forward) * mx.linalg.norm(reverse))
    assert number(cosine) < 0.95


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_have_the_reverse_kl_as_their_mean(estimator: Estimator) -> None:
    mean = mx.sum(mx.softmax(STUDENT) * estimator(STUDENT))
    assert number(mean) == pytest.approx(number(reverse_kl(STUDENT, TEACHER)), rel=1e-5)


def test_the_gradient_of_k1_is_zero_on_average_so_minimising_it_learns_nothing() -> None:
    assert_close(expected_gradient(k1), mx.zeros((9,)))


def test_the_gradient_of_k3_is_that_of_the_forward_kl_not_the_reverse() -> None:
    assert_close(expected_gradient(k3), gradient_of(forward_kl))


def test_the_gradient_of_k2_is_that_of_the_reverse_kl() -> None:
    assert_close(expected_gradient(k2), gradient_of(reverse_kl))


def test_k1_as_a_reward_has_the_gradient_of_the_reverse_kl() -> None:
    assert_close(expected_gradient(policy_gradient_k1), gradient_of(reverse_kl))


def test_a_baseline_changes_the_variance_of_the_policy_gradient_and_not_its_mean() -> None:
    def with_baseline(logits: mx.array) -> mx.array:
        advantage = log_ratio(logits) - reverse_kl(logits, TEACHER)
        return mx.stop_gradient(advantage) * log_softmax(logits)

    def variance(estimator: Estimator) -> float:
        rows = [mx.grad(lambda logits, index=index: estimator(logits)[index])(STUDENT) for index in range(9)]
        mean = expected_gradient(estimator)
        squared = [mx.sum(mx.square(row - mean)) for row in rows]
        return number(mx.sum(mx.softmax(STUDENT) * mx.stack(squared)))

    assert_close(expected_gradient(with_baseline), gradient_of(reverse_kl))
    assert variance(with_baseline) < variance(policy_gradient_k1)


def test_the_loss_in_use_has_the_policy_gradient_s_mean_and_no_variance() -> None:
    terms = divergence_terms(STUDENT, TEACHER, 1.0)
    assert_close(terms.gradient, expected_gradient(policy_gradient_k1))
    assert_close(divergence_terms(STUDENT, TEACHER, 0.0).gradient, expected_gradient(k3))
