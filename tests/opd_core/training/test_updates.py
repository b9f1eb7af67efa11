"""Likelihood of given texts, and the one optimizer step: against float64, masked, at the limits."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from opd_core.config import parse_config
from opd_core.training.lora import LoadedBase, NewAdapter, make_student
from opd_core.training.updates import AdapterOptimizer, IdPair, StepResult, add_gradients, answer_nlls, nll_gradient
from tests.opd_core.training.bigram import answer_gradient, answer_logprob, bigram_student, table_of

PAIRS: list[IdPair] = [((3, 4), (5, 6, 0)), ((2,), (1, 0)), ((6, 6, 6, 5), (4, 4, 4, 0))]


def test_weighted_likelihoods_and_their_gradient_equal_float64_arithmetic() -> None:
    table, weights = table_of(1), [0.5, -2.0, 0.25]
    gradient, sums = nll_gradient(bigram_student(table), PAIRS, weights)
    assert sums == pytest.approx([-answer_logprob(table, pair) for pair in PAIRS], rel=1e-5)
    want = -sum(weight * answer_gradient(table, pair) for weight, pair in zip(weights, PAIRS, strict=True))
    assert np.allclose(np.array(gradient["table"]), want, atol=2e-6)  # type: ignore[index]


def test_only_rows_from_which_an_answer_id_is_predicted_get_a_gradient() -> None:
    gradient, _ = nll_gradient(bigram_student(table_of(1)), [((1, 2, 3), (4, 0))], [1.0])
    moved = np.abs(np.array(gradient["table"])).max(axis=-1) > 0  # type: ignore[index]
    assert moved.tolist() == [False, False, False, True, True, False, False]


def test_an_answer_that_is_certain_costs_nothing_and_moves_nothing() -> None:
    table = table_of(1)
    table[3], table[4] = -100.0, -100.0
    table[3, 4] = table[4, 0] = 100.0
    gradient, sums = nll_gradient(bigram_student(table), [((3,), (4, 0))], [1.0])
    assert sums == [0.0] and float(np.abs(np.array(gradient["table"])).max()) == 0.0  # type: ignore[index]


def test_the_likelihoods_do_not_depend_on_how_the_answers_are_cut_into_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = bigram_student(table_of(1))
    whole, whole_sums = nll_gradient(student, PAIRS, [1.0] * 3)
    monkeypatch.setattr("opd_core.training.updates.CPU_TOKENS_PER_LANE", 1)
    parts, part_sums = nll_gradient(student, PAIRS, [1.0] * 3)
    assert part_sums == pytest.approx(whole_sums)
    assert answer_nlls(student.scorer, PAIRS) == pytest.approx(whole_sums)
    assert np.allclose(np.array(parts["table"]), np.array(whole["table"]), atol=1e-6)  # type: ignore[index]


def test_no_answers_have_no_gradient() -> None:
    assert nll_gradient(bigram_student(table_of(1)), [], []) == (None, [])
    assert add_gradients(None, None) is None


def test_a_trained_head_gets_its_gradient_too(base: LoadedBase) -> None:
    student = make_student(base, None, NewAdapter(2, 2.0))
    embedding = student.model.model.embed_tokens
    embedding.unfreeze()
    gradient, _ = nll_gradient(student, [((3, 4), (5, 6, 2))], [1.0])
    rows = np.abs(np.array(gradient["model"]["embed_tokens"]["weight"])).max(axis=-1)  # type: ignore[index]
    assert (rows > 0).all()  # through the input only five rows would move


def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    student = bigram_student(table_of(1))
    config = parse_config({"base_model_path": "m", "prompts_path": "p.txt", "lr_warmup_steps": 4})
    optimizer, before = AdapterOptimizer(student, config), mx.array(student.model.table)
    broken, sound = StepResult(), StepResult()
    optimizer.apply({"table": mx.full((7, 7), float("nan"))}, 1, broken)
    assert not broken.applied and not broken.finite and bool(mx.array_equal(student.model.table, before))
    optimizer.apply({"table": mx.ones((7, 7))}, 2, sound)
    assert sound.applied and sound.gradient_norm == pytest.approx(7.0)
    assert sound.learning_rate == pytest.approx(config.learning_rate / 2)
    assert not bool(mx.array_equal(student.model.table, before))


@pytest.mark.parametrize(
    "losses",
    [
        {"total_loss": float("nan")},
        {"total_loss": float("inf")},
        {"kl_loss": float("nan")},
        {"kl_loss": 2e4},
        {"sft_loss": 2e4},
    ],
)
def test_a_loss_that_is_not_finite_or_explodes_moves_nothing(base: LoadedBase, losses: dict[str, float]) -> None:
    student = make_student(base, None, NewAdapter(2, 2.0))
    optimizer = AdapterOptimizer(student, parse_config({"base_model_path": "m", "prompts_path": "p"}))
    before = {name: np.array(value) for name, value in student.adapter_weights().items()}
    _, gradient = nn.value_and_grad(student.model, lambda model: mx.sum(model(mx.array([[1, 2]]))))(student.model)
    result = StepResult(**losses)  # type: ignore[arg-type]
    optimizer.apply(gradient, 1, result)
    assert not result.finite and not result.applied
    assert all(np.array_equal(before[name], np.array(value)) for name, value in student.adapter_weights().items())
    sound = StepResult(kl_loss=5e3, total_loss=1e6)  # a weight may make the whole large
    optimizer.apply(gradient, 1, sound)
    assert sound.finite and sound.applied
