"""When a run has passed its best: the held-out score, or the answers' length, falls off.

A student that trains on guidance it cannot follow first improves and then comes apart, or only comes apart. The best
adapter is kept in any case; these rules end the run instead of paying for more of it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

from opd_core.intervals import differing, paired_bootstrap, verdict
from opd_core.training.evaluator import Evaluation, SampleScore

PrimaryMetric = Literal["task_score", "reverse_kl", "reference_nll"]

MIN_SCORE_DROP = 0.1
"""Least fall of the task score, as a fraction of the prompts."""
MIN_RELATIVE_RISE = 0.25
"""Least rise of a divergence or an NLL, as a share of the best."""
RUNAWAY_LENGTH = 1.5
RUNAWAY_REPETITION = 0.3
EMPTY_TOKENS = 1.5
"""Mean length at which most answers are an end token and nothing else."""


@dataclass(frozen=True)
class Standing:
    """What the rules look at in one evaluation: the primary metric by prompt, length and repetition."""

    values: dict[str, float]
    completion_tokens: float
    repetition_rate: float


def standing(found: Evaluation, primary: PrimaryMetric) -> Standing:
    """Take the figures out of an evaluation; prompts without a value are left out."""
    values = {sample.prompt_id: _value(sample, primary) for sample in found.samples}
    summary = found.summary()
    return Standing(
        values={name: value for name, value in values.items() if value is not None},
        completion_tokens=float(summary["completion_tokens_mean"] or 0.0),
        repetition_rate=float(summary["repetition_rate"] or 0.0),
    )


def falls_off(now: Standing, best: Standing, baseline: Standing, primary: PrimaryMetric, seed: int) -> str | None:
    """Why the run should end, in one sentence; None while it should go on.

    Score: worse than the best evaluation on the same prompts by more than chance (paired interval) and by more than
    is worth waiting for. Length: half as long again as ever and repeating itself, or next to nothing.
    """
    fallen = _score_fall(now, best, primary, seed)
    if fallen is not None:
        return fallen
    longest = max(best.completion_tokens, baseline.completion_tokens)
    repeats = now.repetition_rate >= max(RUNAWAY_REPETITION, best.repetition_rate + 0.1)
    if now.completion_tokens >= RUNAWAY_LENGTH * longest and repeats:
        return (
            f"The held-out answers ran away: {now.completion_tokens:.0f} tokens instead of {longest:.0f}, "
            f"{now.repetition_rate:.0%} of them repetition."
        )
    if now.completion_tokens <= EMPTY_TOKENS < min(best.completion_tokens, baseline.completion_tokens) / 2:
        return f"The held-out answers have become empty: {now.completion_tokens:.1f} tokens on average."
    return None


def _score_fall(now: Standing, best: Standing, primary: PrimaryMetric, seed: int) -> str | None:
    shared = sorted(now.values.keys() & best.values.keys())
    if not shared:
        return None
    differences = [now.values[name] - best.values[name] for name in shared]
    level, change = (statistics.fmean(values) for values in ([best.values[name] for name in shared], differences))
    is_score = primary == "task_score"
    if (-change < MIN_SCORE_DROP) if is_score else (change < MIN_RELATIVE_RISE * abs(level)):
        return None  # the interval is the costly part
    if verdict(paired_bootstrap(differences, seed), differing(differences), higher_is_better=is_score) != "worse":
        return None
    return f"The held-out {primary} fell off from {level:.3g} to {level + change:.3g}."


def _value(sample: SampleScore, primary: PrimaryMetric) -> float | None:
    if primary == "task_score":
        return sample.task_score
    return sample.reverse_kl if primary == "reverse_kl" else sample.reference_nll
