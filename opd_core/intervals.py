"""Confidence intervals for held-out evidence: proportions, means, and paired differences. Standard library
only.

All intervals are two-sided at 95 %. "Better" may be said only when `paired_bootstrap` excludes zero.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

Verdict = Literal["better", "worse", "no difference shown"]

Z_95 = 1.959963984540054
RESAMPLES = 10_000
MIN_PAIRS = 6
"""Fewer pairs that differ show nothing at 95 %: even all five of five in one direction has chance 2/32 > 0.05."""
FEW_HELD_OUT = 20
"""With fewer held-out prompts one is warned: at 20 a share's interval is still 40 points wide."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson_interval(successes: int, total: int) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); honest at 0 %, at 100 % and for few samples.

    Raises:
        ValueError: no samples, or more successes than samples.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total} samples is no proportion")
    share, z2 = successes / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # At the ends the formula gives exactly 0 and 1; rounding must not step over them.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == total else centre + half
    return Interval(share, low, high)


def mean_interval(values: Sequence[float]) -> Interval:
    """Student-t interval of a mean; with a single value the interval is unbounded.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values, no mean")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_bootstrap(differences: Sequence[float], seed: int) -> Interval:
    """Percentile bootstrap of the mean of paired differences (Efron 1979), 10,000 resamples, the same for
    a seed.

    Raises:
        ValueError: no differences.
    """
    if not differences:
        raise ValueError("no differences to resample")
    count = len(differences)
    choices = random.Random(seed).choices
    sums = sorted(sum(choices(differences, k=count)) for _ in range(RESAMPLES))
    tail = round(RESAMPLES * 0.025)
    return Interval(statistics.fmean(differences), sums[tail] / count, sums[-tail - 1] / count)


def differing(differences: Sequence[float]) -> int:
    """How many pairs differ at all: equal ones say nothing on which of the two is better (as in a sign test)."""
    return sum(difference != 0 for difference in differences)


def verdict(interval: Interval, pairs: int, higher_is_better: bool) -> Verdict:
    """What a paired interval allows to say about the candidate, of which `pairs` pairs differ."""
    if pairs < MIN_PAIRS or interval.low <= 0 <= interval.high:
        return "no difference shown"
    return "better" if (interval.low > 0) == higher_is_better else "worse"


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, a series in 1/degrees above.

    The series is Cornish-Fisher's (Abramowitz and Stegun 26.7.5), within 0.4 % of the table from 3 degrees
    on.
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95 * 0.95))
    z = Z_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees ** (power + 1) for power, term in enumerate(terms))
