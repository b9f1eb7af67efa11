"""Confidence intervals against published values and against brute force."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from opd_core.intervals import (
    MIN_PAIRS,
    Interval,
    mean_interval,
    paired_bootstrap,
    t_quantile,
    verdict,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 8, 0.0, 0.3244),
        (40, 40, 0.9124, 1.0),
        (1, 1, 0.2065, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_interval_has_the_published_ends(successes: int, total: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, total)
    assert interval.mean == successes / total
    assert interval.low == pytest.approx(low, abs=1e-4) and interval.high == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_what_is_no_proportion(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(successes, total)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (99, 1.9842), (10_000, 1.9602)],
)
def test_t_quantiles_are_those_of_the_table(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, rel=2e-3)


def test_mean_interval_of_a_known_sample() -> None:
    values = [4.0, 5.0, 6.0, 7.0, 8.0]
    half = 2.7764 * statistics.stdev(values) / math.sqrt(5)
    assert mean_interval(values) == pytest.approx((6.0, 6 - half, 6 + half), rel=1e-3)


def test_single_value_says_nothing_about_its_spread() -> None:
    assert mean_interval([3.0]) == (3.0, -math.inf, math.inf)


def test_bootstrap_is_close_to_the_t_interval_for_many_well_behaved_values() -> None:
    source = random.Random(3)
    values = [source.gauss(0.3, 1.0) for _ in range(300)]
    assert paired_bootstrap(values, seed=5) == pytest.approx(mean_interval(values), abs=0.02)


def test_bootstrap_is_the_same_for_the_same_seed_only() -> None:
    values = [0.1, 0.4, -0.2, 0.35, 0.8, 0.05, 0.3]
    assert paired_bootstrap(values, seed=1) == paired_bootstrap(values, seed=1) != paired_bootstrap(values, seed=2)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    source = random.Random(11)
    hits = 0
    for seed in range(40):
        low, high = paired_bootstrap([source.gauss(0.5, 1.0) for _ in range(30)], seed)[1:]
        hits += low <= 0.5 <= high
    assert 34 <= hits <= 40


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError):
        mean_interval([])
    with pytest.raises(ValueError):
        paired_bootstrap([], seed=0)


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "word"),
    [
        (0.1, 0.3, True, "better"),
        (0.1, 0.3, False, "worse"),
        (-0.3, -0.1, True, "worse"),
        (-0.3, -0.1, False, "better"),
        (-0.1, 0.3, True, "no difference shown"),
        (0.0, 0.3, True, "no difference shown"),
    ],
)
def test_better_is_said_only_when_the_interval_excludes_zero(
    low: float, high: float, higher_is_better: bool, word: str
) -> None:
    assert verdict(Interval(0.2, low, high), 40, higher_is_better) == word


def test_too_few_pairs_never_show_a_difference() -> None:
    all_won = [1.0] * (MIN_PAIRS - 1)
    interval = paired_bootstrap(all_won, seed=0)
    assert interval.low == 1.0
    assert verdict(interval, len(all_won), higher_is_better=True) == "no difference shown"
    assert verdict(interval, MIN_PAIRS, higher_is_better=True) == "better"
