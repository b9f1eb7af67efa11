"""What the student writes: exact log-probabilities, the same for the same seed, whatever the other rows do."""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import BatchKVCache

from opd_core.errors import CompatibilityError
from opd_core.training import rollouts
from opd_core.training.arrays import number
from opd_core.training.cpu_functions import SharedPrefix
from opd_core.training.cpu_layers import use_cpu_functions
from opd_core.training.lanes import Lanes
from opd_core.training.logprobs import completion_logprobs, make_scorer, pack
from opd_core.training.rollouts import Decoded, check_decodes, decode, repetition_rate
from opd_core.training.sampling import Sampling, random_key, sample
from tests.tiny import tiny_llama

SHARED = list(range(10, 22))
PROMPTS = [[*SHARED, 30, 31, 32], [*SHARED, 40], [*SHARED, 50, 51, 52, 53, 54, 55]]
STOPS = frozenset(range(2, 259, 10))


def reference_logprob(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float64]], token: int, sampling: Sampling
) -> float:
    """log-probability of `token` after temperature and top-p, the slow way."""
    scaled = logits / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    kept, mass = [], 0.0
    for index in order:
        kept.append(int(index))
        mass += float(probabilities[index])
        if mass >= sampling.top_p:
            break
    assert token in kept
    return math.log(float(probabilities[token]) / (mass if sampling.top_p < 1 else 1.0))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampling_logprobs_equal_a_fresh_forward_pass(temperature: float, top_p: float) -> None:
    model, sampling = tiny_llama(), Sampling(12, temperature, top_p)
    decoded = decode(model, PROMPTS, 3, sampling, STOPS, random_key(1, 1))
    assert len({len(item.ids) for item in decoded}) > 1  # rows end at different times
    for row, item in enumerate(decoded):
        prompt = PROMPTS[row // 3]
        logits = np.array(model(mx.array([[*prompt, *item.ids]]))[0], dtype=np.float64)
        for position, (token, logprob) in enumerate(zip(item.ids, item.logprobs, strict=True)):
            expected = reference_logprob(logits[len(prompt) - 1 + position], token, sampling)
            assert logprob == pytest.approx(expected, abs=1e-3)


def test_logprobs_at_temperature_one_equal_the_scorers() -> None:
    model = tiny_llama()
    decoded = decode(model, PROMPTS, 1, Sampling(10), STOPS, random_key(3))
    batch = pack(PROMPTS, [item.ids for item in decoded])
    expected = np.array(completion_logprobs(make_scorer(model), batch))
    assert np.abs(expected - np.concatenate([item.logprobs for item in decoded])).max() <= 1e-3


def test_the_same_seed_step_and_batch_give_the_same_rollouts_and_another_step_others() -> None:
    model = tiny_llama()

    def draw(step: int) -> list[Decoded]:
        return decode(model, PROMPTS, 2, Sampling(10), STOPS, random_key(42, step, "rollouts"))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_rollouts_of_one_prompt_differ_from_one_another() -> None:
    decoded = decode(tiny_llama(), PROMPTS[:1], 8, Sampling(10), frozenset(), random_key(0))
    assert len({item.ids for item in decoded}) == 8


def test_a_row_does_not_depend_on_when_other_rows_end() -> None:
    model = tiny_llama()
    free = decode(model, PROMPTS, 2, Sampling(12), frozenset(), random_key(5))
    stopping = decode(model, PROMPTS, 2, Sampling(12), STOPS, random_key(5))
    for long, short in zip(free, stopping, strict=True):
        assert long.ids[: len(short.ids)] == short.ids


def test_greedy_takes_the_most_likely_id_and_equals_one_row_at_a_time() -> None:
    model = tiny_llama()
    together = decode(model, PROMPTS, 1, Sampling(8, temperature=0.0), STOPS, random_key(0))
    for prompt, item in zip(PROMPTS, together, strict=True):
        ids = list(prompt)
        for token in item.ids:
            assert token == number(mx.argmax(model(mx.array([ids]))[0, -1]))
            ids.append(token)
        assert set(item.logprobs) == {0.0}


def test_the_stop_token_ends_a_completion_is_kept_and_reported() -> None:
    decoded = decode(tiny_llama(), PROMPTS, 8, Sampling(12), STOPS, random_key(2))
    stopped = [item for item in decoded if item.stopped]
    cut = [item for item in decoded if not item.stopped]
    assert stopped and cut
    assert all(item.ids[-1] in STOPS and not STOPS & set(item.ids[:-1]) for item in stopped)
    assert all(len(item.ids) == 12 and not STOPS & set(item.ids) for item in cut)


def test_a_stop_request_ends_decoding_with_nothing() -> None:
    asked: list[int] = []

    def after_three() -> bool:
        asked.append(1)
        return len(asked) > 3

    assert decode(tiny_llama(), PROMPTS, 1, Sampling(50), frozenset(), random_key(0), after_three) == []
    assert len(asked) == 4


def test_single_token_prompts_and_unequal_prompts_without_a_shared_beginning_work() -> None:
    model = tiny_llama()
    prompts = [[7], [8, 9, 10, 11]]
    decoded = decode(model, prompts, 1, Sampling(5, temperature=0.0), frozenset(), random_key(0))
    for prompt, item in zip(prompts, decoded, strict=True):
        alone = decode(model, [prompt], 1, Sampling(5, temperature=0.0), frozenset(), random_key(0))
        assert alone[0].ids == item.ids


def test_frequencies_match_the_distribution_sampled_from() -> None:
    logits = mx.log(mx.array([[0.5, 0.2, 0.2, 0.1]]))
    uniform = (mx.arange(10_000) + 0.5) / 10_000
    for sampling, expected in (
        (Sampling(1), [0.5, 0.2, 0.2, 0.1]),
        (Sampling(1, top_p=0.6), [5 / 7, 2 / 7, 0.0, 0.0]),
        (Sampling(1, temperature=0.5), [25 / 34, 4 / 34, 4 / 34, 1 / 34]),
    ):
        ids, _ = sample(mx.broadcast_to(logits, (10_000, 4)), uniform, sampling)
        counts = np.bincount(np.array(ids), minlength=4) / 10_000
        assert np.abs(counts - expected).max() <= 1e-3


def test_the_largest_uniform_number_still_gives_a_possible_id() -> None:
    logits = mx.array([[5.0, 4.0, -1e9, -1e9]])
    ids, logprobs = sample(logits, mx.array([1.0 - 2**-24]), Sampling(1))
    assert ids.tolist() == [1]
    assert math.isfinite(float(logprobs[0]))


def test_repetition_counts_repeated_four_grams() -> None:
    assert repetition_rate([1, 2, 3, 4, 5, 6]) == 0.0
    assert repetition_rate([1, 2, 3]) == 0.0
    assert repetition_rate([1, 1, 1, 1, 1, 1, 1]) == pytest.approx(3 / 4)


def test_a_model_whose_caches_do_not_batch_is_refused_by_name() -> None:
    class Lonely(nn.Module):
        layers = (None,)

        def make_cache(self) -> list[object]:
            return [object()]

        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            return mx.zeros((*tokens.shape, 8))

    with pytest.raises(CompatibilityError, match="'lonely' cannot write several answers"):
        check_decodes(Lonely(), "lonely")  # type: ignore[no-untyped-call]
    check_decodes(tiny_llama(), "tiny")


def test_rollouts_that_read_their_prompt_together_are_those_that_read_it_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    use_cpu_functions(model)
    told: list[SharedPrefix] = []

    def tell(rows: int, length: int) -> SharedPrefix:
        told.append(SharedPrefix(rows, length))
        return told[-1]

    monkeypatch.setattr(rollouts, "SharedPrefix", tell)
    written = []
    for shortest in (10**9, 1):
        monkeypatch.setattr(rollouts, "LONG_PREFIX", shortest)
        written.append(decode(model, PROMPTS, 4, Sampling(24), STOPS, random_key(5)))
    assert {(found.rows, found.length) for found in told} == {(4, len(PROMPTS[2]) - 1)}
    assert [found.ids for found in written[0]] == [found.ids for found in written[1]]
    for apart, together in zip(*written, strict=True):
        np.testing.assert_allclose(apart.logprobs, together.logprobs, atol=1e-4)
    assert len({len(found.ids) for found in written[0]}) > 1  # some end early, and the others are written on


def test_prompts_that_are_written_an_unequal_number_of_times_are_not_read_together() -> None:
    caches = [BatchKVCache([0] * 4)]
    caches[0].update_and_fetch(mx.zeros((4, 1, 200, 4)), mx.zeros((4, 1, 200, 4)))
    first, second = (1,) * 200, (2,) * 200
    for rows in ([first, first, first, second], [first, second, first, second], [first, second, second, second]):
        rollouts._tell_shared_prefix(caches, rows)
        assert not hasattr(caches[0], "shared_prefix")
    rollouts._tell_shared_prefix(caches, [first, first, second, second])
    assert vars(caches[0])["shared_prefix"] == SharedPrefix(2, 200)


def test_all_layers_are_given_the_same_positions_to_work_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=3)
    offsets: list[mx.array] = []
    plain = type(model.layers[0].self_attn.rope).__call__

    def noted(rope: nn.Module, x: mx.array, offset: mx.array) -> mx.array:
        offsets.append(offset)
        return cast(mx.array, plain(rope, x, offset))

    prompts = [[1, 5, 9], [1, 7]]
    wanted = decode(model, prompts, 2, Sampling(5), frozenset(), random_key(0))
    monkeypatch.setattr(type(model.layers[0].self_attn.rope), "__call__", noted)
    assert decode(model, prompts, 2, Sampling(5), frozenset(), random_key(0)) == wanted
    of_a_position = 3 * 2  # layers, queries and keys
    assert all(offset is offsets[-1] for offset in offsets[-of_a_position:])


def test_reading_on_many_lanes_and_joining_what_was_read_changes_no_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()

    def answers(lane_count: int, rows_per_lane: int) -> list[Decoded]:
        monkeypatch.setattr("opd_core.training.rollouts.lanes", lambda _: Lanes(lane_count))
        monkeypatch.setattr("opd_core.training.rollouts.ROWS_PER_LANE", rows_per_lane)
        return decode(model, PROMPTS, 3, Sampling(12), STOPS, random_key(8))

    alone = answers(1, 1)
    for lane_count, rows_per_lane in ((2, 1), (2, 100), (3, 100), (3, 4)):  # apart; joined; joined; two of three joined
        for one, other in zip(alone, answers(lane_count, rows_per_lane), strict=True):
            assert one.ids == other.ids and one.stopped == other.stopped
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
