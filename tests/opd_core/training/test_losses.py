"""The chunked loss is the plain loss: values, gradients, padding, the end token, memory, schedules."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from opd_core.training.arrays import floats, number
from opd_core.training.logprobs import Scorer, make_scorer, pack
from opd_core.training.losses import (
    chunk_length,
    head_divergence,
    head_divergence_plain,
    head_nll,
    kl_weight_at,
    score_divergence,
)
from tests.tiny import tiny_llama

BETAS = (0.0, 0.25, 0.5, 1.0)
WIDTH, VOCABULARY = 8, 31


def states(rows: int, seed: int) -> mx.array:
    return mx.random.normal((rows, WIDTH), key=mx.random.key(seed))


WEIGHTS = mx.random.normal((WIDTH, VOCABULARY), key=mx.random.key(7))


def head(rows: mx.array) -> mx.array:
    return rows @ WEIGHTS


def capped_head(rows: mx.array) -> mx.array:
    """A head that is not linear: its pull-back must follow it."""
    return 3.0 * mx.tanh(rows @ WEIGHTS / 3.0)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("positions_per_chunk", [1, 4, 11, 100])
def test_chunked_values_and_gradients_equal_unchunked(beta: float, positions_per_chunk: int) -> None:
    teacher = states(11, 1)
    weights = mx.arange(1, 12) / 11.0  # a different weight at every position

    def chunked(rows: mx.array) -> mx.array:
        return mx.sum(weights * head_divergence(rows, capped_head, teacher, head, beta, positions_per_chunk).value)

    def plain(rows: mx.array) -> mx.array:
        return mx.sum(weights * head_divergence_plain(rows, capped_head, teacher, head, beta))

    (got, got_gradient), (want, want_gradient) = (mx.value_and_grad(f)(states(11, 2)) for f in (chunked, plain))
    assert number(got) == pytest.approx(number(want), rel=1e-5)
    assert float(mx.abs(got_gradient - want_gradient).max()) <= 1e-5 * float(mx.linalg.norm(want_gradient))


def test_the_teacher_gets_no_gradient() -> None:
    def loss(teacher: mx.array) -> mx.array:
        return mx.sum(head_divergence(states(5, 2), head, teacher, head, 1.0, 2).value)

    assert float(mx.abs(mx.grad(loss)(states(5, 1))).max()) == 0.0


def test_scores_equal_the_training_values() -> None:
    student, teacher = states(9, 2), states(9, 1)
    scored = score_divergence(student, head, teacher, head, 1.0, 4)
    trained = head_divergence(student, head, teacher, head, 1.0, 4)
    for got, want in zip(scored, trained, strict=True):
        assert floats(got) == floats(want)


@pytest.mark.parametrize("positions_per_chunk", [1, 3, 50])
def test_nll_equals_its_slow_reference_and_its_gradient_the_softmax_minus_the_target(positions_per_chunk: int) -> None:
    rows, targets = states(7, 3), mx.array([0, 30, 4, 4, 9, 1, 2])
    logits = np.array(head(rows), dtype=np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [-math.log(softmax[index, target]) for index, target in enumerate([0, 30, 4, 4, 9, 1, 2])]
    nll = head_nll(rows, head, targets, positions_per_chunk)
    assert floats(nll) == pytest.approx(expected, rel=1e-5)

    softmax[range(7), [0, 30, 4, 4, 9, 1, 2]] -= 1.0
    exact = softmax @ np.array(WEIGHTS, dtype=np.float64).T
    gradient = np.array(mx.grad(lambda r: mx.sum(head_nll(r, head, targets, positions_per_chunk)))(rows))
    assert np.linalg.norm(gradient - exact) <= 1e-5 * np.linalg.norm(exact)


def test_different_numbers_of_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 positions"):
        head_divergence(states(3, 0), head, states(4, 0), head, 1.0, 2)


def test_no_positions_are_refused_rather_than_averaged_to_nan() -> None:
    with pytest.raises(ValueError, match="at least one"):
        head_nll(mx.zeros((0, WIDTH)), head, mx.zeros((0,), dtype=mx.int32), 2)


def test_a_padded_batch_gives_the_gradients_of_its_single_rows() -> None:
    scorer, teacher = make_scorer(tiny_llama(0)), make_scorer(tiny_llama(1))
    prompts, completions = [[5, 6, 7, 8, 9], [4, 3]], [[10, 11, 2], [20, 21, 22, 23, 24, 2]]
    tokens = sum(map(len, completions))

    def loss(selected: list[int]) -> tuple[float, mx.array]:
        batch = pack([prompts[i] for i in selected], [completions[i] for i in selected])

        def objective(weight: mx.array) -> mx.array:
            scorer.model.model.layers[0].mlp.down_proj.weight = weight
            value = head_divergence(
                scorer.states(batch), scorer.head, teacher.states(batch), teacher.head, 1.0, 4
            ).value
            return mx.sum(value) / tokens

        value, gradient = mx.value_and_grad(objective)(scorer.model.model.layers[0].mlp.down_proj.weight)
        mx.eval(value, gradient)
        return number(value), gradient

    together, single = loss([0, 1]), [loss([0]), loss([1])]
    assert together[0] == pytest.approx(single[0][0] + single[1][0], rel=1e-4)
    difference = together[1] - (single[0][1] + single[1][1])
    assert float(mx.linalg.norm(difference)) <= 1e-4 * float(mx.linalg.norm(together[1]))


def test_prompt_and_pad_positions_carry_no_gradient_and_the_end_token_carries_some() -> None:
    vocabulary = 259
    batch = pack([[5, 6, 7, 8], [4, 3]], [[10, 2], [20, 21, 22, 2]])
    table = mx.random.normal((2, 5, vocabulary), key=mx.random.key(0))
    teacher = mx.random.normal((6, vocabulary), key=mx.random.key(1))

    def loss(logits: mx.array) -> mx.array:
        scorer = Scorer(nn.Identity(), lambda tokens: logits, lambda rows: rows, vocabulary, split=False, layers=None)
        return mx.sum(head_divergence(scorer.states(batch), scorer.head, teacher, scorer.head, 1.0, 2).value)

    carried = np.abs(np.array(mx.grad(loss)(table))).max(-1) > 0
    # row 0: prompt 5 6 7 8, completion 10 2: positions 3 and 4 predict it. Row 1: prompt 4 3, positions 1 to 4.
    assert carried.tolist() == [[False, False, False, True, True], [False, True, True, True, True]]
    assert batch.targets.tolist() == [10, 2, 20, 21, 22, 2]  # the last predicted id of each row is the end token


def test_peak_memory_does_not_grow_with_the_number_of_positions() -> None:
    vocabulary, width = 20_000, 16
    weights = mx.random.normal((width, vocabulary), key=mx.random.key(0))

    def wide_head(selected: mx.array) -> mx.array:
        return selected @ weights

    def peak(positions: int, positions_per_chunk: int) -> int:
        student, teacher = (mx.random.normal((positions, width), key=mx.random.key(seed)) for seed in (1, 2))
        mx.eval(weights, student, teacher)

        def loss(selected: mx.array) -> mx.array:
            return mx.sum(head_divergence(selected, wide_head, teacher, wide_head, 1.0, positions_per_chunk).value)

        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.value_and_grad(loss)(student))
        return mx.get_peak_memory() - before

    assert peak(1024, 16) <= 1.1 * peak(256, 16)
    assert peak(1024, 1024) >= 3.0 * peak(256, 256)  # without chunks it would


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 1, 2.0),
        ("warmup", 1, 0.5),
        ("warmup", 4, 2.0),
        ("warmup", 9, 2.0),
        ("cosine", 1, 2.0),
        ("cosine", 6, 1.0),
        ("cosine", 11, 0.0),
    ],
)
def test_kl_weight_follows_its_schedule(schedule: str, step: int, expected: float) -> None:
    assert kl_weight_at(step, 2.0, schedule, 4, 10) == pytest.approx(expected)  # type: ignore[arg-type]


def test_a_larger_vocabulary_means_shorter_chunks() -> None:
    assert chunk_length(1_000) > chunk_length(50_000) > chunk_length(150_000) >= 16
