"""Values to suggest: round figures derived from what the run used."""

from __future__ import annotations

from opd_core.control.evidence import RunEvidence


def learning_rate(evidence: RunEvidence) -> float:
    """The run's learning rate."""
    return float(evidence.config.get("learning_rate") or 1e-5)


def lowered_rate(evidence: RunEvidence, divisor: int) -> float:
    """The run's learning rate divided by `divisor`, two significant digits."""
    return float(f"{learning_rate(evidence) / divisor:.2g}")


def power_of_two_above(value: float) -> int:
    """The smallest power of two that is not below `value`, at least 16."""
    result = 16
    while result < value:
        result *= 2
    return result
