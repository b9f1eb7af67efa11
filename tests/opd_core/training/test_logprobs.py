"""Positions, prefixes and batches: every way of scoring a completion gives the same states."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from opd_core.training.logprobs import (
    common_prefix_length,
    completion_logprobs,
    make_scorer,
    pack,
)
from tests.tiny import tiny_llama

PROMPTS = [[9, 8, 7, 6, 5, 4, 3, 30, 31], [9, 8, 7, 6, 5, 4, 3, 40]]
COMPLETIONS = [[50, 51, 2], [60, 61, 62, 63, 2]]


def test_each_state_predicts_the_id_after_it() -> None:
    model = tiny_llama()
    got = np.array(completion_logprobs(make_scorer(model), pack(PROMPTS, COMPLETIONS)))
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        for position, target in enumerate(completion):
            logits = model(mx.array([prompt + completion[:position]]))[0, -1]
            expected.append(float(logits[target] - mx.logsumexp(logits)))
    assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_cut_into_trunk_and_head_only_if_that_gives_its_logits(tied: bool) -> None:
    model = tiny_llama(tied=tied)
    scorer = make_scorer(model)
    assert scorer.split and scorer.vocab_size == 259
    tokens = mx.array([[1, 2, 3]])
    assert bool(mx.allclose(scorer.head(scorer.trunk(tokens)), model(tokens), atol=1e-5))


def test_a_model_that_caps_its_logits_is_used_whole_and_still_right() -> None:
    class Capped(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.inner = tiny_llama()
            self.model = self.inner.model

        def __call__(self, tokens: mx.array) -> mx.array:
            capped: mx.array = mx.tanh(self.inner(tokens) / 2.0) * 2.0
            return capped

    model = Capped()
    scorer = make_scorer(model)
    assert not scorer.split
    batch = pack(PROMPTS, COMPLETIONS)
    logits = scorer.head(scorer.states(batch))
    assert bool(mx.allclose(logits[0], model(mx.array([PROMPTS[0]]))[0, -1], atol=1e-5))


def test_states_after_a_prefix_that_was_read_before_equal_those_of_the_whole_sequence() -> None:
    scorer = make_scorer(tiny_llama())
    whole = scorer.states(pack(PROMPTS, COMPLETIONS))
    prefix = scorer.read(PROMPTS[0][:6])
    for _ in range(2):  # what was read is not changed by its use
        after = scorer.states(pack(PROMPTS, COMPLETIONS, skip=6), prefix)
        assert float(mx.abs(whole - after).max()) <= 1e-3


def test_rows_do_not_change_the_states_of_other_rows() -> None:
    scorer = make_scorer(tiny_llama())
    together = scorer.states(pack(PROMPTS, COMPLETIONS))
    alone = mx.concatenate([scorer.states(pack([p], [c])) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert float(mx.abs(together - alone).max()) <= 1e-3


def test_a_prompt_is_packed_once_however_many_completions_it_has() -> None:
    batch = pack([PROMPTS[0], PROMPTS[1], PROMPTS[0]], [*COMPLETIONS, [70, 2]])
    assert batch.bodies == (tuple(PROMPTS[0][:-1]), tuple(PROMPTS[1][:-1]))
    assert batch.owners == (0, 1, 0)
    assert batch.tails[2] == (PROMPTS[0][-1], 70)


def test_an_empty_completion_or_a_prompt_swallowed_by_the_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="0 completion ids"):
        pack([[1, 2]], [[]])
    with pytest.raises(ValueError, match="2 prompt ids"):
        pack([[1, 2]], [[3]], skip=2)


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [([[1, 2, 3, 4], [1, 2, 9]], 2), ([[1, 2], [1, 2]], 1), ([[5], [6]], 0), ([[1, 2, 3], [1, 2]], 1)],
)
def test_common_prefix_leaves_every_sequence_an_id_of_its_own(sequences: list[list[int]], expected: int) -> None:
    assert common_prefix_length(sequences) == expected
