"""Reading a prompt once for all its completions gives the states, and the gradient, of reading it for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, RotatingKVCache

from opd_core.training.logprobs import PackedBatch, Scorer, make_scorer, pack
from opd_core.training.losses import head_divergence
from opd_core.training.reading import LayerReading
from tests.tiny import tiny_llama

LONG, SHORT = list(range(3, 40)), [9, 8, 7]
CASES = {
    "one prompt, four completions": ([LONG] * 4, [[50, 2], [51, 52, 53, 2], [54], [55, 56]]),
    "unequal prompts and completions": ([LONG, SHORT, LONG], [[50, 51, 2], [60, 2], [70, 71, 72, 73]]),
    "as many of each": ([LONG, LONG, SHORT, SHORT], [[50, 2], [51, 2], [60, 2], [61, 2]]),
    "completions apart": ([SHORT, LONG, SHORT], [[50, 2], [51, 2], [60, 2]]),
    "no prompt but one id": ([[4], [5]], [[50, 2], [51, 52]]),
    "one id and a long prompt": ([[4], LONG], [[50, 2], [51, 52]]),
}


def scorers(model: nn.Module) -> tuple[Scorer, Scorer]:
    """With shared prompts, and the slow reference without."""
    shared = make_scorer(model)
    assert shared.layers == len(model.layers)
    return shared, replace(shared, layers=None)


@pytest.mark.parametrize("case", CASES)
def test_the_states_are_those_of_every_sequence_read_whole(case: str) -> None:
    shared, plain = scorers(tiny_llama())
    batch = pack(*CASES[case])
    assert np.abs(np.array(shared.states(batch)) - np.array(plain.states(batch))).max() <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_every_sequence_read_whole(case: str) -> None:
    model = tiny_llama()
    shared, plain = scorers(model)
    batch = pack(*CASES[case])
    teacher = mx.random.normal(plain.states(batch).shape, key=mx.random.key(1))

    def gradient(scorer: Scorer) -> dict[str, Any]:
        def loss(_: nn.Module) -> mx.array:
            return mx.sum(head_divergence(scorer.states(batch), scorer.head, teacher, scorer.head, 1.0, 4).value)

        return dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))

    expected = gradient(plain)
    for name, value in gradient(shared).items():
        reference = np.array(expected[name])
        assert np.abs(np.array(value) - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max()), name


def test_a_prefix_of_many_ids_serves_prompts_with_several_completions() -> None:
    shared, plain = scorers(tiny_llama())
    context = [11, 12, 13, 14, 15, 16]
    prompts, completions = CASES["unequal prompts and completions"]
    whole = plain.states(pack([[*context, *prompt] for prompt in prompts], completions))
    after = shared.states(
        pack([[*context, *prompt] for prompt in prompts], completions, skip=len(context)), shared.read(context)
    )
    assert np.abs(np.array(whole) - np.array(after)).max() <= 1e-4


def test_a_model_whose_layers_forget_reads_every_sequence_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(model, "make_cache", lambda: [RotatingKVCache(8) for _ in model.layers], raising=False)
    scorer = make_scorer(model)
    assert scorer.layers is None
    with pytest.raises(ValueError, match="cannot read on"):
        scorer.read([1, 2])
    assert scorer.states(pack(*CASES["completions apart"])).shape[0] == 6


def test_a_model_that_reads_on_wrongly_is_found_out() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.inner = tiny_llama()
            self.layers = self.inner.layers

        def make_cache(self) -> list[KVCache]:
            return [KVCache() for _ in self.layers]

        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            logits: mx.array = self.inner(tokens)  # whatever came before
            return logits

    assert make_scorer(Forgetful()).layers is None


def test_masks_of_another_shape_are_refused() -> None:
    reading = LayerReading(0, None, None)
    assert reading.make_mask(1) is None
    assert reading.make_mask(3) == "causal"
    with pytest.raises(ValueError, match="masks"):
        reading.make_mask(3, window_size=4)


def test_a_packed_batch_has_an_entry_for_each_completion() -> None:
    batch: PackedBatch = pack(*CASES["unequal prompts and completions"])
    assert len(batch.owners) == len(batch.tails) == len(batch.lengths) == 3
    assert batch.targets.shape == (sum(batch.lengths),)
