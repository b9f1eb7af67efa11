"""Gradient checkpointing gives the same loss and gradient with less memory, and leaves decoding alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from opd_core.training.logprobs import make_scorer, pack
from opd_core.training.losses import head_nll
from opd_core.training.recomputing import recompute_layers
from opd_core.training.rollouts import decode
from opd_core.training.sampling import Sampling, random_key
from tests.tiny import tiny_llama

PROMPTS = [[9, 8, 7, 6, 5], [9, 8, 7, 6, 5], [4, 3]]
COMPLETIONS = [[50, 51, 2], [60, 2], [70, 71, 72, 2]]


def gradient(model: nn.Module, shared: bool) -> tuple[float, dict[str, Any]]:
    """Loss and gradient of all parameters."""
    scorer = make_scorer(model)
    scorer = scorer if shared else replace(scorer, layers=None)
    batch = pack(PROMPTS, COMPLETIONS)
    model.train()

    def loss(_: nn.Module) -> mx.array:
        return mx.sum(head_nll(scorer.states(batch), scorer.head, batch.targets, 4))

    value, found = nn.value_and_grad(model, loss)(model)
    model.eval()
    return float(value.item()), dict(tree_flatten(found))


@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradient_are_the_same(shared: bool) -> None:
    model, recomputing = tiny_llama(), tiny_llama()
    recompute_layers(recomputing)
    expected, found = gradient(model, shared), gradient(recomputing, shared)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, value in found[1].items():
        reference = np.array(expected[1][name])
        assert np.abs(np.array(value) - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max()), name


def test_the_layers_of_another_model_keep_their_class() -> None:
    model, other = tiny_llama(), tiny_llama()
    recompute_layers(model)
    assert type(model.layers[0]) is not type(other.layers[0])
    assert isinstance(model.layers[0], type(other.layers[0]))


def test_a_recomputing_model_writes_the_same() -> None:
    model = tiny_llama()
    before = decode(model, PROMPTS[1:], 2, Sampling(6), frozenset({2}), random_key(1))
    recompute_layers(model)
    model.eval()
    assert decode(model, PROMPTS[1:], 2, Sampling(6), frozenset({2}), random_key(1)) == before
    assert make_scorer(model).layers == len(model.layers)


def test_less_memory_is_held_on_the_way_back() -> None:
    batch = pack([[5] * 200], [[6] * 200])

    def peak(recomputes: bool) -> int:
        model = tiny_llama(layers=8)
        if recomputes:
            recompute_layers(model)
        scorer = make_scorer(model)
        model.train()

        def loss(_: nn.Module) -> mx.array:
            return mx.sum(head_nll(scorer.states(batch), scorer.head, batch.targets, 16))

        mx.eval(nn.value_and_grad(model, loss)(model))
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(model, loss)(model))
        return mx.get_peak_memory()

    assert peak(True) < 0.6 * peak(False)
