"""How the rules look at a series: its beginning, its end, and whether the run has become better."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from opd_core.control.evidence import RunEvidence

MIN_POINTS = 10
"""Fewer steps are noise: a step's rollouts are a handful of prompts."""
SMALL_KL = 0.01
"""Nats a token: what two half-precision passes over the same weights already differ by. Below it there is nothing
left to learn, and no plateau to complain about."""
Points = Sequence[tuple[int, float]]


def beginning_and_end(points: Points) -> tuple[float, float] | None:
    """Means of the first and the last fifth; None for fewer than ten points."""
    if len(points) < MIN_POINTS:
        return None
    part = len(points) // 5
    values = [value for _, value in points]
    return statistics.fmean(values[:part]), statistics.fmean(values[-part:])


def end_mean(points: Points) -> float | None:
    """Mean of the last fifth; None for fewer than ten points."""
    ends = beginning_and_end(points)
    return None if ends is None else ends[1]


def primary_metric(evidence: RunEvidence) -> str | None:
    """What picks the best adapter, by the evaluations, else by the configuration."""
    named = [line["primary_metric"] for line in evidence.evals if line.get("primary_metric")]
    found = named[-1] if named else evidence.config.get("primary_metric")
    return None if found is None else str(found)


def primary_points(evidence: RunEvidence) -> list[tuple[int, float]]:
    """The primary metric over the evaluations."""
    name = primary_metric(evidence)
    return [] if name is None else evidence.eval_series(name)


def is_better(value: float, before: float, metric: str | None) -> bool:
    """Whether `value` is better than `before`: a score upwards, a divergence or an NLL downwards."""
    return value > before if metric == "task_score" else value < before


def has_improved(evidence: RunEvidence) -> bool:
    """Whether the newest evaluation is better than the one before training."""
    points = primary_points(evidence)
    return len(points) > 1 and is_better(points[-1][1], points[0][1], primary_metric(evidence))


def is_never_better(evidence: RunEvidence, evaluations: int) -> bool:
    """At least `evaluations` came after the baseline, and none was better than it."""
    points, name = primary_points(evidence), primary_metric(evidence)
    later = points[1:]
    return len(later) >= evaluations and not any(is_better(value, points[0][1], name) for _, value in later)


def method_of(evidence: RunEvidence) -> str:
    """The method the run trains with: of its evaluations when `auto` chose it, else of its configuration."""
    named = [line["method"] for line in evidence.evals if line.get("method")]
    return str(named[-1] if named else evidence.config.get("method") or "auto")
